"""What a joint search is compared with: searches in steps, and evolution of one objective.

Each is a re-implementation from its paper on this package's spaces, costs and accuracies; no code
of the papers was at hand.
"""

from collections.abc import Callable, Sequence
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from nasc_evo.errors import UserError
from nasc_evo.problem import Evaluation, SplitProblem
from nasc_evo.search.indicators import non_dominated
from nasc_evo.search.method import Genomes, Method, Stages
from nasc_evo.search.operators import SplitMutation, Subspace, random_genomes

MAX_KNOWN = 1000
"""Proposals in a row that are known already, after which a search ends."""


class RegularisedEvolution(Method):
    """Ageing evolution (Real et al., AAAI 2019), a population for each of some scalarisations.

    The weighted Chebyshev distance to zero is minimised, objectives in units of the reference
    point; the populations take turns. One weight vector alone is the method of the paper.

    Args:
        weights: Of the objectives, a row a population, `[n, m]`.
        mutation: Makes a child of one parent.
        within: What random genomes are confined to.
        pop_size: Designs a population holds; the oldest leaves.
        tournament: Designs drawn to find a parent.
    """

    ended = f"{MAX_KNOWN} proposals in a row were known already"

    def __init__(
        self,
        weights: NDArray[np.float64],
        mutation: SplitMutation,
        *,
        within: Subspace | None = None,
        pop_size: int = 20,
        tournament: int = 5,
    ) -> None:
        self.weights = weights
        self.mutation = mutation
        self.within = within or Subspace()
        self.pop_size = pop_size
        self.tournament = tournament
        self.populations: list[list[tuple[float, Genomes]]] = [[] for _ in weights]
        self.turn = 0

    def propose(self) -> Genomes:
        """Return one genome whose phenotype is unknown."""
        for _ in range(MAX_KNOWN):
            x = self._child(self.populations[self.turn])
            evaluation = self.known(x)
            if evaluation is None:
                return x[None]
            self._add(x, evaluation)
        return np.empty((0, self.problem.space.n_var), dtype=np.int64)

    def _child(self, population: Sequence[tuple[float, Genomes]]) -> Genomes:
        space = self.problem.space
        if len(population) < self.pop_size:
            x = random_genomes(space, 1, self.rng)
            return self.within.draw(space, x, self.rng)[0]
        drawn = self.rng.choice(
            len(population), min(self.tournament, len(population)), replace=False
        )
        _, parent = min((population[i] for i in drawn), key=lambda member: member[0])
        return self.mutation._do(self.problem, parent[None], random_state=self.rng)[0]

    def learn(self, evaluated: Any) -> None:
        """Add what was asked for to the population whose turn it is."""
        (x,) = evaluated.get("X")
        evaluation = self.known(x)
        if evaluation is not None:
            self._add(x, evaluation)

    def _add(self, x: Genomes, evaluation: Evaluation) -> None:
        population = self.populations[self.turn]
        population.append((self.fitness(evaluation, self.weights[self.turn]), x))
        if len(population) > self.pop_size:
            population.pop(0)
        self.turn = (self.turn + 1) % len(self.populations)


class CutSweep(Method):
    """Every cut of given architectures, all channels sent at the most bits.

    The split point that Neurosurgeon (Kang et al., ASPLOS 2017) chooses is among them.

    Where the error does not depend on the cut only the cuts of the least costs are looked at.

    Args:
        architectures: `[n, n_arch]`.
    """

    ended = "every cut of the network was looked at"

    def __init__(self, architectures: Genomes) -> None:
        self.architectures = architectures
        self.done = False

    def propose(self) -> Genomes:
        """Return all of them at once, fastest first, then nothing."""
        space = self.problem.space
        if self.done:
            return np.empty((0, space.n_var), dtype=np.int64)
        self.done = True
        cuts = space.cut_vectors
        X = np.tile(space.xu, (len(self.architectures) * len(cuts), 1))
        X[:, : space.n_arch] = np.repeat(self.architectures, len(cuts), axis=0)
        X[:, space.cut_genes] = np.tile(cuts, (len(self.architectures), 1))
        costs, violations = self.problem.cut_costs(space.decode_batch(X))
        if self.problem.lossless:
            kept = []
            for start in range(0, len(X), len(cuts)):
                mine = np.arange(start, start + len(cuts))
                allowed = mine[violations[mine] == violations[mine].min()]
                kept += allowed[moocore.is_nondominated(costs[allowed], keep_weakly=False)].tolist()
            X, costs, violations = X[kept], costs[kept], violations[kept]
        return X[np.lexsort((costs[:, 0], violations))]


