"""Many runs put together: their fronts, the union front of comparable runs, and a summary.

Runs are comparable where they ask the same question: the `identity.problem` of their manifests is
equal, which holds space, machines, links, limits, objectives and what scores accuracy. Seeds and
algorithms may differ.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from nasc_evo.errors import UserError, one_line
from nasc_evo.problem import METRICS, VARYING
from nasc_evo.report.display import short_path
from nasc_evo.report.files import CHAIN_PARTS, FRONT_FORMAT, objectives_of, read_front, write_rows
from nasc_evo.search.final import CALIBRATED, COLUMNS
from nasc_evo.search.folder import (
    FORMAT,
    JOURNAL,
    MANIFEST,
    first_difference,
    read_document,
)
from nasc_evo.search.indicators import hypervolume

SETTING = ("run", "device", "server", "link", "dataset", "seed", "algorithm")
"""Columns that say which run a design is from."""
OUTCOME = ("stop_reason", "evaluations", "front", "hypervolume", "wall_seconds")
"""Columns that say how a run went."""


@dataclass(frozen=True, eq=False)
class CollectedRun:
    """A finished run.

    Attributes:
        problem: The description that comparable runs share.
        setting: :data:`SETTING`, by name.
        rows: Of its `pareto.csv`, as text.
        F: Objectives of the rows, `[n, m]`.
        reference: Reference point of the hypervolume, `[m]`.
        stop_reason: Why the search ended.
        evaluations: Designs evaluated.
        wall_seconds: Time that it took, since its last start.
    """

    problem: dict[str, Any]
    setting: dict[str, Any]
    rows: list[dict[str, str]]
    F: NDArray[np.float64]
    reference: NDArray[np.float64]
    stop_reason: str
    evaluations: int
    wall_seconds: float

    @property
    def hypervolume(self) -> float:
        """Hypervolume of its front."""
        return hypervolume(self.F, self.reference)


@dataclass(frozen=True, eq=False)
class Group:
    """Comparable runs.

    Attributes:
        number: From 1.
        title: What they asked.
        runs: At least one.
    """

    number: int
    title: str
    runs: list[CollectedRun]

    @property
    def objectives(self) -> tuple[str, ...]:
        """What was minimised."""
        return tuple(self.runs[0].problem["objectives"])

    @cached_property
    def union(self) -> list[tuple[CollectedRun, dict[str, str]]]:
        """The non-dominated designs of all runs, sorted by latency; of equal ones the first."""
        designs = [(run, row) for run in self.runs for row in run.rows]
        if not designs:
            return []
        F = np.concatenate([run.F for run in self.runs])
        mask = moocore.is_nondominated(F, keep_weakly=False)
        front = [design for design, ok in zip(designs, mask, strict=True) if ok]
        return sorted(front, key=lambda d: (float(d[1]["latency_ms"]), float(d[1]["error"])))

    @property
    def F(self) -> NDArray[np.float64]:  # noqa: N802 - the field's name
        """Objectives of the union, `[n, m]`."""
        return objectives_of([row for _, row in self.union], self.objectives)

    @property
    def hypervolume(self) -> float:
        """Hypervolume of the union."""
        return hypervolume(self.F, self.runs[0].reference)


def read_runs(folders: Sequence[Path]) -> tuple[list[CollectedRun], list[str]]:
    """Read the finished runs at and below folders.

    Args:
        folders: Where to look; links to folders below them are not followed.

    Returns:
        The runs, and a sentence on each run that was left out because it has not finished.

    Raises:
        UserError: If there is no run, or a file of one is damaged.
    """
    runs, skipped = [], []
    for path in _find(folders):
        run = _read_run(path)
        if isinstance(run, str):
            skipped.append(run)
        else:
            runs.append(run)
    if not runs and not skipped:
        shown = ", ".join(map(str, folders))
        raise UserError(f"There is no run in {shown}: no folder with {MANIFEST} and pareto.csv.")
    return runs, skipped


def _find(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield each folder of a run once, in a natural order."""

    def fail(error: OSError) -> None:
        raise UserError(f"The folder {error.filename} cannot be read ({one_line(error)}).")

    seen = set()
    for folder in folders:
        for root, names, files in os.walk(folder, onerror=fail):
            names.sort(key=lambda name: (len(name), name) if name.isdecimal() else (0, name))
            path = Path(root)
            is_run = MANIFEST in files and ("pareto.csv" in files or JOURNAL in files)
            if is_run and path.resolve() not in seen:
                seen.add(path.resolve())
                yield path


