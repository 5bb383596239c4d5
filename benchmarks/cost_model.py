"""Designs a second through decoding and the cost model, on one core.

python benchmarks/cost_model.py
"""

import argparse
import time
from pathlib import Path

import numpy as np
from common import RESULTS, write_result

from nasc_evo.search.operators import random_genomes
from problems import FBNetSplit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--designs", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "cost_model.json")
    args = parser.parse_args()
    device = {"name": "edgegpu", "path": None, "idle_mw": 1900.0}
    problem = FBNetSplit(device=device)
    X = random_genomes(problem.space, 1000, np.random.default_rng(0))
    X = X[np.random.default_rng(1).integers(0, 1000, args.designs)]
    times: dict[str, list[float]] = {"decode": [], "costs": []}
    for _ in range(args.repeats):
        start = time.perf_counter()
        batch = problem.space.decode_batch(X)
        middle = time.perf_counter()
        problem.chain.evaluate(batch)
        times["decode"].append(middle - start)
        times["costs"].append(time.perf_counter() - middle)
    total = np.array(times["decode"]) + np.array(times["costs"])
    rate = args.designs / total
    write_result(
        args.out,
        {
            "designs": args.designs,
            "metrics": "latency and its parts, payload, energy",
            "designs_per_second": {
                "median": float(np.median(rate)),
                "min": float(rate.min()),
                "max": float(rate.max()),
            },
            "designs_per_second_costs_alone": args.designs / float(np.median(times["costs"])),
        },
    )


if __name__ == "__main__":
    main()
