"""The search loop: ask an algorithm for genomes, evaluate unknown phenotypes, tell it the result.

The loop is deterministic for a seed; with remembered scores (resume) it walks the same path again
without computing anything twice.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymoo.core.termination import NoTermination

from nasc_evo.errors import UserError
from nasc_evo.problem import Evaluation, SplitProblem
from nasc_evo.search.indicators import hypervolume, non_dominated

STALL_GENERATIONS = 10
"""Generations without a new design after which a search ends."""


NOTHING_NEW = "the algorithm finds no design that it has not in its population"


@dataclass(frozen=True)
class SearchResult:
    """What a search leaves.

    Attributes:
        evaluations: Distinct phenotypes evaluated, in order; gone through once at a time where
            they are many, see :meth:`SplitProblem.search_evaluations`.
        generations: Generations begun.
        stop_reason: Why it ended, in words.
        interrupted: Whether it was ended from outside.
    """

    evaluations: Sequence[Evaluation]
    generations: int
    stop_reason: str
    interrupted: bool = False


@dataclass(frozen=True)
class Budget:
    """When a search ends.

    Attributes:
        n_eval: Distinct phenotypes; those the cache knows are free.
        patience: Generations in a row without a larger hypervolume, None for no such end.
        max_seconds: Time, None for no limit. What is in work when it is over is lost.
        max_failed: Share of the evaluations that may fail; with more the search gives up.

    Raises:
        UserError: If a value is out of range.
    """

    n_eval: int
    patience: int | None = None
    max_seconds: float | None = None
    max_failed: float = 0.5

    def __post_init__(self) -> None:
        check_whole("n_eval", self.n_eval, 1)
        if self.patience is not None:
            check_whole("patience", self.patience, 1)
        if not is_number(self.max_failed) or not 0 <= self.max_failed <= 1:
            raise UserError(f"max_failed must be a number in 0..1, got {self.max_failed!r}.")
        seconds = self.max_seconds
        if seconds is not None and not (is_number(seconds) and 0 < seconds < math.inf):
            raise UserError(f"max_seconds must be a number above 0, got {seconds!r}.")


def is_number(value: Any) -> bool:
    """Return whether a value is an int or a float, not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_whole(name: str, value: Any, lowest: int) -> None:
    """Raise a UserError unless a value is a whole number of at least `lowest`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise UserError(f"{name} must be a whole number of at least {lowest}, got {value!r}.")


def parse_time(text: str | float | None) -> float | None:
    """Return a time such as `2h`, `1h30m`, `90s` or a number of seconds in seconds.

    Raises:
        UserError: If it is no such time, or not above 0.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", str(text))
    if is_number(text):
        seconds = float(text)
    elif match and str(text):
        hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = float(3600 * hours + 60 * minutes + rest)
    else:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise UserError(f"max_time must be a time such as 2h, 1h30m or 90s, got {text!r}.")
    return seconds


class _OutOfTimeError(Exception):
    """The time of a search is over."""


def run_search(
    problem: SplitProblem,
    algorithm: Any,
    budget: int | Budget,
    *,
    seed: int,
    on_generation: Callable[[int], None] = lambda generation: None,
) -> SearchResult:
    """Search until the budget is spent.

    Args:
        problem: What to solve; its evaluations of the search split are the result. Those it has
            already are free.
        algorithm: A fresh pymoo algorithm, see :func:`create_algorithm`.
        budget: When to end; a number is one of evaluations.
        seed: Of every random choice of the algorithm.
        on_generation: Called after each generation with its number.

    Raises:
        UserError: If the budget or seed is out of range, or too many evaluations fail.
    """
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    check_whole("seed", seed, 0)
    algorithm.setup(problem, termination=NoTermination(), seed=seed)
    reference = np.array([problem.reference_point[name] for name in problem.objectives])
    used = 0
    quality, failures = Quality(problem, reference), Failures(budget.max_failed)
    generation = stalled = 0
    reason, interrupted = f"the budget of {budget.n_eval} evaluations is spent", False
    try:
        with time_limit(problem, budget.max_seconds):
            while used < budget.n_eval:
                population = algorithm.ask()
                if population is None or len(population) == 0:
                    reason = getattr(algorithm, "ended", NOTHING_NEW)
                    break
                generation += 1
                X = np.array([individual.X for individual in population], dtype=np.int64)
                first = problem.next_index
                evaluations = problem.assess(X, max_new=budget.n_eval - used)
                new = {e.index: e for e in evaluations if e is not None and e.index >= first}
                used += len(new)
                failures.add(list(new.values()))
                on_generation(generation)
                if any(e is None for e in evaluations):
                    break
                stalled = 0 if new else stalled + 1
                if stalled >= STALL_GENERATIONS:
                    reason = f"no new design was found in {STALL_GENERATIONS} generations"
                    break
                if budget.patience and quality.since_growth(evaluations) >= budget.patience:
                    reason = (
                        f"the hypervolume has not grown for {budget.patience} generations "
                        f"({used} evaluations)"
                    )
                    break
                _tell(problem, algorithm, population, evaluations, reference)
    except _OutOfTimeError:
        reason = f"the time of {budget.max_seconds:g} s is over"
    except KeyboardInterrupt as error:
        reason, interrupted = str(error) or "interrupted by the user", True
    return SearchResult(problem.search_evaluations(), generation, reason, interrupted)


class Quality:
    """The hypervolume of what a search has found, and how long it has not grown.

    Args:
        problem: The problem searched.
        reference: Its reference point, one value an objective.
    """

    def __init__(self, problem: SplitProblem, reference: np.ndarray) -> None:
        self.problem = problem
        self.reference = reference
        self.front: list[Evaluation] = []
        self.value = -1.0
        self.generations = 0

    def since_growth(self, evaluations: Sequence[Evaluation | None]) -> int:
        """Take note of a generation; return how many have passed since the last growth."""
        known = [e for e in evaluations if e is not None]
        self.front = non_dominated(self.problem, [*self.front, *known])
        value = hypervolume(self.problem.objective_values(self.front), self.reference)
        self.generations = 0 if value > self.value else self.generations + 1
        self.value = max(value, self.value)
        return self.generations


class Failures:
    """Counts failed evaluations; what a node refused is no failure.

    Args:
        max_failed: Share of the evaluations that may fail.
    """

    def __init__(self, max_failed: float) -> None:
        self.max_failed = max_failed
        self.evaluations = self.failed = 0

    def add(self, evaluations: Sequence[Evaluation]) -> None:
        """Take note of evaluations that are new to a search.

        Raises:
            UserError: If too many have failed by now.
        """
        failed = [e for e in evaluations if e.failed and not e.refused]
        self.evaluations += len(evaluations)
        self.failed += len(failed)
        if failed and self.failed > self.max_failed * self.evaluations:
            raise UserError(
                f"{self.failed} of {self.evaluations} evaluations failed, more than the share "
                f"max_failed={self.max_failed:g}; the last one said: {failed[-1].score.message}."
            )


@contextlib.contextmanager
def time_limit(problem: SplitProblem, seconds: float | None) -> Iterator[None]:
    """Raise :class:`_OutOfTimeError` after the first evaluation that ends past `seconds`."""
    if seconds is None:
        yield
        return
    start, outer = time.monotonic(), problem.on_evaluation

    def on_evaluation(evaluation: Evaluation, computed: bool) -> None:
        if outer is not None:
            outer(evaluation, computed)
        if computed and time.monotonic() - start > seconds:
            raise _OutOfTimeError

    problem.on_evaluation = on_evaluation
    try:
        yield
    finally:
        problem.on_evaluation = outer


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
