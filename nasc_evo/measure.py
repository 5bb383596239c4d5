"""`python -m nasc_evo.measure`: what this machine can do.

A cost table of its blocks, or with `evaluator` as the first word the fastest way to score designs.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from nasc_evo.errors import UserError, one_line
from nasc_evo.hydra_app import EXIT_INTERRUPTED, EXIT_TERMINATED, Terminated, launch


def main() -> None:
    """Run the application."""
    if sys.argv[1:2] == ["evaluator"]:
        del sys.argv[1]
        launch("measure_evaluator", run_evaluator)
    launch("measure", run)


def run(config: Any) -> int:
    """Measure with a composed configuration; return the exit code."""
    from hydra.core.hydra_config import HydraConfig

    from nasc_evo.measurement.session import Plan
    from nasc_evo.report.display import create_console
    from nasc_evo.space import SPACES
    from nasc_evo.space.architecture import REFERENCE_CLASSES

    problem = HydraConfig.get().runtime.choices["problem"]
    if problem not in SPACES:
        raise UserError(f"problem must be one of {', '.join(SPACES)}, got '{problem}'.")
    space = SPACES[problem](config.geometry, REFERENCE_CLASSES.get(config.geometry, 1000))
    plan = Plan(**{field.name: config[field.name] for field in fields(Plan)})
    out = output_file(config.out)
    return measure(space, plan, out, config.name or out.stem, config.energy, create_console())


def run_evaluator(config: Any) -> int:
    """Time numerics of the evaluator with a composed configuration; return the exit code."""
    import numpy as np
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from rich.table import Table

    from nasc_evo.assembly import build_architecture, build_dataset
    from nasc_evo.measurement.evaluator import (
        TILES_KB,
        fastest,
        thread_counts,
        time_numerics,
    )
    from nasc_evo.measurement.machine import machine
    from nasc_evo.report.display import ProgressDisplay, create_console
    from nasc_evo.search.loop import check_whole
    from nasc_evo.search.operators import random_genomes
    from nasc_evo.space import SplitSpace
    from nasc_evo.supernet.evaluation import SupernetEvaluator, has_native_bfloat16

    check_whole("designs", config.designs, 1)
    check_whole("rounds", config.rounds, 1)
    options: Any = OmegaConf.to_container(config.evaluator, resolve=True)
    if options.pop("name") != "supernet":
        raise UserError("Only evaluator=supernet has numerics to choose.")
    fields: Any = OmegaConf.to_container(config.dataset, resolve=True)
    dataset = build_dataset(fields)
    space = build_architecture(HydraConfig.get().runtime.choices["problem"], dataset)
    split = SplitSpace(space)
    X = random_genomes(split, config.designs, np.random.default_rng(config.seed))
    designs = split.designs(split.decode_batch(X))

    def make(numerics: dict[str, Any]) -> SupernetEvaluator:
        return SupernetEvaluator(space, dataset, **{**options, **numerics, "memory_mb": 0})

    first = make({})
    gpu = first.device.type == "cuda"
    threads = [first.threads] if gpu else thread_counts(machine()["cores"])
    fast = has_native_bfloat16(first.device)
    stages: list[dict[str, list[Any]]] = [
        {"threads": threads, "dtype": ["float32", "bfloat16"] if fast else ["float32"]},
        {"tile_kb": sorted({*TILES_KB[first.device.type], first.tile_kb})},
    ]
    console = create_console()
    chosen = {"threads": first.threads, "dtype": first.dtype, "tile_kb": first.tile_kb}
    timings = []
    for stage in stages:
        choices = [chosen]
        for key, values in stage.items():
            choices = [{**choice, key: value} for choice in choices for value in values]
        steps = len(choices) * (config.rounds + 1)
        with ProgressDisplay("Timing", steps, 0, console) as display:
            done = 0

            def show(display: ProgressDisplay = display, steps: int = steps) -> None:
                nonlocal done
                done += 1
                display.show(done, "", f"{done} of {steps} timed", now=done == steps)

            timed = time_numerics(make, choices, designs, config.rounds, show)
        timings += timed
        chosen = fastest(timed).options
    best = fastest([timing for timing in timings if timing.options == chosen])
    table = Table(title=f"{config.designs} designs of {space.name}, {first.images} images each")
    for name in (*chosen, "ms a design", "range %", "accuracy differs by, points"):
        table.add_column(name, justify="right")
    for timing in timings:
        pairs = zip(timing.accuracies, best.accuracies, strict=True)
        moved = 100 * max(abs(a - b) for a, b in pairs)
        figures = (f"{timing.ms:.0f}", f"{timing.spread_percent:.0f}", f"{moved:.2f}")
        table.add_row(*map(str, timing.options.values()), *figures)
    console.print(table)
    words = " ".join(f"evaluator.{key}={value}" for key, value in chosen.items())
    console.print(f"Fastest here: {words}", highlight=False, soft_wrap=True)
    return 0


def output_file(name: str | None) -> Path:
    """Return the file to write, its folder made if need be.

    Raises:
        UserError: If none is given, it exists, or it cannot be written.
    """
    if name is None:
        raise UserError("out must be given, such as out=my.csv.")
    out = Path(name).expanduser()
    if out.suffix != ".csv":
        raise UserError(f"out must be a file whose name ends in .csv, got '{name}'.")
    try:
        if out.exists():
            raise UserError(f"out={name} exists; delete it or write to another file.")
        out.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"out={name} cannot be written ({one_line(error)}).") from error
    return out


def measure(space: Any, plan: Any, out: Path, name: str, energy: bool, console: Any) -> int:
    """Measure what a journal beside `out` lacks, write the table, and say what it is worth.

    Args:
        space: The space of architectures.
        plan: What is measured, and how.
        out: The table.
        name: Name of the machine.
        energy: Whether to read a counter of energy, where there is one.
        console: Where to print.

    Returns:
        The exit code.

    Raises:
        UserError: If this machine cannot do it, or the journal is of another measurement.
    """
    from nasc_evo.cost.plausible import implausible
    from nasc_evo.cost.table import CostTable, write_table
    from nasc_evo.measurement.backends import create_backend
    from nasc_evo.measurement.energy import find_counter
    from nasc_evo.measurement.journal import SampleJournal
    from nasc_evo.measurement.machine import machine
    from nasc_evo.measurement.session import Session, describe_table
    from nasc_evo.measurement.stopwatch import pin
    from nasc_evo.report.display import ProgressDisplay, short_path

    here = machine()
    if plan.threads > here["cores"]:
        raise UserError(
            f"threads={plan.threads} is more than the {here['cores']} processors that this process "
            "may use."
        )
    backend = create_backend(plan.backend, plan.processor, plan.threads, plan.launch)
    identity = {
        "space": space.name,
        "geometry": space.geometry,
        **{key: value for key, value in asdict(plan).items() if key not in plan.growing},
        "runs_on": backend.describe(),
        "machine": here,
    }
    journal = SampleJournal(out.with_suffix(".samples.jsonl"), identity)
    done = 0
    try:
        counter = find_counter(plan.processor) if energy else None
        session = Session(space, plan, backend, journal, counter)
        first = done = session.done
        total = len(session.steps())
        display = ProgressDisplay("Measuring", total, first, console)
        with display, pin(plan.threads) as cpus:

            def show(steps: int, item: str) -> None:
                nonlocal done
                done = steps
                line = f"{steps} of {total} measured" + f", now {item}" * bool(item)
                if steps > first:
                    seconds = time.monotonic() - display.started
                    left = seconds / (steps - first) * (total - steps)
                    line += f", about {left / 60:.1f} min left"
                display.show(steps, item, line)

            session.measure(show)
    except KeyboardInterrupt as error:
        console.print(
            f"Stopped after {done} measurements, which are kept in {short_path(journal.path)}; the "
            "same command goes on.",
            highlight=False,
            soft_wrap=True,
        )
        return EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED
    finally:
        journal.close()
    header, rows = session.table()
    about = describe_table(space, name, here, plan.processor, cpus)
    write_table(out, space, {**about, **header}, rows)
    sentences = summary(header, session, short_path(out), energy)
    sentences += [f"Warning: {text}" for text in implausible(CostTable.load(out, space), space)]
    for sentence in sentences:
        console.print(sentence, highlight=False, soft_wrap=True)
    return 0


def summary(header: Mapping[str, Any], session: Any, table: str, energy: bool) -> list[str]:
    """Return what a user needs to know of a new table, for which energies were wanted or not."""
    circumstances = header["measurement"]
    disagreement = circumstances["rounds_disagree_percent"]
    rounds = "one round, so that its noise is not known"
    if disagreement is not None:
        rounds = (
            f"rounds disagree by {disagreement['median']} % in the median, "
            f"{disagreement['largest']} % at most"
        )
    sentences = [
        f"{table}: {len(session.blocks)} different blocks, {circumstances['samples']} samples "
        f"({circumstances['left_out_percent']} % left out as disturbed); {rounds}."
    ]
    agreement = header.get("agreement")
    if agreement is None:
        sentences.append("Whole networks were not measured: how well sums predict is not known.")
    else:
        for name, what in (("whole", "whole networks"), ("sides", "sides of a cut")):
            before, after = agreement[name]["plain_addition"], agreement[name]["as_corrected"]
            sentences.append(
                f"Predictions of {what}, each unknown to the correction: "
                f"MAPE {after['mape_percent']} %, R2 {after['r2']}, "
                f"Kendall's tau {after['kendall_tau']} (plain addition: "
                f"{before['mape_percent']} %, {before['r2']}, {before['kendall_tau']})."
            )
    if "energy_agreement" in header:
        whole = header["energy_agreement"]["whole"]["as_corrected"]
        sentences.append(
            f"Energies of whole networks likewise: MAPE {whole['mape_percent']} %, "
            f"Kendall's tau {whole['kendall_tau']}."
        )
    if session.counter is None and energy:
        sentences.append("No energy: there is no counter that can be read here.")
    elif session.counter is not None and "constant_mj" not in header:
        sentences.append(f"No energy: the counter ({session.counter.name}) does not tell it.")
    sentences.append(
        f"Use it: python -m nasc_evo.run problem={session.space.name} device=table "
        f"device.path={table} (or server=table server.path={table})"
    )
    return sentences


if __name__ == "__main__":
    main()
