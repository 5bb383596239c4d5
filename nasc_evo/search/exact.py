"""The exact front of a space small enough to look at every design."""

from collections.abc import Iterator

import moocore
import numpy as np
from numpy.typing import NDArray

from nasc_evo.errors import UserError
from nasc_evo.problem import Evaluation, SplitProblem
from nasc_evo.search.indicators import non_dominated
from nasc_evo.space import SplitSpace


def all_genomes(space: SplitSpace) -> Iterator[NDArray[np.int64]]:
    """Yield for each choice of cuts the genomes of all architectures, `[architectures, n_var]`.

    They send the least that a genome can: the most important channel group at the fewest bits.
    Where networks that compute the same are one phenotype, only their representatives are given.
    """
    architectures = space.architecture.architectures
    if space.merge_equal_networks:
        architectures = np.unique(space.architecture.canonical(architectures), axis=0)
    X = np.zeros((len(architectures), space.n_var), dtype=np.int64)
    X[:, : space.n_arch] = architectures
    for cuts in space.cut_vectors:
        X[:, space.cut_genes] = cuts
        yield X.copy()


def exact_front(problem: SplitProblem) -> list[Evaluation]:
    """Return the Pareto set of a problem whose accuracies are all known, sorted by latency.

    Costs and errors of every architecture at every cut are computed as arrays; only what is not
    dominated is then evaluated as designs.

    Raises:
        UserError: If the accuracies of the problem are not tabular, or the space has no list of
            all its architectures.
    """
    space = problem.space
    accuracies = getattr(problem.evaluator, "accuracies", None)
    if accuracies is None or not len(space.architecture.architectures):
        raise UserError(
            "The exact front is known where every accuracy is: use problem=nasbench201 "
            "evaluator=tabular."
        )
    rows, values = [], []
    for X in all_genomes(space):
        batch = space.decode_batch(X)
        metrics = problem.costs(batch)
        metrics["error"] = 1 - accuracies["search"][space.architecture.index(batch.ops)]
        allowed = np.ones(len(X), dtype=bool)
        for name, limit in problem.limits.items():
            allowed &= metrics[name] <= limit
        if problem.chain.may_refuse:
            allowed &= [not reason for reason in problem.chain.refusals(batch)]
        F = np.column_stack([metrics[name] for name in problem.objectives])[allowed]
        if len(F):
            best = moocore.is_nondominated(F, keep_weakly=True)
            rows.append(X[allowed][best])
            values.append(F[best])
    if not rows:
        return []
    candidates = np.concatenate(rows)
    best = moocore.is_nondominated(np.concatenate(values), keep_weakly=True)
    found = [e for e in problem.assess(candidates[best]) if e is not None]
    return non_dominated(problem, found)
