"""Fronts and their quality."""

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

from nasc_evo.problem import Evaluation, SplitProblem


def hypervolume(F: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Return the hypervolume of points `[n, m]` in units of the box between 0 and `reference`."""
    if len(F) == 0:
        return 0.0
    return float(moocore.hypervolume(F / reference, ref=np.ones(len(reference))))


def non_dominated(problem: SplitProblem, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the non-dominated feasible evaluations, sorted by latency.

    Of designs with equal objectives the first one evaluated is kept.
    """
    scored = [e for e in evaluations if not e.failed]
    kept = [e for e, ok in zip(scored, problem.feasible(scored), strict=True) if ok]
    if not kept:
        return []
    mask = moocore.is_nondominated(problem.objective_values(kept), keep_weakly=False)
    front = [e for e, ok in zip(kept, mask, strict=True) if ok]
    return sorted(front, key=lambda e: (e.metric("latency_ms"), e.score.error, e.index))


def least_infeasible(problem: SplitProblem, evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """Return the evaluation with the smallest sum of limit violations, None without any."""
    scored = [e for e in evaluations if not e.failed]
    if not scored:
        return None
    violation = np.maximum(problem.limit_violations(scored), 0).sum(axis=1)
    return scored[int(np.argmin(violation))]


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
