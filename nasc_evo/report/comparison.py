"""What a comparison of methods leaves: tables, curves, attainment pictures and a page.

| file | content |
| --- | --- |
| `results.csv` | a row a setting and method: hypervolume at each checkpoint, tests against ours |
| `ranks.csv` | a row a method: average rank, settings in which ours is better, equal or worse |
| `speed.csv` | a row a setting: evaluations that ours needs for what another method ends with |
| `curves.csv`, `curves.png` | hypervolume over evaluations: median and quartiles |
| `attainment.csv`, `attainment.png` | what half of the searches of a method attain |
| `headline.csv` | latency at nearly the accuracy of a baseline, and where the time goes |
| `comparison.md`, `index.html` | the tables for reading, and the pictures |
"""

import html
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import moocore
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

from nasc_evo.experiment import (
    FRONT_COLUMNS,
    Setting,
    curve_counts,
    exact_values,
    reference_point,
    settings,
)
from nasc_evo.report.files import write_rows

LEVEL = 0.05
"""Of the one-sided Wilcoxon signed-rank tests."""
FAST_OPPONENT = "nsga2_pymoo"
"""The method whose final hypervolume ours is to reach early."""
EQUAL = 1e-9
"""Medians of the hypervolume that differ by less are equal."""
PANELS_A_LINE = 3

Table = tuple[list[str], list[dict[str, Any]]]


