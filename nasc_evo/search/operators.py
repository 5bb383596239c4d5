"""Evolutionary operators that know the genome.

pymoo's default operators for integers produce floats or hardly change a genome; these work on
genes as what they are: categories (operations, bits), an ordered cut, and a set of channel groups.
Every child they produce is a genome of the space.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.sampling import Sampling

from nasc_evo.errors import UserError
from nasc_evo.space import Design, DesignBatch, SplitSpace

CROSSOVERS = ("uniform", "two_point")
ARCHITECTURE_RATE = 0.3
"""Probability that a mutation draws another one where the architectures are a list."""
MAX_TRIES = 10_000
MAX_REMEMBERED_CUTS = 50_000
"""Genomes whose best cuts are remembered."""
CutCosts = Callable[[DesignBatch], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Cost objectives `[P, m]` and sums of limit violations `[P]` of a decoded population."""


def for_space(
    space: SplitSpace,
    *,
    crossover: str = "uniform",
    crossover_rate: float = 0.9,
    cut_rate: float = 0.3,
    bits_rate: float = 0.2,
    best_cut_rate: float = 0.0,
    cut_costs: CutCosts | None = None,
    first: Sequence[Design] = (),
    within: "Subspace | None" = None,
) -> dict[str, Any]:
    """Return fresh sampling, crossover, mutation and duplicate elimination for an algorithm.

    Use as `NSGA2(pop_size=40, **for_space(problem.space))`.

    Args:
        space: Genomes and what they mean.
        crossover: `"uniform"` or `"two_point"`.
        crossover_rate: Probability that two parents are crossed before mutation.
        cut_rate: Probability that a mutation moves a cut by one step.
        bits_rate: Probability that a mutation draws the bits anew.
        best_cut_rate: Probability that a genome moves to the best cuts for its architecture, mask
            and bits; needs `cut_costs`.
        cut_costs: Costs of the problem, :meth:`nasc_evo.problem.SplitProblem.cut_costs`.
        first: Designs to begin the initial population with.
        within: Architectures or a cut that every genome must have.
    """
    within = within or Subspace()
    best_cuts = BestCuts(space, cut_costs, best_cut_rate)
    return {
        "sampling": SplitSampling(space, first, best_cuts, within),
        "crossover": SplitCrossover(space, crossover, crossover_rate, within),
        "mutation": SplitMutation(space, cut_rate, bits_rate, best_cuts, within),
        "eliminate_duplicates": PhenotypeDuplicates(space),
    }


