"""From stored uint8 images to the normalised tensors that networks see."""

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
    mean = torch.tensor(dataset.mean, device=x.device)[:, None, None]
    std = torch.tensor(dataset.std, device=x.device)[:, None, None]
    return ((x - mean) / std).to(dtype).contiguous(memory_format=torch.channels_last)


def to_input(
    x: NDArray[np.uint8], dataset: InputFormat, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return stored images as network inputs `[N, 3, geometry, geometry]`."""
    return normalize(pad_and_resize(to_uint8(x, device), dataset), dataset, dtype)
