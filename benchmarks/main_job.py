"""Wall time and memory of the main job, its first result, and `--help`, in fresh processes.

    python benchmarks/main_job.py [--repeats 3] [--cores 0,1 2,3 4,5] [OVERRIDES]

Run it with an installed package, from any folder; the searches write to a temporary folder. With
--cores, as many searches run side by side as there are sets of cores, each pinned to its own.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch  # noqa: F401 - so that its version and capabilities are recorded
from common import RESULTS, write_result


def timed(command: list[str], folder: str, cores: str | None = None) -> float:
    pinned = ["taskset", "-c", cores] if cores else []
    start = time.perf_counter()
    subprocess.run([*pinned, *command], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def first_result(command: list[str], folder: Path) -> float:
    """Return after how many seconds a search has journalled its first score; end it then."""
    journal = folder / "evaluations.jsonl"
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, f"hydra.run.dir={folder}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (journal.exists() and journal.stat().st_size):
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        process.kill()
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", nargs="+", default=[None])
    parser.add_argument("--out", type=Path, default=RESULTS / "main_job.json")
    args, overrides = parser.parse_known_args()
    command = [sys.executable, "-m", "nasc_evo.run", "problem=fbnet", "device=edgegpu", *overrides]
    peaks, fronts = [], []
    with tempfile.TemporaryDirectory() as folder:
        helps = [timed([*command[:3], "--help"], folder) for _ in range(args.repeats + 1)][1:]

        firsts = [
            first_result(command, Path(folder) / f"first{i}") for i in range(args.repeats + 1)
        ][1:]

        def search(i: int) -> float:
            cores = args.cores[i % len(args.cores)]
            return timed([*command, f"hydra.run.dir=run{i}"], folder, cores)

        with ThreadPoolExecutor(len(args.cores)) as pool:
            walls = list(pool.map(search, range(args.repeats)))
        for i in range(args.repeats):
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
            "pinned_to_cores": [cores for cores in args.cores if cores],
            "evaluations": manifest["finished"]["evaluations"],
            "wall_seconds": spread(walls),
            "peak_memory_mb": max(peaks),
            "help_seconds": spread(helps),
            "seconds_to_the_first_score": spread(firsts),
            "cuts_on_the_front": cuts,
            "hypervolume": manifest["finished"]["hypervolume"],
            "runs_gave_the_same_front": len(set(fronts)) == 1,
        },
    )


if __name__ == "__main__":
    main()
