"""`python -m nasc_evo.run`: one search, from a command line to a Pareto set."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from nasc_evo.config import absolute_files
from nasc_evo.errors import UserError
from nasc_evo.hydra_app import (
    EXIT_INFEASIBLE,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    TERMINATED,
    Terminated,
    check_effect,
    check_filled,
    instantiate,
    is_sweep,
    launch,
)


def main() -> None:
    """Run the application."""
    launch("config", run)


def run(config: Any) -> int:
    """Run one search with a composed configuration; return the exit code."""
    from contextlib import closing

    check_effect(config)
    composed = build(config)
    with closing(composed.problem):
        return search_and_report(config, composed)


def search_and_report(config: Any, composed: "Composed") -> int:
    """Search, write the output folder, print the result; return the exit code.

    Args:
        config: The composed configuration.
        composed: What it describes.
    """
    from hydra.core.hydra_config import HydraConfig

    from nasc_evo.report.display import SearchDisplay, create_console, short_path
    from nasc_evo.search.final import final_result
    from nasc_evo.search.folder import MANIFEST, RunFolder
    from nasc_evo.search.loop import run_search

    console = create_console()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    resolved, problem, algorithm, budget, truth, warm, calibration = composed
    identity = {
        "problem": problem.describe(),
        "algorithm": resolved["algorithm"],
        "seed": config.seed,
        "n_eval": config.n_eval,
        "patience": config.patience,
        "rescore": resolved["rescore"],
    }
    if warm is not None:
        identity["warm_start"] = warm
    path = Path(HydraConfig.get().runtime.output_dir)
    resume = config.resume is not None
    if resume and is_sweep():  # a stopped sweep has jobs that never began
        resume = (path / MANIFEST).is_file()
    folder = RunFolder(
        path,
        resume=resume,
        identity=identity,
        config=absolute_files(resolved),
        overrides=list(HydraConfig.get().overrides.task),
    )
    shown = short_path(path)
    exit_code = 0
    try:
        for evaluation in problem.search_evaluations():  # of a warm start
            folder.journal.append(evaluation)
        problem.remember(folder.journal.scores)
        say(f"Writing to {shown}{_where(problem)}")
        out_of_reach = problem.out_of_reach()
        if out_of_reach:
            budget = replace(budget, n_eval=1)
        display = SearchDisplay(problem, budget.n_eval, console)

        def on_evaluation(evaluation: Any, computed: bool) -> None:
            folder.journal.append(evaluation)
            if evaluation.split == "search":
                display.add(evaluation, computed)

        problem.on_evaluation = on_evaluation
        with display:
            search = run_search(problem, algorithm, budget, seed=config.seed)
        if out_of_reach:
            search = replace(search, stop_reason=out_of_reach)
        failed = [e for e in search.evaluations if e.failed]
        if failed and len(failed) == len(search.evaluations):
            raise UserError(
                f"All {len(failed)} evaluations failed; the first said: {failed[0].score.message}."
            )
        try:
            problem.on_evaluation = lambda e, computed: folder.journal.append(e)
            result = final_result(
                problem,
                search.evaluations,
                rescore=resolved["rescore"],
                interrupted=search.interrupted,
                calibration=calibration,
                on_phase=lambda text: say(text + " ..."),
            )
        except KeyboardInterrupt as error:
            search = replace(
                search, interrupted=True, stop_reason=str(error) or "interrupted by the user"
            )
            result = final_result(problem, search.evaluations, interrupted=True)
        further = {}
        if calibration is not None and any(design.calibrated for design in result.front):
            further["calibration"] = calibration.describe()
        _write(console, path, problem, search, result, truth, further)
        folder.finish(
            {
                "stop_reason": search.stop_reason,
                "interrupted": search.interrupted,
                "evaluations": len(search.evaluations),
                "front": len(result.front),
                "hypervolume": result.hypervolume,
                "peak_memory_mb": _peak_memory_mb(),
            }
        )
    finally:
        folder.close()
    say(f"Search ended: {search.stop_reason}. Results: {shown}")
    if search.interrupted:
        again = short_path(path.parent) if is_sweep() else shown
        say(f"Continue with the same command and resume={again}")
        terminated = search.stop_reason == TERMINATED
        if is_sweep():  # the user meant the sweep, not only this job of it
            raise Terminated if terminated else KeyboardInterrupt
        exit_code = EXIT_TERMINATED if terminated else EXIT_INTERRUPTED
    elif not result.front:
        exit_code = EXIT_INFEASIBLE
    return exit_code


def _where(problem: Any) -> str:
    """Return on which workers designs are scored, as the end of a sentence."""
    pool = getattr(problem.evaluator, "pool", None)
    return "" if pool is None else f", on {pool.where}"


class Composed(NamedTuple):
    """What a configuration describes.

    Attributes:
        resolved: The configuration without interpolations, with every default filled in.
        problem: The :class:`nasc_evo.problem.SplitProblem`.
        algorithm: A fresh pymoo algorithm.
        budget: The :class:`nasc_evo.search.loop.Budget`.
        truth: Hypervolume of the exact front, if one is given.
        warm: Identity of what a warm start has given to the problem, None without one.
        calibration: The :class:`nasc_evo.search.calibration.Calibration` of the weights, if any.
    """

    resolved: Any
    problem: Any
    algorithm: Any
    budget: Any
    truth: float | None
    warm: str | None
    calibration: Any


def build(config: Any) -> Composed:
    """Return what a composed configuration describes, before anything is evaluated.

    Raises:
        UserError: If an option is missing, unknown or out of range, or a file damaged.
    """
    from omegaconf import OmegaConf

    from nasc_evo.report.files import read_truth
    from nasc_evo.search.algorithms import algorithm_options, create_algorithm
    from nasc_evo.search.calibration import find_calibration
    from nasc_evo.search.final import check_rescore
    from nasc_evo.search.loop import Budget, check_whole, parse_time
    from nasc_evo.search.warm_start import read_warm_start

    check_problems_package()
    check_filled(config)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    check_rescore(config.rescore)
    check_whole("seed", config.seed, 0)
    budget = Budget(config.n_eval, config.patience, parse_time(config.max_time), config.max_failed)
    given = resolved["algorithm"]
    if not isinstance(given, dict) or "name" not in given:
        raise UserError(f"algorithm must be fields with a name, got {given}.")
    name = given.pop("name")
    problem = instantiate(config.problem)
    try:
        options = algorithm_options(problem, name, given)
        first, warm = [], None
        if config.warm_start is not None:
            earlier = read_warm_start(config.warm_start, problem)
            first, warm = earlier.apply(problem), earlier.sha256
        algorithm = create_algorithm(
            name, problem, options, seed=config.seed, n_eval=config.n_eval, first=first
        )
        truth = None if config.truth is None else read_truth(config.truth, problem)
        calibration = None
        here = getattr(problem.evaluator, "local", problem.evaluator)  # of one with workers
        weights = getattr(here, "weights", None)
        if isinstance(weights, Path):
            calibration = find_calibration(problem.space.architecture, weights)
    except BaseException:
        problem.close()
        raise
    resolved["algorithm"] = {"name": name, **options}
    return Composed(resolved, problem, algorithm, budget, truth, warm, calibration)


def check_problems_package() -> None:
    """Raise a UserError where a folder `problems` of the user hides the one of this package."""
    import problems

    if not getattr(problems, "NASC_EVO_PROBLEMS", False):
        raise UserError(
            f"The folder {Path(problems.__file__ or '.').parent} hides the package 'problems' of "
            "nasc_evo; rename it or start from another folder."
        )


def _write(
    console: Any,
    path: Path,
    problem: Any,
    search: Any,
    result: Any,
    truth: float | None,
    further: dict[str, Any],
) -> None:
    from nasc_evo.report.files import write_front
    from nasc_evo.report.pictures import draw_front
    from nasc_evo.report.table import print_infeasible, print_result

    write_front(path, problem, search, result, truth_hypervolume=truth, further=further)
    if result.front:
        draw_front(path, problem, search, result)
        print_result(console, problem, result)
        if truth is not None:
            console.print(
                f"Hypervolume: {100 * result.hypervolume / truth:.2f} % of the exact front's.",
                highlight=False,
            )
        return
    print_infeasible(console, problem, result)


def _peak_memory_mb() -> float | None:
    """Return the largest resident memory of this process so far, None where it is unknown."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


if __name__ == "__main__":
    main()
