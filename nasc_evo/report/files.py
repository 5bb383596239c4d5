"""`pareto.csv` and `pareto.json`."""

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from nasc_evo.errors import UserError, one_line
from nasc_evo.files import read_bytes, read_json
from nasc_evo.problem import SplitProblem, describe_evaluation
from nasc_evo.search.final import COLUMNS, FinalResult, front_rows
from nasc_evo.search.folder import first_difference, write_json
from nasc_evo.search.indicators import hypervolume
from nasc_evo.search.loop import SearchResult

MAX_TRUTH_BYTES = 16 * 2**20


def write_front(
    folder: Path,
    problem: SplitProblem,
    search: SearchResult,
    result: FinalResult,
    *,
    name: str = "pareto",
    truth_hypervolume: float | None = None,
) -> None:
    """Write `<name>.csv` and `<name>.json` of a result; numbers in full precision.

    Args:
        folder: Where they go.
        problem: What was searched.
        search: How.
        result: What to write.
        name: Of the files.
        truth_hypervolume: Hypervolume of the exact front, None where that is not known.
    """
    rows = front_rows(result)
    chain = len(problem.chain.links) > 1
    parts = ("node_ms", "links_ms") if chain else ()
    for row, design in zip(rows, result.front, strict=True):
        for part in parts:
            row[part] = "/".join(map(repr, design.evaluation.costs[part]))
    temporary = folder / f"{name}.csv.tmp"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *parts), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, folder / f"{name}.csv")
    document = front_document(problem, search, result)
    if truth_hypervolume is not None:
        document["hypervolume"]["relative_to_truth"] = result.hypervolume / truth_hypervolume
    write_json(folder / f"{name}.json", document)


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
        text = read_bytes(path, MAX_TRUTH_BYTES).decode("utf-8")
        rows = csv.DictReader(io.StringIO(text, newline=""))
        F = np.array([[float(row[name]) for name in problem.objectives] for row in rows])
        described = read_json(path.with_suffix(".json"))["problem"]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
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
    if not len(F) or not np.isfinite(F).all():
        raise UserError(f"The exact front {path} holds no designs to compare with.")
    reference = np.array([problem.reference_point[name] for name in problem.objectives])
    return hypervolume(F, reference)


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
        "format": "nasc_evo front 1",
        "problem": problem.describe(),
        "search": {
            "evaluations": len(search.evaluations),
            "failed": sum(e.failed for e in search.evaluations),
            "generations": search.generations,
            "stop_reason": search.stop_reason,
            "images": problem.evaluator.images,
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