@dataclass(frozen=True)
class Subspace:
    """A part of a space that operators stay within.

    Attributes:
        architectures: The only architectures allowed, `[n, n_arch]`; None for all.
        cut: The only cut allowed, as a number of blocks; None for all.
    """

    architectures: NDArray[np.int64] | None = None
    cut: int | None = None

    def draw(
        self, space: SplitSpace, X: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Move genomes into the part, in place, drawing an architecture for each."""
        if self.architectures is not None:
            X[:, : space.n_arch] = self.architectures[
                rng.integers(len(self.architectures), size=len(X))
            ]
        if self.cut is not None:
            X[:, space.cut_genes] = np.searchsorted(space.cut_choices, self.cut)
        return X


def check_rate(name: str, rate: float) -> None:
    """Raise a UserError unless a rate is a number in 0..1."""
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if not (number and 0 <= rate <= 1):
        raise UserError(f"{name} must be a number in 0..1, got {rate!r}.")


def random_genomes(space: SplitSpace, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `n` random genomes, spread over small and large networks and few and many channels.

    Drawing every operation uniformly gives networks of nearly one size. Here each genome draws
    its operations from frequencies of its own (Dirichlet), a number of kept groups uniformly, and
    in half of the cases the most important groups.
    """
    X = np.empty((n, space.n_var), dtype=np.int64)
    sizes = space.sizes[: space.n_arch]
    of_size = [(size, np.flatnonzero(sizes == size)) for size in np.unique(sizes)]
    for x in X:
        for size, genes in of_size:
            x[genes] = rng.choice(size, size=len(genes), p=rng.dirichlet(np.ones(size)))
        cuts = rng.integers(0, len(space.cut_choices), space.n_links)
        x[space.cut_genes] = space.repair_cuts(cuts[None])[0]
        for genes, cut in zip(space.mask_genes, x[space.cut_genes], strict=True):
            if space.n_mask == 0:
                continue
            c = space.cut_choices[cut]
            groups = int(space.groups_at[c]) or space.n_mask
            kept = rng.integers(1, groups + 1)
            by_importance = rng.random() < 0.5
            order = space.importance[c, :groups] if by_importance else rng.permutation(groups)
            x[genes] = 0
            x[genes[order[:kept]]] = 1
        x[space.bits_genes] = rng.integers(0, len(space.bits), len(space.bits_genes))
    return X


def keep_valid(space: SplitSpace, X: NDArray[np.integer]) -> NDArray[np.integer]:
    """Make cuts allowed ones and put empty masks on their most important group, in place."""
    X[:, space.cut_genes] = space.repair_cuts(X[:, space.cut_genes])
    cuts = space.cut_choices[X[:, space.cut_genes]]
    for k, genes in enumerate(space.mask_genes):
        used = np.arange(space.n_mask) < space.groups_at[cuts[:, k]][:, None]
        empty = np.flatnonzero(used.any(axis=1) & ~((X[:, genes] > 0) & used).any(axis=1))
        X[empty, genes[space.importance[cuts[empty, k], 0]]] = 1
    return X


def phenotypes(batch: DesignBatch) -> list[bytes]:
    """Return what identifies the phenotype of each design of a decoded population."""
    parts = (batch.ops, batch.cuts, batch.masks.reshape(len(batch), -1), batch.bits)
    rows = np.ascontiguousarray(np.concatenate(parts, axis=1).astype(np.int16))
    return [row.tobytes() for row in rows]


class BestCuts:
    """Moves some genomes to the best cuts for their architecture, masks and bits.

    Costs are known without scoring a network, so that trying every cut is nearly free. Among the
    cuts with the smallest violation of the limits, one that no other dominates is drawn.

    Args:
        space: Genomes.
        costs: What is known without a score; see
            :meth:`nasc_evo.problem.SplitProblem.cut_costs`.
        rate: Probability that a genome is moved.

    Raises:
        UserError: If the rate is no probability, or above 0 without costs.
    """

    def __init__(self, space: SplitSpace, costs: CutCosts | None, rate: float) -> None:
        check_rate("best_cut_rate", rate)
        if rate > 0 and costs is None:
            raise UserError(f"best_cut_rate={rate} needs the costs of the problem.")
        self.space = space
        self.costs = costs
        self.rate = rate
        self._best: dict[bytes, NDArray[np.int64]] = {}

    def __call__(self, X: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return `X` `[P, n_var]` with some rows moved; draws nothing at rate 0."""
        if self.rate == 0 or self.costs is None:
            return X
        moved = np.flatnonzero(rng.random(len(X)) < self.rate)
        if not len(moved):
            return X
        bare = X[moved]
        bare[:, self.space.cut_genes] = 0
        keys = [x.tobytes() for x in bare]
        self._look_up(keys, bare)
        for row, key in zip(moved, keys, strict=True):
            best = self._best[key]
            choice = rng.integers(len(best)) if len(best) > 1 else 0
            X[row, self.space.cut_genes] = self.space.cut_vectors[best[choice]]
        X[moved] = keep_valid(self.space, X[moved])
        return X

    def _look_up(self, keys: list[bytes], bare: NDArray[np.int64]) -> None:
        """Find the best cuts of genomes that were not asked for before."""
        if len(self._best) > MAX_REMEMBERED_CUTS:
            self._best.clear()
        new = {key: row for row, key in enumerate(keys) if key not in self._best}
        if not new:
            return
        vectors = self.space.cut_vectors
        n = len(vectors)
        tried = np.repeat(bare[list(new.values())], n, axis=0)
        tried[:, self.space.cut_genes] = np.tile(vectors, (len(new), 1))
        keep_valid(self.space, tried)
        objectives, violations = self.costs(self.space.decode_batch(tried))  # type: ignore[misc]
        violations = violations.reshape(len(new), n)
        allowed = violations == violations.min(axis=1, keepdims=True)
        if objectives.shape[1] == 1:  # the front of one objective is its least
            only = np.where(allowed, objectives.reshape(len(new), n), np.inf).argmin(axis=1)
            self._best |= dict(zip(new, only[:, None], strict=True))
            return
        for i, key in enumerate(new):
            cuts = np.flatnonzero(allowed[i])
            front = moocore.is_nondominated(objectives[i * n + cuts], keep_weakly=False)
            self._best[key] = cuts[front]


class SplitSampling(Sampling):
    """Random genomes of a space, see :func:`random_genomes`."""

    def __init__(
        self,
        space: SplitSpace,
        first: Sequence[Design] = (),
        best_cuts: BestCuts | None = None,
        within: Subspace | None = None,
    ) -> None:
        super().__init__()
        self.space = space
        self.first = first
        self.best_cuts = best_cuts
        self.within = within or Subspace()

    def _do(
        self,
        problem: Problem,
        n_samples: int,
        *args: Any,
        random_state: np.random.Generator,
        **kwargs: Any,
    ) -> NDArray[np.int64]:
        X = random_genomes(self.space, n_samples, random_state)
        keep_valid(self.space, self.within.draw(self.space, X, random_state))
        if self.best_cuts is not None:
            X = self.best_cuts(X, random_state)
        for row, design in enumerate(self.first[:n_samples]):
            X[row] = self.space.encode(design)
        return X


class SplitCrossover(Crossover):
    """Uniform or two-point crossover that never tears a cut from its mask.

    The units exchanged are single architecture genes, each cut together with its mask, and each
    bits gene.
    """

    def __init__(
        self,
        space: SplitSpace,
        kind: str = "uniform",
        rate: float = 0.9,
        within: Subspace | None = None,
    ) -> None:
        check_rate("crossover_rate", rate)
        super().__init__(2, 2, prob=rate)
        if kind not in CROSSOVERS:
            raise UserError(f"crossover must be one of {', '.join(CROSSOVERS)}, got '{kind}'.")
        self.space = space
        self.kind = kind
        self.unit = np.arange(space.n_var)
        if within is not None and within.architectures is not None:
            self.unit[: space.n_arch] = 0  # listed architectures stay whole
        for cut, genes in zip(space.cut_genes, space.mask_genes, strict=True):
            self.unit[genes] = self.unit[cut]
        self.unit = np.unique(self.unit, return_inverse=True)[1]

    def _do(
        self,
        problem: Problem,
        X: NDArray,
        *args: Any,
        random_state: np.random.Generator,
        **kwargs: Any,
    ) -> NDArray[np.int64]:
        n_matings = X.shape[1]
        n_units = int(self.unit.max()) + 1
        if self.kind == "uniform":
            swapped = random_state.random((n_matings, n_units)) < 0.5
        else:
            points = np.sort(random_state.integers(0, n_units + 1, (n_matings, 2)), axis=1)
            place = np.arange(n_units)
            swapped = (place >= points[:, :1]) & (place < points[:, 1:])
        genes = swapped[:, self.unit]
        first, second = X.astype(np.int64)
        children = np.stack([np.where(genes, second, first), np.where(genes, first, second)])
        return np.stack([keep_valid(self.space, child) for child in children])


class SplitMutation(Mutation):
    """Mutation with one rate a segment; every child differs from its parent in some gene.

    Architecture genes are drawn anew with rate 1 / (number of them), mask genes flipped with rate
    1 / (number of groups at the cut), cuts moved by one step, bits drawn anew. Some children then
    move to one of their best cuts (which may be a step back).
    """

    def __init__(
        self,
        space: SplitSpace,
        cut_rate: float = 0.3,
        bits_rate: float = 0.2,
        best_cuts: BestCuts | None = None,
        within: Subspace | None = None,
    ) -> None:
        super().__init__(prob=1.0)
        check_rate("cut_rate", cut_rate)
        check_rate("bits_rate", bits_rate)
        self.space = space
        self.cut_rate = cut_rate
        self.bits_rate = bits_rate
        self.best_cuts = best_cuts
        self.within = within or Subspace()

    def _do(
        self,
        problem: Problem,
        X: NDArray,
        *args: Any,
        random_state: np.random.Generator,
        **kwargs: Any,
    ) -> NDArray[np.int64]:
        children = X.astype(np.int64)
        for child in children:
            parent = child.copy()
            for _ in range(MAX_TRIES):  # rates may leave nothing that can change
                self._mutate(child, random_state)
                keep_valid(self.space, child[None])
                if not np.array_equal(child, parent):
                    break
        return children if self.best_cuts is None else self.best_cuts(children, random_state)

    def _mutate(self, x: NDArray[np.int64], rng: np.random.Generator) -> None:
        space = self.space
        allowed = self.within.architectures
        if allowed is None:
            genes = np.flatnonzero(rng.random(space.n_arch) < 1 / space.n_arch)
            x[genes] = (x[genes] + rng.integers(1, space.sizes[genes])) % space.sizes[genes]
        elif rng.random() < ARCHITECTURE_RATE:
            x[: space.n_arch] = allowed[rng.integers(len(allowed))]
        for link, (cut, mask) in enumerate(zip(space.cut_genes, space.mask_genes, strict=True)):
            if self.within.cut is None and rng.random() < self.cut_rate:
                step = x[cut] + rng.choice((-1, 1))
                x[cut] = np.clip(step, 0, space.sizes[cut] - 1)
            if space.n_mask:
                groups = int(space.groups_at[space.cut_choices[x[cut]]]) or space.n_mask
                flipped = rng.random(groups) < 1 / groups
                x[mask[:groups]] ^= flipped
            if rng.random() < self.bits_rate and len(space.bits_genes):
                bits = space.bits_genes[link]
                x[bits] = (x[bits] + rng.integers(1, len(space.bits))) % len(space.bits)


class PhenotypeDuplicates(DuplicateElimination):
    """Removes individuals whose phenotype is in the population or the offspring already."""

    def __init__(self, space: SplitSpace) -> None:
        super().__init__()
        self.space = space

    def _keys(self, population: Population) -> list[bytes]:
        X = np.array([individual.X for individual in population], dtype=np.int64)
        return phenotypes(self.space.decode_batch(X))

    def _do(
        self, pop: Population, other: Population | None, is_duplicate: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        seen = set() if other is None else set(self._keys(other))
        for i, key in enumerate(self._keys(pop)):
            is_duplicate[i] = key in seen
            seen.add(key)
        return is_duplicate