class PruneAtCut(Method):
    """Channels of one network removed at each cut, the least sensitive first.

    After 2-step pruning (Shi et al., INFOCOM workshops 2019): at each cut the group whose removal
    costs the least accuracy, as measured, is removed, until one is left; cuts that would be fastest
    with one group left come first. Everything is sent at the most bits.

    Args:
        architecture: `[n_arch]`.
    """

    ended = "every cut of the network was pruned to one group"

    def __init__(self, architecture: NDArray[np.int64]) -> None:
        self.architecture = architecture
        self.open_cuts: list[tuple[int, ...]] | None = None
        self.mask: Genomes | None = None
        self.asked: Genomes | None = None

    def _order(self) -> list[tuple[int, ...]]:
        space = self.problem.space
        cuts = space.cut_vectors
        X = np.zeros((len(cuts), space.n_var), dtype=np.int64)
        X[:, : space.n_arch] = self.architecture
        X[:, space.cut_genes] = cuts
        costs, violations = self.problem.cut_costs(space.decode_batch(X))
        return [tuple(cuts[i]) for i in np.lexsort((costs[:, 0], violations))]

    def propose(self) -> Genomes:
        """Return the network with each of the remaining groups removed, or the next full cut."""
        space = self.problem.space
        if self.open_cuts is None:
            self.open_cuts = self._order()
        if self.asked is not None:
            self._remove_least_sensitive(self.asked)
        if self.mask is None:
            if not self.open_cuts:
                return np.empty((0, space.n_var), dtype=np.int64)
            x = space.xu.copy()
            x[: space.n_arch] = self.architecture
            x[space.cut_genes] = self.open_cuts.pop(0)
            self.mask = x
            self.asked = x[None]
            return self.asked
        removable = [
            gene
            for genes, cut in zip(space.mask_genes, self.mask[space.cut_genes], strict=True)
            for gene in genes[: space.groups_at[space.cut_choices[cut]]]
            if self.mask[gene] and self.mask[genes].sum() > 1
        ]
        X = np.tile(self.mask, (len(removable), 1))
        X[np.arange(len(removable)), removable] = 0
        self.asked = X
        return X

    def _remove_least_sensitive(self, asked: Genomes) -> None:
        """Go on from the best of what was asked for; leave the cut where nothing can go."""
        space = self.problem.space
        scored = [(self.known(x), x) for x in asked]
        errors = [np.inf if e is None or e.failed else e.score.error for e, _ in scored]
        best = asked[int(np.argmin(errors))]
        cuts = space.cut_choices[best[space.cut_genes]]
        left = sum(
            int(best[genes[: space.groups_at[cut]]].sum()) - 1
            for genes, cut in zip(space.mask_genes, cuts, strict=True)
            if space.groups_at[cut]
        )
        self.mask = best if left > 0 and np.isfinite(min(errors)) else None


def accuracy_stage(problem: SplitProblem) -> RegularisedEvolution:
    """Return the search for the most accurate network alone, as a one-shot search ends."""
    within = Subspace(cut=problem.space.architecture.n_blocks)
    weights = np.array([[float(name == "error") for name in problem.objectives]])
    return RegularisedEvolution(weights, SplitMutation(problem.space, within=within), within=within)


def most_accurate(problem: SplitProblem) -> NDArray[np.int64]:
    """Return the architecture of the smallest error so far, `[1, n_arch]`."""
    scored = [e for e in problem.search_evaluations() if not e.failed]
    if not scored:
        raise UserError("No design of the first stage could be scored.")
    best = min(scored, key=lambda e: (e.score.error, e.index))
    return np.array([best.genome[: problem.space.n_arch]])


def front_architectures(problem: SplitProblem) -> NDArray[np.int64]:
    """Return the architectures of the front so far, `[n, n_arch]`."""
    evaluations = problem.search_evaluations()
    front = non_dominated(problem, evaluations) or [e for e in evaluations if not e.failed]
    rows = np.array([e.genome[: problem.space.n_arch] for e in front])
    return np.unique(rows, axis=0)


def in_stages(
    n_eval: int, share: float, first: Callable[..., Any], second: Callable[..., Any]
) -> Stages:
    """Return two stages, the first with a share of the budget."""
    return Stages([(first, max(1, round(share * n_eval))), (second, None)])
