"""Pictures: the front of a run and where its time goes, and the fronts of many runs.

A run writes `front.png` and `front.svg`, a collection of runs `fronts.png` and `fronts.svg`.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nasc_evo.cost.chain import DEVICE
from nasc_evo.problem import VARYING, SplitProblem
from nasc_evo.report.collection import Group
from nasc_evo.search.final import FinalResult
from nasc_evo.search.loop import SearchResult

NODE_COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#999999")
LINK_COLOURS = ("#e69f00", "#f0e442", "#d55e00", "#ffd8a8")
FRONT_COLOUR = "#d55e00"
RUN_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
UNION_COLOUR = "0.8"
MAX_PANELS = 12
"""Groups that a picture of many runs shows."""
LATENCY = ("latency_p95_ms", "latency_ms")
"""What is drawn from left to right: the first of these that is an objective."""
HEADROOM = 1.06
"""Height of axes over that of the tallest bar."""
PARTS_CHARACTERS = 620.0
"""Characters of a font of one point side by side under the bars."""
SMALLEST_FONT = 5.0
MARKERS = {"all local": "s", "raw offload": "^"}


def draw_front(
    folder: Path, problem: SplitProblem, search: SearchResult, result: FinalResult
) -> None:
    """Write both pictures of a front that is not empty."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_objectives(left, problem, search, result)
    _draw_parts(right, problem, result)
    figure.suptitle(
        f"{problem.space.architecture.name} on {_route(problem)}: error on {result.images} images",
        fontsize=11,
    )
    _save(figure, folder, "front")


def _route(problem: SplitProblem, *, rates: bool = True) -> str:
    """Return nodes and links in their order, such as `edgegpu, wifi 18.88 Mbps, titan_rtx`."""
    chain = problem.chain
    towards_device = [node.role == DEVICE for node in chain.nodes[1:]]
    names = [chain.nodes[0].name]
    for link, node, down in zip(chain.links, chain.nodes[1:], towards_device, strict=True):
        rate = link.downlink_mbps if down else link.uplink_mbps
        names += [f"{link.name} {rate:.4g} Mbps" if rates else link.name, node.name]
    return ", ".join(names)


def _save(figure: Figure, folder: Path, name: str) -> None:
    for ending in ("png", "svg"):
        figure.savefig(folder / f"{name}.{ending}", dpi=130)


def _draw_objectives(
    axes: Axes, problem: SplitProblem, search: SearchResult, result: FinalResult
) -> None:
    latency_ms = LATENCY[0] if LATENCY[0] in problem.objectives else LATENCY[1]
    evaluated = (
        (e.metric(latency_ms), 100 * e.score.error) for e in search.evaluations if not e.failed
    )
    points = np.fromiter(evaluated, dtype=np.dtype((float, 2)))
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=9,
        color="0.75",
        label=f"evaluated ({problem.evaluator.images} images)",
        zorder=1,
        rasterized=True,  # thousands of points make an .svg of megabytes
    )
    latency = np.array([d.evaluation.metric(latency_ms) for d in result.front])
    error = np.array([100 * d.evaluation.score.error for d in result.front])
    axes.errorbar(
        latency,
        error,
        yerr=[100 * d.evaluation.score.standard_error for d in result.front],
        color=FRONT_COLOUR,
        marker="o",
        markersize=5,
        linestyle="none",
        elinewidth=0.8,
        label="front, ± standard error",
        zorder=3,
    )
    order = np.argsort(latency, kind="stable")
    axes.step(  # below designs that are on the front for another objective
        latency[order],
        np.minimum.accumulate(error[order]),
        where="post",
        color=FRONT_COLOUR,
        linewidth=1.2,
        zorder=3,
    )
    if result.recommended is not None:
        axes.scatter(
            [latency[result.recommended]],
            [error[result.recommended]],
            s=130,
            facecolors="none",
            edgecolors=FRONT_COLOUR,
            linewidths=1.5,
            label="recommended",
            zorder=4,
        )
    for row in result.references:
        filled = row["architecture_of"].startswith("the most")
        axes.scatter(
            [row[latency_ms]],
            [100 * row["error"]],
            marker=next(m for kind, m in MARKERS.items() if row["kind"].startswith(kind)),
            s=45,
            facecolors="black" if filled else "none",
            edgecolors="black",
            label=f"{row['kind']}, {row['architecture_of'].removeprefix('the ')}",
            zorder=2,
        )
    limit = problem.limits.get(latency_ms)
    if limit is not None:
        axes.axvline(limit, color="black", linestyle="--", linewidth=1, label=f"limit {limit:g} ms")
    _limit_view(axes, error, result)
    axes.set_xlabel(_axis_label(latency_ms))
    axes.set_ylabel("error (%)")
    axes.legend(fontsize=7.5)
    axes.grid(alpha=0.3)


