"""Convolutions of evaluation on a GPU, with all that follows them in one pass over memory.

cuDNN leaves bias, activation and residual to kernels of their own, which move more memory than most
convolutions of a candidate do. Here, in Triton, dense 1x1 convolutions in bfloat16, and 3x3 ones of
few channels, are matrix products over the taps of the kernel that finish what they computed before
they write it; behind other convolutions, bias, activation and residual are one pass. All tensors
are channels_last, sums are float32.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from nasc_evo.supernet.blocks import FoldedConv, channels_last

BLOCK = 4096
"""Values that a program works on, at least, where it finishes what another kernel wrote."""
ROWS = 64
"""Pixels that a program of a product works on."""
ALIGNED = 8
"""Channels are a multiple of it where a pixel begins at 16 bytes, as fast loads need."""
FEWEST_INPUTS = 16
"""Channels that a product needs."""
MOST_INPUTS = {1: 2**20, 3: 16}
"""Channels up to which a product was faster than cuDNN on an H100, by size of the kernel."""


def convolve(conv: FoldedConv, x: Tensor, plus: Tensor | None) -> Tensor:
    """Return `x` `[N, C, H, W]` convolved and activated, with `plus` added."""
    channels, inputs, size, _ = conv.weight.shape
    x = channels_last(x)
    y: Tensor
    aligned = x.dtype == torch.bfloat16 and inputs % ALIGNED == channels % ALIGNED == 0
    if aligned and FEWEST_INPUTS <= inputs <= MOST_INPUTS.get(size, 0) and conv.groups == 1:
        shape = (len(x), channels, *(-(-side // conv.stride) for side in x.shape[2:]))
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        _product(x, conv, None if plus is None else channels_last(plus), y)
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
    block_n = _power_of_two(channels, 16, 128)
    block_k = _power_of_two(inputs, 16, 64)
    columns = triton.cdiv(channels, block_n)
    weight = channels_last(conv.weight)
    with torch.cuda.device(x.device):
        _product_kernel[(triton.cdiv(rows, ROWS) * columns,)](
            *(x, weight, conv.bias, y if plus is None else plus, y),
            *(rows, columns, inputs // ALIGNED, channels // ALIGNED),
            *(*x.shape[2:], *y.shape[2:]),
            ALIGNED=ALIGNED,
            SIZE=size,
            STRIDE=conv.stride,
            PLUS=plus is not None,
            RELU=conv.relu,
            BLOCK_M=ROWS,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=4,
            num_stages=3,
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
    aligned_inputs,
    aligned_channels,
    height,
    width,
    out_height,
    out_width,
    ALIGNED: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    PLUS: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute some rows, a row an output pixel, of some channels."""
    inputs, channels = aligned_inputs * ALIGNED, aligned_channels * ALIGNED
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
