"""Convolutions of evaluation on a GPU, with all that follows them in one pass over memory.

cuDNN leaves bias, activation and residual to kernels of their own, which move more memory than most
convolutions of a candidate do. Here, in Triton, dense convolutions in bfloat16, 1x1 and 3x3, are
matrix products over the taps of the kernel that finish what they computed before they write it;
behind other convolutions, bias, activation and residual are one pass. All tensors are
channels_last, sums are float32.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from nasc_evo.supernet.blocks import FoldedConv, channels_last

BLOCK = 4096
"""Values that a program works on, at least, where it finishes what another kernel wrote."""
DEPTHWISE = True
DW = (64, 32, 4)
PR = (128, 128, 64, 3)
PRODUCT_SIZES = (1, 3)
MIN_INPUTS = 16
"""Channels that a product needs."""


def convolve(conv: FoldedConv, x: Tensor, plus: Tensor | None) -> Tensor:
    """Return `x` `[N, C, H, W]` convolved and activated, with `plus` added."""
    channels, inputs, size, _ = conv.weight.shape
    product = x.dtype == torch.bfloat16 and size in PRODUCT_SIZES and inputs >= MIN_INPUTS
    x = channels_last(x)
    y: Tensor
    if product and conv.groups == 1:
        shape = (len(x), channels, *(-(-side // conv.stride) for side in x.shape[2:]))
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        _product(x, conv, None if plus is None else channels_last(plus), y)
        return y
    if DEPTHWISE and inputs == 1 and x.dtype == torch.bfloat16 and channels == conv.groups:
        shape = (len(x), channels, *(-(-side // conv.stride) for side in x.shape[2:]))
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        _depthwise(x, conv, None if plus is None else channels_last(plus), y)
        return y
    padding = conv.weight.shape[-1] // 2
    y = F.conv2d(x, conv.weight, None, conv.stride, padding, 1, conv.groups)
    return _finish(channels_last(y), conv, None if plus is None else channels_last(plus))


def _power_of_two(value: int, least: int, most: int) -> int:
    """Return the smallest power of two that is no less than a value, within bounds."""
    return int(max(least, min(most, triton.next_power_of_2(value))))


def _product(x: Tensor, conv: FoldedConv, plus: Tensor | None, y: Tensor) -> None:
    """Write a dense convolution of `x` into `y`."""
    channels, inputs, size, _ = conv.weight.shape
    rows = y.numel() // channels
    block_m, most_n, most_k, stages = PR
    block_n = _power_of_two(channels, 16, most_n)
    block_k = _power_of_two(inputs, 16, most_k)
    columns = triton.cdiv(channels, block_n)
    weight = channels_last(conv.weight)
    with torch.cuda.device(x.device):
        _product_kernel[(triton.cdiv(rows, block_m) * columns,)](
            *(x, weight, conv.bias, y if plus is None else plus, y),
            *(rows, columns, inputs, channels, *x.shape[2:], *y.shape[2:]),
            SIZE=size,
            STRIDE=conv.stride,
            PLUS=plus is not None,
            RELU=conv.relu,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=4 if block_n * block_m < 128 * 128 else 8,
            num_stages=stages,
        )


@triton.jit
def _finished(y, bias, plus_ptr, at, inside, PLUS: tl.constexpr, RELU: tl.constexpr):
    """Return float32 values with bias, and what lies at their places in another tensor, added."""
    y += bias[None, :]
    if PLUS:
        y += tl.load(plus_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        y = tl.where(y < 0.0, 0.0, y)  # NaN stays
    return y


@triton.jit
def _product_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    plus_ptr,
    y_ptr,
    rows,
    columns,
    inputs,
    channels,
    height,
    width,
    out_height,
    out_width,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    PLUS: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute some rows, a row an output pixel, of some channels."""
    block = tl.program_id(0)
    m = (block // columns).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (block % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    image = m // (out_height * out_width)
    pixel = (m % (out_height * out_width)).to(tl.int32)
    top = pixel // out_width * STRIDE - SIZE // 2
    left = pixel % out_width * STRIDE - SIZE // 2
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for tap in tl.static_range(SIZE * SIZE):
        i = top + tap // SIZE
        j = left + tap % SIZE
        here = (m < rows) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        x_at = x_ptr + ((image * height + i) * width + j)[:, None] * inputs + k[None, :]
        weight_at = weight_ptr + (c[None, :] * (SIZE * SIZE) + tap) * inputs + k[:, None]
        for start in range(0, inputs, BLOCK_K):
            known = k < inputs - start
            x = tl.load(x_at + start, mask=here[:, None] & known[None, :], other=0.0)
            weight = tl.load(
                weight_at + start, mask=known[:, None] & (c < channels)[None, :], other=0.0
            )
            total = tl.dot(x, weight, total)
    inside = (m[:, None] < rows) & (c[None, :] < channels)
    at = m[:, None] * channels + c[None, :]
    bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    y = _finished(total, bias, plus_ptr, at, inside, PLUS, RELU)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def _depthwise(x: Tensor, conv: FoldedConv, plus: Tensor | None, y: Tensor) -> None:
    """Write a depthwise convolution of `x` into `y`."""
    channels, _, size, _ = conv.weight.shape
    rows = y.numel() // channels
    block_m, most_c, warps = DW
    block_c = _power_of_two(channels, 16, most_c)
    columns = triton.cdiv(channels, block_c)
    with torch.cuda.device(x.device):
        _depthwise_kernel[(triton.cdiv(rows, block_m) * columns,)](
            *(x, conv.weight.contiguous(), conv.bias, y if plus is None else plus, y),
            *(rows, columns, channels, *x.shape[2:], *y.shape[2:]),
            SIZE=size,
            STRIDE=conv.stride,
            PLUS=plus is not None,
            RELU=conv.relu,
            BLOCK_M=block_m,
            BLOCK_C=block_c,
            num_warps=warps,
        )


@triton.jit
def _depthwise_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    plus_ptr,
    y_ptr,
    rows,
    columns,
    channels,
    height,
    width,
    out_height,
    out_width,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    PLUS: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute some rows, a row an output pixel, of some channels."""
    block = tl.program_id(0)
    m = (block // columns).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = (block % columns) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = m // (out_height * out_width)
    pixel = (m % (out_height * out_width)).to(tl.int32)
    top = pixel // out_width * STRIDE - SIZE // 2
    left = pixel % out_width * STRIDE - SIZE // 2
    known = c < channels
    total = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    first = x_ptr + ((image * height + top) * width + left)[:, None] * channels + c[None, :]
    for tap in tl.static_range(SIZE * SIZE):
        i = top + tap // SIZE
        j = left + tap % SIZE
        here = (m < rows) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        step = (tap // SIZE * width + tap % SIZE) * channels
        x = tl.load(first + step, mask=here[:, None] & known[None, :], other=0.0)
        weight = tl.load(weight_ptr + c * (SIZE * SIZE) + tap, mask=known, other=0.0)
        total += x.to(tl.float32) * weight.to(tl.float32)[None, :]
    inside = (m[:, None] < rows) & known[None, :]
    at = m[:, None] * channels + c[None, :]
    bias = tl.load(bias_ptr + c, mask=known, other=0.0).to(tl.float32)
    y = _finished(total, bias, plus_ptr, at, inside, PLUS, RELU)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def _finish(y: Tensor, conv: FoldedConv, plus: Tensor | None) -> Tensor:
    """Add bias and `plus` to `y`, activate it, all in place."""
    channels = y.shape[1]
    rows = y.numel() // channels
    block_c = triton.next_power_of_2(channels)
    block_m = max(1, BLOCK // block_c)
    with torch.cuda.device(y.device):
        _finish_kernel[(triton.cdiv(rows, block_m),)](
            *(y, conv.bias, y if plus is None else plus, rows, channels),
            PLUS=plus is not None,
            RELU=conv.relu,
            BLOCK_M=block_m,
            BLOCK_C=block_c,
        )
    return y


@triton.jit
def _finish_kernel(
    y_ptr,
    bias_ptr,
    plus_ptr,
    rows,
    channels,
    PLUS: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Finish some rows of `y`, a row a pixel."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_C)
    inside = (m[:, None] < rows) & (c[None, :] < channels)
    at = m[:, None] * channels + c[None, :]
    bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = _finished(y, bias, plus_ptr, at, inside, PLUS, RELU)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
