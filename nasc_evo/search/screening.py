"""What can be said of a design before its accuracy is known."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nasc_evo.problem import Evaluation, SplitProblem
from nasc_evo.search.indicators import non_dominated
from nasc_evo.space import DesignBatch


class Screen:
    """Tells which designs are not worth an evaluation, whatever their accuracy.

    Costs are known without a score. A design is hopeless if a machine refuses it, if it exceeds a
    limit on a cost, or if a feasible evaluated design would be no worse in every objective even if
    its error were the smallest possible: 0, or where nothing is lost on a link the error that its
    architecture is known to have.

    Args:
        problem: The problem searched.
        evaluations: What is known.
    """

    def __init__(self, problem: SplitProblem, evaluations: Sequence[Evaluation]) -> None:
        self.problem = problem
        self.front = problem.objective_values(non_dominated(problem, evaluations))
        self.errors = (
            {e.design.ops: e.score.error for e in evaluations if not e.failed}
            if problem.lossless
            else {}
        )

    def hopeless(self, batch: DesignBatch) -> NDArray[np.bool_]:
        """Return which designs of a decoded population are not worth an evaluation, `[P]`."""
        problem = self.problem
        costs, violations = problem.cut_costs(batch)
        result = violations > 0
        if problem.chain.may_refuse:
            result |= np.array([bool(reason) for reason in problem.chain.refusals(batch)])
        if not len(self.front):
            return result
        F = np.zeros((len(batch), problem.n_obj))
        is_error = np.array([name == "error" for name in problem.objectives])
        F[:, ~is_error] = costs
        if self.errors and "error" in problem.objectives:
            F[:, is_error] = [[self.errors.get(tuple(ops), 0.0)] for ops in batch.ops.tolist()]
        open_rows = np.flatnonzero(~result)
        if len(open_rows):
            no_worse = np.all(self.front[None] <= F[open_rows, None], axis=2).any(axis=1)
            result[open_rows] = no_worse
        return result
