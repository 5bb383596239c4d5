"""`python -m nasc_evo.run`: one search, from a command line to a Pareto set."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from nasc_evo.errors import UserError
from nasc_evo.hydra_app import (
    EXIT_INFEASIBLE,
    EXIT_INTERRUPTED,
    check_filled,
    instantiate,
    launch,
)


def main() -> None:
    """Run the application."""
    launch("config", run)


def run(config: Any) -> int:
    """Run one search with a composed configuration; return the exit code."""
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from nasc_evo.report.display import SearchDisplay, short_path
    from nasc_evo.search.final import final_result
    from nasc_evo.search.folder import RunFolder
    from nasc_evo.search.loop import run_search

    console = Console()
    if not console.is_terminal:
        console.width = 110  # logs and files are not folded to the width of a small terminal
    resolved, problem, algorithm, truth = build(config)
    identity = {
        "problem": problem.describe(),
        "algorithm": resolved["algorithm"],
        "seed": config.seed,
        "n_eval": config.n_eval,
        "rescore": resolved["rescore"],
    }
    path = Path(HydraConfig.get().runtime.output_dir)
    folder = RunFolder(
        path,
        resume=config.resume is not None,
        identity=identity,
        config=resolved,
        overrides=list(HydraConfig.get().overrides.task),
    )
    shown = short_path(path)
    interrupted = False
    try:
        problem.remember(folder.journal.scores)
        console.print(f"Writing to {shown}", highlight=False, soft_wrap=True)
        out_of_reach = _out_of_reach(problem)
        display = SearchDisplay(problem, 1 if out_of_reach else config.n_eval, console)

        def on_evaluation(evaluation: Any, computed: bool) -> None:
            if computed:
                folder.journal.append(evaluation)
            if evaluation.split == "search" and evaluation.score.images == problem.evaluator.images:
                display.add(evaluation, computed)

        problem.on_evaluation = on_evaluation
        with display:
            budget = 1 if out_of_reach else config.n_eval
            search = run_search(problem, algorithm, budget, seed=config.seed)
        if out_of_reach:
            search = replace(search, stop_reason=out_of_reach)
        failed = [e for e in search.evaluations if e.failed]
        if failed and len(failed) == len(search.evaluations):
            raise UserError(
                f"All {len(failed)} evaluations failed; the first said: {failed[0].score.message}."
            )
        interrupted = search.interrupted
        phase = lambda text: console.print(text + " ...", highlight=False, soft_wrap=True)  # noqa: E731
        try:
            problem.on_evaluation = lambda e, computed: (
                folder.journal.append(e) if computed else None
            )
            result = final_result(
                problem,
                search.evaluations,
                rescore=resolved["rescore"],
                interrupted=interrupted,
                on_phase=phase,
            )
        except KeyboardInterrupt:
            interrupted = True
            result = final_result(problem, search.evaluations, interrupted=True)
        _write(console, path, problem, search, result, truth)
        folder.finish(
            {
                "stop_reason": search.stop_reason,
                "interrupted": interrupted,
                "evaluations": len(search.evaluations),
                "front": len(result.front),
                "hypervolume": result.hypervolume,
                "peak_memory_mb": _peak_memory_mb(),
            }
        )
    finally:
        folder.close()
    console.print(
        f"Search ended: {search.stop_reason}. Results: {shown}", highlight=False, soft_wrap=True
    )
    if interrupted:
        console.print(
            f"Continue with the same command and resume={shown}", highlight=False, soft_wrap=True
        )
        return EXIT_INTERRUPTED
    return 0 if result.front else EXIT_INFEASIBLE


class Search(NamedTuple):
    """What a configuration describes.

    Attributes:
        resolved: The configuration without interpolations.
        problem: The :class:`nasc_evo.problem.SplitProblem`.
        algorithm: A fresh pymoo algorithm.
        truth: Hypervolume of the exact front, if one is given.
    """

    resolved: Any
    problem: Any
    algorithm: Any
    truth: float | None


def build(config: Any) -> Search:
    """Return what a composed configuration describes, before anything is evaluated.

    Raises:
        UserError: If an option is missing, unknown or out of range, or a file damaged.
    """
    from omegaconf import OmegaConf

    from nasc_evo.report.files import read_truth
    from nasc_evo.search.algorithms import create_algorithm
    from nasc_evo.search.final import check_rescore
    from nasc_evo.search.loop import check_budget

    check_problems_package()
    check_filled(config)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    check_rescore(config.rescore)
    check_budget(config.n_eval, config.seed)
    problem = instantiate(config.problem)
    truth = None if config.truth is None else read_truth(config.truth, problem)
    options = resolved["algorithm"]
    if not isinstance(options, dict) or "name" not in options:
        raise UserError(f"algorithm must be fields with a name, got {options}.")
    others = {key: value for key, value in options.items() if key != "name"}
    algorithm = create_algorithm(options["name"], problem, others, seed=config.seed)
    return Search(resolved, problem, algorithm, truth)


def check_problems_package() -> None:
    """Raise a UserError where a folder `problems` of the user hides the one of this package."""
    import problems

    if not getattr(problems, "NASC_EVO_PROBLEMS", False):
        raise UserError(
            f"The folder {Path(problems.__file__ or '.').parent} hides the package 'problems' of "
            "nasc_evo; rename it or start from another folder."
        )


def _out_of_reach(problem: Any) -> str | None:
    """Return why no search can meet the latency limit, None unless the space itself cannot."""
    limit = problem.limits.get("latency_ms")
    fastest = problem.fastest_design()
    if limit is None or fastest is None:
        return None
    batch = problem.space.decode_batch(problem.space.encode(fastest)[None])
    lowest = float(problem.costs(batch)["latency_ms"][0])
    if lowest <= limit:
        return None
    return f"even the fastest design of the space takes {lowest:.4g} ms, the limit is {limit:g} ms"


def _write(
    console: Any, path: Path, problem: Any, search: Any, result: Any, truth: float | None
) -> None:
    from nasc_evo.report.files import write_front
    from nasc_evo.report.pictures import draw_front
    from nasc_evo.report.table import print_result

    write_front(path, problem, search, result, truth_hypervolume=truth)
    if result.front:
        draw_front(path, problem, search, result)
        print_result(console, problem, result)
        if truth is not None:
            console.print(
                f"Hypervolume: {100 * result.hypervolume / truth:.2f} % of the exact front's.",
                highlight=False,
            )
        return
    nearest = result.least_infeasible
    if nearest is None:
        console.print("No design was evaluated.", highlight=False, soft_wrap=True)
        return
    excess = ", ".join(
        f"{name} is {nearest.metric(name):.4g} instead of at most {limit:g}"
        for name, limit in problem.limits.items()
        if nearest.metric(name) > limit
    )
    console.print(
        f"No design meets the limits; the nearest one ({nearest.design.key}) misses them: "
        f"{excess}. It is in pareto.json under least_infeasible.",
        highlight=False,
        soft_wrap=True,
    )


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
