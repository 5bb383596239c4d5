"""`python -m nasc_evo.compare`: methods x settings x seeds, with tables, pictures and a page."""

from pathlib import Path
from typing import Any

from nasc_evo.hydra_app import check_filled, launch


def main() -> None:
    """Run the application."""
    launch("compare", run)


def run(config: Any) -> int:
    """Run what is missing of a composed comparison and write its report; return the exit code."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from nasc_evo.experiment import ComparisonFolder, check_experiment, run_units, units
    from nasc_evo.report.comparison import write_comparison
    from nasc_evo.report.display import ProgressDisplay, create_console, short_path
    from nasc_evo.run import check_problems_package

    check_problems_package()
    check_filled(config)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    experiment = check_experiment(resolved["experiment"])
    path = Path(HydraConfig.get().runtime.output_dir)
    console = create_console()
    folder = ComparisonFolder(path, resume=config.resume is not None, experiment=experiment)
    try:
        every = units(experiment, path)
        missing = [unit for unit in every if unit.key not in folder.results]
        console.print(
            f"{len(every)} searches, {len(missing)} of them to run, into {short_path(path)}",
            highlight=False,
            soft_wrap=True,
        )
        done = 0
        with ProgressDisplay("Searching", len(missing), 0, console) as display:

            def on_result(result: dict[str, Any]) -> None:
                nonlocal done
                folder.append(result)
                done += 1
                display.show(done, "", f"{done}/{len(missing)} searches", now=done == len(missing))

            run_units(missing, resolved["parallel"], on_result)
        wanted = {unit.key for unit in every}
        results = [result for key, result in folder.results.items() if key in wanted]
        summary = write_comparison(path, experiment, results)
    finally:
        folder.close()
    for line in summary:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Page: {short_path(path / 'index.html')}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    main()
