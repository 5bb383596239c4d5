"""What follows a convolution on a GPU, in one pass over memory, in Triton.

cuDNN leaves bias, activation and residual to kernels of their own, which move more memory than most
convolutions of a candidate do: half of the time of its evaluation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nasc_evo.supernet.blocks import channels_last

BLOCK = 4096
"""Values that a program works on, at least."""


def finish(y: Tensor, bias: Tensor, plus: Tensor | None, relu: bool) -> Tensor:
    """Return `y` `[N, C, H, W]` with bias and `plus` added, activated where `relu`.

    In place, and nothing is copied, where they are channels_last.
    """
    y = channels_last(y)
    channels = y.shape[1]
    rows = y.numel() // channels
    block_c = triton.next_power_of_2(channels)
    block_m = max(1, BLOCK // block_c)
    grid = (triton.cdiv(rows, block_m),)
    other = y if plus is None else channels_last(plus)
    with torch.cuda.device(y.device):
        _finish_kernel[grid](
            *(y, bias, other, rows, channels),
            PLUS=plus is not None,
            RELU=relu,
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
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32) + bias[None, :]
    if PLUS:
        y += tl.load(plus_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        y = tl.where(y < 0.0, 0.0, y)  # NaN stays
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
