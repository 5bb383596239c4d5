"""The search loop: ask an algorithm for genomes, evaluate unknown phenotypes, tell it the result.

The loop is deterministic for a seed; with remembered scores (resume) it walks the same path again
without computing anything twice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymoo.core.termination import NoTermination

from nasc_evo.errors import UserError
from nasc_evo.problem import Evaluation, SplitProblem

STALL_GENERATIONS = 10
"""Generations without a new design after which a search ends."""


@dataclass(frozen=True)
class SearchResult:
    """What a search leaves.

    Attributes:
        evaluations: Distinct phenotypes evaluated, in order.
        generations: Generations begun.
        stop_reason: Why it ended, in words.
        interrupted: Whether the user ended it.
    """

    evaluations: list[Evaluation]
    generations: int
    stop_reason: str
    interrupted: bool = False


def check_budget(n_eval: int, seed: int) -> None:
    """Raise a UserError unless budget and seed are whole numbers in range."""
    for name, value, lowest in (("n_eval", n_eval, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise UserError(f"{name} must be a whole number of at least {lowest}, got {value!r}.")


def run_search(
    problem: SplitProblem,
    algorithm: Any,
    n_eval: int,
    *,
    seed: int,
    on_generation: Callable[[int], None] = lambda generation: None,
) -> SearchResult:
    """Search until `n_eval` distinct phenotypes are evaluated.

    Args:
        problem: What to solve; its evaluations of the search split are the result.
        algorithm: A fresh pymoo algorithm, see :func:`create_algorithm`.
        n_eval: Budget of distinct phenotypes; those the cache knows are free.
        seed: Of every random choice of the algorithm.
        on_generation: Called after each generation with its number.

    Raises:
        UserError: If the budget or seed is no whole number in range.
    """
    check_budget(n_eval, seed)
    algorithm.setup(problem, termination=NoTermination(), seed=seed)
    reference = np.array([problem.reference_point[name] for name in problem.objectives])
    used: dict[str, Evaluation] = {}
    generation = stalled = 0
    reason, interrupted = f"the budget of {n_eval} evaluations is spent", False
    try:
        while len(used) < n_eval:
            population = algorithm.ask()
            if population is None or len(population) == 0:
                reason = "the algorithm finds no design that it has not in its population"
                break
            generation += 1
            X = np.array([individual.X for individual in population], dtype=np.int64)
            before = len(used)
            evaluations = _assess_within(problem, X, used, n_eval)
            on_generation(generation)
            if any(e is None for e in evaluations):
                break
            stalled = 0 if len(used) > before else stalled + 1
            if stalled >= STALL_GENERATIONS:
                reason = f"no new design was found in {STALL_GENERATIONS} generations"
                break
            _tell(problem, algorithm, population, evaluations, reference)
    except KeyboardInterrupt:
        reason, interrupted = "interrupted by the user", True
    return SearchResult(_search_evaluations(problem), generation, reason, interrupted)


def _search_evaluations(problem: SplitProblem) -> list[Evaluation]:
    images = problem.evaluator.images
    return [
        evaluation
        for (_, split, count), evaluation in problem.evaluations.items()
        if split == "search" and count == images
    ]


def _assess_within(
    problem: SplitProblem, X: np.ndarray, used: dict[str, Evaluation], n_eval: int
) -> list[Evaluation | None]:
    """Assess genomes, spending at most the rest of the budget on phenotypes new to this search."""
    evaluations = problem.assess(X, max_new=n_eval - len(used))
    for evaluation in evaluations:
        if evaluation is not None:
            used.setdefault(evaluation.design.key, evaluation)
    return evaluations


def _tell(
    problem: SplitProblem,
    algorithm: Any,
    population: Any,
    evaluations: list[Evaluation | None],
    reference: np.ndarray,
) -> None:
    """Hand the values to the algorithm, objectives in units of the reference point.

    A failed design gets the reference point and an infinite-like violation; it is never reported.
    """
    known = [e for e in evaluations if e is not None]
    F = problem.objective_values(known) / reference
    G = problem.limit_violations(known)
    failed = np.array([e.failed for e in known])
    F[failed] = 1.0
    G[failed] = 1e9
    if not all(math.isfinite(value) for value in F.ravel()):
        raise UserError("An objective is not finite; check the cost tables.")
    population.set("F", F)
    population.set("G", G)
    population.set("H", np.empty((len(known), 0)))
    algorithm.tell(infills=population)
