"""Throughput of workers, measured for one and two, simulated for up to 1024.

    python benchmarks/scaling.py [--designs 24] [--repeats 3]

Measured on this machine: a population scored by the default supernet evaluator in this process
with two threads and with one, and by one and two loky workers with one thread each; and what a
chunk costs beyond its designs on loky, Dask and Ray (designs that cost nothing, chunks of one).

Simulated: generations of a population over many workers. Designs take times drawn from the
measured ones, chunks go in order to the next free worker, each pays the measured overhead, and the
caller hands chunks out one after another, which takes it the measured time per chunk. Efficiency is
the time of the designs over workers x the time until the last chunk ends.
"""

import argparse
import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_result
from numpy.typing import NDArray

from nasc_evo.parallel import DaskPool, LokyPool, ParallelEvaluator, Pool, RayPool
from nasc_evo.search.operators import random_genomes
from nasc_evo.space import Design
from nasc_evo.supernet.score import Score
from problems import FBNetSplit

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
POPULATIONS = (40, 100, 200, 400, 1000, 4000)
CHUNKS = (1, 2, 4, 8)
GENERATIONS = 20
POOLS: dict[str, Callable[[int], Pool]] = {
    "loky": LokyPool,
    "dask": lambda n: DaskPool(n, None),
    "ray": lambda n: RayPool(n, None, 1),
}


class Instant:
    """An evaluator that costs nothing."""

    images = 1

    def evaluate(
        self, designs: Sequence[Design], split: str = "search", images: int | None = None
    ) -> Iterator[tuple[int, Score]]:
        """Yield a score at once."""
        for index in range(len(designs)):
            yield index, Score(1, 1)

    def split_size(self, split: str) -> int:
        """Return the number of images."""
        return 1

    def describe(self) -> dict[str, Any]:
        """Return a name."""
        return {"instant": 1}


def seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    """Return how long each of some runs takes, after one that is not counted."""
    run()
    result = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        result.append(time.perf_counter() - start)
    return result


def measure_workers(n_designs: int, repeats: int) -> tuple[dict[str, Any], NDArray]:
    """Return throughputs, and the seconds of each design on one thread."""
    problem = FBNetSplit()
    X = random_genomes(problem.space, n_designs, np.random.default_rng(0))
    designs = problem.space.designs(problem.space.decode_batch(X))

    def spread(times: list[float]) -> dict[str, Any]:
        rates = sorted(n_designs / t for t in times)
        return {"designs_per_second": float(np.median(rates)), "range": [rates[0], rates[-1]]}

    result = {}
    for threads in (2, 1):  # nothing is kept: designs that are scored again cost what they did
        evaluator = FBNetSplit(evaluator={"threads": threads, "memory_mb": 0}).evaluator
        times = seconds(lambda e=evaluator: list(e.evaluate(designs)), repeats)
        result[f"this process, {threads} threads"] = spread(times)
    each = [min(seconds(lambda d=design: list(evaluator.evaluate([d])), 1)) for design in designs]
    made = FBNetSplit(evaluator={"threads": 1, "memory_mb": 0})
    for n in (1, 2):
        pool = LokyPool(n)
        workers = ParallelEvaluator(made.evaluator, made._evaluator, pool, chunk=1)
        times = seconds(lambda w=workers: list(w.evaluate(designs)), repeats)
        result[f"{n} loky workers, 1 thread each"] = spread(times)
        pool.close()
    rates = {name: values["designs_per_second"] for name, values in result.items()}
    result["efficiency_of_2_workers"] = {
        "against the same two threads in one process": rates["2 loky workers, 1 thread each"]
        / rates["this process, 2 threads"],
        "against one thread in one process": rates["2 loky workers, 1 thread each"]
        / rates["this process, 1 threads"]
        / 2,
    }
    return result, np.array(each)


def measure_overheads(repeats: int) -> dict[str, float]:
    """Return the milliseconds of a chunk of nothing on two workers of each back end."""
    problem = FBNetSplit()
    X = random_genomes(problem.space, 200, np.random.default_rng(0))
    designs = problem.space.designs(problem.space.decode_batch(X))
    overheads = {}
    for name, make in POOLS.items():
        pool = make(2)
        workers = ParallelEvaluator(Instant(), Instant, pool, chunk=1)
        times = seconds(lambda w=workers: list(w.evaluate(designs)), repeats)
        overheads[name] = 1000 * float(np.median(times)) / len(designs)
        pool.close()
    return overheads


def efficiency(
    times: NDArray, workers: int, population: int, chunk: int, overhead_s: float
) -> float:
    """Return the simulated efficiency of generations of a population."""
    rng = np.random.default_rng(0)
    work = spent = 0.0
    for _ in range(GENERATIONS):
        drawn = rng.choice(times, population)
        chunks = np.add.reduceat(drawn, np.arange(0, population, chunk))
        free = [0.0] * workers
        handed_out = 0.0
        for chunk_s in chunks:
            handed_out += overhead_s
            heapq.heappushpop(free, max(free[0], handed_out) + overhead_s + float(chunk_s))
        work += float(drawn.sum())
        spent += workers * max(free)
    return work / spent


def main() -> None:
    """Measure, simulate and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--designs", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    args = parser.parse_args()
    measured, times = measure_workers(args.designs, args.repeats)
    overheads = measure_overheads(args.repeats)
    worst = max(overheads.values()) / 1000
    simulated = {
        f"population {population}, chunk {chunk}": {
            str(n): round(efficiency(times, n, population, chunk, worst), 3) for n in WORKERS
        }
        for population in POPULATIONS
        for chunk in CHUNKS
    }
    figures = {
        "measured": measured,
        "seconds_a_design_on_one_thread": {
            name: float(np.quantile(times, q))
            for name, q in (("min", 0), ("median", 0.5), ("max", 1))
        },
        "overhead_ms_a_chunk": overheads,
        "simulated_efficiency": {
            "overhead_ms_a_chunk": 1000 * worst,
            "generations": GENERATIONS,
            "by_workers": simulated,
        },
    }
    write_result(args.out, figures)


if __name__ == "__main__":
    main()
