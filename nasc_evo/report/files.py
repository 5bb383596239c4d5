"""`pareto.csv` and `pareto.json`."""

import csv
import os
from pathlib import Path
from typing import Any

from nasc_evo.problem import SplitProblem, describe_evaluation
from nasc_evo.search.final import COLUMNS, FinalResult, front_rows
from nasc_evo.search.folder import write_json
from nasc_evo.search.loop import SearchResult


def write_front(
    folder: Path, problem: SplitProblem, search: SearchResult, result: FinalResult
) -> None:
    """Write `pareto.csv` and `pareto.json` of a result; numbers in full precision."""
    rows = front_rows(result)
    chain = len(problem.chain.links) > 1
    parts = ("node_ms", "links_ms") if chain else ()
    for row, design in zip(rows, result.front, strict=True):
        for name in parts:
            row[name] = "/".join(map(repr, design.evaluation.costs[name]))
    temporary = folder / "pareto.csv.tmp"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *parts), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, folder / "pareto.csv")
    write_json(folder / "pareto.json", front_document(problem, search, result))


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
