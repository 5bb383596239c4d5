"""What every space of architectures tells the rest of the program about its networks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nasc_evo.errors import UserError

IntArray = NDArray[np.integer]

REFERENCE_CLASSES = {32: 100, 224: 1000}
"""Outputs of the classifier whose costs stand in the tables, by geometry."""


class Position(NamedTuple):
    """One row group of a cost table: a place in the network and what may stand there.

    Attributes:
        name: Its name.
        ops: What may stand there.
        optional: Whether a table may lack its rows, which cost nothing then.
    """

    name: str
    ops: tuple[str, ...]
    optional: bool = False


class ArchitectureSpace(ABC):
    """A space of networks made of blocks in a row.

    A *block* is the smallest unit that a cut never divides. Architectures are integer arrays of
    shape `[n_genes]` (one) or `[P, n_genes]` (a population); gene `i` is an index into
    `gene_ops[i]`. Subclasses fill the attributes below in `__init__` and are immutable after.

    Attributes:
        name: Short name, as in cost tables and configurations.
        prunable: Kinds of operations without effect on the output that its networks can have.
        geometry: Height and width of the input image in pixels.
        n_classes: Outputs of the classifier.
        gene_ops: Allowed operations of each gene.
        block_names: Names of the blocks, in order.
        cut_shapes: `cut_shapes[c]` is `(channels, height, width)` of the tensor that enters block
            `c`, for c in 0..n_blocks - 1; `cut_shapes[0]` is the input image.
        positions: Rows of a cost table, in network order; positions of one name share their rows.
        block_start: `[n_blocks + 1]`; block `b` owns positions `block_start[b]` up to
            `block_start[b + 1]`.
    """

    name: ClassVar[str]
    prunable: ClassVar[tuple[str, ...]] = ()
    geometry: int
    n_classes: int
    gene_ops: tuple[tuple[str, ...], ...]
    block_names: tuple[str, ...]
    cut_shapes: tuple[tuple[int, int, int], ...]
    positions: tuple[Position, ...]
    block_start: IntArray

    @property
    def n_genes(self) -> int:
        """Number of architecture genes."""
        return len(self.gene_ops)

    @property
    def n_blocks(self) -> int:
        """Number of blocks; cuts run from 0 to this number."""
        return len(self.block_names)

    @abstractmethod
    def position_codes(self, ops: IntArray, pruned: Sequence[str] = ()) -> IntArray:
        """Return the index into each position's ops, `[P, positions]`, for `ops` `[P, n_genes]`.

        Args:
            ops: Architectures.
            pruned: Kinds of dead operations, out of :attr:`prunable`, that cost nothing because
                the machine's compiler removes them.
        """

    def canonical(self, ops: IntArray) -> IntArray:
        """Return for each of `ops` `[P, n_genes]` the one that stands for all equal networks."""
        return ops

    def alike(self, ops: IntArray) -> IntArray:
        """Return for each of `ops` `[P, n_genes]` the one that stands for all that train alike.

        They are equal and have as many weights with an effect: what a predictor of accuracy need
        not tell apart.
        """
        return self.canonical(ops)

    @property
    def architectures(self) -> IntArray:
        """All architectures in their official order, `[n, n_genes]`; none if they have no order."""
        return np.empty((0, self.n_genes), dtype=np.int64)

    def index(self, ops: IntArray) -> IntArray:
        """Return the row in :attr:`architectures` of each of `ops` `[P, n_genes]`, shape `[P]`."""
        raise NotImplementedError(f"the architectures of {self.name} have no official order")

    def descriptors(self, ops: IntArray) -> NDArray[np.float64]:
        """Return numbers about 0..1 that say how networks are built, `[P, any]`.

        For predictors of accuracy, beside the genes: what matters about a network but is hard to
        see gene by gene. Networks that compute the same have the same descriptors.
        """
        return np.empty((len(ops), 0))

    @property
    @abstractmethod
    def hand_designed(self) -> IntArray:
        """Genes of a network that people designed, or the nearest the space has, `[n_genes]`."""

    @abstractmethod
    def format(self, ops: IntArray) -> str:
        """Return the text form of one architecture, `[n_genes]`."""

    @abstractmethod
    def parse(self, text: str) -> IntArray:
        """Return the architecture `[n_genes]` of a text form.

        Raises:
            UserError: If the text names no architecture of this space.
        """

    @abstractmethod
    def macs(self, ops: IntArray) -> IntArray:
        """Return multiply-accumulates of one image for `ops` `[P, n_genes]`, shape `[P]`."""

    @abstractmethod
    def params(self, ops: IntArray) -> IntArray:
        """Return the number of parameters for `ops` `[P, n_genes]`, shape `[P]`."""

    def check(self, ops: IntArray) -> IntArray:
        """Return `ops` as an int64 array after checking shape, type and range.

        Raises:
            UserError: If a gene is not an integer or out of range.
        """
        array = np.asarray(ops)
        if array.shape[-1:] != (self.n_genes,):
            raise UserError(
                f"An architecture of {self.name} has {self.n_genes} genes, "
                f"got an array of shape {array.shape}."
            )
        whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            raise UserError(f"Architecture genes of {self.name} must be whole numbers.")
        sizes = np.array([len(choices) for choices in self.gene_ops])
        bad = np.argwhere((whole < 0) | (whole >= sizes))
        if len(bad):
            gene = int(bad[0][-1])
            raise UserError(
                f"Architecture gene {gene} of {self.name} must be in 0..{sizes[gene] - 1}, "
                f"got {int(whole[tuple(bad[0])])}."
            )
        return whole

    def __repr__(self) -> str:
        return f"{type(self).__name__}(geometry={self.geometry}, n_classes={self.n_classes})"
