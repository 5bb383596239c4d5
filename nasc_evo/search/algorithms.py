"""Search algorithms by name: pymoo's with the operators of this package, ours, and baselines."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from nasc_evo.errors import UserError
from nasc_evo.problem import SplitProblem
from nasc_evo.search import baselines, operators
from nasc_evo.search.asng import NASC
from nasc_evo.search.loop import is_number
from nasc_evo.search.msunas import MSuNAS
from nasc_evo.search.operators import Subspace
from nasc_evo.search.surrogate import SurrogateSearch
from nasc_evo.space import Design

EVOLUTION: dict[str, Any] = {
    "pop_size": 40,
    "crossover": "uniform",
    "crossover_rate": 0.9,
    "cut_rate": 0.3,
    "bits_rate": 0.2,
    "best_cut_rate": 0.0,
}
"""Options of the evolutionary algorithms, with their defaults."""
EVERY_CUT_TRIED = {k: v for k, v in EVOLUTION.items() if k not in ("best_cut_rate", "cut_rate")}
ONE_CUT = {k: EVOLUTION[k] for k in ("pop_size", "crossover", "crossover_rate")}
LOSSLESS: dict[str, Any] = {"pop_size": 20, "crossover_rate": 0.15, "best_cut_rate": 0.9}
"""Where nothing is lost on a link: the error does not depend on the cut, and genes are few."""
OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("nsga2", "nsga3", "agemoea", "moead"), EVOLUTION),
    "surrogate": {
        "initial": 20,
        "batch": 5,
        "offspring": 1000,
        "exploration": 0.5,
        "best_cut_rate": 0.5,
    },
    "random": {"pop_size": 40},
    "regularised_evolution": {"pop_size": 20, "tournament": 5, "weights": 5},
    "nsga2_pymoo": {"pop_size": 40},
    "all_local": ONE_CUT,
    "raw_offload": ONE_CUT,
    "fixed_network": {"network": "hand_designed"},
    "accuracy_then_cut": {"share": 0.8},
    "nas_then_cut": {**EVERY_CUT_TRIED, "share": 0.7},
    "best_cut_inside": EVERY_CUT_TRIED,
    "prune_at_cut": {"share": 0.5},
    "nasc": {"thresholds": 8, "penalty": 1.0, "samples": 2},
    "relaxed_masks": {"lambdas": 8, "batch": 32},
    "msunas": {"initial": 100, "batch": 8, "pop_size": 40, "generations": 10},
}
"""Options of every algorithm, with their defaults."""
ALGORITHMS = tuple(OPTIONS)
MAX_POPULATION = 100_000
WHOLE_NUMBERS = {
    "pop_size": (4, MAX_POPULATION),
    "initial": (2, MAX_POPULATION),
    "batch": (1, MAX_POPULATION),
    "offspring": (1, MAX_POPULATION),
    "generations": (1, 10_000),
    "tournament": (1, MAX_POPULATION),
    "weights": (1, 1000),
    "thresholds": (1, 1000),
    "lambdas": (1, 1000),
    "samples": (2, 1000),
}
"""Range of each option that is a whole number."""
NUMBERS = {"share": 1, "exploration": 100, "penalty": 1000}
"""Highest value of each option that is a number above 0."""
WEIGHTS_FROM, WEIGHTS_TO = 0.05, 0.95
"""Range of the weight of the first objective in regularised evolution."""


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


class RoundAndSort(RoundingRepair):
    """Rounds what pymoo's operators give to genes, and sorts the cuts of a chain."""

    def _do(self, problem: Problem, X: NDArray, **kwargs: Any) -> NDArray:
        X = super()._do(problem, X, **kwargs)
        genes = problem.space.cut_genes
        X[:, genes] = np.sort(X[:, genes], axis=1)
        return X


def algorithm_options(
    problem: SplitProblem, name: str, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the options of an algorithm with every default filled in.

    Args:
        problem: What it will solve.
        name: One of :data:`ALGORITHMS`.
        options: Some of :data:`OPTIONS`. What is None takes its default; where the problem is
            lossless, evolutionary algorithms take that of :data:`LOSSLESS`, and the surrogate
            search moves every design to its best cut and explores more.

    Raises:
        UserError: If name or an option is unknown or out of range.
    """
    check_options(name, options or {})
    given = {key: value for key, value in (options or {}).items() if value is not None}
    values = dict(OPTIONS[name])
    if problem.lossless:
        if "crossover_rate" in values:
            values |= {key: value for key, value in LOSSLESS.items() if key in values}
        elif "best_cut_rate" in values:
            values |= {"best_cut_rate": 1.0, "exploration": 0.7}
    return values | given


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise a UserError unless an algorithm has these options; None stands for a default."""
    if not isinstance(name, str) or name not in OPTIONS:
        raise UserError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got '{name}'.")
    unknown = sorted(set(options) - set(OPTIONS[name]))
    if unknown:
        raise UserError(
            f"The algorithm {name} has no option '{unknown[0]}'; it has {', '.join(OPTIONS[name])}."
        )
    values = {key: value for key, value in options.items() if value is not None}
    for key, (lowest, highest) in WHOLE_NUMBERS.items():
        value = values.get(key, lowest)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and lowest <= value <= highest):
            raise UserError(
                f"algorithm.{key} must be a whole number in {lowest}..{highest}, got {value!r}."
            )
    for key, highest in NUMBERS.items():
        value = values.get(key, highest)
        if not (is_number(value) and 0 < value <= highest):
            raise UserError(
                f"algorithm.{key} must be a number above 0 and at most {highest}, got {value!r}."
            )


