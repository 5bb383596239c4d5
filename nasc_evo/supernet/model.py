"""Supernets: one set of weights holding every architecture of a space.

The FBNet supernet is *entangled*: each layer has one expansion-6, kernel-5 set of weights. A
smaller expansion takes its first channels, a smaller kernel its centre, and a grouped operation
its diagonal blocks; every operation has batch-norm scales and shifts of its own. In the
NAS-Bench-201 supernet every edge of every cell has separate weights for its two convolutions, and
nodes average what their edges bring (see :class:`nasc_evo.supernet.blocks.CellBlock`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from nasc_evo.space.architecture import ArchitectureSpace
from nasc_evo.space.fbnet import OPS, STEM_CHANNELS, FBNetSpace, LayerGeometry, conv_op
from nasc_evo.space.nasbench201 import (
    CONV_1X1,
    CONV_3X3,
    EDGES,
    N_NODES,
    NONE,
    POOL,
    STAGE_CHANNELS,
    NASBench201Space,
    dead_edges,
)
from nasc_evo.supernet.blocks import (
    Block,
    CellBlock,
    ConvBlock,
    ConvNorm,
    Edge,
    HeadBlock,
    ReductionBlock,
    Unit,
)
from nasc_evo.supernet.transmission import transmit

Transmission = tuple[int, Tensor, int]
"""A cut, which channels are sent there, and at how many bits."""

MAX_EXPANSION = 6
MAX_KERNEL = 5


class Norm(nn.Module):
    """Scale and shift of a batch norm; statistics belong to a path and are not kept here."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))


def _conv_weight(
    channels_out: int, channels_in: int, kernel: int, generator: torch.Generator
) -> nn.Parameter:
    """He initialisation for the fan-out of a (depthwise where channels_in is 1) convolution."""
    fan_out = kernel**2 * (1 if channels_in == 1 else channels_out)
    weight = torch.randn(channels_out, channels_in, kernel, kernel, generator=generator)
    return nn.Parameter(weight * (2.0 / fan_out) ** 0.5)


class Supernet(nn.Module, ABC):
    """A weight-sharing network over the architectures of `space`.

    Args:
        space: The space of networks; its number of classes sets the classifier.
    """

    def __init__(self, space: ArchitectureSpace) -> None:
        super().__init__()
        self.space = space

    @abstractmethod
    def blocks(self, ops: Sequence[int]) -> list[Block]:
        """Return the blocks of one architecture; their tensors are views or slices of the weights.

        Args:
            ops: Genes of the architecture, `[n_genes]`.
        """

    @abstractmethod
    def block_genes(self, ops: Sequence[int]) -> list[tuple[int, ...]]:
        """Return, for each block, the genes of an architecture that it depends on."""

    @abstractmethod
    def largest(self) -> tuple[int, ...]:
        """Return the architecture with the most weights."""

    def forward(
        self,
        x: Tensor,
        ops: Sequence[int],
        unit: Unit,
        transmissions: Sequence[Transmission] = (),
    ) -> Tensor:
        """Return the logits `[N, classes]` of one architecture.

        Args:
            x: Normalised images `[N, 3, H, W]`.
            ops: Genes of the architecture.
            unit: How convolutions are normalised, see :mod:`nasc_evo.supernet.blocks`.
            transmissions: `(cut, kept channels, bits)` of each link where a tensor is sent.
        """
        return run_blocks(self.blocks(ops), x, unit, transmissions)


def run_blocks(
    blocks: Sequence[Block], x: Tensor, unit: Unit, transmissions: Sequence[Transmission] = ()
) -> Tensor:
    """Return the logits `[N, classes]` of blocks in a row, see :meth:`Supernet.forward`."""
    for index, block in enumerate(blocks):
        for cut, kept, bits in transmissions:
            if cut == index:
                x = transmit(x, kept, bits)
        x = block(x, unit)
    return x


