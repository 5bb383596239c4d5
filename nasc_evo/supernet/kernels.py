"""What trains on a GPU in Triton: batch norm with ReLU, and the ways into and out of cells.

Blocks with depthwise convolutions are bound by memory traffic, and half of it is batch norm and
activation in separate steps. Here forward reads the convolution's output twice and writes once,
backward reads it and the gradient twice and writes once, which is what batch statistics need.
Tensors are channels_last, sums are float32. Launching these kernels from Python takes longer than
running them: they are for CUDA graphs (:mod:`nasc_evo.supernet.graphs`). Triton comes with torch's
CUDA builds.

:func:`take` and :func:`mix` are those of :mod:`nasc_evo.supernet.fair_turn`, each in one pass over
memory, forward and backward.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nasc_evo.space.nasbench201 import CONV_1X1, CONV_3X3, POOL, SKIP
from nasc_evo.supernet.blocks import NORM_EPS, ConvNorm, add, channels_last, convolve
from nasc_evo.supernet.fair_turn import NETWORKS, Branches, Turn

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


class NormActivation(torch.autograd.Function):
    """Batch norm by the batch's own statistics and, where `relu`, a ReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, relu: bool) -> Tensor:
        """Return the normalised and activated `x` `[N, C, H, W]`."""
        x = channels_last(x)
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
        grad = channels_last(grad)
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


ROW_BLOCK = 4096
"""Values of a row that a program works on."""
MOST_EDGES = 3
"""Edges that end in the last node of a cell."""


def take(x: Tensor, turn: Turn) -> Branches:
    """Do what :func:`nasc_evo.supernet.fair_turn.take` does."""
    branches: Branches = Take.apply(x, turn.network_of, turn.op_of)
    return branches


def mix(edges: Sequence[Branches], turns: Sequence[Turn]) -> Tensor:
    """Do what :func:`nasc_evo.supernet.fair_turn.mix` does."""
    node: Tensor = Mix.apply(turns, *(branch for branches in edges for branch in branches))
    return node


def _row_grid(rows: int, length: int) -> tuple[int, int]:
    return rows, triton.cdiv(length, ROW_BLOCK)


class Take(torch.autograd.Function):
    """The rows of the networks that have each operation, after a ReLU before convolutions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network_of: Tensor, op_of: Tensor) -> tuple[Tensor, ...]:
        """Return a row for each operation but none, `[1, values]` of `x` `[5, values]`."""
        length = x.shape[1]
        out = x.new_empty(NETWORKS - SKIP, length)
        _take_kernel[_row_grid(len(out), length)](
            x, out, network_of, length, BLOCK=ROW_BLOCK, **_OPS
        )
        ctx.save_for_backward(x, op_of)
        return tuple(out[i : i + 1] for i in range(len(out)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of `x`."""
        x, op_of = ctx.saved_tensors
        length = x.shape[1]
        out = torch.empty_like(x)
        rows = [grad.contiguous() for grad in grads]
        _take_backward_kernel[_row_grid(NETWORKS, length)](
            *rows, x, out, op_of, length, BLOCK=ROW_BLOCK, **_OPS
        )
        return out, None, None


class Mix(torch.autograd.Function):
    """The weighted sum at a node of what the edges of each network bring."""

    @staticmethod
    def forward(ctx: Any, turns: Sequence[Turn], *branches: Tensor) -> Tensor:
        """Return `[5, values]` of four rows `[1, values]` an edge."""
        rows = [row.contiguous() for row in branches]
        length = rows[0].shape[1]
        out = rows[0].new_empty(NETWORKS, length)
        spare = MOST_EDGES - len(turns)
        _mix_kernel[_row_grid(NETWORKS, length)](
            *rows,
            *(rows[:4] * spare),
            *(part for turn in turns for part in (turn.op_of, turn.share)),
            *((turns[0].op_of, turns[0].share) * spare),
            out,
            length,
            EDGES=len(turns),
            BLOCK=ROW_BLOCK,
            **_OPS,
        )
        ctx.turns = turns
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, *tuple[Tensor, ...]]:
        """Return the gradients of the rows."""
        grad = grad.contiguous()
        length = grad.shape[1]
        grads: list[Tensor] = []
        for turn in ctx.turns:
            out = grad.new_empty(NETWORKS - SKIP, length)
            _mix_backward_kernel[_row_grid(len(out), length)](
                grad, out, turn.network_of, turn.share, length, BLOCK=ROW_BLOCK, SKIP=SKIP
            )
            grads += [out[i : i + 1] for i in range(len(out))]
        return None, *grads


_OPS = {"SKIP": SKIP, "CONV_1X1": CONV_1X1, "CONV_3X3": CONV_3X3, "POOL": POOL}