class Comparison:
    """The results of an experiment, by setting and method.

    Args:
        experiment: What was compared.
        results: What its searches have left, in any order.
    """

    def __init__(self, experiment: dict[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
        self.experiment = experiment
        self.settings = settings(experiment)
        self.ours: str = experiment["ours"]
        self.counts = curve_counts(experiment["n_eval"], experiment["checkpoints"])
        self.checkpoints = [n for n in experiment["checkpoints"] if n in self.counts]
        self._by_key = {(r["setting"], r["method"], r["seed"]): r for r in results}
        self.seeds = sorted({r["seed"] for r in results})

    @cached_property
    def exact(self) -> dict[str, tuple[float, list[list[Any]]]]:
        """Hypervolume and front of all designs by setting, where they are known."""
        found = {s.name: exact_values(self.experiment, s) for s in self.settings}
        return {name: value for name, value in found.items() if value is not None}

    def methods(self, setting: Setting) -> list[str]:
        """Return the methods that have results in a setting, in the order of the experiment."""
        return [m for m in self.experiment["methods"] if self.searches(setting, m)]

    def searches(self, setting: Setting, method: str) -> dict[int, Mapping[str, Any]]:
        """Return the searches of a method by seed."""
        keys = ((seed, (setting.name, method, seed)) for seed in self.seeds)
        return {seed: self._by_key[key] for seed, key in keys if key in self._by_key}

    def curves(self, setting: Setting, method: str) -> NDArray[np.float64]:
        """Return hypervolumes `[seeds, counts]`, as shares of the exact one where it is known."""
        curves = np.array([r["curve"] for r in self.searches(setting, method).values()])
        return curves / self.whole(setting)

    def whole(self, setting: Setting) -> float:
        """Return the exact hypervolume of a setting, 1 where it is not known."""
        return self.exact[setting.name][0] if setting.name in self.exact else 1.0

    def paired(self, setting: Setting, method: str, count: int) -> NDArray[np.float64]:
        """Return the hypervolumes of ours and of a method for their common seeds, `[seeds, 2]`."""
        mine, theirs = self.searches(setting, self.ours), self.searches(setting, method)
        at = self.counts.index(count)
        rows = [[mine[s]["curve"][at], theirs[s]["curve"][at]] for s in mine if s in theirs]
        return np.array(rows).reshape(-1, 2) / self.whole(setting)


def p_value(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return p of the one-sided Wilcoxon signed-rank test that the first is greater; 1 for ties."""
    difference = np.round(first - second, 12)
    if len(difference) == 0 or not difference.any():
        return 1.0
    return float(wilcoxon(difference, alternative="greater").pvalue)


def results_table(comparison: Comparison) -> Table:
    """Return a row a setting and method."""
    columns = ["setting", "method", "searches", "evaluations", "seconds"]
    for n in comparison.checkpoints:
        columns += [f"median_{n}", f"lower_quartile_{n}", f"upper_quartile_{n}"]
        columns += [f"p_ours_better_{n}", f"p_ours_worse_{n}"]
    rows = []
    for setting in comparison.settings:
        for method in comparison.methods(setting):
            searches = list(comparison.searches(setting, method).values())
            curves = comparison.curves(setting, method)
            row: dict[str, Any] = {
                "setting": setting.name,
                "method": method,
                "searches": len(searches),
                "evaluations": float(np.median([r["evaluations"] for r in searches])),
                "seconds": round(float(np.median([r["seconds"] for r in searches])), 3),
            }
            for n in comparison.checkpoints:
                values = curves[:, comparison.counts.index(n)]
                low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
                row |= {
                    f"median_{n}": round(float(middle), 6),
                    f"lower_quartile_{n}": round(float(low), 6),
                    f"upper_quartile_{n}": round(float(high), 6),
                }
                if method != comparison.ours:
                    mine, theirs = comparison.paired(setting, method, n).T
                    row[f"p_ours_better_{n}"] = f"{p_value(mine, theirs):.3g}"
                    row[f"p_ours_worse_{n}"] = f"{p_value(theirs, mine):.3g}"
            rows.append(row)
    return columns, rows


def ranks_table(comparison: Comparison) -> Table:
    """Return a row a method: its average rank, and ours against it over the settings."""
    methods = list(comparison.experiment["methods"])
    ranks: dict[str, list[float]] = {method: [] for method in methods}
    outcomes = {method: {"better": 0, "equal": 0, "worse": 0} for method in methods}
    significant = {method: {"better": 0, "worse": 0} for method in methods}
    last = comparison.counts[-1]
    for setting in comparison.settings:
        here = comparison.methods(setting)
        for seed in comparison.seeds:
            found = {
                m: comparison.searches(setting, m)[seed]["curve"][-1]
                for m in here
                if seed in comparison.searches(setting, m)
            }
            order = rankdata(-np.round(list(found.values()), 12))
            for method, rank in zip(found, order, strict=True):
                ranks[method].append(float(rank))
        for method in here:
            if method == comparison.ours:
                continue
            mine, theirs = comparison.paired(setting, method, last).T
            gap = float(np.median(mine) - np.median(theirs))
            outcome = "equal" if abs(gap) < EQUAL else "better" if gap > 0 else "worse"
            outcomes[method][outcome] += 1
            significant[method]["better"] += p_value(mine, theirs) < LEVEL
            significant[method]["worse"] += p_value(theirs, mine) < LEVEL
    columns = ["method", "average_rank", "settings", "ours_better", "ours_equal", "ours_worse"]
    columns += ["ours_significantly_better", "ours_significantly_worse"]
    rows = []
    for method in sorted(methods, key=lambda m: np.mean(ranks[m]) if ranks[m] else np.inf):
        if not ranks[method]:
            continue
        row: dict[str, Any] = {
            "method": method,
            "average_rank": round(float(np.mean(ranks[method])), 2),
        }
        if method != comparison.ours:
            row["settings"] = sum(outcomes[method].values())
            row |= {f"ours_{name}": n for name, n in outcomes[method].items()}
            row |= {f"ours_significantly_{name}": n for name, n in significant[method].items()}
        rows.append(row)
    return columns, rows


def speed_table(comparison: Comparison) -> Table:
    """Return a row a setting: what ours needs for the median with which the opponent ends."""
    n_eval = comparison.counts[-1]
    columns = ["setting", f"{FAST_OPPONENT}_median_{n_eval}", "ours_evaluations"]
    columns += [f"ours_median_{n}" for n in comparison.checkpoints]
    rows = []
    for setting in comparison.settings:
        if not {FAST_OPPONENT, comparison.ours} <= set(comparison.methods(setting)):
            continue
        target = float(np.median(comparison.curves(setting, FAST_OPPONENT)[:, -1]))
        median = np.median(comparison.curves(setting, comparison.ours), axis=0)
        reached = np.flatnonzero(median >= target - EQUAL)
        row: dict[str, Any] = {
            "setting": setting.name,
            columns[1]: round(target, 6),
            "ours_evaluations": comparison.counts[reached[0]] if len(reached) else "not reached",
        }
        for n in comparison.checkpoints:
            row[f"ours_median_{n}"] = round(float(median[comparison.counts.index(n)]), 6)
        rows.append(row)
    return columns, rows


def curves_table(comparison: Comparison) -> Table:
    """Return a row a setting, method and number of evaluations."""
    rows = []
    for setting in comparison.settings:
        for method in comparison.methods(setting):
            low, middle, high = np.quantile(
                comparison.curves(setting, method), (0.25, 0.5, 0.75), axis=0
            ).round(6)
            for i, n in enumerate(comparison.counts):
                rows.append(
                    {
                        "setting": setting.name,
                        "method": method,
                        "evaluations": n,
                        "lower_quartile": float(low[i]),
                        "median": float(middle[i]),
                        "upper_quartile": float(high[i]),
                    }
                )
    return list(rows[0]) if rows else [], rows


def attainment(comparison: Comparison, setting: Setting, method: str) -> NDArray[np.float64]:
    """Return `(error, latency_ms)` that half of the searches of a method attain, by latency."""
    points, sets = [], []
    for number, search in enumerate(comparison.searches(setting, method).values()):
        for row in search["front"]:
            points.append(row[:2])
            sets.append(number)
    if not points:
        return np.empty((0, 2))
    surface = moocore.eaf(np.array(points, dtype=float), np.array(sets), percentiles=[50])
    return surface[np.argsort(surface[:, 1], kind="stable"), :2]


def attainment_table(comparison: Comparison) -> Table:
    """Return a row a point of each median attainment surface, and of the exact front."""
    rows = []
    for setting in comparison.settings:
        surfaces = {m: attainment(comparison, setting, m) for m in comparison.methods(setting)}
        if setting.name in comparison.exact:
            front = comparison.exact[setting.name][1]
            surfaces["exact"] = np.array([row[:2] for row in front], dtype=float).reshape(-1, 2)
        for method, surface in surfaces.items():
            for error, latency in surface.tolist():
                rows.append(
                    {
                        "setting": setting.name,
                        "method": method,
                        "error": round(error, 6),
                        "latency_ms": round(latency, 6),
                    }
                )
    return ["setting", "method", "error", "latency_ms"], rows


def headline_table(comparison: Comparison) -> Table:
    """Return a row a setting, baseline and method: its latency at nearly the baseline's accuracy.

    A baseline gives its most accurate design; others may be worse by `points` points of accuracy.
    Medians over the seeds that both have, paired by seed, of the `found` ones of `searches` in
    which a design is accurate enough; the parts of the time are those of the design of the median
    seed.
    """
    asked = comparison.experiment["headline"]
    columns = ["setting", "baseline", "method", "searches", "found", "error", "latency_ms"]
    columns += ["saved_percent", "saved_lower_quartile", "saved_upper_quartile", "cut"]
    columns += ["device_ms", "link_ms", "server_ms"]
    rows: list[dict[str, Any]] = []
    if not asked:
        return columns, rows
    for setting in comparison.settings:
        exact = comparison.exact.get(setting.name)
        for baseline in asked["baselines"]:
            bases = {
                seed: min(search["front"], key=lambda row: (row[0], row[1]))
                for seed, search in comparison.searches(setting, baseline).items()
                if search["front"]
            }
            others = [m for m in dict.fromkeys(asked["against"]) if m != baseline]
            for method in (baseline, *others, *(["exact"] if exact else [])):
                if method == "exact":
                    fronts = dict.fromkeys(bases, exact[1] if exact else [])
                else:
                    searches = comparison.searches(setting, method)
                    fronts = {seed: searches[seed]["front"] for seed in bases if seed in searches}
                if not fronts:
                    continue
                pairs = []
                for seed, front in fronts.items():
                    base = bases[seed]
                    worst = base[0] + asked["points"] / 100 + 1e-12
                    near = [base] if method == baseline else [r for r in front if r[0] <= worst]
                    if near:
                        pairs.append((base, min(near, key=lambda row: (row[1], row[0]))))
                row = {"setting": setting.name, "baseline": baseline, "method": method}
                rows.append(row | _headline_row(len(fronts), pairs))
    return columns, rows


def _headline_row(searches: int, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"searches": searches, "found": len(pairs)}
    if not pairs:
        return row
    saved = np.array([100 * (1 - found[1] / base[1]) for base, found in pairs])
    order = sorted(range(len(pairs)), key=lambda i: pairs[i][1][1])
    middle = dict(zip(FRONT_COLUMNS, pairs[order[len(order) // 2]][1], strict=True))
    low, half, high = np.quantile(saved, (0.25, 0.5, 0.75))
    return row | {
        "error": round(float(np.median([found[0] for _, found in pairs])), 4),
        "latency_ms": round(float(np.median([found[1] for _, found in pairs])), 4),
        "saved_percent": round(float(half), 1),
        "saved_lower_quartile": round(float(low), 1),
        "saved_upper_quartile": round(float(high), 1),
        "cut": middle["cut"],
        **{name: round(middle[name], 4) for name in ("device_ms", "link_ms", "server_ms")},
    }


def draw_curves(path: Path, comparison: Comparison) -> None:
    """Draw medians with quartiles of what is missing, or of the hypervolume, a panel a setting."""

    def panel(axes: Axes, setting: Setting) -> None:
        known = setting.name in comparison.exact
        for method, colour in _colours(comparison).items():
            if method not in comparison.methods(setting):
                continue
            curves = comparison.curves(setting, method)
            values = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)
            if known:
                values = np.maximum(1 - values[::-1], 1e-5)
            low, middle, high = values
            width = 2.2 if method == comparison.ours else 1.0
            axes.plot(comparison.counts, middle, color=colour, linewidth=width, label=method)
            axes.fill_between(comparison.counts, low, high, color=colour, alpha=0.1, linewidth=0)
        axes.set(xscale="log", xlabel="evaluations")
        if known:
            axes.set(yscale="log", ylabel="missing share of the exact hypervolume")
        else:
            axes.set(ylabel="hypervolume")

    _draw_grid(path, comparison, panel)


def draw_attainment(path: Path, comparison: Comparison) -> None:
    """Draw what half of the searches of each method attain, a panel a setting."""

    def panel(axes: Axes, setting: Setting) -> None:
        if setting.name in comparison.exact:
            rows = comparison.exact[setting.name][1]
            front = np.array([row[:2] for row in rows], dtype=float).reshape(-1, 2)
            axes.step(front[:, 1], 100 * front[:, 0], where="post", color="0.8", linewidth=5)
        for method, colour in _colours(comparison).items():
            surface = attainment(comparison, setting, method)
            if len(surface):
                width = 2.0 if method == comparison.ours else 0.9
                axes.step(
                    surface[:, 1],
                    100 * surface[:, 0],
                    where="post",
                    color=colour,
                    linewidth=width,
                    marker="o" if len(surface) == 1 else None,
                    markersize=4,
                    label=method,
                )
        point = reference_point(comparison.experiment, setting.device)
        axes.set(xlabel="end-to-end latency (ms)", ylabel="error (%)", xlim=(0, point[1]))

    _draw_grid(path, comparison, panel)


def _colours(comparison: Comparison) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = colormaps["tab20"]
    others = [m for m in comparison.experiment["methods"] if m != comparison.ours]
    colours = {m: palette((2 * i % 20 + (2 * i // 20)) % 20) for i, m in enumerate(others)}
    return colours | {comparison.ours: "black"}


def _draw_grid(path: Path, comparison: Comparison, panel: Any) -> None:
    shown = comparison.settings
    columns = min(len(shown), PANELS_A_LINE)
    lines = -(-len(shown) // columns)
    width, names_a_line = (5 * columns, 2 * columns + 1) if columns > 1 else (7, 4)
    figure = Figure(figsize=(width, 3.6 * lines + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    labels: dict[str, Any] = {}
    for axes, setting in zip(grid, shown, strict=False):
        panel(axes, setting)
        axes.set_title(setting.name, fontsize=9)
        axes.grid(alpha=0.3)
        handles, names = axes.get_legend_handles_labels()
        labels |= dict(zip(names, handles, strict=True))
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    figure.legend(
        list(labels.values()),
        list(labels),
        loc="outside lower center",
        ncols=names_a_line,
        fontsize=8,
    )
    figure.savefig(path, dpi=80)


def write_comparison(
    folder: Path, experiment: dict[str, Any], results: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Write all files of a comparison; return what it says in a few lines.

    Args:
        folder: Where they go.
        experiment: What was compared.
        results: What its searches have left.
    """
    comparison = Comparison(experiment, results)
    tables = {
        "results": results_table(comparison),
        "ranks": ranks_table(comparison),
        "speed": speed_table(comparison),
        "curves": curves_table(comparison),
        "attainment": attainment_table(comparison),
        "headline": headline_table(comparison),
    }
    for name, (columns, rows) in tables.items():
        if rows:
            write_rows(folder / f"{name}.csv", columns, rows)
    draw_curves(folder / "curves.png", comparison)
    draw_attainment(folder / "attainment.png", comparison)
    summary = summary_lines(comparison, tables)
    text = [f"# Comparison {experiment['name']}", "", *(f"- {line}" for line in summary), ""]
    for title, table in _reading_tables(comparison, tables).items():
        text += [f"## {title}", "", *markdown(*table), ""]
    (folder / "comparison.md").write_text("\n".join(text), encoding="utf-8")
    (folder / "index.html").write_text(_page(comparison, tables, summary), encoding="utf-8")
    return summary


def summary_lines(comparison: Comparison, tables: Mapping[str, Table]) -> list[str]:
    """Return the outcome in sentences."""
    others = [row for row in tables["ranks"][1] if row["method"] != comparison.ours]
    pairs = sum(row["settings"] for row in others)
    better, equal, worse, clearly_better, clearly_worse = (
        sum(row[f"ours_{name}"] for row in others)
        for name in ("better", "equal", "worse", "significantly_better", "significantly_worse")
    )
    share = "as a share of the exact one" if comparison.exact else "as a share of the reference box"
    seeds = f"{len(comparison.seeds)} seeds" if len(comparison.seeds) != 1 else "1 seed"
    lines = [
        f"{len(comparison.settings)} settings, {len(others) + 1} methods, {seeds}, budget "
        f"{comparison.counts[-1]} evaluations; hypervolume {share}."
    ]
    if pairs:
        lines.append(
            f"The median final hypervolume of {comparison.ours} is better in {better} of {pairs} "
            f"pairs of setting and other method, equal in {equal} and worse in {worse}; "
            + (
                f"significantly better in {clearly_better} and worse in {clearly_worse} (one-sided "
                f"Wilcoxon signed-rank tests, p < {LEVEL} each)."
                if 0.5 ** len(comparison.seeds) < LEVEL
                else "so few seeds allow no significance test."
            )
        )
    speed = tables["speed"][1]
    if speed:
        needed = [row["ours_evaluations"] for row in speed]
        early = sum(isinstance(n, int) and n <= 200 for n in needed)
        lines.append(
            f"{comparison.ours} reaches the median with which {FAST_OPPONENT} ends with at most "
            f"200 evaluations in {early} of {len(speed)} settings."
        )
    return lines


def _reading_tables(comparison: Comparison, tables: Mapping[str, Table]) -> dict[str, Table]:
    """Return the tables that are read: ranks, speed, medians at the end, headline."""
    read = {"Average ranks": tables["ranks"]}
    if tables["speed"][1]:
        read[f"Evaluations for what {FAST_OPPONENT} ends with"] = tables["speed"]
    n = comparison.counts[-1]
    for count in dict.fromkeys([c for c in (200, n) if c in comparison.checkpoints]):
        methods = list(comparison.experiment["methods"])
        rows = []
        for setting in comparison.settings:
            row: dict[str, Any] = {"setting": setting.name}
            for r in tables["results"][1]:
                if r["setting"] == setting.name:
                    row[r["method"]] = f"{100 * r[f'median_{count}']:.2f}"
            rows.append(row)
        title = f"Median hypervolume after {count} evaluations (%)"
        read[title] = (["setting", *methods], rows)
    if tables["headline"][1]:
        read["Latency at nearly the accuracy of the baseline"] = tables["headline"]
    return read


def markdown(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table."""
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    for row in rows:
        lines.append(f"| {' | '.join(str(row.get(name, '')) for name in columns)} |")
    return lines


def _page(comparison: Comparison, tables: Mapping[str, Table], summary: Sequence[str]) -> str:
    name = html.escape(comparison.experiment["name"])
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Comparison {name}</title>",
        "<style>body{font-family:sans-serif;margin:2em;max-width:80em}table{border-collapse:"
        "collapse;font-size:.85em}td,th{border:1px solid #ccc;padding:.2em .5em;text-align:right}"
        "img{max-width:100%}</style>",
        f"<h1>Comparison {name}</h1><ul>",
        *(f"<li>{html.escape(line)}</li>" for line in summary),
        "</ul><h2>Hypervolume over evaluations</h2><img src='curves.png' alt='curves'>",
        "<h2>What half of the searches attain</h2><img src='attainment.png' alt='attainment'>",
    ]
    for title, (columns, rows) in _reading_tables(comparison, tables).items():
        parts.append(f"<h2>{html.escape(title)}</h2><table><tr>")
        parts += [f"<th>{html.escape(column)}</th>" for column in columns]
        parts.append("</tr>")
        for row in rows:
            cells = "".join(f"<td>{html.escape(str(row.get(c, '')))}</td>" for c in columns)
            parts.append(f"<tr>{cells}</tr>")
        parts.append("</table>")
    parts.append("<h2>Methods</h2><ul>")
    for method, options in comparison.experiment["methods"].items():
        values = ", ".join(f"{key}={value}" for key, value in options.items())
        parts.append(f"<li><b>{html.escape(method)}</b>: {html.escape(values)}</li>")
    parts.append("</ul></html>")
    return "\n".join(parts)