class FBNetLayer(nn.Module):
    """The entangled weights of one of the 22 layers."""

    def __init__(self, geometry: LayerGeometry, generator: torch.Generator) -> None:
        super().__init__()
        self.geometry = geometry
        c_in, c_out = geometry.channels_in, geometry.channels_out
        hidden = MAX_EXPANSION * c_in
        self.expand = _conv_weight(hidden, c_in, 1, generator)
        self.depthwise = _conv_weight(hidden, 1, MAX_KERNEL, generator)
        self.project = _conv_weight(c_out, hidden, 1, generator)
        self.norms = nn.ModuleDict()
        for name in OPS:
            if name != "skip":
                width = conv_op(name).expansion * c_in
                self.norms[name] = nn.ModuleList([Norm(width), Norm(width), Norm(c_out)])
        if not geometry.identity:
            self.shortcut = _conv_weight(c_out, c_in, 1, generator)
            self.norms["skip"] = nn.ModuleList([Norm(c_out)])

    def block(self, name: str) -> ConvBlock:
        """Return the block of operation `name`.

        A grouped pointwise convolution is run as a dense one with zeros off its diagonal blocks,
        and the channel shuffle after it as a permutation of its outputs: same values, and faster
        than grouped convolutions are.
        """
        g = self.geometry
        if name == "skip":
            if g.identity:
                return ConvBlock(())
            (norm,) = self._norms_of("skip")
            return ConvBlock((ConvNorm(self.shortcut, norm.gamma, norm.beta, stride=g.stride),))
        op = conv_op(name)
        hidden = op.expansion * g.channels_in
        margin = (MAX_KERNEL - op.kernel) // 2
        centre = slice(margin, MAX_KERNEL - margin)
        expand = self.expand[:hidden]
        depthwise = self.depthwise[:hidden, :, centre, centre]
        project = self.project[:, :hidden]
        if op.groups > 1:
            expand = expand * _diagonal_blocks(hidden, g.channels_in, op.groups, expand)
            project = project * _diagonal_blocks(g.channels_out, hidden, op.groups, project)
            shuffled = torch.arange(hidden, device=expand.device).view(op.groups, -1).T.flatten()
            expand = expand[shuffled]
        first, second, third = self._norms_of(name)
        return ConvBlock(
            (
                ConvNorm(expand, first.gamma, first.beta),
                ConvNorm(depthwise, second.gamma, second.beta, stride=g.stride, groups=hidden),
                ConvNorm(project, third.gamma, third.beta, relu=False),
            ),
            residual=g.identity,
        )

    def weights_of(self, name: str) -> list[nn.Parameter]:
        """Return the weights that operation `name` uses, whole."""
        norms = [weight for norm in self._norms_of(name) for weight in norm.parameters()]
        if name == "skip":
            return [self.shortcut, *norms]
        return [self.expand, self.depthwise, self.project, *norms]

    def _norms_of(self, name: str) -> list[Norm]:
        return [cast(Norm, norm) for norm in cast(nn.ModuleList, self.norms[name])]


def _diagonal_blocks(rows: int, columns: int, groups: int, like: Tensor) -> Tensor:
    """Return `[rows, columns, 1, 1]`, one on the diagonal blocks of a grouped convolution."""
    row_group = torch.arange(rows, device=like.device) // (rows // groups)
    column_group = torch.arange(columns, device=like.device) // (columns // groups)
    return (row_group[:, None] == column_group).to(like.dtype)[:, :, None, None]


class FBNetSupernet(Supernet):
    """The entangled FBNet supernet, 4.0 M parameters at 32x32.

    Args:
        space: The FBNet space.
        generator: Source of the initial weights; a fixed one where weights are loaded anyway.
    """

    def __init__(self, space: FBNetSpace, generator: torch.Generator | None = None) -> None:
        super().__init__(space)
        generator = generator or torch.Generator().manual_seed(0)
        self.stem_stride = space.stem_stride
        self.stem = _conv_weight(STEM_CHANNELS, 3, 3, generator)
        self.stem_norm = Norm(STEM_CHANNELS)
        self.layers = nn.ModuleList(FBNetLayer(g, generator) for g in space.layers)
        self.head = _conv_weight(space.head_channels, space.layers[-1].channels_out, 1, generator)
        self.head_norm = Norm(space.head_channels)
        self.classifier_weight = nn.Parameter(
            torch.randn(space.n_classes, space.head_channels, generator=generator) * 0.01
        )
        self.classifier_bias = nn.Parameter(torch.zeros(space.n_classes))

    def blocks(self, ops: Sequence[int]) -> list[Block]:
        """Return stem, 22 layers and head of one architecture."""
        stem = ConvNorm(
            self.stem, self.stem_norm.gamma, self.stem_norm.beta, stride=self.stem_stride
        )
        head = ConvNorm(self.head, self.head_norm.gamma, self.head_norm.beta)
        layers = (
            cast(FBNetLayer, layer).block(OPS[op])
            for layer, op in zip(self.layers, ops, strict=True)
        )
        return [
            ConvBlock((stem,)),
            *layers,
            HeadBlock(head, self.classifier_weight, self.classifier_bias),
        ]

    def block_genes(self, ops: Sequence[int]) -> list[tuple[int, ...]]:
        """Return each layer's gene; stem and head have none."""
        return [(), *((op,) for op in ops), ()]

    def largest(self) -> tuple[int, ...]:
        """Return the architecture of k5_e6 everywhere."""
        return (OPS.index("k5_e6"),) * self.space.n_genes