def _limit_view(axes: Axes, error: NDArray[np.float64], result: FinalResult) -> None:
    """Keep evaluated designs that are far worse than the front from squeezing it."""
    shown = [*error, *(100 * row["error"] for row in result.references)]
    span = max(shown) - min(shown)
    highest = min(100.0, max(shown) + 0.5 * span + 1.0)
    axes.set_ylim(max(0.0, min(shown) - 0.15 * span - 0.5), highest)


def _draw_parts(axes: Axes, problem: SplitProblem, result: FinalResult) -> None:
    place = np.arange(len(result.front))
    bottom = np.zeros(len(place))
    for label, colour, values in _parts(problem, result):
        axes.bar(place, values, bottom=bottom, color=colour, label=label)
        bottom += values
    limit = problem.limits.get("latency_ms", 0.0)
    if limit:
        axes.axhline(limit, color="black", linestyle="--", linewidth=1)
    axes.set_ylim(0, HEADROOM * max(bottom.max(), limit))
    labels = []
    for design in result.front:
        phenotype = design.evaluation.design
        cut = "/".join(map(str, phenotype.cuts))
        if any(phenotype.masks):
            sent = "/".join(map(str, design.evaluation.kept_channels))
            bits = "/".join(map(str, phenotype.bits))
            labels.append([str(design.design_id), f"cut {cut}", f"{sent} ch", f"{bits} bit"])
        else:
            labels.append([str(design.design_id), f"cut {cut}"])
    longest = max(len(line) for lines in labels for line in lines)
    room = PARTS_CHARACTERS / (len(place) * longest)  # font size that lets labels lie side by side
    if room >= SMALLEST_FONT:
        texts = ["\n".join(lines) for lines in labels]
        axes.set_xticks(place, texts, fontsize=min(7.0, room))
    else:
        texts = [", ".join(lines) for lines in labels]
        size = min(7.0, PARTS_CHARACTERS / (2 * len(place)))
        axes.set_xticks(place, texts, fontsize=size, rotation=90)
    axes.set_ylabel("latency (ms)")
    axes.set_title("where the time goes, for each design of the front", fontsize=10)
    axes.legend(fontsize=8)


