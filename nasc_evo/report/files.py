"""`pareto.csv` and `pareto.json`."""

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasc_evo.errors import UserError, one_line
from nasc_evo.files import read_bytes, read_json
from nasc_evo.problem import METRICS, VARYING, SplitProblem, describe_evaluation
from nasc_evo.search.final import CALIBRATED, COLUMNS, FinalResult, front_rows
from nasc_evo.search.folder import first_difference, write_json
from nasc_evo.search.indicators import hypervolume
from nasc_evo.search.loop import SearchResult

FRONT_FORMAT = "nasc_evo front 1"
CHAIN_PARTS = ("node_ms", "links_ms")
"""Further columns of `pareto.csv` where a chain has more than two nodes."""
FURTHER = (VARYING, CHAIN_PARTS, CALIBRATED)
HEADERS = tuple(
    (*COLUMNS, *chain.from_iterable(parts)) for parts in product(*(((), part) for part in FURTHER))
)
"""The columns that a `pareto.csv` may have."""
OPTIONAL = ("error_test", "energy_mj", *CALIBRATED)
"""Columns of `pareto.csv` that are empty where the figure is not known."""
MAX_FRONT_BYTES = 16 * 2**20


def write_front(
    folder: Path,
    problem: SplitProblem,
    search: SearchResult,
    result: FinalResult,
    *,
    name: str = "pareto",
    truth_hypervolume: float | None = None,
    further: Mapping[str, Any] | None = None,
) -> None:
    """Write `<name>.csv` and `<name>.json` of a result; numbers in full precision.

    Args:
        folder: Where they go.
        problem: What was searched.
        search: How.
        result: What to write.
        name: Of the files.
        truth_hypervolume: Hypervolume of the exact front, None where that is not known.
        further: Further parts of the .json file.
    """
    rows = front_rows(result)
    parts = CHAIN_PARTS if len(problem.chain.links) > 1 else ()
    varying = VARYING if problem.chain.varies else ()
    for row, design in zip(rows, result.front, strict=True):
        for part in parts:
            row[part] = "/".join(map(repr, design.evaluation.costs[part]))
    calibrated = CALIBRATED if any(name in row for row in rows for name in CALIBRATED) else ()
    write_rows(folder / f"{name}.csv", (*COLUMNS, *varying, *parts, *calibrated), rows)
    document = front_document(problem, search, result)
    if truth_hypervolume is not None:
        document["hypervolume"]["relative_to_truth"] = result.hypervolume / truth_hypervolume
    write_json(folder / f"{name}.json", document | dict(further or {}))


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file so that a crash leaves either the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def read_front(
    path: Path, objectives: Sequence[str]
) -> tuple[list[dict[str, str]], NDArray[np.float64]]:
    """Return the rows of a `pareto.csv` as text, and their objectives `[n, m]`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If a column is missing or unknown, or a figure is no finite number.
    """
    text = read_bytes(path, MAX_FRONT_BYTES).decode("utf-8")
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if tuple(header) not in HEADERS or not set(objectives) <= set(header):
        raise ValueError("its columns are not those of a front")
    rows = []
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise ValueError(f"line {number} has {len(line)} fields instead of {len(header)}")
        row = dict(zip(header, line, strict=True))
        for name in ("error", "error_se", "error_test", *METRICS[1:], *CALIBRATED):
            if name not in row:
                continue
            if row[name] == "" and name in OPTIONAL and name not in objectives:
                continue
            if not math.isfinite(float(row[name])):
                raise ValueError(f"line {number} has {name} {row[name]}")
        rows.append(row)
    return rows, objectives_of(rows, objectives)


def objectives_of(
    rows: Sequence[Mapping[str, str]], objectives: Sequence[str]
) -> NDArray[np.float64]:
    """Return the objectives `[n, m]` of rows of a `pareto.csv`."""
    values = [[float(row[name]) for name in objectives] for row in rows]
    return np.array(values).reshape(len(rows), len(objectives))


def read_truth(path: str | os.PathLike[str], problem: SplitProblem) -> float:
    """Return the hypervolume of the exact front that `python -m nasc_evo.truth` wrote.

    Args:
        path: Its `truth.csv`; `truth.json` lies beside it.
        problem: The problem it must be of.

    Raises:
        UserError: If a file is missing or damaged, or of another problem.
    """
    path = Path(path)
    try:
        _, F = read_front(path, problem.objectives)
        document = read_json(path.with_suffix(".json"))
        described, written = document["problem"], document["hypervolume"]["value"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The exact front {path} and the .json beside it cannot be read ({one_line(error)}); "
            "write them with `python -m nasc_evo.truth`."
        ) from error
    difference = first_difference(described, problem.describe())
    if difference is not None:
        key, before, now = difference
        raise UserError(
            f"The exact front {path} is of another problem: its {key} is {before!r}, this run has "
            f"{now!r}; write the one of this run with `python -m nasc_evo.truth`."
        )
    reference = np.array([problem.reference_point[name] for name in problem.objectives])
    value = hypervolume(F, reference)
    if not (value > 0 and value == written):
        raise UserError(
            f"The exact front {path} has the hypervolume {value:.6g}, not that of the .json beside "
            "it; write both with `python -m nasc_evo.truth`."
        )
    return value


def front_document(
    problem: SplitProblem, search: SearchResult, result: FinalResult
) -> dict[str, Any]:
    """Return the content of `pareto.json`."""
    designs = []
    for design in result.front:
        test = design.test
        designs.append(
            {
                "design_id": design.design_id,
                **describe_evaluation(design.evaluation),
                "error_test": None if test is None else test.score.error,
                "error_test_se": None if test is None else test.score.standard_error,
                **dict(zip(CALIBRATED, design.calibrated or (), strict=False)),
                "test_images": None if test is None else test.score.images,
                "ops": [
                    choices[op]
                    for choices, op in zip(
                        problem.space.architecture.gene_ops,
                        design.evaluation.design.ops,
                        strict=True,
                    )
                ],
                "cuts": list(design.evaluation.design.cuts),
                "masks": list(design.evaluation.design.masks),
                "bits_per_cut": list(design.evaluation.design.bits),
                "genome": list(design.evaluation.genome),
            }
        )
    nearest = result.least_infeasible
    recommended = None
    if result.recommended is not None:
        recommended = {
            "design_id": result.front[result.recommended].design_id,
            "reason": result.reason,
        }
    return {
        "format": FRONT_FORMAT,
        "problem": problem.describe(),
        "search": {
            "evaluations": len(search.evaluations),
            "failed": sum(e.failed for e in search.evaluations),
            "generations": search.generations,
            "stop_reason": search.stop_reason,
            "images": problem.evaluator.images,
            "stopped_on_fewer_images": sum(
                not e.failed and e.score.images < problem.evaluator.images
                for e in search.evaluations
            ),
        },
        "front_images": result.images,
        "front_rescored": result.rescored,
        "front": designs,
        "references": result.references,
        "hypervolume": {
            "value": result.hypervolume,
            "unit": "share of the box between 0 and the reference point",
            "reference_point": problem.reference_point,
        },
        "recommended": recommended,
        "least_infeasible": None
        if nearest is None
        else {"design_id": nearest.index, **describe_evaluation(nearest)},
        "notes": problem.notes(),
    }