class EdgeWeights(nn.Module):
    """The weights of the two convolutions that one edge of one cell can have."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.conv_1x1 = _conv_weight(channels, channels, 1, generator)
        self.norm_1x1 = Norm(channels)
        self.conv_3x3 = _conv_weight(channels, channels, 3, generator)
        self.norm_3x3 = Norm(channels)

    def conv(self, op: int) -> ConvNorm | None:
        """Return the convolution of an operation, None for one without weights."""
        if op == CONV_1X1:
            return ConvNorm(self.conv_1x1, self.norm_1x1.gamma, self.norm_1x1.beta, relu=False)
        if op == CONV_3X3:
            return ConvNorm(self.conv_3x3, self.norm_3x3.gamma, self.norm_3x3.beta, relu=False)
        return None


class ReductionWeights(nn.Module):
    """The weights of a residual block that halves the size and doubles the channels."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = _conv_weight(2 * channels, channels, 3, generator)
        self.first_norm = Norm(2 * channels)
        self.second = _conv_weight(2 * channels, 2 * channels, 3, generator)
        self.second_norm = Norm(2 * channels)
        self.shortcut = _conv_weight(2 * channels, channels, 1, generator)

    def block(self) -> ReductionBlock:
        """Return the block."""
        first, second = self.first_norm, self.second_norm
        return ReductionBlock(
            ConvNorm(self.first, first.gamma, first.beta, stride=2),
            ConvNorm(self.second, second.gamma, second.beta, relu=False),
            self.shortcut,
        )


class NASBench201Supernet(Supernet):
    """The NAS-Bench-201 supernet with separate weights, 1.7 M parameters.

    Args:
        space: The NAS-Bench-201 space.
        generator: Source of the initial weights; a fixed one where weights are loaded anyway.
    """

    def __init__(self, space: NASBench201Space, generator: torch.Generator | None = None) -> None:
        super().__init__(space)
        generator = generator or torch.Generator().manual_seed(0)
        last = STAGE_CHANNELS[-1]
        self.stem = _conv_weight(STAGE_CHANNELS[0], 3, 3, generator)
        self.stem_norm = Norm(STAGE_CHANNELS[0])
        self.middle = nn.ModuleList()
        for block in range(1, space.n_blocks - 1):
            channels = space.cut_shapes[block][0]
            if block in space.cell_blocks:
                self.middle.append(nn.ModuleList(EdgeWeights(channels, generator) for _ in EDGES))
            else:
                self.middle.append(ReductionWeights(channels, generator))
        self.head_norm = Norm(last)
        self.register_buffer("_identity", torch.ones(last, 1, 1, 1), persistent=False)
        self.classifier_weight = nn.Parameter(
            torch.randn(space.n_classes, last, generator=generator) * 0.01
        )
        self.classifier_bias = nn.Parameter(torch.zeros(space.n_classes))

    def blocks(self, ops: Sequence[int]) -> list[Block]:
        """Return stem, cells, reductions and head of one architecture."""
        zero_input, unused = dead_edges(np.array([ops]))
        live = [
            edge
            for edge in range(len(EDGES))
            if ops[edge] != NONE and not (zero_input[0, edge] or unused[0, edge])
        ]
        stem = ConvNorm(self.stem, self.stem_norm.gamma, self.stem_norm.beta, relu=False)
        # the last norm stands alone: a convolution that changes nothing goes before it
        head = ConvNorm(
            cast(Tensor, self._identity),
            self.head_norm.gamma,
            self.head_norm.beta,
            groups=STAGE_CHANNELS[-1],
        )
        middle: list[Block] = []
        for module in self.middle:
            if isinstance(module, ReductionWeights):
                middle.append(module.block())
                continue
            weights = cast(nn.ModuleList, module)
            edges = tuple(
                Edge(*EDGES[e], cast(EdgeWeights, weights[e]).conv(ops[e]), ops[e] == POOL)
                for e in live
            )
            middle.append(CellBlock(edges, N_NODES))
        return [
            ConvBlock((stem,)),
            *middle,
            HeadBlock(head, self.classifier_weight, self.classifier_bias),
        ]

    def block_genes(self, ops: Sequence[int]) -> list[tuple[int, ...]]:
        """Return all genes for cells, none for the other blocks."""
        cells = cast(NASBench201Space, self.space).cell_blocks
        return [tuple(ops) if block in cells else () for block in range(self.space.n_blocks)]

    def largest(self) -> tuple[int, ...]:
        """Return the architecture of 3x3 convolutions everywhere."""
        return (CONV_3X3,) * self.space.n_genes


SUPERNETS: dict[str, Any] = {
    "fbnet": FBNetSupernet,
    "nasbench201": NASBench201Supernet,
}


def build_supernet(space: ArchitectureSpace, generator: torch.Generator | None = None) -> Supernet:
    """Return a supernet with fresh weights for a space of architectures."""
    return SUPERNETS[space.name](space, generator)