class Request(NamedTuple):
    """What an algorithm is made for.

    Attributes:
        problem: What it will solve.
        values: Its options, all of them.
        seed: Of reference directions.
        n_eval: The budget, which searches in stages divide.
        first: Designs to begin with.
    """

    problem: SplitProblem
    values: dict[str, Any]
    seed: int
    n_eval: int
    first: tuple[Design, ...]

    def parts(self, within: Subspace | None = None, **changed: Any) -> dict[str, Any]:
        """Return operators with the options among `values`, some of them changed."""
        options = {key: self.values[key] for key in EVOLUTION if key in self.values} | changed
        options.pop("pop_size", None)
        problem = self.problem
        return operators.for_space(
            problem.space,
            cut_costs=problem.cut_costs,
            first=() if within is not None else self.first,
            within=within,
            **options,
        )


def create_algorithm(
    name: str,
    problem: SplitProblem,
    options: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    n_eval: int = 300,
    first: Sequence[Design] = (),
) -> Any:
    """Return a fresh algorithm: one of pymoo, or a :class:`nasc_evo.search.method.Method`.

    Args:
        name: One of :data:`ALGORITHMS`.
        problem: What it will solve.
        options: See :func:`algorithm_options`.
        seed: Of the reference directions of nsga3 and moead.
        n_eval: The budget, which searches in stages divide.
        first: Designs to begin with, beside the fastest of the space where that is known.

    Raises:
        UserError: If name or an option is unknown or out of range, or the algorithm cannot solve
            this problem.
    """
    values = algorithm_options(problem, name, options)
    if "error" not in problem.objectives and name in NEEDS_ERROR:
        raise UserError(
            f"algorithm={name} needs error among the objectives, got {list(problem.objectives)}; "
            "use algorithm=nsga2."
        )
    if problem.halving.images and name not in HALVED:
        raise UserError(
            f"halving.images compares a design with the front of a generation; algorithm={name} "
            f"asks for accuracies otherwise. Use one of {', '.join(HALVED)}, or halving.images=[]."
        )
    fastest = problem.fastest_design()
    known = tuple(first) if fastest is None else (fastest, *first)
    return MAKERS[name](Request(problem, values, seed, n_eval, known))


HALVED = ("nsga2", "nsga3", "agemoea", "moead", "nsga2_pymoo", "random")
"""Algorithms to which a design that cannot enter the front is worth no more images."""
NEEDS_ERROR = ("surrogate", "accuracy_then_cut", "prune_at_cut", "nasc", "msunas", "relaxed_masks")


def _random(request: Request) -> Any:
    return RandomSearch(pop_size=request.values["pop_size"], **request.parts())


def _nsga2(request: Request, within: Subspace | None = None, **changed: Any) -> Any:
    from pymoo.algorithms.moo.nsga2 import NSGA2

    return NSGA2(pop_size=request.values["pop_size"], **request.parts(within, **changed))


def _agemoea(request: Request) -> Any:
    try:
        import numba  # noqa: F401
    except ImportError as error:
        raise UserError("algorithm=agemoea needs the package numba (pip install numba).") from error
    from pymoo.algorithms.moo.age import AGEMOEA

    return AGEMOEA(pop_size=request.values["pop_size"], **request.parts())


def _nsga3(request: Request) -> Any:
    from pymoo.algorithms.moo.nsga3 import NSGA3

    return NSGA3(
        ref_dirs=_directions(request),
        pop_size=request.values["pop_size"],
        selection=TournamentSelection(func_comp=feasible_first),
        **request.parts(),
    )


def _moead(request: Request) -> Any:
    from pymoo.algorithms.moo.moead import ParallelMOEAD

    problem = request.problem
    if problem.n_ieq_constr:
        limited = [f"limits.{name}" for name in problem.limits]
        refusing = ["the machine that cannot run every network"] * problem.chain.may_refuse
        raise UserError(
            "algorithm=moead takes no limits, since pymoo's MOEA/D has no constraints; remove "
            f"{' and '.join(limited + refusing)} or use algorithm=nsga2."
        )
    parts = request.parts()
    parts.pop("eliminate_duplicates")
    return ParallelMOEAD(_directions(request), **parts)