def _read_run(path: Path) -> CollectedRun | str:
    """Return the run in a folder, or a sentence that says why it cannot be used yet."""
    name = short_path(path)
    manifest_path = path / MANIFEST
    manifest = read_document(manifest_path, "manifest", FORMAT)
    try:
        identity, finished = manifest["identity"], manifest["finished"]
        if finished is None or not (path / "pareto.csv").is_file():
            return f"{name} is left out, it has not finished; continue it with resume={name}"
        if _typed(finished["interrupted"], bool):
            return f"{name} is left out, it was interrupted; continue it with resume={name}"
        problem = identity["problem"]
        setting = {"run": name, **_setting(identity)}
        objectives = [_typed(metric, str) for metric in _typed(problem["objectives"], list)]
        if len(objectives) < 2 or not set(objectives) <= set(METRICS):
            raise ValueError("unknown objectives")
        _title(problem)
        stop_reason = _typed(finished["stop_reason"], str)
        evaluations = _typed(finished["evaluations"], int)
        wall_seconds = _finite(finished["wall_seconds"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged("manifest", manifest_path, error) from error
    reference = _read_reference(path / "pareto.json", problem, objectives)
    try:
        rows, F = read_front(path / "pareto.csv", objectives)
    except (OSError, ValueError) as error:
        raise _damaged("front", path / "pareto.csv", error) from error
    return CollectedRun(
        problem, setting, rows, F, reference, stop_reason, evaluations, wall_seconds
    )


def _damaged(kind: str, path: Path, error: Exception) -> UserError:
    missing = f"no {error}" if isinstance(error, KeyError) else one_line(error)
    return UserError(f"The {kind} {path} is damaged ({missing}).")


def _setting(identity: dict[str, Any]) -> dict[str, Any]:
    problem = identity["problem"]
    device, *servers = (_typed(node["name"], str) for node in problem["nodes"])
    return {
        "device": device,
        "server": "/".join(servers),
        "link": "/".join(_typed(link["name"], str) for link in problem["links"]),
        "dataset": _typed(problem["evaluator"]["dataset"], str),
        "seed": _typed(identity["seed"], int),
        "algorithm": _typed(identity["algorithm"]["name"], str),
    }


def _read_reference(
    path: Path, problem: dict[str, Any], objectives: list[str]
) -> NDArray[np.float64]:
    """Return the reference point in a `pareto.json` of a problem."""
    document = read_document(path, "front", FRONT_FORMAT)
    try:
        point = document["hypervolume"]["reference_point"]
        reference = np.array([_finite(point[name]) for name in objectives])
        if not (reference > 0).all():
            raise ValueError("the reference point must be above 0")
        if document["problem"] != problem:
            raise ValueError(f"it is of another problem than {MANIFEST}")
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise _damaged("front", path, error) from error
    return reference


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} where a {kind.__name__} must be")
    return value


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} where a finite number must be")
    return float(value)


def group_runs(runs: Sequence[CollectedRun]) -> list[Group]:
    """Return comparable runs together, groups in the order of their first run.

    Raises:
        UserError: If runs of one problem have different reference points.
    """
    members: dict[str, list[CollectedRun]] = {}
    for run in runs:
        members.setdefault(json.dumps(run.problem, sort_keys=True), []).append(run)
    groups: list[Group] = []
    first_of: dict[str, CollectedRun] = {}
    for number, together in enumerate(members.values(), start=1):
        first = together[0]
        for run in together:
            if not np.array_equal(run.reference, first.reference):
                raise UserError(
                    f"The runs {first.setting['run']} and {run.setting['run']} have one problem "
                    "but different reference points in pareto.json; collect them apart."
                )
        title = _title(first.problem)
        like = first_of.setdefault(title, first)
        difference = first_difference(like.problem, first.problem)
        if difference is not None:
            title += f", {difference[0]} {difference[2]}"
        groups.append(Group(number, title, together))
    return groups


def _title(problem: dict[str, Any]) -> str:
    """Return what a problem asks, short; problems may differ in more."""
    device, *servers = (node["name"] for node in problem["nodes"])
    links = ", ".join(
        f"{link['name']} {_finite(link['uplink_mbps']):g} Mbps" for link in problem["links"]
    )
    space = _typed(problem["space"]["architecture"], str)
    limits = "".join(f", {name} <= {_finite(v):g}" for name, v in problem["limits"].items())
    objectives = problem["objectives"]
    aims = "" if objectives == ["error", "latency_ms"] else f", minimising {', '.join(objectives)}"
    dataset = problem["evaluator"]["dataset"]
    return f"{space}, {dataset}: {device}, {links}, {', '.join(servers)}{limits}{aims}"


def summary_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the rows of `summary.csv`: each group's runs, then its union."""
    rows: list[dict[str, Any]] = []
    for group in groups:
        for run in group.runs:
            outcome = (
                run.stop_reason,
                run.evaluations,
                len(run.rows),
                run.hypervolume,
                run.wall_seconds,
            )
            rows.append(
                {"group": group.number, **run.setting, **dict(zip(OUTCOME, outcome, strict=True))}
            )
        rows.append(
            {
                "group": group.number,
                **{name: group.runs[0].setting[name] for name in SETTING[1:5]},
                "run": "union",
                "evaluations": sum(run.evaluations for run in group.runs),
                "front": len(group.union),
                "hypervolume": group.hypervolume,
                "wall_seconds": round(sum(run.wall_seconds for run in group.runs), 3),
            }
        )
    return rows


def write_collection(folder: Path, groups: Sequence[Group]) -> None:
    """Write `collected.csv`, `union.csv` and `summary.csv`.

    Args:
        folder: Where they go; it exists.
        groups: What to write.
    """
    runs = [run for group in groups for run in group.runs]
    present = {name for run in runs for row in run.rows for name in row}
    parts = tuple(name for name in (*VARYING, *CHAIN_PARTS, *CALIBRATED) if name in present)
    collected = [{**run.setting, **row} for run in runs for row in run.rows]
    union = [
        {"group": group.number, **run.setting, **row}
        for group in groups
        for run, row in group.union
    ]
    write_rows(folder / "collected.csv", (*SETTING, *COLUMNS, *parts), collected)
    write_rows(folder / "union.csv", ("group", *SETTING, *COLUMNS, *parts), union)
    write_rows(folder / "summary.csv", ("group", *SETTING, *OUTCOME), summary_rows(groups))
