"""What a tensor goes through at the cut: channel mask and quantiser.

Training, evaluation and deployment use the same functions, so that what a search asks for is
exactly what the supernet has seen and what is sent in the end.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def quantize(x: Tensor, bits: int) -> Tensor:
    """Return `x` after the uniform quantiser, as the receiving side reconstructs it.

    Each channel of each image is quantised between its minimum and maximum, which are sent as two
    fp16 numbers. 16 bits send half-precision values and 32 bits the values themselves. What is
    beyond the range of half precision is sent as its end.

    Args:
        x: Tensor at the cut, `[N, C, H, W]`.
        bits: Width of a value on the link.

    Returns:
        The reconstruction, of the shape and type of `x`; gradients pass straight through.
    """
    if bits >= 32:
        return x
    with torch.no_grad():
        values = x.detach().float()
        if bits == 16:
            sent = to_half(values)
        else:
            low = to_half(-_largest(-values))
            high = to_half(_largest(values))
            sent = reconstruct(encode(values, low, high, bits), low, high, bits)
        sent = sent.to(x.dtype)
    return x + (sent - x).detach() if x.requires_grad else sent


def encode(values: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Return the whole numbers, as floats, that stand for values between `low` and `high`."""
    levels = 2**bits - 1
    step = (high - low) / levels
    return ((values - low) / step.clamp_min(1e-12)).round_().clamp_(0, levels)


def reconstruct(codes: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Return, in place of codes of :func:`encode`, the values that they stand for."""
    return codes.mul_((high - low) / (2**bits - 1)).add_(low)


def _largest(values: Tensor) -> Tensor:
    """Return the largest value of each channel of each image, `[N, C, 1, 1]`.

    On a CPU by pooling, which serves any number of channels well in channels_last.
    """
    if values.device.type == "cpu":
        return F.max_pool2d(values, list(values.shape[2:]))
    return values.amax(dim=(2, 3), keepdim=True)


def to_half(values: Tensor) -> Tensor:
    """Return float32 values as half precision holds them, large ones as its largest number."""
    largest = torch.finfo(torch.float16).max
    return values.clamp(-largest, largest).half().float()


def transmit(x: Tensor, kept: Tensor, bits: int) -> Tensor:
    """Return what the tail sees of the tensor at the cut: quantised, unsent channels zero.

    Args:
        x: Tensor at the cut, `[N, C, H, W]`.
        kept: Which channels are sent, booleans `[C]`.
        bits: Width of a value on the link.
    """
    return quantize(x, bits) * kept.to(x.dtype)[:, None, None]


def channel_mask(mask: str, channels: int) -> Tensor:
    """Return booleans `[channels]` of a mask string with one character a channel group."""
    groups = torch.tensor([character == "1" for character in mask])
    return groups.repeat_interleave(channels // len(mask))
