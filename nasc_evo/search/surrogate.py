"""Search that asks a predictor of accuracy which designs are worth an evaluation."""

from collections.abc import Sequence
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from nasc_evo.problem import Evaluation
from nasc_evo.search.indicators import non_dominated
from nasc_evo.search.method import Genomes, Method
from nasc_evo.search.operators import (
    BestCuts,
    SplitSampling,
    keep_valid,
    phenotypes,
    random_genomes,
)
from nasc_evo.search.predictor import (
    ErrorPredictor,
    Features,
    drawn_out,
    expected_hypervolume_gain,
    expected_scalar_gain,
    features,
)
from nasc_evo.search.screening import Screen
from nasc_evo.space import SplitSpace

MAX_DRAWS = 20
"""How often the first designs are drawn anew where they are hopeless."""
SIGNIFICANT_DIGITS = 9
"""Gains are compared to so many digits, so that a last bit of BLAS changes no choice."""
RANDOM_SHARE = 8
"""One random design for so many offspring."""
BATCH_SHARE = 0.04
"""A generation evaluates at least this share of what is known already."""


class SurrogateSearch(Method):
    """Evaluates what a predictor expects to enlarge the hypervolume most.

    The first designs are random ones, beside the fastest of the space. In each generation the
    predictor (:class:`nasc_evo.search.predictor.ErrorPredictor`) is fitted to all evaluations.
    Thousands of virtual offspring of the front are costed, which needs no network to run; those
    that are known or hopeless (:class:`nasc_evo.search.screening.Screen`) are dropped, the others
    predicted. The design with the largest expected gain joins the batch, then the next one as if
    the first had its expected error, and so on. Every reported figure is that of a true evaluation.

    Args:
        sampling: Draws the first designs.
        best_cuts: Moves virtual designs to the best cuts for their architecture.
        initial: Random designs to begin with.
        batch: Designs evaluated in a generation, and a share of the known ones if that is more.
        offspring: Virtual designs looked at in a generation.
        exploration: The predictor's standard deviations are multiplied by it.
    """

    ended = "no design is left among the proposals that could enter the front"

    def __init__(
        self,
        sampling: SplitSampling,
        best_cuts: BestCuts,
        *,
        initial: int,
        batch: int,
        offspring: int,
        exploration: float,
    ) -> None:
        self.sampling = sampling
        self.best_cuts = best_cuts
        self.initial = initial
        self.batch = batch
        self.offspring = offspring
        self.exploration = exploration

    def setup(self, problem: Any, *, termination: Any = None, seed: int) -> None:
        """Begin a search."""
        super().setup(problem, termination=termination, seed=seed)
        guessing = 1 - 1 / problem.space.architecture.n_classes
        self.predictor = ErrorPredictor(guessing=guessing)
        self._features: dict[str, tuple[NDArray, NDArray]] = {}
        self._error = problem.objectives.index("error")
        self._begun = False

    def propose(self) -> Genomes:
        """Return the first designs, then those of the largest expected gain."""
        evaluations = self.evaluated()
        scored = [e for e in evaluations if not e.failed]
        if not self._begun or len(scored) < 2:
            self._begun = True
            return self._first(evaluations)
        self._fit(scored)
        size = max(self.batch, int(BATCH_SHARE * len(scored)))
        X = self._candidates(evaluations)
        return X[self._choose(X, scored, size)]

    def _first(self, evaluations: Sequence[Evaluation]) -> Genomes:
        """Return random designs that are not hopeless, or offspring of the few that are not.

        Where none is found, the two of the smallest violation.
        """
        screen, space = Screen(self.problem, evaluations), self.problem.space
        drawn: Genomes = self.sampling._do(self.problem, self.initial, random_state=self.rng)
        kept, nearest, seen = drawn[:0], drawn[:0], set[bytes]()
        for _ in range(MAX_DRAWS):
            nearest = self._nearest(np.concatenate([nearest, drawn]))
            batch = space.decode_batch(drawn)
            hopeless, rows = screen.hopeless(batch), []
            for row, phenotype in enumerate(phenotypes(batch)):
                if not hopeless[row] and phenotype not in seen:
                    seen.add(phenotype)
                    rows.append(row)
            kept = np.concatenate([kept, drawn[rows]])
            if len(kept) >= self.initial:
                return kept[: self.initial]
            fresh = random_genomes(space, self.initial, self.rng)
            if len(kept):
                parents = kept[self.rng.integers(0, len(kept), self.initial)]
                fresh = np.concatenate([fresh, vary(space, parents, fresh, self.rng)])
            drawn = self.best_cuts(fresh, self.rng)
        return kept if len(kept) else nearest

    def _nearest(self, X: Genomes) -> Genomes:
        """Return the two genomes of the smallest violation of the limits, as far as it is known."""
        _, violations = self.problem.cut_costs(self.problem.space.decode_batch(X))
        return X[np.argsort(violations, kind="stable")[:2]]

    def _fit(self, scored: list[Evaluation]) -> None:
        """Fit the predictor to all scores; features of a design are computed once."""
        space = self.problem.space
        fresh = [e for e in scored if e.design.key not in self._features]
        if fresh:
            seen = features(space, space.decode_batch(np.array([e.genome for e in fresh])))
            for row, evaluation in enumerate(fresh):
                self._features[evaluation.design.key] = seen.ops[row], seen.numbers[row]
        ops, numbers = zip(*(self._features[e.design.key] for e in scored), strict=True)
        errors = np.array([e.score.error for e in scored])
        self.predictor.fit(Features(np.array(ops), np.array(numbers)), errors)

    def _candidates(self, evaluations: Sequence[Evaluation]) -> Genomes:
        """Return virtual offspring that are neither known nor hopeless, each phenotype once."""
        problem, space, rng = self.problem, self.problem.space, self.rng
        front = non_dominated(problem, evaluations)
        everything = np.array([e.genome for e in evaluations])
        parents = np.array([e.genome for e in front]) if front else everything
        drawn = parents[rng.integers(0, len(parents), self.offspring)]
        mates = everything[rng.integers(0, len(everything), self.offspring)]
        fresh = random_genomes(space, self.offspring // RANDOM_SHARE, rng)
        X = np.unique(np.concatenate([vary(space, drawn, mates, rng), fresh]), axis=0)
        X = self.best_cuts(X, rng)
        seen = set(phenotypes(space.decode_batch(everything)))
        new = []
        for row, phenotype in enumerate(phenotypes(space.decode_batch(X))):
            if phenotype not in seen:
                seen.add(phenotype)
                new.append(row)
        X = X[new]
        if not len(X):
            return X
        return X[~Screen(problem, evaluations).hopeless(space.decode_batch(X))]

    def _choose(self, X: Genomes, scored: list[Evaluation], size: int) -> list[int]:
        """Return the rows of `X` to evaluate, at most `size`."""
        if not len(X):
            return []
        problem, error = self.problem, self._error
        batch = problem.space.decode_batch(X)
        costs = problem.cut_costs(batch)[0] / np.delete(self.reference, error)
        mean, deviation = self.predictor.predict(features(problem.space, batch))
        mean = mean / self.reference[error]
        deviation = self.exploration * deviation / self.reference[error]
        knee = self.predictor.knee / self.reference[error]
        expected = drawn_out(mean, knee)
        front = problem.objective_values(non_dominated(problem, scored)) / self.reference
        front = np.column_stack([front[:, error], np.delete(front, error, axis=1)])
        front = front[(front < 1).all(axis=1)]
        two = problem.n_obj == 2

        def gains(rows: Any) -> NDArray[np.float64]:
            if two:
                gain = expected_hypervolume_gain(
                    mean[rows], deviation[rows], costs[rows, 0], front, knee
                )
            else:
                weights = 1 / np.maximum(self.rng.dirichlet(np.ones(problem.n_obj)), 1e-3)
                gain = expected_scalar_gain(
                    mean[rows], deviation[rows], costs[rows], front, weights, knee
                )
            return rounded(gain)

        # a gain of hypervolume only shrinks while the front grows: what it was bounds what it is
        bounds, fresh = gains(slice(None)), np.ones(len(X), dtype=bool)
        chosen: list[int] = []
        while len(chosen) < min(size, len(X)):
            row = int(np.argmax(bounds))
            if not fresh[row]:
                bounds[row], fresh[row] = gains([row])[0], True
                continue
            chosen.append(row)
            values = np.concatenate([[expected[row]], costs[row]])
            if (values < 1).all():
                front = np.vstack([front, values])
                front = front[moocore.is_nondominated(front, keep_weakly=False)]
            if not two:
                bounds = gains(slice(None))
            fresh[:] = not two
            bounds[chosen], fresh[chosen] = -1.0, True
        return chosen


def rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values to :data:`SIGNIFICANT_DIGITS`."""
    magnitude = np.floor(np.log10(np.maximum(np.abs(values), 1e-300)))
    scale = 10.0 ** (SIGNIFICANT_DIGITS - 1 - magnitude)
    return np.where(np.abs(values) > 1e-290, np.round(values * scale) / scale, 0.0)


def vary(space: SplitSpace, X: Genomes, mates: Genomes, rng: np.random.Generator) -> Genomes:
    """Return children of `X`, some crossed with `mates`, near and far, as arrays.

    Half take a third of the architecture from a mate. Each redraws one to three operations in the
    mean, and moves its cuts, draws its bits anew, flips mask genes or sends as many of the most
    important groups as it draws, each with a probability of its own.
    """
    n, n_arch = len(X), space.n_arch
    children = X.copy()
    crossed = (rng.random((n, 1)) < 0.5) & (rng.random((n, n_arch)) < 1 / 3)
    children[:, :n_arch] = np.where(crossed, mates[:, :n_arch], X[:, :n_arch])
    rate = rng.integers(1, 4, (n, 1)) / n_arch
    redrawn = rng.random((n, n_arch)) < rate
    fresh = rng.integers(0, space.sizes[:n_arch], (n, n_arch))
    children[:, :n_arch] = np.where(redrawn, fresh, children[:, :n_arch])
    for link, cut in enumerate(space.cut_genes):
        step = rng.integers(-2, 3, n) * (rng.random(n) < 0.5)
        children[:, cut] = np.clip(children[:, cut] + step, 0, space.sizes[cut] - 1)
        if space.n_mask:
            genes = space.mask_genes[link]
            cuts = space.cut_choices[children[:, cut]]
            groups = np.maximum(space.groups_at[cuts], 1)
            kind = rng.random(n)
            flips = (rng.random((n, len(genes))) < 1 / groups[:, None]) & (kind < 0.4)[:, None]
            masks = children[:, genes] ^ flips
            kept = 1 + np.floor(rng.random(n) * groups).astype(np.int64)
            rank = np.argsort(space.importance[cuts], axis=1)
            important = (rank < kept[:, None]).astype(np.int64)
            children[:, genes] = np.where((kind > 0.7)[:, None], important, masks)
        if len(space.bits_genes):
            gene = space.bits_genes[link]
            drawn = rng.integers(0, len(space.bits), n)
            children[:, gene] = np.where(rng.random(n) < 0.2, drawn, children[:, gene])
    return keep_valid(space, children)
