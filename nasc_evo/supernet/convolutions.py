"""Convolutions of evaluation on a GPU, with all that follows them in one pass over memory.

cuDNN leaves bias, activation and residual to kernels of their own, which move more memory than most
convolutions of a candidate do. Here, in Triton, dense 1x1 convolutions in bfloat16, and 3x3 ones of
few channels, are matrix products that finish what they computed before they write it: where a
pixel has few inputs, a program holds all of them and computes all channels (1x1, stride 1); else it
adds up inputs, tap by tap. Bias and ReLU behind a depthwise convolution are left to the 1x1 one
that reads them; behind others bias, activation and residual are one pass. All tensors are
channels_last, sums are float32.

Sizes of blocks were chosen among 14 to 30 for each of 37 convolutions of both spaces on an H100.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from nasc_evo.supernet.blocks import FoldedConv, channels_last

BLOCK = 4096
"""Values that a program works on, at least, where it finishes what another kernel wrote."""
ALIGNED = 8
"""Channels are a multiple of it where a pixel begins at 16 bytes, as fast loads need."""
FEWEST_INPUTS = 16
"""Channels that a product needs."""
MOST_INPUTS = {1: 2**20, 3: 16}
"""Channels up to which a product was faster than cuDNN on an H100, by size of the kernel."""
MOST_HELD = 64
"""Inputs of a pixel up to which a program holds all of them."""
HELD_PIXELS = 64
"""Pixels that such a program works on."""
NARROW = 64
"""Channels up to which a program that adds up inputs works on more pixels and fewer inputs."""


def is_product(conv: FoldedConv) -> bool:
    """Return whether a convolution is computed as a matrix product here."""
    channels, inputs, size, _ = conv.weight.shape
    aligned = conv.weight.dtype == torch.bfloat16 and inputs % ALIGNED == channels % ALIGNED == 0
    return aligned and FEWEST_INPUTS <= inputs <= MOST_INPUTS.get(size, 0) and conv.groups == 1


def left_to_readers(convs: Sequence[FoldedConv]) -> list[FoldedConv]:
    """Return convolutions in a row, with bias and ReLU of depthwise ones left to what reads them.

    What a 1x1 product reads is rounded as if it had been written first: nothing changes but time.
    """
    found = list(convs)
    for index, (conv, behind) in enumerate(pairwise(convs)):
        pointwise = behind.weight.shape[-1] == 1 and is_product(behind)
        if conv.groups > 1 and conv.relu and pointwise:
            found[index] = found[index]._replace(finished=False)
            found[index + 1] = behind._replace(missing=conv.bias)
    return found


def convolve(conv: FoldedConv, x: Tensor, plus: Tensor | None) -> Tensor:
    """Return `x` `[N, C, H, W]` convolved and activated, with `plus` added."""
    x = channels_last(x)
    plus = None if plus is None else channels_last(plus)
    with _current(x.device):
        if is_product(conv):
            return _product(x, conv, plus)
        padding = conv.weight.shape[-1] // 2
        y = F.conv2d(x, conv.weight, None, conv.stride, padding, 1, conv.groups)
        return _finish(channels_last(y), conv, plus) if conv.finished else y


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Return what makes a device the current one, on which Triton launches, if it is not."""
    current = device.index == torch.cuda.current_device()
    return nullcontext() if current else torch.cuda.device(device)


def _power_of_two(value: int, least: int, most: int) -> int:
    """Return the smallest power of two that is no less than a value, within bounds."""
    return int(max(least, min(most, triton.next_power_of_2(value))))


def _product(x: Tensor, conv: FoldedConv, plus: Tensor | None) -> Tensor:
    """Return a dense convolution of `x`, with what follows it and what `x` lacks."""
    channels, inputs, size, _ = conv.weight.shape
    shape = (len(x), channels, *(-(-side // conv.stride) for side in x.shape[2:]))
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows = y.numel() // channels
    missing = conv.bias if conv.missing is None else conv.missing
    tensors = x, channels_last(conv.weight), conv.bias, y if plus is None else plus, missing, y
    sizes = rows, inputs // ALIGNED, channels // ALIGNED
    options = {
        "ALIGNED": ALIGNED,
        "MISSING": conv.missing is not None,
        "PLUS": plus is not None,
        "RELU": conv.relu,
    }
    if size == conv.stride == 1 and inputs <= MOST_HELD:
        block_n, block_k = _power_of_two(channels, 16, 64), _power_of_two(inputs, 16, MOST_HELD)
        options |= {"BLOCK_M": HELD_PIXELS, "BLOCK_N": block_n, "BLOCK_K": block_k}
        _held_kernel[(triton.cdiv(rows, HELD_PIXELS),)](*tensors, *sizes, **options, num_warps=4)
        return y
    if size > 1:
        block_m, most_k, warps, stages = 256, 64, 4, 2
    elif channels <= NARROW:
        block_m, most_k, warps, stages = 128, 32, 8, 4
    else:
        block_m, most_k, warps, stages = 64, 64, 4, 3
    block_n, block_k = _power_of_two(channels, 16, 128), _power_of_two(inputs, 16, most_k)
    columns = triton.cdiv(channels, block_n)
    options |= {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    _summed_kernel[(triton.cdiv(rows, block_m) * columns,)](
        *(*tensors, *sizes, columns, *x.shape[2:], *y.shape[2:]),
        **options,
        SIZE=size,
        STRIDE=conv.stride,
        num_warps=warps,
        num_stages=stages,
    )
    return y


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
def _completed(x, missing_ptr, at, known, MISSING: tl.constexpr):
    """Return inputs with the bias and the ReLU that they lack, rounded as in memory."""
    if MISSING:
        missing = tl.load(missing_ptr + at, mask=known, other=0.0).to(tl.float32)
        values = x.to(tl.float32) + missing[None, :]
        x = tl.where(values < 0.0, 0.0, values).to(x.dtype)
    return x


@triton.jit
def _held_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    plus_ptr,
    missing_ptr,
    y_ptr,
    rows,
    aligned_inputs,
    aligned_channels,
    ALIGNED: tl.constexpr,
    MISSING: tl.constexpr,
    PLUS: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute some rows of a 1x1 convolution of stride 1, a row a pixel, from inputs held."""
    inputs, channels = aligned_inputs * ALIGNED, aligned_channels * ALIGNED
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    known = k < inputs
    here = m < rows
    x = tl.load(x_ptr + m[:, None] * inputs + k[None, :], here[:, None] & known[None, :], other=0.0)
    x = _completed(x, missing_ptr, k, known, MISSING)
    for start in range(0, channels, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        weight_at = weight_ptr + c[None, :] * inputs + k[:, None]
        weight = tl.load(weight_at, mask=known[:, None] & (c < channels)[None, :], other=0.0)
        inside = here[:, None] & (c < channels)[None, :]
        at = m[:, None] * channels + c[None, :]
        bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
        y = _finished(tl.dot(x, weight), bias, plus_ptr, at, inside, PLUS, RELU)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _summed_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    plus_ptr,
    missing_ptr,
    y_ptr,
    rows,
    aligned_inputs,
    aligned_channels,
    columns,
    height,
    width,
    out_height,
    out_width,
    ALIGNED: tl.constexpr,
    MISSING: tl.constexpr,
    PLUS: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """Compute some rows, a row an output pixel, of some channels, summing over taps and inputs."""
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
            x = _completed(x, missing_ptr, start + k, known, MISSING)
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