def _parts(problem: SplitProblem, result: FinalResult) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield label, colour and time of every node and link, in the order of the chain."""
    costs = [design.evaluation.costs for design in result.front]
    node_ms, links_ms = (np.array([c[name] for c in costs]) for name in ("node_ms", "links_ms"))
    nodes = problem.chain.nodes
    names = ["device", "server"] if len(nodes) == 2 else [node.name for node in nodes]
    for j, name in enumerate(names):
        again = " again" if j > 0 and nodes[j].role == DEVICE else ""
        yield f"{name}{again}", NODE_COLOURS[j], node_ms[:, j]
        if j < len(names) - 1:
            label = "link" if len(names) == 2 else f"link {j + 1}, {problem.chain.links[j].name}"
            yield label, LINK_COLOURS[j], links_ms[:, j]


def draw_sweep(
    folder: Path, problem: SplitProblem, key: str, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write both pictures of how the chosen design moves with a rate.

    Args:
        folder: Where they go.
        problem: What the designs are of.
        key: The rate, such as `link.uplink_mbps`.
        rows: For each rate the chosen design by the columns of `pareto.csv`; without them where no
            design meets the limits.
    """
    figure = Figure(figsize=(8, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    rate = [row[key] for row in rows]

    def column(name: str, scale: float = 1.0) -> list[float]:
        return [scale * row[name] if name in row else np.nan for row in rows]

    n, links = problem.space.architecture.n_blocks, problem.space.n_links
    for link in range(links):
        cuts = [float(str(row["cut"]).split("/")[link]) if "cut" in row else np.nan for row in rows]
        label = "cut" if links == 1 else f"cut {link + 1}"
        style = {"marker": "o", "markersize": 4 + 2 * (links - 1 - link), "linewidth": 1.2}
        top.plot(rate, cuts, drawstyle="steps-mid", color=NODE_COLOURS[link], label=label, **style)
    top.axhline(
        n,
        color="black",
        linestyle=":",
        linewidth=1,
        label=f"all local ({n})" if links == 1 else f"all blocks ({n})",
    )
    top.set_ylabel("blocks before the cut")
    top.set_ylim(-0.5, n + 0.8)
    middle.errorbar(
        rate,
        column("error", 100.0),
        yerr=column("error_se", 100.0),
        color=FRONT_COLOUR,
        marker="o",
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        drawstyle="steps-mid",
        label="error of the chosen design, ± standard error",
    )
    middle.set_ylabel("error (%)")
    middle.margins(y=0.3)  # room for the legend
    below = np.zeros(len(rows))
    for name, colour in zip(
        ("device_ms", "link_ms", "server_ms"),
        (NODE_COLOURS[0], LINK_COLOURS[0], NODE_COLOURS[1]),
        strict=True,
    ):
        above = below + np.array(column(name))
        label = name.removesuffix("_ms")
        bottom.fill_between(rate, below, above, step="mid", color=colour, label=label, linewidth=0)
        below = above
    if problem.chain.varies:
        bottom.plot(rate, column(VARYING[0]), color="black", drawstyle="steps-mid", label="95 %")
    limit = problem.limits.get("latency_ms")
    if limit is not None:
        bottom.axhline(
            limit, color="black", linestyle="--", linewidth=1, label=f"limit {limit:g} ms"
        )
    bottom.set_ylabel("latency (ms)")
    highest = [column(name) for name in ("latency_ms", *VARYING * problem.chain.varies)]
    bottom.set_ylim(0, HEADROOM * (np.nanmax([limit or 0.0, *np.ravel(highest)]) or 1.0))
    bottom.set_xscale("log")
    bottom.set_xlim(0.9 * rate[0], rate[-1] / 0.9)
    bottom.set_xlabel(key)
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    how = "the most accurate within the limits" if problem.limits else "the recommended one"
    where = f"{problem.space.architecture.name} on {_route(problem, rates=False)}"
    figure.suptitle(f"{where}\nthe chosen design: {how}", fontsize=10)
    _save(figure, folder, "sweep")


def draw_fronts(folder: Path, groups: Sequence[Group]) -> None:
    """Write both pictures of the fronts of many runs: a panel a group, :data:`MAX_PANELS` at most.

    Args:
        folder: Where they go.
        groups: What to draw.
    """
    shown = groups[:MAX_PANELS]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, group in zip(panels, shown, strict=False):
        _draw_group(axes, group)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    _save(figure, folder, "fronts")


def _draw_group(axes: Axes, group: Group) -> None:
    """Draw the front of each run, coloured by algorithm, over the union of all."""
    names = group.objectives
    y = names.index("error") if "error" in names else 0
    x = names.index("latency_ms") if "latency_ms" in names else int(y == 0)
    scale = np.where(np.array(names) == "error", 100.0, 1.0)

    def draw(F: np.ndarray, **style: Any) -> None:
        """Draw one front from left to right."""
        points = (F * scale)[np.argsort(F[:, x], kind="stable")]
        axes.plot(points[:, x], points[:, y], **style)

    # a front of three objectives or more is no staircase in a plane
    line = {"drawstyle": "steps-post"} if len(names) == 2 else {"linestyle": "none"}
    algorithms = [run.setting["algorithm"] for run in group.runs]
    colours = dict(zip(dict.fromkeys(algorithms), cycle(RUN_COLOURS), strict=False))
    draw(
        group.F,
        color=UNION_COLOUR,
        linewidth=6,
        marker="o",
        markersize=9,
        label=f"union of all ({len(group.runs)})",
        **line,
    )
    for i, (run, algorithm) in enumerate(zip(group.runs, algorithms, strict=True)):
        first = algorithms.index(algorithm) == i
        label = f"{algorithm} ({algorithms.count(algorithm)})" if first else None
        style = {"linewidth": 0.9, "marker": ".", "markersize": 5, **line}
        draw(run.F, color=colours[algorithm], label=label, **style)
    axes.set_xlabel(_axis_label(names[x]))
    axes.set_ylabel(_axis_label(names[y]))
    axes.set_title(f"{group.number}. {textwrap.fill(group.title, 60)}", fontsize=8.5)
    if group.union:
        axes.legend(fontsize=7.5, title="runs", title_fontsize=7.5)
    else:
        axes.text(0.5, 0.5, "no design meets the limits", ha="center", transform=axes.transAxes)
    axes.grid(alpha=0.3)


def _axis_label(metric: str) -> str:
    return {
        "error": "error (%)",
        "latency_ms": "end-to-end latency (ms)",
        "latency_p95_ms": "end-to-end latency that 95 % do not exceed (ms)",
    }.get(metric, metric)
