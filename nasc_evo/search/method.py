"""Searches of this package's own, asked and told like the algorithms of pymoo."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.core.population import Population
from pymoo.core.termination import NoTermination

from nasc_evo.problem import Evaluation, SplitProblem

Genomes = NDArray[np.integer]


class Method(ABC):
    """A search method; one object does one search.

    Subclasses propose genomes and may look at every evaluation of the problem; what they propose
    is evaluated once, so that a genome whose phenotype is known costs nothing.

    Attributes:
        problem: What is solved.
        rng: Source of every random choice.
        reference: Reference point, one value an objective.
        ended: Why the method proposes nothing more, once it does not.
    """

    problem: SplitProblem
    rng: np.random.Generator
    reference: NDArray[np.float64]
    ended: str = "the method has nothing more to propose"

    def setup(self, problem: SplitProblem, *, termination: Any = None, seed: int) -> None:
        """Begin a search; the loop ends it."""
        self.problem = problem
        self.rng = np.random.default_rng(seed)
        self.reference = np.array([problem.reference_point[name] for name in problem.objectives])

    def ask(self) -> Population | None:
        """Return genomes to evaluate as a population; None if there are none."""
        X = self.propose()
        return Population.new(X=X) if len(X) else None

    def tell(self, infills: Population) -> None:
        """Take note of the values of what was asked for last."""
        self.learn(infills)

    @abstractmethod
    def propose(self) -> Genomes:
        """Return genomes to evaluate, `[P, n_var]`; none to end the search."""

    def learn(self, evaluated: Population) -> None:  # noqa: B027 - most look at the problem
        """Take note of genomes with F (in units of the reference point) and G."""

    def known(self, x: Genomes) -> Evaluation | None:
        """Return the evaluation of a genome `[n_var]` if there is one already."""
        return self.problem.assess(x[None], max_new=0)[0]

    def fitness(self, evaluation: Evaluation, weights: NDArray[np.float64]) -> float:
        """Return the weighted Chebyshev distance to zero, in units of the reference point.

        Excess over limits is added; a design without a score is infinitely bad.
        """
        if evaluation.failed:
            return np.inf
        F = self.problem.objective_values([evaluation])[0] / self.reference
        excess = np.maximum(self.problem.limit_violations([evaluation]), 0).sum()
        return float(np.max(weights * F) + excess)

    def evaluated(self) -> Sequence[Evaluation]:
        """Return all evaluations of the search's images, failures included."""
        return self.problem.search_evaluations()


class Stages(Method):
    """Algorithms one after another, each made from what those before it have found.

    Args:
        stages: `(make, evaluations)`: what makes the algorithm of a stage for the problem, and how
            many distinct designs it may evaluate, None for all that are left. A stage also ends
            when its algorithm proposes nothing or nothing new for :data:`STALLED` proposals.
    """

    STALLED = 10
    ended = "the last of its stages has nothing more to propose"

    def __init__(self, stages: Sequence[tuple[Callable[[SplitProblem], Any], int | None]]) -> None:
        self._stages = list(stages)
        self._before = self._used = self._stalled = 0
        self._current: Any = None
        self._allowed: int | None = None

    def ask(self) -> Population | None:
        """Return the proposals of the current stage, or of the next one that has some."""
        while True:
            if self._current is None:
                if not self._stages:
                    return None
                self._begin()
            used = len(self.evaluated()) - self._before
            self._stalled = 0 if used > self._used else self._stalled + 1
            self._used = used
            left = None if self._allowed is None else self._allowed - used
            if (left is None or left > 0) and self._stalled < self.STALLED:
                asked = self._current.ask()
                if asked is not None and len(asked):
                    return asked[:left]
            self._current = None

    def _begin(self) -> None:
        make, self._allowed = self._stages.pop(0)
        self._before = len(self.evaluated())
        self._used, self._stalled = 0, -1
        self._current = make(self.problem)
        seed = int(self.rng.integers(2**31))
        self._current.setup(self.problem, termination=NoTermination(), seed=seed)

    def tell(self, infills: Population) -> None:
        """Hand values to the current stage."""
        self._current.tell(infills=infills)

    def propose(self) -> Genomes:
        """Not used: stages propose populations of their own."""
        raise NotImplementedError
