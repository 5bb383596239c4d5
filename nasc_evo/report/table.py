"""The result of a run, and of many runs, printed."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nasc_evo.problem import VARYING, Evaluation, SplitProblem
from nasc_evo.report.collection import Group, summary_rows
from nasc_evo.search.calibration import INTERVAL
from nasc_evo.search.final import FinalResult, front_rows


def print_result(console: Console, problem: SplitProblem, result: FinalResult) -> None:
    """Print the front, the designs it is to be compared with, and the recommendation."""
    images = f"{result.images} search images" + (
        "" if result.rescored else ", as scored during the search"
    )
    under = ", ".join(f"{name} <= {value:g}" for name, value in problem.limits.items())
    table = Table(title=f"Pareto set{' under ' + under if under else ''} (error on {images})")
    table.add_column("design", justify="right")
    table.add_column("cut", justify="right")
    table.add_column("channels", justify="right")
    table.add_column("bits", justify="right")
    chain = len(problem.chain.links) > 1
    parts = ("node_ms", "links_ms") if chain else ("device_ms", "link_ms", "server_ms")
    names = ("nodes", "links") if chain else ("device", "link", "server")
    totals = {"latency_ms": "total ms", **dict.fromkeys(VARYING * problem.chain.varies, "95 % ms")}
    for name in (*names, *totals.values(), "kB sent", "error %", "test %"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, (row, design) in enumerate(zip(front_rows(result), result.front, strict=True)):
        sent = any(design.evaluation.design.masks)
        test = row["error_test"]
        table.add_row(
            f"{'* ' if i == result.recommended else ''}{row['design_id']}",
            str(row["cut"]),
            _channels(problem, design.evaluation) if sent else "-",
            str(row["bits"]) if sent else "-",
            *(_milliseconds(design.evaluation.costs[name]) for name in (*parts, *totals)),
            f"{row['payload_bytes'] / 1000:.3f}",
            f"{100 * row['error']:.2f} ± {100 * row['error_se']:.2f}",
            "-" if test is None else f"{100 * test:.2f}",
        )
    console.print(table)
    if any(design.calibrated for design in result.front):
        _print_calibrated(console, result)
    if result.references:
        _print_references(console, problem, result)
    if result.recommended is not None:
        design_id = result.front[result.recommended].design_id
        console.print(f"Recommended: design {design_id} (*), {result.reason}.", highlight=False)
    for note in problem.notes():
        console.print(f"Note: {note}", highlight=False)


def _print_calibrated(console: Console, result: FinalResult) -> None:
    table = Table(title="What error training would leave, estimated")
    for name in ("design", "inherited %", "after training %", f"{INTERVAL:.0%} interval"):
        table.add_column(name, justify="right")
    for design in result.front:
        if design.calibrated is not None:
            error, low, high = (100 * value for value in design.calibrated)
            table.add_row(
                str(design.design_id),
                f"{100 * design.evaluation.score.error:.2f}",
                f"{error:.1f}",
                f"{low:.1f} to {high:.1f}",
            )
    console.print(table)


def _milliseconds(value: float | Sequence[float]) -> str:
    """Return a time, or those of the parts of a chain joined by `/`."""
    if isinstance(value, Sequence):
        return "/".join(f"{part:.2f}" for part in value)
    return f"{value:.3f}"


def _channels(problem: SplitProblem, evaluation: Evaluation) -> str:
    channels = problem.space.channels_at
    parts = []
    for cut, kept in zip(
        evaluation.design.cuts,
        evaluation.kept_channels,
        strict=True,
    ):
        parts.append(f"{kept}/{channels[cut]}" if kept else "-")
    return " ".join(parts)


def print_infeasible(console: Console, problem: SplitProblem, result: FinalResult) -> None:
    """Print that no design meets the limits, and by how much the nearest one misses them."""
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


def _print_references(console: Console, problem: SplitProblem, result: FinalResult) -> None:
    table = Table(title="Without a split, for comparison")
    for name in ("architecture of", "where", "total ms", "error %", "limits"):
        table.add_column(name, no_wrap=name != "where")
    table.add_column("front, no more error")
    for row in result.references:
        saved = row["latency_saved"]
        beside = (
            "no design"
            if saved is None
            else f"{row['front_latency_ms_at_no_more_error']:.3f} ms ({-100 * saved:+.0f} %)"
        )
        where = row["kind"] + ("" if row["allowed"] else " (not allowed here)")
        table.add_row(
            row["architecture_of"].removeprefix("the ").removesuffix(" design"),
            where,
            f"{row['latency_ms']:.3f}",
            f"{100 * row['error']:.2f} ± {100 * row['error_se']:.2f}",
            "met" if row["meets_limits"] else "missed",
            beside,
        )
    console.print(table)


def print_collection(console: Console, groups: Sequence[Group]) -> None:
    """Print what was asked by each group of runs, and how each run and their union did."""
    table = Table(title="Collected runs")
    table.add_column("group", justify="right")
    table.add_column("run", overflow="fold")
    table.add_column("algorithm", no_wrap=True)
    for name in ("seed", "evaluations", "front", "hypervolume", "wall s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary_rows(groups):
        union = row["run"] == "union"
        table.add_row(
            str(row["group"]),
            escape(row["run"]),
            "" if union else escape(row["algorithm"]),
            "" if union else str(row["seed"]),
            str(row["evaluations"]),
            str(row["front"]),
            f"{row['hypervolume']:.4f}",
            f"{row['wall_seconds']:.1f}",
            style="bold" if union else None,
            end_section=union,
        )
    console.print(table)
    for group in groups:
        console.print(
            f"Group {group.number}: {group.title}", highlight=False, markup=False, soft_wrap=True
        )
