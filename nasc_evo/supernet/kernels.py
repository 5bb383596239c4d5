"""Batch norm with ReLU in Triton, for training on a GPU.

Blocks with depthwise convolutions are bound by memory traffic, and half of it is batch norm and
activation in separate steps. Here forward reads the convolution's output twice and writes once,
backward reads it and the gradient twice and writes once, which is what batch statistics need.
Tensors are channels_last, sums are float32. Launching these kernels from Python takes longer than
running them: they are for CUDA graphs (:mod:`nasc_evo.supernet.graphs`). Triton comes with torch's
CUDA builds.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nasc_evo.supernet.blocks import NORM_EPS, ConvNorm, add, convolve

PROGRAMS = 1056
"""Programs that share a reduction: 8 for each multiprocessor of an H100."""


def fused_norm_unit(x: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
    """Do what :func:`nasc_evo.supernet.blocks.batch_norm_unit` does, on a GPU."""
    y = convolve(x, conv)
    result: Tensor = NormActivation.apply(y, conv.gamma, conv.beta, conv.relu)
    return add(result, plus)


def _channel_block(channels: int, largest: int) -> int:
    """Return the largest power of two up to `largest` that divides `channels`, at least 8."""
    block = largest
    while block > 8 and channels % block:
        block //= 2
    return block


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class NormActivation(torch.autograd.Function):
    """Batch norm by the batch's own statistics and, where `relu`, a ReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, relu: bool) -> Tensor:
        """Return the normalised and activated `x` `[N, C, H, W]`."""
        x = _channels_last(x)
        channels = x.shape[1]
        rows = x.numel() // channels
        partial = _reduce(_statistics_kernel, (x,), rows, channels)
        affine = torch.empty(4, channels, device=x.device)
        _finish(_affine_kernel, (partial, gamma, beta, affine), rows, channels, EPS=NORM_EPS)
        out = torch.empty_like(x)
        _elementwise(_normalize_kernel, (x, out, affine), rows, channels, RELU=relu)
        ctx.save_for_backward(x, affine)
        ctx.relu = relu
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of `x`, `gamma` and `beta`."""
        x, affine = ctx.saved_tensors
        grad = _channels_last(grad)
        channels = x.shape[1]
        rows = x.numel() // channels
        partial = _reduce(_backward_sums_kernel, (grad, x, affine), rows, channels, RELU=ctx.relu)
        slopes = torch.empty(4, channels, device=x.device)
        _finish(_slopes_kernel, (partial, affine, slopes), rows, channels)
        out = torch.empty_like(x)
        arguments = (grad, x, out, affine, slopes)
        _elementwise(_backward_kernel, arguments, rows, channels, RELU=ctx.relu)
        return out, slopes[0], slopes[1], None


def _reduce(
    kernel: Any, tensors: tuple[Tensor, ...], rows: int, channels: int, **options: Any
) -> Tensor:
    """Return the two sums over rows that a kernel accumulates, in parts: `[2, programs, C]`."""
    block_c = _channel_block(channels, 64)
    block_m = 2048 // block_c
    blocks = channels // block_c
    programs = max(1, min(triton.cdiv(rows, 4 * block_m), PROGRAMS // blocks))
    partial = torch.empty(2, programs, channels, device=tensors[0].device)
    steps = triton.cdiv(triton.cdiv(rows, block_m), programs)
    kernel[(blocks, programs)](
        *tensors,
        partial,
        rows,
        channels,
        programs,
        steps,
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        **options,
    )
    return partial


def _finish(
    kernel: Any, tensors: tuple[Tensor, ...], rows: int, channels: int, **options: Any
) -> None:
    """Run a kernel that adds up the parts of `_reduce` and works on what they sum to."""
    block_c = 8
    programs = tensors[0].shape[1]
    block_m = min(256, triton.next_power_of_2(programs))
    grid = (channels // block_c,)
    kernel[grid](*tensors, rows, channels, programs, BLOCK_M=block_m, BLOCK_C=block_c, **options)


def _elementwise(
    kernel: Any, tensors: tuple[Tensor, ...], rows: int, channels: int, **options: Any
) -> None:
    block_c = _channel_block(channels, 64)
    block_m = 4096 // block_c
    grid = (channels // block_c, triton.cdiv(rows, block_m))
    kernel[grid](*tensors, rows, channels, BLOCK_M=block_m, BLOCK_C=block_c, **options)


@triton.jit
def _statistics_kernel(
    x_ptr,
    partial_ptr,
    rows,
    channels,
    programs,
    steps,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum `x` and `x^2` over rows."""
    program = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for step in range(steps):
        m = (step * programs + program) * BLOCK_M + tl.arange(0, BLOCK_M)
        at = m.to(tl.int64)[:, None] * channels + c[None, :]
        x = tl.load(x_ptr + at, mask=(m < rows)[:, None], other=0.0).to(tl.float32)
        first += x
        second += x * x
    tl.store(partial_ptr + program * channels + c, tl.sum(first, 0))
    tl.store(partial_ptr + (programs + program) * channels + c, tl.sum(second, 0))


