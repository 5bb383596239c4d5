"""What is measured: blocks alone, and runs of blocks out of random networks, as deployed.

Blocks come from a supernet with random weights. Batch norm is folded into the convolutions, for
statistics that keep activations near unit variance: no latency depends on the values, as long as
they neither vanish nor overflow. Nodes of a cell add, as in a network trained alone; that the
supernet averages folds into the weights that follow.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nasc_evo.space.architecture import ArchitectureSpace, IntArray
from nasc_evo.space.fbnet import SKIP as IDENTITY
from nasc_evo.space.fbnet import FBNetSpace
from nasc_evo.space.nasbench201 import (
    CONV_1X1,
    CONV_3X3,
    NONE,
    OPS,
    POOL,
    SKIP,
    NASBench201Space,
    dead_edges,
)
from nasc_evo.supernet.blocks import (
    NORM_EPS,
    Block,
    CellBlock,
    ConvNorm,
    Edge,
    Folded,
    FoldedConv,
    HeadBlock,
)
from nasc_evo.supernet.model import (
    EdgeWeights,
    FBNetSupernet,
    NASBench201Supernet,
    Supernet,
    run_blocks,
)

RUNS_A_NETWORK = 3
"""Whole, first side, second side."""
Shape = tuple[int, ...]
"""Shape of the tensor that enters, without the batch: `(C, H, W)`, or `(C,)` for a classifier."""


def fold(conv: ConvNorm) -> FoldedConv:
    """Return a convolution with its norm folded in, for what a ReLU lets through of unit variance.

    The mean square of such inputs is 1/2, and the outputs have unit variance again.
    """
    deviation = (conv.weight.square().sum(dim=(1, 2, 3)) / 2 + NORM_EPS).sqrt()
    scale = conv.gamma / deviation
    return FoldedConv(
        weight=(conv.weight * scale[:, None, None, None]).contiguous(),
        bias=conv.beta.clone(),
        stride=conv.stride,
        groups=conv.groups,
        relu=conv.relu,
    )


@dataclass(frozen=True, eq=False)
class Piece:
    """Blocks in a row.

    Attributes:
        blocks: The blocks; none at all is what a run costs before it computes anything.
        shape: Of the tensor that enters.
        copies: How many times the figure wanted is in the piece.
    """

    blocks: Sequence[Block]
    shape: Shape
    copies: int = 1

    def fold(self, device: torch.device | str = "cpu", *, channels_last: bool = True) -> "Deployed":
        """Return the piece with its norms folded, and an input for it."""
        x = torch.randn((1, *self.shape), generator=torch.Generator().manual_seed(0)).to(device)
        if len(self.shape) == 3 and channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        convs: list[FoldedConv] = []

        def record(value: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
            convs.append(fold(conv))
            return convs[-1](value, plus)

        with torch.inference_mode():
            y = run_blocks(self.blocks, x, record)
        return Deployed(self.blocks, convs, x, y)


@dataclass(frozen=True, eq=False)
class Deployed:
    """A piece with its norms folded.

    Attributes:
        blocks: The blocks.
        convs: Their convolutions in the order in which they run.
        x: An input.
        y: The output for it.
    """

    blocks: Sequence[Block]
    convs: Sequence[FoldedConv]
    x: Tensor
    y: Tensor

    def runner(self) -> Callable[[], Tensor]:
        """Return a function that runs the piece by torch, in oneDNN's own layout on a CPU."""
        waiting = iter(self.convs)
        packed: list[FoldedConv] = []

        def pack(value: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
            packed.append(next(waiting).packed(value.shape))
            return packed[-1](value, plus)

        def run() -> Tensor:
            return run_blocks(self.blocks, self.x, Folded(packed))

        with torch.inference_mode():
            run_blocks(self.blocks, self.x, pack)
        return run


def table_keys(space: ArchitectureSpace) -> dict[tuple[str, str], tuple[str, int] | None]:
    """Return what each row of a cost table takes its figure from, by position and operation.

    That is a key and how many times its figure the row has. Rows of one key are one and the same
    block at several places, or what is computed beside blocks (:func:`beside_keys`); None is an
    operation that does nothing.
    """
    if isinstance(space, FBNetSpace):
        keys: dict[tuple[str, str], tuple[str, int] | None] = {}
        for position in space.positions:
            for op in position.ops:
                keys[position.name, op] = position.name, 1
        for i, g in enumerate(space.layers):
            for op in space.positions[i + 1].ops:
                nothing = op == "skip" and g.identity
                shape = f"{g.channels_in}x{g.size_in}-{g.channels_out}x{g.size_out}"
                keys[f"layer_{i + 1}", op] = None if nothing else (f"{op} {shape}", 1)
        return keys
    keys = {}
    for position in space.positions:
        stage, edge, _ = position.name.partition("_edge_")
        for code, op in enumerate(position.ops):
            if position.optional:
                keys[position.name, op] = (position.name, code) if code else None
            elif edge:
                keys[position.name, op] = None if code == NONE else (f"{op} {stage}", 1)
            else:
                keys[position.name, op] = position.name, 1
    return keys


def beside_keys(space: ArchitectureSpace) -> dict[str, str]:
    """Return what is computed beside blocks, and the block whose cost is of its size.

    None of it is measured alone: blocks contain it in part, whole networks tell the rest. A skip is
    half of two that end in one node, that is half of an addition.
    """
    if not isinstance(space, NASBench201Space):
        return {}
    like = {"relus": OPS[SKIP], "adds": OPS[SKIP], "pools": OPS[POOL]}
    names = [position.name for position in dict.fromkeys(space.positions) if position.optional]
    return {name: f"{like[name.rpartition('_')[2]]} {name.rpartition('_')[0]}" for name in names}


def block_pieces(space: ArchitectureSpace, supernet: Supernet) -> dict[str, Piece]:
    """Return the piece of each key of :func:`table_keys` but those of :func:`beside_keys`."""
    if isinstance(supernet, FBNetSupernet) and isinstance(space, FBNetSpace):
        return _fbnet_pieces(space, supernet)
    assert isinstance(supernet, NASBench201Supernet)
    assert isinstance(space, NASBench201Space)
    return _nasbench201_pieces(space, supernet)


def _head_pieces(head: HeadBlock, shape: Shape) -> Iterator[Piece]:
    for part in head.parts:
        piece = Piece([part], shape)
        yield piece
        shape = tuple(piece.fold(head.weight.device).y.shape[1:])


def _fbnet_pieces(space: FBNetSpace, supernet: FBNetSupernet) -> dict[str, Piece]:
    keys = table_keys(space)
    stem, *_, head = supernet.blocks((IDENTITY,) * space.n_genes)
    assert isinstance(head, HeadBlock)
    pieces = {"stem": Piece([stem], space.cut_shapes[0])}
    for i, g in enumerate(space.layers):
        for op in space.positions[i + 1].ops:
            key = keys[f"layer_{i + 1}", op]
            if key is not None and key[0] not in pieces:
                block = supernet.layers[i].block(op)  # type: ignore[operator]
                pieces[key[0]] = Piece([block], (g.channels_in, g.size_in, g.size_in))
    names = (position.name for position in space.positions[-3:])
    pieces.update(zip(names, _head_pieces(head, space.cut_shapes[-1]), strict=True))
    return pieces


def _nasbench201_pieces(space: NASBench201Space, supernet: NASBench201Supernet) -> dict[str, Piece]:
    """Return the pieces; an edge is half of two edges of one kind that end in one node.

    So it has a share in the additions that bring the values of a node together.
    """
    blocks = supernet.blocks(supernet.largest())
    keys, pieces = table_keys(space), {}
    for block, name in enumerate(space.block_names):
        shape = space.cut_shapes[block]
        if block not in space.cell_blocks:
            pieces[name] = Piece([blocks[block]], shape)
            continue
        position = space.positions[space.block_start[block]]
        for code, op in enumerate(position.ops):
            key = keys[position.name, op]
            if key is not None and key[0] not in pieces:
                weights = supernet.middle[block - 1]
                edges = tuple(_edge(weights[e], code) for e in range(2))  # type: ignore[index]
                pieces[key[0]] = Piece([CellBlock(edges, 2, mean=False)], shape, copies=2)
    return pieces


def _edge(weights: EdgeWeights, code: int) -> Edge:
    return Edge(0, 1, weights.conv(code) if code in (CONV_1X1, CONV_3X3) else None, code == POOL)


@dataclass(frozen=True)
class Run:
    """Blocks `[start, end)` of an architecture: a whole network, or one side of a cut.

    Attributes:
        ops: Genes of the architecture.
        start: First block.
        end: One behind the last block.
    """

    ops: tuple[int, ...]
    start: int
    end: int

    def piece(self, supernet: Supernet) -> Piece:
        """Return the piece."""
        blocks = supernet.blocks(self.ops)[self.start : self.end]
        added = [replace(b, mean=False) if isinstance(b, CellBlock) else b for b in blocks]
        return Piece(added, supernet.space.cut_shapes[self.start])


def random_runs(space: ArchitectureSpace, n: int, rng: np.random.Generator) -> list[Run]:
    """Return n random networks whole, and both sides of a random inner cut of each.

    Networks whose output does not depend on their input are left out.

    Returns:
        Whole, first side and second side of each network in turn; those of fewer are the first ones
        of these.
    """
    runs: list[Run] = []
    while len(runs) < RUNS_A_NETWORK * n:
        ops = np.array([rng.integers(len(choices)) for choices in space.gene_ops])
        cut = int(rng.integers(1, space.n_blocks))
        if not _is_fed(space, ops):
            continue
        genes = tuple(ops.tolist())
        runs += [Run(genes, 0, space.n_blocks), Run(genes, 0, cut), Run(genes, cut, space.n_blocks)]
    return runs


def _is_fed(space: ArchitectureSpace, ops: IntArray) -> bool:
    if not isinstance(space, NASBench201Space):
        return True
    zero_input, unused = dead_edges(ops[None])
    return bool(((ops != NONE) & ~zero_input[0] & ~unused[0]).any())


def run_features(
    space: ArchitectureSpace, runs: Sequence[Run], keys: Sequence[str]
) -> NDArray[np.float64]:
    """Return how often each key is in each run, `[runs, keys]`."""
    by_row = table_keys(space)
    column = {key: i for i, key in enumerate(keys)}
    codes = space.position_codes(np.array([run.ops for run in runs]), space.prunable)
    counts = np.zeros((len(runs), len(keys)))
    for row, run in enumerate(runs):
        for i in range(space.block_start[run.start], space.block_start[run.end]):
            position = space.positions[i]
            key = by_row[position.name, position.ops[codes[row, i]]]
            if key is not None:
                counts[row, column[key[0]]] += key[1]
    return counts
