"""Fronts and their quality."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import moocore
import numpy as np
from numpy.typing import NDArray

from nasc_evo.problem import Evaluation, SplitProblem
from nasc_evo.spill import IN_MEMORY


def hypervolume(F: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Return the hypervolume of points `[n, m]` in units of the box between 0 and `reference`."""
    if len(F) == 0:
        return 0.0
    return float(moocore.hypervolume(F / reference, ref=np.ones(len(reference))))


def non_dominated(problem: SplitProblem, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the non-dominated feasible evaluations, sorted by latency.

    Of designs with equal objectives the first one evaluated is kept.
    """
    values = [np.empty((0, problem.n_obj))]
    feasible = [np.empty(0, dtype=bool)]
    for block in _blocks(evaluations):
        values.append(problem.objective_values(block))
        feasible.append(problem.feasible(block) & ~np.array([e.failed for e in block]))
    kept = np.flatnonzero(np.concatenate(feasible))
    if not len(kept):
        return []
    mask = moocore.is_nondominated(np.concatenate(values)[kept], keep_weakly=False)
    front = [evaluations[i] for i in kept[mask].tolist()]
    return sorted(front, key=lambda e: (e.metric("latency_ms"), e.score.error, e.index))


def least_infeasible(problem: SplitProblem, evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """Return the evaluation with the smallest sum of limit violations, None without any."""
    best, lowest = None, np.inf
    for block in _blocks(evaluations):
        scored = [e for e in block if not e.failed]
        excess = np.maximum(problem.limit_violations(scored), 0).sum(axis=1)
        for evaluation, violation in zip(scored, excess.tolist(), strict=True):
            if best is None or violation < lowest:
                best, lowest = evaluation, violation
    return best


def _blocks(evaluations: Iterable[Evaluation]) -> Iterator[list[Evaluation]]:
    """Yield evaluations in order, not more at a time than may be in memory."""
    left = iter(evaluations)
    while block := list(islice(left, IN_MEMORY)):
        yield block


def spread_subset(F: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Return the indices of at most `n` points spread over a front, its ends included.

    Starting from the best point of each objective, the point farthest from those chosen (in
    objectives scaled to their range) is added until there are `n`.
    """
    if len(F) <= n:
        return np.arange(len(F))
    span = np.ptp(F, axis=0)
    scaled = (F - F.min(axis=0)) / np.where(span > 0, span, 1)
    chosen = list(dict.fromkeys(np.argmin(scaled, axis=0).tolist()))[:n]
    while len(chosen) < n:
        distance = np.linalg.norm(scaled[:, None] - scaled[chosen], axis=2).min(axis=1)
        chosen.append(int(np.argmax(distance)))
    return np.sort(chosen)


def knee(F: NDArray[np.float64]) -> int:
    """Return the index of the knee of a front: the point nearest to the ideal point.

    Objectives are scaled to the range of the front; of equally near points the one that is best
    in the first objective is taken.
    """
    span = np.ptp(F, axis=0)
    scaled = (F - F.min(axis=0)) / np.where(span > 0, span, 1)
    distance = np.round(np.linalg.norm(scaled, axis=1), 12)
    return int(np.lexsort((F[:, 0], distance))[0])