@triton.jit
def _total(partial_ptr, channels, programs, c, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the sum of the parts `[programs, C]` at channels `c`."""
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, programs, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        at = m[:, None] * channels + c[None, :]
        total += tl.load(partial_ptr + at, mask=(m < programs)[:, None], other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _affine_kernel(
    partial_ptr,
    gamma_ptr,
    beta_ptr,
    affine_ptr,
    rows,
    channels,
    programs,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EPS: tl.constexpr,
):
    """Write scale, shift, mean and inverse standard deviation, `[4, C]`."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = _total(partial_ptr, channels, programs, c, BLOCK_M, BLOCK_C)
    second = _total(partial_ptr + programs * channels, channels, programs, c, BLOCK_M, BLOCK_C)
    mean = first / rows
    invstd = 1 / tl.sqrt(tl.maximum(second / rows - mean * mean, 0.0) + EPS)
    scale = tl.load(gamma_ptr + c) * invstd
    tl.store(affine_ptr + c, scale)
    tl.store(affine_ptr + channels + c, tl.load(beta_ptr + c) - mean * scale)
    tl.store(affine_ptr + 2 * channels + c, mean)
    tl.store(affine_ptr + 3 * channels + c, invstd)


@triton.jit
def _slopes_kernel(
    partial_ptr,
    affine_ptr,
    slopes_ptr,
    rows,
    channels,
    programs,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the gradients of gamma and beta, and slope and offset of that of `x`, `[4, C]`.

    With `g` the gradient before the ReLU and `xhat` the normalised `x`, the gradient of `x` is
    `scale (g - mean(g) - xhat mean(g xhat))`, here written as `scale g + slope x + offset`.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = _total(partial_ptr, channels, programs, c, BLOCK_M, BLOCK_C)
    product = _total(partial_ptr + programs * channels, channels, programs, c, BLOCK_M, BLOCK_C)
    scale = tl.load(affine_ptr + c)
    mean = tl.load(affine_ptr + 2 * channels + c)
    invstd = tl.load(affine_ptr + 3 * channels + c)
    grad_gamma = (product - mean * total) * invstd
    slope = -scale * invstd * grad_gamma / rows
    tl.store(slopes_ptr + c, grad_gamma)
    tl.store(slopes_ptr + channels + c, total)
    tl.store(slopes_ptr + 2 * channels + c, slope)
    tl.store(slopes_ptr + 3 * channels + c, -scale * total / rows - slope * mean)


@triton.jit
def _normalize_kernel(
    x_ptr,
    out_ptr,
    affine_ptr,
    rows,
    channels,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RELU: tl.constexpr,
):
    """Write `relu(scale x + shift)`."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    at = m.to(tl.int64)[:, None] * channels + c[None, :]
    mask = (m < rows)[:, None]
    x = tl.load(x_ptr + at, mask=mask).to(tl.float32)
    scale = tl.load(affine_ptr + c)[None, :]
    y = x * scale + tl.load(affine_ptr + channels + c)[None, :]
    if RELU:
        y = tl.maximum(y, 0.0)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_sums_kernel(
    grad_ptr,
    x_ptr,
    affine_ptr,
    partial_ptr,
    rows,
    channels,
    programs,
    steps,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RELU: tl.constexpr,
):
    """Sum `g` and `g x` over rows, where `g` is the gradient before the ReLU."""
    program = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    scale = tl.load(affine_ptr + c)[None, :]
    shift = tl.load(affine_ptr + channels + c)[None, :]
    first = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for step in range(steps):
        m = (step * programs + program) * BLOCK_M + tl.arange(0, BLOCK_M)
        at = m.to(tl.int64)[:, None] * channels + c[None, :]
        mask = (m < rows)[:, None]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            grad = tl.where(x * scale + shift > 0, grad, 0.0)
        first += grad
        second += grad * x
    tl.store(partial_ptr + program * channels + c, tl.sum(first, 0))
    tl.store(partial_ptr + (programs + program) * channels + c, tl.sum(second, 0))


@triton.jit
def _backward_kernel(
    grad_ptr,
    x_ptr,
    out_ptr,
    affine_ptr,
    slopes_ptr,
    rows,
    channels,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RELU: tl.constexpr,
):
    """Write `scale g + slope x + offset`."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    at = m.to(tl.int64)[:, None] * channels + c[None, :]
    mask = (m < rows)[:, None]
    scale = tl.load(affine_ptr + c)[None, :]
    shift = tl.load(affine_ptr + channels + c)[None, :]
    x = tl.load(x_ptr + at, mask=mask).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=mask).to(tl.float32)
    if RELU:
        grad = tl.where(x * scale + shift > 0, grad, 0.0)
    slope = tl.load(slopes_ptr + 2 * channels + c)[None, :]
    out = scale * grad + slope * x + tl.load(slopes_ptr + 3 * channels + c)[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)
