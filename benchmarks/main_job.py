"""Wall time and memory of the main job, and of `--help`, in fresh processes.

    python benchmarks/main_job.py [--repeats 3]

Run it with an installed package, from any folder; the searches write to a temporary folder.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch  # noqa: F401 - so that its version and capabilities are recorded
from common import RESULTS, write_result


def timed(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "main_job.json")
    args, overrides = parser.parse_known_args()
    command = [sys.executable, "-m", "nasc_evo.run", "problem=fbnet", "device=edgegpu", *overrides]
    walls, peaks, fronts = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        helps = [timed([*command[:3], "--help"], folder) for _ in range(args.repeats + 1)][1:]
        for i in range(args.repeats):
            walls.append(timed([*command, f"hydra.run.dir=run{i}"], folder))
            out = Path(folder) / f"run{i}"
            manifest = json.loads((out / "manifest.json").read_text())
            peaks.append(manifest["finished"]["peak_memory_mb"])
            fronts.append((out / "pareto.csv").read_bytes())
        with open(out / "pareto.csv", newline="") as file:
            cuts = [row["cut"] for row in csv.DictReader(file)]
    write_result(
        args.out,
        {
            "evaluator": manifest["identity"]["problem"]["evaluator"],
            "evaluations": manifest["finished"]["evaluations"],
            "wall_seconds": spread(walls),
            "peak_memory_mb": max(peaks),
            "help_seconds": spread(helps),
            "cuts_on_the_front": cuts,
            "hypervolume": manifest["finished"]["hypervolume"],
            "runs_gave_the_same_front": len(set(fronts)) == 1,
        },
    )


if __name__ == "__main__":
    main()
