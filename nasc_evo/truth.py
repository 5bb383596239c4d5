"""`python -m nasc_evo.truth`: the exact Pareto set, by looking at every design."""

from pathlib import Path
from typing import Any

from nasc_evo.errors import UserError
from nasc_evo.hydra_app import EXIT_INFEASIBLE, check_effect, check_filled, instantiate, launch


def main() -> None:
    """Run the application."""
    launch("truth", run)


def run(config: Any) -> int:
    """Write the exact front of a composed configuration; return the exit code."""
    import time

    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from nasc_evo.report.display import short_path
    from nasc_evo.report.files import write_front
    from nasc_evo.report.pictures import draw_front
    from nasc_evo.search.exact import exact_front
    from nasc_evo.search.final import final_result
    from nasc_evo.search.loop import SearchResult

    check_filled(config)
    check_effect(config)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if (folder / "truth.csv").exists():
        raise UserError(f"{folder} already holds a truth.csv; choose another folder.")
    problem = instantiate(config.problem)
    start = time.perf_counter()
    front = exact_front(problem)
    seconds = time.perf_counter() - start
    console = Console()
    if not front:
        reason = problem.out_of_reach()
        why = "" if reason is None else f": {reason}"
        console.print(f"No design of the space meets the limits{why}.", soft_wrap=True)
        return EXIT_INFEASIBLE
    result = final_result(problem, front, rescore="all")
    search = SearchResult(front, 0, "every architecture was looked at with every cut")
    folder.mkdir(parents=True, exist_ok=True)
    write_front(folder, problem, search, result, name="truth")
    draw_front(folder, problem, search, result)
    for note in problem.notes():
        console.print(f"Note: {note}", highlight=False)
    console.print(
        f"The exact front has {len(result.front)} designs and hypervolume "
        f"{result.hypervolume:.6f} (found in {seconds:.1f} s): {short_path(folder / 'truth.csv')}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    main()
