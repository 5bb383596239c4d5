"""From stored uint8 images to the normalised tensors that networks see."""

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class InputFormat(Protocol):
    """How stored images become inputs; every :class:`nasc_evo.data.ImageDataset` says so.

    Attributes:
        geometry: Side of an input in pixels.
        padding: Zero pixels added on each side first.
        mean: Mean of the pixels in 0..1, a channel.
        std: Their standard deviation.
    """

    geometry: int
    padding: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def to_uint8(x: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return stored images `[N, H, W, C]` as a uint8 tensor `[N, C, H, W]` on a device."""
    return torch.tensor(x).to(device).permute(0, 3, 1, 2)


def pad_and_resize(x: Tensor, dataset: InputFormat) -> Tensor:
    """Return float images in 0..1, `[N, 3, geometry, geometry]`, of uint8 `[N, C, H, W]`."""
    images = F.pad(x, (dataset.padding,) * 4).float() / 255
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    size = (dataset.geometry, dataset.geometry)
    if images.shape[2:] != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return images


def normalize(x: Tensor, dataset: InputFormat, dtype: torch.dtype) -> Tensor:
    """Return images in 0..1 normalised by the data set's mean and deviation, channels last."""
    mean, std = (_of_channels(values, x.device) for values in (dataset.mean, dataset.std))
    return ((x - mean) / std).to(dtype).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _of_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a value a channel, `[C, 1, 1]`; kept, since a copy to a GPU waits for its work."""
    return torch.tensor(values, device=device)[:, None, None]


def prepare(x: Tensor, dataset: InputFormat, dtype: torch.dtype) -> Tensor:
    """Return uint8 images `[N, C, H, W]` as network inputs `[N, 3, geometry, geometry]`."""
    return normalize(pad_and_resize(x, dataset), dataset, dtype)


def to_input(
    x: NDArray[np.uint8], dataset: InputFormat, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return stored images `[N, H, W, C]` as network inputs on a device."""
    return prepare(to_uint8(x, device), dataset, dtype)
