"""Speed and memory of the journal and of replaying it.

    python benchmarks/journal.py [--evaluations 100000]

A search with scores that cost nothing writes its journal; then the same search is replayed from
it, as `resume=` does, each in a process of its own. Memory is that of the whole process, sampled
twenty times over the search and after its result was made.
"""

import argparse
import io
import resource
import tempfile
import time
from array import array
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_result
from rich.console import Console
from scaling import Instant

from nasc_evo.problem import Evaluation
from nasc_evo.report.display import SearchDisplay
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.final import final_result
from nasc_evo.search.journal import Journal
from nasc_evo.search.loop import run_search
from problems import FBNetSplit


def resident_mb() -> float:
    """Return the resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def search(path: Path, n_eval: int) -> dict[str, Any]:
    """Search with the journal at `path`, as `nasc_evo.run` does; return what it took."""
    problem = FBNetSplit(evaluator=Instant())
    start, computing = time.perf_counter(), time.process_time()
    journal = Journal(path)
    problem.remember(journal.scores)
    read_s = time.perf_counter() - start
    append_s = array("d")  # not to be seen in the memory
    memory_mb: list[float] = []
    display = SearchDisplay(problem, n_eval, Console(file=io.StringIO()))

    def on_evaluation(evaluation: Evaluation, computed: bool) -> None:
        if computed:
            before = time.perf_counter()
            journal.append(evaluation)
            append_s.append(time.perf_counter() - before)
        display.add(evaluation, computed)
        if evaluation.index % (n_eval // 20) == 0:
            memory_mb.append(resident_mb())

    problem.on_evaluation = on_evaluation
    algorithm = create_algorithm("nsga2", problem, seed=1)
    with display:
        result = run_search(problem, algorithm, n_eval, seed=1)
    seconds, computed = time.perf_counter() - start, time.process_time() - computing
    problem.on_evaluation = None
    final_result(problem, result.evaluations)
    journal.close()
    half = len(memory_mb) // 2
    figures = {
        "evaluations": len(result.evaluations),
        "seconds": seconds,
        "of_it_computing": computed,
        "of_it_reading_the_journal": read_s,
        "seconds_of_the_result": time.perf_counter() - start - seconds,
        "memory_mb": [round(value) for value in memory_mb],
        "memory_mb_after_the_result": round(resident_mb()),
        "bytes_an_evaluation_over_the_second_half": round(
            2**20 * (memory_mb[-1] - memory_mb[half]) / ((len(memory_mb) - 1 - half) * n_eval / 20)
        ),
    }
    if append_s:
        figures["append_ms"] = {
            "median": 1000 * float(np.median(append_s)),
            "99 %": 1000 * float(np.quantile(append_s, 0.99)),
        }
    return figures


def alone(path: Path, n_eval: int) -> dict[str, Any]:
    """Search in a process of its own, whose memory nothing has used before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(search, path, n_eval).result()


def main() -> None:
    """Search, replay, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "journal.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evaluations.jsonl"
        written = alone(path, args.evaluations)
        size_mb = path.stat().st_size / 2**20
        replayed = alone(path, args.evaluations)
    write_result(
        args.out, {"written": written, "journal_mb": round(size_mb, 1), "replayed": replayed}
    )


if __name__ == "__main__":
    main()
