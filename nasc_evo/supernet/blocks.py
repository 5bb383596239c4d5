"""Blocks of a supernet, independent of how batch norm gets its statistics.

A block runs its convolutions through a *unit*, a function `unit(x, conv, plus=None) -> y` for
convolution, batch norm, activation and the addition of another tensor. One description of a block
thus serves training, calibration and evaluation:

- :func:`batch_norm_unit` normalises by the statistics of the batch (training);
- :class:`Calibration` does the same and keeps each convolution with its norm folded in;
- :class:`Folded` replays those folded convolutions on other images;
- :class:`Normed` does the same from the norms alone, for few images.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from shutil import which
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-5
BFLOAT16_CAPABILITY = (8, 0)
"""Compute capability of an NVIDIA GPU, at least, that computes in bfloat16."""


class ConvNorm(NamedTuple):
    """A convolution without bias and the batch norm after it.

    Attributes:
        weight: `[C_out, C_in / groups, k, k]`.
        gamma: Scale of the norm, `[C_out]`.
        beta: Shift of the norm, `[C_out]`.
        stride: Step of the convolution.
        groups: Groups of the convolution.
        relu: Whether a ReLU follows.
    """

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    stride: int = 1
    groups: int = 1
    relu: bool = True


class Unit(Protocol):
    """How convolutions are normalised."""

    def __call__(self, x: Tensor, conv: ConvNorm, plus: Tensor | None = None, /) -> Tensor:
        """Convolve `x` `[N, C, H, W]`, normalise, activate; add `plus` where `conv.relu` is off."""


class Block(Protocol):
    """One block of a candidate network."""

    def __call__(self, x: Tensor, unit: Unit) -> Tensor:
        """Run the block on `x` `[N, C, H, W]`."""


def convolve(x: Tensor, conv: ConvNorm) -> Tensor:
    """Convolve with 'same' padding for odd kernels; weights take the type of `x`."""
    padding = conv.weight.shape[-1] // 2
    weight = conv.weight.to(x.dtype)
    return F.conv2d(x, weight, None, conv.stride, padding, 1, conv.groups)


def average_pool(x: Tensor) -> Tensor:
    """Average 3x3 neighbours of `x` `[N, C, H, W]`, at the border those that there are.

    On a GPU as a depthwise convolution, which is ten times as fast as pooling in channels_last.
    """
    if x.device.type != "cuda":
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    ones, shares = _pooling_tensors(x.shape[1], x.shape[2], x.shape[3], x.dtype, x.device)
    return F.conv2d(x, ones, None, 1, 1, 1, x.shape[1]) * shares


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _pooling_tensors(
    channels: int, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return ones as depthwise weights, and one over the number of neighbours of each pixel."""
    ones = torch.ones(1, 1, height, width, device=device)
    neighbours = F.avg_pool2d(ones, 3, 1, 1, divisor_override=1)
    weights = torch.ones(channels, 1, 3, 3, dtype=dtype, device=device)
    return weights, (1 / neighbours).to(dtype)


def batch_norm_unit(x: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
    """Convolution, norm by the batch's own statistics, activation; keeps the gradient."""
    y = F.batch_norm(
        convolve(x, conv), None, None, conv.gamma, conv.beta, training=True, eps=NORM_EPS
    )
    return F.relu(y) if conv.relu else add(y, plus)


def add(y: Tensor, plus: Tensor | None) -> Tensor:
    """Return `y`, with `plus` added if there is one."""
    return y if plus is None else y + plus


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Return whether Triton is installed, as it is with torch's CUDA builds, and can compile."""
    compiler = os.environ.get("CC") or which("cc") or which("gcc") or which("clang")
    return find_spec("triton") is not None and compiler is not None


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether a GPU computes in bfloat16: Ampere or newer."""
    return torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY


def runs_triton(device: torch.device) -> bool:
    """Return whether evaluation runs in Triton where it can, and is made for few launches."""
    return device.type == "cuda" and has_triton() and computes_bfloat16(device)


def evaluates_in_triton(x: Tensor) -> bool:
    """Return whether that goes for `x` here: gradients are for training, which runs otherwise."""
    return runs_triton(x.device) and not torch.is_grad_enabled()


def channels_last(x: Tensor) -> Tensor:
    """Return `x` `[N, C, H, W]` with its channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last)


