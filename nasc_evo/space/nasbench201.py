"""The topology space of NAS-Bench-201 (Dong and Yang, ICLR 2020).

One cell, repeated 15 times: four nodes, an edge with one of five operations from every node to
every later one, each node the sum of what its edges bring. Stem, five cells, reduction, five
cells, reduction, five cells and head make 19 blocks, cuts 0..19.
"""

from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nasc_evo.errors import UserError
from nasc_evo.space.architecture import ArchitectureSpace, IntArray, Position

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP, CONV_1X1, CONV_3X3, POOL = range(5)
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""`(from, to)` of the six edges, in the order of the official strings."""
PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))
"""Edges of the four ways from the input of a cell to its output."""
N_NODES = 4
BESIDE = ("relus", "adds", "pools")
"""What a cell computes beside its operations, see :func:`beside`; each 0 to 3 times."""
BESIDE_COUNTS = ("0", "1", "2", "3")
STAGE_CHANNELS = (16, 32, 64)
STAGE_SIZES = (32, 16, 8)
STAGE_CELLS = 5
_ORDER_FILE = Path(__file__).parent / "nasbench201_order.npy"


class NASBench201Space(ArchitectureSpace):
    """NAS-Bench-201 at 32x32 with 16 channels in the first stage and five cells a stage.

    Args:
        geometry: 32, the only one.
        n_classes: Outputs of the classifier.

    Attributes:
        cell_blocks: Indices of the blocks that are cells.

    Raises:
        UserError: If the geometry is not 32, or there are fewer than two classes.
    """

    name = "nasbench201"
    prunable = ("unused", "zero_input")
    """Operations whose result no output needs, and those whose input is always zero."""

    def __init__(self, geometry: int = 32, n_classes: int = 100) -> None:
        if geometry != 32:
            raise UserError(f"The NAS-Bench-201 space exists at geometry 32, got {geometry}.")
        if n_classes < 2:
            raise UserError(f"A classifier needs at least 2 classes, got {n_classes}.")
        self.geometry = geometry
        self.n_classes = n_classes
        self.gene_ops = (OPS,) * len(EDGES)
        names, shapes = ["stem"], [(3, geometry, geometry)]
        positions, start = [Position("stem", ("-",))], [0]
        cell_blocks = []
        for stage, (channels, size) in enumerate(zip(STAGE_CHANNELS, STAGE_SIZES, strict=True)):
            if stage > 0:
                start.append(len(positions))
                names.append(f"reduction_{stage}")
                shapes.append((STAGE_CHANNELS[stage - 1], size * 2, size * 2))
                positions.append(Position(f"reduction_{stage}", ("-",)))
            for _ in range(STAGE_CELLS):
                start.append(len(positions))
                cell_blocks.append(len(names))
                names.append(f"cell_{len(cell_blocks)}")
                shapes.append((channels, size, size))
                positions += [
                    Position(f"stage_{stage + 1}_edge_{source}_{target}", OPS)
                    for source, target in EDGES
                ]
                positions += [
                    Position(f"stage_{stage + 1}_{kind}", BESIDE_COUNTS, optional=True)
                    for kind in BESIDE
                ]
        start.append(len(positions))
        positions.append(Position("head", ("-",)))
        self.block_names = (*names, "head")
        self.cut_shapes = (*shapes, (STAGE_CHANNELS[-1], STAGE_SIZES[-1], STAGE_SIZES[-1]))
        self.positions = tuple(positions)
        self.block_start = np.array([*start, len(positions)])
        self.cell_blocks = tuple(cell_blocks)
        first = self.block_start[cell_blocks][:, None]
        self._edge_positions = first + np.arange(len(EDGES))
        self._beside_positions = first + len(EDGES) + np.arange(len(BESIDE))

    @cached_property
    def architectures(self) -> IntArray:
        """All architectures in the official order, `[15625, 6]`."""
        codes = np.load(_ORDER_FILE, allow_pickle=False).astype(np.int64)
        return codes[:, None] // _PLACES % len(OPS)

    @cached_property
    def _index_of_code(self) -> IntArray:
        index = np.empty(len(self.architectures), dtype=np.int64)
        index[self.architectures @ _PLACES] = np.arange(len(self.architectures))
        return index

    def index(self, ops: IntArray) -> IntArray:
        """Return the official index of architectures, `[P]` for `ops` `[P, 6]`."""
        return self._index_of_code[np.asarray(ops) @ _PLACES]

    def canonical(self, ops: IntArray) -> IntArray:
        """Return, for each architecture, the one that represents all that compute the same.

        Two cells compute the same if their outputs are the same expression of the input, where a
        skip passes a node on, an operation on nothing gives nothing, and sums have no order. That
        makes 4930 classes out of the 6466 of the NAS-Bench-201 paper, which orders sums within
        sums. The representative has the fewest operations, dead ones being `none`; of several the
        first in the official order.
        """
        return self.architectures[self._representatives[self.index(ops)]]

    def alike(self, ops: IntArray) -> IntArray:
        """Return, for each architecture, the one that represents all that train alike.

        They compute the same with as many convolutions of each kind. Two convolutions of one node
        have weights of their own; one whose result is used twice is as an expression the same, but
        a smaller network. That makes 5260 classes. Within those of a mean error below 0.3 on
        CIFAR-100 the standard deviation is 0.0031, within those of :meth:`canonical` 0.0049.
        """
        return self.architectures[self._alike[self.index(ops)]]

    @cached_property
    def _representatives(self) -> IntArray:
        return self._fewest_operations(
            [cell_expression(ops) for ops in self.architectures.tolist()]
        )

    @cached_property
    def _alike(self) -> IntArray:
        zero_input, unused = dead_edges(self.architectures)
        used = np.where(zero_input | unused, NONE, self.architectures)
        convs = [(used == op).sum(axis=1).tolist() for op in (CONV_3X3, CONV_1X1)]
        return self._fewest_operations(
            list(zip(self._representatives.tolist(), *convs, strict=True))
        )

    def _fewest_operations(self, keys: Sequence[Hashable]) -> IntArray:
        """Return for each architecture that of the same key with the fewest operations."""
        used = (self.architectures != NONE).sum(axis=1)
        best: dict[Hashable, int] = {}
        for i in np.lexsort((np.arange(len(used)), used)).tolist():
            best.setdefault(keys[i], i)
        return np.array([best[key] for key in keys])

    @cached_property
    def _beside(self) -> IntArray:
        return beside(self.architectures)

    def position_codes(self, ops: IntArray, pruned: Sequence[str] = ()) -> IntArray:
        """Return what stands at each position of each cell, without the kinds that are `pruned`.

        Args:
            ops: Architectures, `[P, 6]`.
            pruned: Kinds of dead operations that a machine's compiler removes.

        Returns:
            `[P, positions]`: operations of edges, and counts of what is :func:`beside` them.
        """
        zero_input, unused = dead_edges(ops)
        removed = np.zeros(np.shape(ops), dtype=bool)
        if "zero_input" in pruned:
            removed |= zero_input
        if "unused" in pruned:
            removed |= unused
        codes = np.zeros((len(ops), len(self.positions)), dtype=np.int64)
        left = np.where(removed, NONE, ops)
        codes[:, self._edge_positions] = left[:, None, :]
        codes[:, self._beside_positions] = self._beside[self.index(left)][:, None, :]
        return codes

    def descriptors(self, ops: IntArray) -> NDArray[np.float64]:
        """Return what the paths through the cell are like, whatever their order, `[P, 13]`.

        How many are alive, mere skips or have pooling; the convolutions on each path from the
        strongest to the weakest; and sums and maxima of these (path encodings as in BANANAS, White
        et al. 2021, but blind to the order of paths).
        """
        ops = self.canonical(ops)
        on_path = [ops[:, list(edges)] for edges in PATHS]
        alive = np.column_stack([(path != NONE).all(axis=1) for path in on_path])
        wide, narrow, pools = (
            np.column_stack([(path == op).sum(axis=1) for path in on_path]) * alive
            for op in (CONV_3X3, CONV_1X1, POOL)
        )
        convs = wide + narrow
        skips = alive & (convs == 0) & (pools == 0)
        strength = -np.sort(-np.where(alive, wide + 0.5 * narrow + 0.1, 0.0), axis=1)
        columns = [
            alive.sum(axis=1) / 4,
            *(strength / 3).T,
            skips.sum(axis=1) / 2,
            skips.any(axis=1),
            (pools > 0).sum(axis=1) / 4,
            ((pools > 0) & (convs == 0)).sum(axis=1) / 2,
            wide.sum(axis=1) / 6,
            narrow.sum(axis=1) / 6,
            convs.max(axis=1) / 3,
            wide.max(axis=1) / 3,
        ]
        return np.column_stack(columns).astype(float)

    @property
    def hand_designed(self) -> IntArray:
        """Return a residual cell: three 3x3 convolutions in a row beside a skip (like ResNet)."""
        return np.array([CONV_3X3, NONE, CONV_3X3, SKIP, NONE, CONV_3X3])

    def format(self, ops: IntArray) -> str:
        """Return the official string, such as `|skip_connect~0|+|none~0|none~1|+|...`."""
        nodes = []
        for node in range(1, N_NODES):
            tokens = (
                f"{OPS[int(op)]}~{source}"
                for op, (source, target) in zip(ops, EDGES, strict=True)
                if target == node
            )
            nodes.append(f"|{'|'.join(tokens)}|")
        return "+".join(nodes)

    def parse(self, text: str) -> IntArray:
        """Return the six genes of an official string."""
        nodes = text.strip().split("+")
        if len(nodes) != N_NODES - 1:
            raise UserError(
                f"A NAS-Bench-201 architecture has {N_NODES - 1} nodes joined by '+', got "
                f"{len(nodes)} in '{text}'."
            )
        genes = []
        for target, node in enumerate(nodes, start=1):
            tokens = node.split("|")
            if len(tokens) != target + 2 or tokens[0] or tokens[-1]:
                raise UserError(
                    f"Node {target} of a NAS-Bench-201 architecture has {target} operations, each "
                    f"between bars as in '{'|none~' + '|none~'.join(map(str, range(target)))}|', "
                    f"got '{node}'."
                )
            for source, token in enumerate(tokens[1:-1]):
                op, tilde, origin = token.partition("~")
                if op not in OPS:
                    raise UserError(
                        f"The operation '{op}' in '{token}' of node {target} is unknown; allowed "
                        f"are {', '.join(OPS)}."
                    )
                if not tilde or origin != str(source):
                    raise UserError(
                        f"'{token}' stands where node {target} takes its input from node {source}; "
                        f"write '{op}~{source}'."
                    )
                genes.append(OPS.index(op))
        return np.array(genes)

    def macs(self, ops: IntArray) -> IntArray:
        """Multiply-accumulates as the official tables count them, `[P]`."""
        return self._count(ops)[0]

    def params(self, ops: IntArray) -> IntArray:
        """Parameters of one stand-alone network (batch norm's scale and shift included), `[P]`."""
        return self._count(ops)[1]

    def _count(self, ops: IntArray) -> tuple[IntArray, IntArray]:
        """Return multiply-accumulates and parameters, `[P]` each."""
        pointwise = np.array([channels**2 for channels in STAGE_CHANNELS])
        pixels = np.array([size**2 for size in STAGE_SIZES])
        norm = 2 * np.array(STAGE_CHANNELS)
        shape = np.shape(ops)[:-1]
        macs = np.full(shape, 27 * STAGE_CHANNELS[0] * pixels[0], dtype=np.int64)
        params = np.full(shape, 27 * STAGE_CHANNELS[0] + norm[0], dtype=np.int64)
        for stage in range(1, len(STAGE_CHANNELS)):
            # a 3x3 convolution that doubles the channels, one that keeps them, a 1x1 shortcut
            weights = int(pointwise[stage]) * (9 * 3 + 1) // 2
            macs += weights * int(pixels[stage])
            params += weights + 2 * int(norm[stage])
        classifier = (STAGE_CHANNELS[-1] + 1) * self.n_classes
        macs += classifier
        params += int(norm[-1]) + classifier
        convs = [(CONV_1X1, 1), (CONV_3X3, 9)]
        for op, taps in convs:
            count = (np.asarray(ops) == op).sum(axis=-1)
            macs += count * STAGE_CELLS * taps * int((pointwise * pixels).sum())
            params += count * STAGE_CELLS * int((taps * pointwise + norm).sum())
        return macs, params


_PLACES = len(OPS) ** np.arange(len(EDGES))[::-1]
"""Place values that turn six genes into one number, the first gene the most significant."""


def dead_edges(ops: IntArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which edges have an input that is always zero, and whose result nothing uses.

    Args:
        ops: Architectures, `[P, 6]`.

    Returns:
        Two arrays `[P, 6]`: the source node gets nothing; the target node reaches no output.
    """
    ops = np.asarray(ops)
    fed = np.zeros((len(ops), N_NODES), dtype=bool)
    needed = np.zeros_like(fed)
    fed[:, 0] = needed[:, -1] = True
    for edge in sorted(range(len(EDGES)), key=lambda e: EDGES[e][1]):
        source, target = EDGES[edge]
        fed[:, target] |= fed[:, source] & (ops[:, edge] != NONE)
    for edge in sorted(range(len(EDGES)), key=lambda e: -EDGES[e][0]):
        source, target = EDGES[edge]
        needed[:, source] |= needed[:, target] & (ops[:, edge] != NONE)
    sources, targets = np.array(EDGES).T
    return ~fed[:, sources], ~needed[:, targets]


def beside(ops: IntArray) -> IntArray:
    """Return what each cell computes beside its operations where everything is fused that can be.

    That is what inference engines do: a convolution takes up one addition to its result, and a ReLU
    behind it where nothing else needs the result; a node that a skip alone leads to is the node
    before; and what several edges compute of one node is computed once.

    Args:
        ops: Architectures `[P, 6]`, of equal cells in a row; dead operations count as any other.

    Returns:
        How many ReLUs and additions are left, and how many nodes are pooled, `[P, 3]`.
    """
    ops = np.asarray(ops)
    live, conv = ops != NONE, np.isin(ops, (CONV_1X1, CONV_3X3))
    everyone = np.arange(len(ops))
    edges_to = [[e for e, edge in enumerate(EDGES) if edge[1] == node] for node in range(N_NODES)]
    same_as = np.tile(np.arange(N_NODES), (len(ops), 1))
    users = np.zeros((len(ops), N_NODES), dtype=np.int64)
    to_conv, to_other, pooled = np.zeros((3, len(ops), N_NODES), dtype=bool)
    for node in range(1, N_NODES):
        alone = live[:, edges_to[node]].sum(axis=1) == 1
        for e in edges_to[node]:
            source = same_as[:, EDGES[e][0]]
            alias = alone & (ops[:, e] == SKIP)
            same_as[:, node] = np.where(alias, source, same_as[:, node])
            users[everyone, source] += live[:, e] & ~alias
            to_conv[everyone, source] |= conv[:, e]
            to_other[everyone, source] |= live[:, e] & ~conv[:, e] & ~alias
            pooled[everyone, source] |= ops[:, e] == POOL
    output = same_as[:, -1]  # the next cell begins with it
    to_conv[everyone, output] |= to_conv[:, 0]
    to_other[everyone, output] |= to_other[:, 0]

    adds = np.zeros(len(ops), dtype=np.int64)
    by_conv, takes_up = np.zeros((2, len(ops), N_NODES), dtype=bool)
    for node in range(1, N_NODES):
        begun = np.zeros(len(ops), dtype=bool)
        for e in edges_to[node]:
            source = same_as[:, EDGES[e][0]]
            passed_on = (ops[:, e] == SKIP) & (users[everyone, source] == 1)
            by_conv_here = conv[:, e] | (passed_on & takes_up[everyone, source])
            fused = begun & (by_conv_here | takes_up[:, node])
            adds += live[:, e] & begun & ~fused
            now = np.where(begun, fused, by_conv_here)
            by_conv[:, node] = np.where(live[:, e], now, by_conv[:, node])
            takes_up[:, node] = np.where(live[:, e], now & ~begun, takes_up[:, node])
            begun |= live[:, e]
    relus = to_conv & (to_other | ~by_conv)
    relus[:, 0] &= output == 0
    return np.stack([relus.sum(axis=1), adds, pooled.sum(axis=1)], axis=1)


def cell_expression(ops: Sequence[int]) -> str:
    """Return what the output of one cell is in terms of its input; equal for equal cells."""
    nodes = [["x"]]
    for target in range(1, N_NODES):
        terms = []
        for op, (source, end) in zip(ops, EDGES, strict=True):
            if end != target or op == NONE or not nodes[source]:
                continue
            same = op == SKIP
            terms += nodes[source] if same else [f"{OPS[op]}({'+'.join(nodes[source])})"]
        nodes.append(sorted(terms))
    return "+".join(nodes[-1])