@triton.jit
def _take_kernel(
    x_ptr,
    out_ptr,
    network_ptr,
    length,
    BLOCK: tl.constexpr,
    SKIP: tl.constexpr,
    CONV_1X1: tl.constexpr,
    CONV_3X3: tl.constexpr,
    POOL: tl.constexpr,
):
    """Write a row for each operation from `SKIP` on."""
    row = tl.program_id(0)
    op = row + SKIP
    network = tl.load(network_ptr + op)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < length
    x = tl.load(x_ptr + network * length + at, mask=mask, other=0.0)
    convolved = (op == CONV_1X1) | (op == CONV_3X3)
    x = tl.where(convolved & (x < 0), tl.zeros_like(x), x)
    tl.store(out_ptr + row * length + at, x, mask=mask)


@triton.jit
def _load_if(condition, ptr, at, length):
    """Return values of a row in float32, zeros where the condition does not hold."""
    mask = at < tl.where(condition, length, 0)
    return tl.load(ptr + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _chosen(
    skip_ptr,
    first_ptr,
    second_ptr,
    pool_ptr,
    op,
    at,
    length,
    SKIP: tl.constexpr,
    CONV_1X1: tl.constexpr,
    CONV_3X3: tl.constexpr,
    POOL: tl.constexpr,
):
    """Return the row of an operation, zeros for none."""
    y = _load_if(op == SKIP, skip_ptr, at, length)
    y += _load_if(op == CONV_1X1, first_ptr, at, length)
    y += _load_if(op == CONV_3X3, second_ptr, at, length)
    return y + _load_if(op == POOL, pool_ptr, at, length)


@triton.jit
def _take_backward_kernel(
    skip_ptr,
    first_ptr,
    second_ptr,
    pool_ptr,
    x_ptr,
    out_ptr,
    op_ptr,
    length,
    BLOCK: tl.constexpr,
    SKIP: tl.constexpr,
    CONV_1X1: tl.constexpr,
    CONV_3X3: tl.constexpr,
    POOL: tl.constexpr,
):
    """Write the gradient of each network: that of the row that its operation was given."""
    network = tl.program_id(0).to(tl.int64)
    op = tl.load(op_ptr + network)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < length
    grad = _chosen(
        skip_ptr, first_ptr, second_ptr, pool_ptr, op, at, length, SKIP, CONV_1X1, CONV_3X3, POOL
    )
    convolved = (op == CONV_1X1) | (op == CONV_3X3)
    x = _load_if(convolved, x_ptr + network * length, at, length)
    grad = tl.where(convolved & (x <= 0), 0.0, grad)
    tl.store(out_ptr + network * length + at, grad.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _mix_kernel(
    skip_0,
    first_0,
    second_0,
    pool_0,
    skip_1,
    first_1,
    second_1,
    pool_1,
    skip_2,
    first_2,
    second_2,
    pool_2,
    op_0,
    share_0,
    op_1,
    share_1,
    op_2,
    share_2,
    out_ptr,
    length,
    EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
    SKIP: tl.constexpr,
    CONV_1X1: tl.constexpr,
    CONV_3X3: tl.constexpr,
    POOL: tl.constexpr,
):
    """Write the node of each network."""
    network = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < length
    op = tl.load(op_0 + network)
    share = tl.load(share_0 + network).to(tl.float32)
    total = share * _chosen(
        skip_0, first_0, second_0, pool_0, op, at, length, SKIP, CONV_1X1, CONV_3X3, POOL
    )
    if EDGES > 1:
        op = tl.load(op_1 + network)
        share = tl.load(share_1 + network).to(tl.float32)
        total += share * _chosen(
            skip_1, first_1, second_1, pool_1, op, at, length, SKIP, CONV_1X1, CONV_3X3, POOL
        )
    if EDGES > 2:
        op = tl.load(op_2 + network)
        share = tl.load(share_2 + network).to(tl.float32)
        total += share * _chosen(
            skip_2, first_2, second_2, pool_2, op, at, length, SKIP, CONV_1X1, CONV_3X3, POOL
        )
    tl.store(out_ptr + network * length + at, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _mix_backward_kernel(
    grad_ptr, out_ptr, network_ptr, share_ptr, length, BLOCK: tl.constexpr, SKIP: tl.constexpr
):
    """Write the gradient of what each operation from `SKIP` on brought."""
    row = tl.program_id(0)
    network = tl.load(network_ptr + row + SKIP)
    share = tl.load(share_ptr + network).to(tl.float32)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < length
    grad = tl.load(grad_ptr + network * length + at, mask=mask).to(tl.float32)
    tl.store(out_ptr + row * length + at, (share * grad).to(out_ptr.dtype.element_ty), mask=mask)