def _directions(request: Request) -> Any:
    from pymoo.util.ref_dirs import get_reference_directions

    return get_reference_directions(
        "energy", request.problem.n_obj, request.values["pop_size"], seed=request.seed
    )


def _surrogate(request: Request) -> Any:
    values = dict(request.values)
    rate = values.pop("best_cut_rate")
    problem = request.problem
    best_cuts = operators.BestCuts(problem.space, problem.cut_costs, rate)
    sampling = operators.SplitSampling(problem.space, request.first, best_cuts)
    return SurrogateSearch(sampling, best_cuts, **values)


def _nsga2_pymoo(request: Request) -> Any:
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    repair = RoundAndSort()
    return NSGA2(
        pop_size=request.values["pop_size"],
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=15, vtype=float, repair=repair),
        mutation=PM(prob=0.9, eta=20, vtype=float, repair=repair),
        repair=repair,
    )


def _regularised_evolution(request: Request) -> Any:
    problem, values = request.problem, dict(request.values)
    n, m = values.pop("weights"), problem.n_obj
    share = np.linspace(WEIGHTS_FROM, WEIGHTS_TO, n) if n > 1 else np.array([0.5])
    weights = np.column_stack([share, *[(1 - share) / (m - 1)] * (m - 1)])
    mutation = operators.SplitMutation(problem.space)
    return baselines.RegularisedEvolution(weights, mutation, **values)


def _fixed_network(request: Request) -> Any:
    architecture, network = request.problem.space.architecture, request.values["network"]
    if not isinstance(network, str):
        raise UserError(
            "algorithm.network must be hand_designed or the text form of a network, got "
            f"{network!r}."
        )
    ops = architecture.hand_designed if network == "hand_designed" else architecture.parse(network)
    return baselines.CutSweep(ops[None])


def _raw_offload(request: Request) -> Any:
    if not request.problem.space.allow_raw_offload:
        raise UserError("algorithm=raw_offload needs allow_raw_offload=true.")
    return _nsga2(request, Subspace(cut=0))


def _all_local(request: Request) -> Any:
    return _nsga2(request, Subspace(cut=request.problem.space.architecture.n_blocks))


def _nas_then_cut(request: Request) -> Any:
    def second(problem: SplitProblem) -> Any:
        architectures = baselines.front_architectures(problem)
        if problem.lossless:
            return baselines.CutSweep(architectures)
        return _nsga2(request, Subspace(architectures))

    first = _all_local(request)
    return baselines.in_stages(request.n_eval, request.values["share"], lambda _: first, second)


def _accuracy_then_cut(request: Request) -> Any:
    return baselines.in_stages(
        request.n_eval,
        request.values["share"],
        baselines.accuracy_stage,
        lambda problem: baselines.CutSweep(baselines.most_accurate(problem)),
    )


def _prune_at_cut(request: Request) -> Any:
    if not request.problem.space.n_mask:
        raise UserError(
            "algorithm=prune_at_cut removes channel groups at a cut, and this problem has no "
            "masks: use evaluator=supernet and mask_groups above 1."
        )
    return baselines.in_stages(
        request.n_eval,
        request.values["share"],
        baselines.accuracy_stage,
        lambda problem: baselines.PruneAtCut(baselines.most_accurate(problem)[0]),
    )


def _relaxed_masks(request: Request) -> Any:
    if request.problem.lossless:
        raise UserError(
            "algorithm=relaxed_masks follows gradients through a supernet: it needs problem=fbnet "
            "and evaluator=supernet; accuracies from a table have no gradient."
        )
    from nasc_evo.search.relaxed_masks import RelaxedMasks

    return RelaxedMasks(request.n_eval, **request.values)


def _msunas(request: Request) -> Any:
    values = {key: request.values[key] for key in OPTIONS["msunas"]}
    parts = operators.for_space(request.problem.space, first=request.first)
    return MSuNAS(request.n_eval, **values, **parts)


MAKERS: dict[str, Callable[[Request], Any]] = {
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "agemoea": _agemoea,
    "moead": _moead,
    "surrogate": _surrogate,
    "random": _random,
    "regularised_evolution": _regularised_evolution,
    "nsga2_pymoo": _nsga2_pymoo,
    "all_local": _all_local,
    "raw_offload": _raw_offload,
    "fixed_network": _fixed_network,
    "accuracy_then_cut": _accuracy_then_cut,
    "nas_then_cut": _nas_then_cut,
    "best_cut_inside": lambda request: _nsga2(request, best_cut_rate=1.0),
    "prune_at_cut": _prune_at_cut,
    "nasc": lambda request: NASC(request.n_eval, **request.values),
    "relaxed_masks": _relaxed_masks,
    "msunas": _msunas,
}
"""How each of :data:`ALGORITHMS` is made."""
