"""From a search to its result: re-scored front, reference designs, recommendation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nasc_evo.errors import UserError
from nasc_evo.problem import (
    METRICS,
    VARYING,
    Evaluation,
    SplitProblem,
    describe_evaluation,
    unmasked_batch,
)
from nasc_evo.search.calibration import Calibration
from nasc_evo.search.indicators import (
    hypervolume,
    knee,
    least_infeasible,
    non_dominated,
    spread_subset,
)

RESCORED = 12
COLUMNS = (
    "design_id",
    "arch",
    "cut",
    "mask",
    "bits",
    "kept_channels",
    "error",
    "error_se",
    "error_test",
    *(name for name in METRICS[1:] if name not in VARYING),
)
"""Columns of `pareto.csv`."""
CALIBRATED = ("error_calibrated", "error_calibrated_low", "error_calibrated_high")
"""Further columns where there is a calibration."""


@dataclass(frozen=True)
class FrontDesign:
    """A design of the final front.

    Attributes:
        design_id: Index of its evaluation in the journal.
        evaluation: Its score on the images of the final front.
        test: Its score on the test images, None where there is none.
        calibrated: Estimate of its error after training, with the ends of an interval; None where
            there is no calibration.
    """

    design_id: int
    evaluation: Evaluation
    test: Evaluation | None
    calibrated: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class FinalResult:
    """What a run reports.

    Attributes:
        front: Non-dominated feasible designs, one fidelity, sorted by latency.
        images: Number of images that scored the front.
        references: All local and raw offload of the most accurate and the fastest architecture.
        hypervolume: Of the front, as a share of the box up to the reference point.
        recommended: Index into `front` of the recommended design, one that is better than guessing
            where there is one; None if the front is empty.
        reason: Why that one.
        least_infeasible: The design nearest to the limits if the front is empty.
        rescored: Whether the front was scored on the whole split.
    """

    front: list[FrontDesign]
    images: int
    references: list[dict[str, Any]]
    hypervolume: float
    recommended: int | None
    reason: str
    least_infeasible: Evaluation | None
    rescored: bool


def check_rescore(rescore: int | str) -> None:
    """Raise a UserError unless `rescore` is a positive whole number or `"all"`."""
    whole = isinstance(rescore, int) and not isinstance(rescore, bool)
    if rescore != "all" and not (whole and int(rescore) >= 1):
        raise UserError(f"rescore must be a positive whole number or 'all', got {rescore!r}.")


def final_result(
    problem: SplitProblem,
    evaluations: Sequence[Evaluation],
    *,
    rescore: int | str = RESCORED,
    interrupted: bool = False,
    calibration: Calibration | None = None,
    on_phase: Callable[[str], None] = lambda text: None,
) -> FinalResult:
    """Re-score a front on the whole search split, filter it again, and add what is reported.

    Args:
        problem: The problem searched.
        evaluations: All evaluations of the search split, at the search's fidelity.
        rescore: Largest number of designs to re-score, spread over the front, or `"all"`. A
            search that used all images needs no re-scoring and keeps its whole front.
        interrupted: Report the front at the search's fidelity and compute nothing more.
        calibration: What estimates the errors of trained networks.
        on_phase: Called with a line that says what is being done.
    """
    check_rescore(rescore)
    front = non_dominated(problem, evaluations)
    if not front:
        nearest = least_infeasible(problem, evaluations)
        return FinalResult([], 0, [], 0.0, None, "no design meets the limits", nearest, False)
    ids = {e.design.key: e.index for e in front}
    tests: dict[str, Evaluation] = {}
    calibrated: dict[str, tuple[float, float, float]] = {}
    references: list[dict[str, Any]] = []
    if not interrupted:
        size = problem.evaluator.split_size("search")
        everything = rescore == "all" or problem.evaluator.images == size
        count = len(front) if everything else int(rescore)
        chosen = spread_subset(problem.objective_values(front), count)
        rest = np.setdiff1d(np.arange(len(front)), chosen)
        rescored: list[Evaluation] = []
        searched, front = front, []
        for part in (chosen, rest):
            if front or not len(part):
                break  # the rest is needed only where none of the chosen meets the limits
            if problem.evaluator.images < size:
                on_phase(f"Scoring {len(part)} designs of the front on all {size} search images")
            genomes = np.array([searched[i].genome for i in part])
            rescored += [e for e in problem.assess(genomes, images=size) if e is not None]
            front = non_dominated(problem, rescored)
        if not front:
            nearest = least_infeasible(problem, rescored)
            reason = "none of the re-scored designs meets the limits"
            return FinalResult([], size, [], 0.0, None, reason, nearest, True)
    if not interrupted:
        on_phase(f"Scoring the {len(front)} designs of the final front on the test images")
        genomes = np.array([e.genome for e in front])
        tested = [e for e in problem.assess(genomes, split="test") if e is not None]
        tests = {e.design.key: e for e in tested if not e.failed}
        if calibration is not None:
            on_phase("Estimating what errors training would leave")
            calibrated = calibrated_errors(problem, front, calibration)
        on_phase("Scoring the most accurate and the fastest architecture without cut")
        references = reference_designs(problem, evaluations, front)
    return result_of(problem, front, ids, tests, references, calibrated, rescored=not interrupted)


def result_of(
    problem: SplitProblem,
    front: list[Evaluation],
    ids: Mapping[str, int],
    tests: Mapping[str, Evaluation],
    references: list[dict[str, Any]],
    calibrated: Mapping[str, tuple[float, float, float]] | None = None,
    *,
    rescored: bool,
) -> FinalResult:
    """Return the result that a front is, with its hypervolume and the recommended design.

    Args:
        problem: What it is a front of.
        front: Non-dominated feasible designs, at least one.
        ids: What each is called, by the key of its phenotype.
        tests: Scores on the test images, likewise, as far as they are known.
        references: What it is to be compared with.
        calibrated: Estimates of errors after training, by the key of the phenotype.
        rescored: Whether it was scored on the whole split.
    """
    F = problem.objective_values(front)
    reference = np.array([problem.reference_point[name] for name in problem.objectives])
    guess = 1 - 1 / problem.space.architecture.n_classes
    useful = [i for i, e in enumerate(front) if e.score.error < guess] or range(len(front))
    best = int(useful[knee(F[list(useful)])])
    return FinalResult(
        front=[
            FrontDesign(
                ids[e.design.key],
                e,
                tests.get(e.design.key),
                (calibrated or {}).get(e.design.key),
            )
            for e in front
        ],
        images=front[0].score.images,
        references=references,
        hypervolume=hypervolume(F, reference),
        recommended=best,
        reason=_reason(problem, front, best),
        least_infeasible=None,
        rescored=rescored,
    )


def _reason(problem: SplitProblem, front: list[Evaluation], best: int) -> str:
    if len(front) == 1:
        return "the only design of the front"
    parts = [
        "the knee: nearest to the best value of every objective at once, objectives scaled to the "
        "range of the front"
    ]
    design = front[best]
    for name in problem.objectives:
        extreme = min(front, key=lambda e, name=name: e.metric(name))  # type: ignore[misc]
        if extreme is design:
            continue
        other = [o for o in problem.objectives if o != name]
        gains = ", ".join(
            f"{o} {design.metric(o):.4g} instead of {extreme.metric(o):.4g}" for o in other
        )
        parts.append(
            f"against the best {name} ({extreme.metric(name):.4g}) it has {name} "
            f"{design.metric(name):.4g} and {gains}"
        )
    return "; ".join(parts)


def calibrated_errors(
    problem: SplitProblem, front: Sequence[Evaluation], calibration: Calibration
) -> dict[str, tuple[float, float, float]]:
    """Return the estimated error after training of each design, and the ends of its interval.

    That of its whole network, plus what sending through the cut costs by inherited weights. A
    design whose whole network the first device cannot run, or inherits nothing, has none.

    Args:
        problem: What the designs are of.
        front: The designs, scored on as many images each.
        calibration: What estimates the errors of whole networks.
    """
    space = problem.space
    genomes = np.array([e.genome for e in front])
    genomes[:, space.cut_genes] = np.searchsorted(space.cut_choices, space.architecture.n_blocks)
    scored = problem.assess(genomes, images=front[0].score.images, halved=False)
    pairs = [(e, w) for e, w in zip(front, scored, strict=True) if w is not None and not w.failed]
    if not pairs:
        return {}
    whole = np.array([w.score.error for _, w in pairs])
    estimates = calibration.estimate(np.array([e.design.ops for e, _ in pairs]), whole)
    sending = np.array([e.score.error for e, _ in pairs]) - whole
    values = np.clip(estimates + sending[:, None], 0, 1)
    rows = zip(pairs, values.tolist(), strict=True)
    return {
        e.design.key: (error, low, high)
        for (e, _), (error, low, high) in rows
        if np.isfinite(error)
    }


def reference_designs(
    problem: SplitProblem, evaluations: Sequence[Evaluation], front: Sequence[Evaluation]
) -> list[dict[str, Any]]:
    """Return all local and raw offload to each server for two architectures of the run.

    The architectures are those of the most accurate and of the fastest design evaluated. Their
    accuracy, unmasked, is scored on the images of the front.
    """

    def best(key: Callable[[Evaluation], tuple[float, int]]) -> Evaluation:
        whole = max(e.score.images for e in evaluations)
        return min((e for e in evaluations if not e.failed and e.score.images == whole), key=key)

    chosen = {
        "most accurate": best(lambda e: (e.score.error, e.index)),
        "fastest": best(lambda e: (e.metric("latency_ms"), e.index)),
    }
    space = problem.space
    n = space.architecture.n_blocks
    remote = problem.chain.remote_cuts()
    kinds = {"all local": (n,) * space.n_links}
    for name, cuts in remote:
        kinds["raw offload" if len(remote) == 1 else f"raw offload to {name}"] = cuts
    allowed = {tuple(vector) for vector in space.cut_choices[space.cut_vectors].tolist()}
    rows = []
    for title, evaluation in chosen.items():
        genome = np.array(evaluation.genome)
        genome[space.cut_genes] = np.searchsorted(space.cut_choices, n)
        images = front[0].score.images
        (unmasked,) = problem.assess(genome[None], images=images, halved=False)
        if unmasked is None or unmasked.failed:
            continue
        ops = np.array([evaluation.design.ops])
        for kind, cuts in kinds.items():
            costs = problem.costs(unmasked_batch(space, ops, cuts))
            values = {name: _number(column[0]) for name, column in costs.items() if column.ndim < 2}
            if values["latency_ms"] is None:  # the server would be overloaded
                continue
            values["error"] = unmasked.score.error
            meets = all(
                (value := values[name]) is not None and value <= limit
                for name, limit in problem.limits.items()
            )
            rows.append(
                {
                    "architecture_of": f"the {title} design",
                    "kind": kind,
                    "arch": evaluation.design.arch,
                    "error": unmasked.score.error,
                    "error_se": unmasked.score.standard_error,
                    **values,
                    "meets_limits": meets,
                    "allowed": cuts in allowed,
                    **_front_beside(front, unmasked.score.error, values["latency_ms"]),
                }
            )
    return rows


def _number(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _front_beside(
    front: Sequence[Evaluation], error: float, latency_ms: float | None
) -> dict[str, float | None]:
    """Return what the front offers at no more error, and at no more latency, than a reference."""
    assert latency_ms is not None
    as_accurate = [e.metric("latency_ms") for e in front if e.score.error <= error]
    as_fast = [e.score.error for e in front if e.metric("latency_ms") <= latency_ms]
    fastest = min(as_accurate, default=None)
    most_accurate = min(as_fast, default=None)
    return {
        "front_latency_ms_at_no_more_error": fastest,
        "latency_saved": None if fastest is None else 1 - fastest / latency_ms,
        "front_error_at_no_more_latency": most_accurate,
        "error_saved": None if most_accurate is None else error - most_accurate,
    }


def front_rows(result: FinalResult) -> list[dict[str, Any]]:
    """Return the rows of `pareto.csv`.

    :data:`COLUMNS`, what there is where rates vary, and :data:`CALIBRATED` where errors are.
    """
    rows = []
    for design in result.front:
        values = describe_evaluation(design.evaluation)
        values["design_id"] = design.design_id
        values["error_test"] = None if design.test is None else design.test.score.error
        if design.calibrated is not None:
            values |= dict(zip(CALIBRATED, design.calibrated, strict=True))
        names = (*COLUMNS, *VARYING, *CALIBRATED)
        rows.append({name: values[name] for name in names if name in values})
    return rows
