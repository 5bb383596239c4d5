"""Evolutionary algorithms of pymoo, made by name with the operators of this package."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.core.population import Population
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from nasc_evo.errors import UserError
from nasc_evo.problem import SplitProblem
from nasc_evo.search import operators

OPTIONS = ("crossover", "crossover_rate", "cut_rate", "bits_rate", "best_cut_rate")
DEFAULTS: dict[str, Any] = {"pop_size": 40, "crossover_rate": 0.9, "best_cut_rate": 0.0}
LOSSLESS_DEFAULTS: dict[str, Any] = {"pop_size": 20, "crossover_rate": 0.15, "best_cut_rate": 0.9}
"""Where nothing is lost on a link: the error does not depend on the cut, and genes are few."""
MAX_POPULATION = 100_000
ALGORITHMS = ("nsga2", "nsga3", "agemoea", "moead", "random")


class RandomSearch(GeneticAlgorithm):
    """Evaluates random designs; its population is the non-dominated feasible ones."""

    def _infill(self) -> Population:
        return self.initialization.sampling(
            self.problem, self.pop_size, random_state=self.random_state
        )

    def _advance(self, infills: Population | None = None, **kwargs: Any) -> None:
        merged = Population.merge(self.pop, infills)  # type: ignore[has-type]
        feasible = merged[merged.get("FEAS").ravel()]
        candidates = feasible if len(feasible) else merged[[np.argmin(merged.get("CV"))]]
        first = NonDominatedSorting().do(candidates.get("F"), only_non_dominated_front=True)
        self.pop = candidates[first]


def feasible_first(
    pop: Population, P: NDArray, random_state: np.random.Generator, **kwargs: Any
) -> NDArray:
    """Binary tournament of NSGA-III: the smaller violation wins, equal ones by a draw.

    pymoo's own comparison draws from an unseeded generator where violations are equal.
    """
    cv = pop.get("CV").ravel()[P]
    winner = np.where(cv[:, 0] < cv[:, 1], 0, 1)
    equal = cv[:, 0] == cv[:, 1]
    winner[equal] = random_state.integers(0, 2, equal.sum())
    return P[np.arange(len(P)), winner][:, None]


def algorithm_options(
    problem: SplitProblem, name: str, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the options of an algorithm with every default filled in.

    Args:
        problem: What it will solve.
        name: One of :data:`ALGORITHMS`.
        options: `pop_size`, and :data:`OPTIONS` of :func:`nasc_evo.search.operators.for_space`.
            What is None takes its value from :data:`DEFAULTS`, or from :data:`LOSSLESS_DEFAULTS`
            where the problem is lossless. Random search leaves the cut to chance everywhere.

    Raises:
        UserError: If name or an option is unknown, or the size of the population out of range.
    """
    if name not in ALGORITHMS:
        raise UserError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got '{name}'.")
    unknown = sorted(set(options or {}) - {"pop_size", *OPTIONS})
    if unknown:
        raise UserError(
            f"The algorithm {name} has no option '{unknown[0]}'; it has pop_size, "
            f"{', '.join(OPTIONS)}."
        )
    given = {key: value for key, value in (options or {}).items() if value is not None}
    lossless = problem.lossless and name != "random"
    values = {**(LOSSLESS_DEFAULTS if lossless else DEFAULTS), **given}
    pop_size = values["pop_size"]
    whole = isinstance(pop_size, int) and not isinstance(pop_size, bool)
    if not (whole and 4 <= pop_size <= MAX_POPULATION):
        raise UserError(
            f"algorithm.pop_size must be a whole number in 4..{MAX_POPULATION}, got {pop_size!r}."
        )
    return values


def create_algorithm(
    name: str, problem: SplitProblem, options: Mapping[str, Any] | None = None, *, seed: int = 0
) -> Any:
    """Return a fresh pymoo algorithm.

    Args:
        name: One of :data:`ALGORITHMS`.
        problem: What it will solve.
        options: See :func:`algorithm_options`.
        seed: Of the reference directions of nsga3 and moead.

    Raises:
        UserError: If name or an option is unknown or out of range, or the algorithm cannot solve
            this problem.
    """
    values = algorithm_options(problem, name, options)
    pop_size = values.pop("pop_size")
    parts = operators.for_space(
        problem.space, cut_costs=problem.cut_costs, first=problem.fastest_design(), **values
    )
    if name == "random":
        return RandomSearch(pop_size=pop_size, **parts)
    if name == "nsga2":
        from pymoo.algorithms.moo.nsga2 import NSGA2

        return NSGA2(pop_size=pop_size, **parts)
    if name == "agemoea":
        try:
            import numba  # noqa: F401
        except ImportError as error:
            raise UserError(
                "algorithm=agemoea needs the package numba (pip install numba)."
            ) from error
        from pymoo.algorithms.moo.age import AGEMOEA

        return AGEMOEA(pop_size=pop_size, **parts)
    from pymoo.util.ref_dirs import get_reference_directions

    directions = get_reference_directions("energy", problem.n_obj, pop_size, seed=seed)
    if name == "nsga3":
        from pymoo.algorithms.moo.nsga3 import NSGA3

        selection = TournamentSelection(func_comp=feasible_first)
        return NSGA3(ref_dirs=directions, pop_size=pop_size, selection=selection, **parts)
    if problem.n_ieq_constr:
        limited = [f"limits.{name}" for name in problem.limits]
        refusing = ["the machine that cannot run every network"] * problem.chain.may_refuse
        raise UserError(
            "algorithm=moead takes no limits, since pymoo's MOEA/D has no constraints; remove "
            f"{' and '.join(limited + refusing)} or use algorithm=nsga2."
        )
    from pymoo.algorithms.moo.moead import ParallelMOEAD

    parts.pop("eliminate_duplicates")
    return ParallelMOEAD(directions, **parts)