class FixedNorm(NamedTuple):
    """A batch norm of known statistics: `scale * x + shift`, a channel each."""

    scale: Tensor
    shift: Tensor


class FoldedConv(NamedTuple):
    """A convolution with its batch norm folded into weight and bias, and its activation.

    Attributes:
        weight: `[C_out, C_in / groups, k, k]`.
        bias: What is added to each channel of its output, `[C_out]`.
        stride: Step of the convolution.
        groups: Groups of the convolution.
        relu: Whether a ReLU follows.
        finished: Whether it adds bias and activates; else what reads its output does, in Triton.
        missing: Bias that its input then lacks, and a ReLU after that, `[C_in]`; or None.
    """

    weight: Tensor
    bias: Tensor
    stride: int
    groups: int
    relu: bool
    finished: bool = True
    missing: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "FoldedConv":
        """Return it for inputs of a type."""
        return self._replace(weight=self.weight.to(dtype), bias=self.bias.to(dtype))

    def packed(self, shape: Sequence[int]) -> "FoldedConv":
        """Return it with weights in oneDNN's own layout for inputs of a shape, where that runs."""
        if self.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return self
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, *self._geometry(), self.groups, list(shape)
        )
        return self._replace(weight=weight)

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """Convolve, activate, add; in one pass over memory where the weights are packed."""
        padding, stride, dilation = self._geometry()
        if not self.weight.is_mkldnn:
            if evaluates_in_triton(x):
                from nasc_evo.supernet.convolutions import convolve

                return convolve(self, x, plus)
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, self.groups)
            return y.relu_() if self.relu else add(y, plus)
        how = (self.weight, self.bias, padding, stride, dilation, self.groups)
        if plus is None:
            activation = "relu" if self.relu else "none"
            return torch.ops.mkldnn._convolution_pointwise(x, *how, activation, [], "")
        add_fused = torch.ops.mkldnn._convolution_pointwise.binary
        return add_fused(x, plus, *how, "add", 1.0, None, [], None)

    def _geometry(self) -> tuple[list[int], list[int], list[int]]:
        """Return 'same' padding for odd kernels, stride and dilation."""
        return [self.weight.shape[-1] // 2] * 2, [self.stride] * 2, [1, 1]


def fold(conv: ConvNorm, norm: FixedNorm) -> FoldedConv:
    """Return a convolution with a norm folded in, in the type of the norm."""
    weight = conv.weight * norm.scale.view(-1, 1, 1, 1)
    return FoldedConv(weight, norm.shift, conv.stride, conv.groups, conv.relu)


class Calibration:
    """A unit that normalises by the batch and records every convolution with its norm folded.

    Run a network once on calibration images; :meth:`folded` then evaluates the same network on
    any images with those statistics. With norms that are known from an earlier run nothing is
    computed: the images may be none, `[0, C, H, W]`, and outputs have a shape and no images.

    Attributes:
        convs: The recorded convolutions.
        norms: Their norms.
        shapes: What each of them was given, `[N, C, H, W]`.
        image_bytes: Size of the largest input or output of a convolution, for one image.
    """

    def __init__(self, known: Iterable[FixedNorm] | None = None) -> None:
        self.convs: list[FoldedConv] = []
        self.norms: list[FixedNorm] = []
        self.shapes: list[torch.Size] = []
        self.image_bytes = 0
        self._known = None if known is None else iter(known)

    def __call__(self, x: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
        """Convolve, normalise by the batch, record, activate, add."""
        if self._known is not None:
            norm = next(self._known)
            sides = (-(-side // conv.stride) for side in x.shape[2:])
            y = x.new_empty((0, len(conv.weight), *sides))
        else:
            y, norm = self._normalised(x, conv)
        self.convs.append(fold(conv, norm).to(x.dtype))
        self.norms.append(norm)
        self.shapes.append(x.shape)
        values = max(math.prod(tensor.shape[1:]) for tensor in (x, y))
        self.image_bytes = max(self.image_bytes, values * x.element_size())
        return y.relu_() if conv.relu else add(y, plus)

    def _normalised(self, x: Tensor, conv: ConvNorm) -> tuple[Tensor, FixedNorm]:
        """Return `x` convolved and normalised by the batch, and the norm that did it."""
        y = convolve(x, conv).float()
        if x.dtype == torch.float32 and evaluates_in_triton(x):  # one launch instead of four
            affine = conv.gamma, conv.beta
            y, mean, inverse_deviation = torch.native_batch_norm(
                y, *affine, None, None, True, 0.0, NORM_EPS
            )
            scale = conv.gamma * inverse_deviation
            norm = FixedNorm(scale, torch.addcmul(conv.beta, mean, scale, value=-1))
        else:
            mean, variance = torch.batch_norm_update_stats(y, None, None, 0.0)
            scale = conv.gamma * (variance + NORM_EPS).rsqrt()
            norm = FixedNorm(scale, conv.beta - mean * scale)
            y = torch.addcmul(norm.shift[:, None, None], y, scale[:, None, None], out=y)
            y = y.to(x.dtype)
        return y, norm

    def folded(self, images: int | None = None, dtype: torch.dtype | None = None) -> "Folded":
        """Return a unit that replays the recorded convolutions once, in order.

        Args:
            images: How many are to run at a time; None for as many as were calibrated on.
            dtype: Type of these images; None for that of those which were calibrated on.
        """
        convs = self.convs if dtype is None else [conv.to(dtype) for conv in self.convs]
        pairs = zip(convs, self.shapes, strict=True)
        return Folded([conv.packed((images or n, *shape)) for conv, (n, *shape) in pairs])


class Folded:
    """A unit that replays recorded convolutions in the order in which they were recorded."""

    def __init__(self, convs: Sequence[FoldedConv]) -> None:
        self.convs = convs
        self._waiting = iter(convs)

    def __call__(self, x: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
        """Run the next recorded convolution; `conv` is the one it was recorded from."""
        return next(self._waiting)(x, plus)


class Normed:
    """A unit that folds known norms, in the order in which they were recorded, as it runs."""

    def __init__(self, norms: Iterable[FixedNorm]) -> None:
        self._waiting = iter(norms)

    def __call__(self, x: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
        """Run `conv` with the next norm."""
        return fold(conv, next(self._waiting))(x, plus)


@dataclass(frozen=True)
class ConvBlock:
    """Convolutions in a row, with the input added to the output where `residual`."""

    convs: tuple[ConvNorm, ...]
    residual: bool = False

    def __call__(self, x: Tensor, unit: Unit) -> Tensor:
        """Run the block."""
        y = x
        for conv in self.convs[:-1]:
            y = unit(y, conv)
        if not self.convs:
            return x
        return unit(y, self.convs[-1], x if self.residual else None)


@dataclass(frozen=True)
class Edge:
    """An operation of a cell: nothing of its own (skip), a pooling, or a convolution after a ReLU.

    Attributes:
        source: Node that it reads.
        target: Node that it adds to.
        conv: The convolution, None for a skip or a pooling.
        pool: Whether it is a 3x3 average pooling.
    """

    source: int
    target: int
    conv: ConvNorm | None = None
    pool: bool = False


@dataclass(frozen=True)
class CellBlock:
    """A graph of edges; every node is the mean of the edges that end in it.

    NAS-Bench-201 adds where this averages. Sums let what skips carry grow by up to four in each of
    15 cells, by an amount that differs between the networks that share weights: trained for an
    equal time, a supernet with sums had a median accuracy of 49 % over random networks, one with
    means 74 % (Fashion-MNIST, 19 epochs, one run each).

    Attributes:
        edges: Edges with an effect on the output, all of whose sources are fed.
        n_nodes: Number of nodes; the first is the input, the last the output.
        mean: Whether nodes average; else they add, as in a network of the benchmark itself.
    """

    edges: tuple[Edge, ...]
    n_nodes: int
    mean: bool = True

    def __call__(self, x: Tensor, unit: Unit) -> Tensor:
        """Run the cell; without edges its output is zero."""
        nodes = {0: x}
        activated: dict[int, Tensor] = {}
        for node in range(1, self.n_nodes):
            edges = [edge for edge in self.edges if edge.target == node]
            total: Tensor | None = None
            for edge in sorted(edges, key=lambda edge: edge.conv is not None):
                value = nodes[edge.source]
                if edge.conv is not None:
                    if edge.source not in activated:
                        activated[edge.source] = F.relu(value)
                    total = unit(activated[edge.source], edge.conv, total)
                else:
                    total = add(average_pool(value) if edge.pool else value, total)
            if total is not None:
                nodes[node] = total / len(edges) if self.mean and len(edges) > 1 else total
        output = nodes.get(self.n_nodes - 1)
        return x * 0 if output is None else output


@dataclass(frozen=True)
class ReductionBlock:
    """A residual block that halves the size: two 3x3 convolutions beside pooling and a 1x1 one.

    Attributes:
        first: Convolution of stride 2, after a ReLU of the input.
        second: Convolution of stride 1.
        shortcut: Weights of the 1x1 convolution, which has no norm, `[C_out, C_in, 1, 1]`.
    """

    first: ConvNorm
    second: ConvNorm
    shortcut: Tensor

    def __call__(self, x: Tensor, unit: Unit) -> Tensor:
        """Run the block."""
        y = unit(unit(F.relu(x), self.first), self.second)
        return y + F.conv2d(F.avg_pool2d(x, 2), self.shortcut.to(x.dtype))


@dataclass(frozen=True)
class GlobalPool:
    """Mean over all pixels, `[N, C]` in float32."""

    def __call__(self, x: Tensor, unit: Unit) -> Tensor:
        """Run the block."""
        return x.mean(dim=(2, 3), dtype=torch.float32)


@dataclass(frozen=True)
class Classifier:
    """A linear layer in float32 from features `[N, C]` to logits `[N, classes]`."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor, unit: Unit) -> Tensor:
        """Run the block."""
        return F.linear(x, self.weight.float(), self.bias.float())


@dataclass(frozen=True)
class HeadBlock:
    """A convolution, global average pooling and the classifier; returns logits `[N, classes]`."""

    conv: ConvNorm
    weight: Tensor
    bias: Tensor

    @property
    def parts(self) -> tuple[Block, Block, Block]:
        """The convolution, the pooling and the classifier as blocks of their own."""
        return ConvBlock((self.conv,)), GlobalPool(), Classifier(self.weight, self.bias)

    def __call__(self, x: Tensor, unit: Unit) -> Tensor:
        """Run the head."""
        for part in self.parts:
            x = part(x, unit)
        return x


@dataclass(frozen=True)
class FoldedBlock:
    """A block whose norms are folded; what deployment runs.

    Attributes:
        block: The block.
        convs: Its convolutions, in the order in which they run.
        exact: The same in the type of the images that gave the norms their statistics.
        norms: What was folded into them.
        tile: How many images are best run at a time.
    """

    block: Block
    convs: Sequence[FoldedConv]
    exact: Sequence[FoldedConv]
    norms: Sequence[FixedNorm]
    tile: int

    def __call__(self, x: Tensor) -> Tensor:
        """Run the block on `x` `[N, C, H, W]`."""
        return self.block(x, Folded(self.convs))


def fold_block(
    block: Block,
    x: Tensor,
    dtype: torch.dtype,
    tile_bytes: int,
    max_tile: int,
    known: Sequence[FixedNorm] | None = None,
) -> tuple[FoldedBlock, Tensor]:
    """Return a block with norms folded by the statistics of `x`, and its output for `x`.

    Args:
        block: The block.
        x: Calibration images as they enter it.
        dtype: Type of the images that it will run on.
        tile_bytes: Size up to which their largest tensor within the block may grow.
        max_tile: Images that a tile has at most, a power of two.
        known: The norms, where they are known already; `x` then has no images.
    """
    calibration = Calibration(known)
    y = block(x, calibration)
    image_bytes = calibration.image_bytes * dtype.itemsize // x.element_size()
    tile = max_tile
    while tile > 1 and tile * image_bytes > tile_bytes:
        tile //= 2
    convs = calibration.folded(tile, dtype).convs
    if isinstance(block, ConvBlock) and evaluates_in_triton(x):
        from nasc_evo.supernet.convolutions import left_to_readers

        convs = left_to_readers(convs)
    return FoldedBlock(block, convs, calibration.convs, calibration.norms, tile), y
