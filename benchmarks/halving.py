"""What successive halving saves at an equal front: few images first, more where it could matter.

    python benchmarks/halving.py [--algorithm nsga2] [--images 2000] [--first 128 512] [--seeds 3]

The same search with and without, from equal seeds: images scored, time, hypervolume (of fronts
scored on all `--images`), and how many of a sample of the designs that were stopped would have
entered the front had they been scored on all of them.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_result

from nasc_evo.problem import Evaluation
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.indicators import hypervolume, non_dominated
from nasc_evo.search.loop import run_search
from problems import FBNetSplit


def search(args: argparse.Namespace, first: list[int], seed: int) -> dict[str, Any]:
    """Return what one search needed and found."""
    problem = FBNetSplit(
        device=args.device,
        server="titan_rtx",  # behind it cuts vary more than behind the default
        link=args.link,
        evaluator={"images": args.images, "processor": args.processor},
        halving={"images": first},
    )
    scored: list[Evaluation] = []
    problem.on_evaluation = lambda evaluation, computed: scored.append(evaluation)
    algorithm = create_algorithm(args.algorithm, problem, seed=seed, n_eval=args.evaluations)
    start = time.perf_counter()
    result = run_search(problem, algorithm, args.evaluations, seed=seed)
    seconds = time.perf_counter() - start
    most: dict[str, int] = {}
    for evaluation in scored:  # each goes on where it ended, see docs/evaluation.md
        most[evaluation.design.key] = max(
            most.get(evaluation.design.key, 0), evaluation.score.images
        )
    images = sum(most.values())
    front = non_dominated(problem, result.evaluations)
    reference = np.array([problem.reference_point[name] for name in problem.objectives])
    stopped = [e for e in result.evaluations if e.score.images < args.images]
    rng = np.random.default_rng(seed)
    sample = [stopped[i] for i in rng.permutation(len(stopped))[: args.sample]]
    scores = dict(problem.evaluator.evaluate([e.design for e in sample], images=args.images))
    whole = [replace(e, score=scores[i]) for i, e in enumerate(sample)]
    late = non_dominated(problem, [*front, *whole])
    wrongly = len({id(e) for e in late} & {id(e) for e in whole})
    return {
        "seed": seed,
        "first": first,
        "seconds": round(seconds, 1),
        "images_scored": images,
        "hypervolume": hypervolume(problem.objective_values(front), reference),
        "front": len(front),
        "stopped": len(stopped),
        "sampled": len(sample),
        "sampled_that_would_have_entered": wrongly,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", default="nsga2")
    parser.add_argument("--device", default="pixel3")
    parser.add_argument("--link", default="wifi")
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--first", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=30)
    parser.add_argument("--processor", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = []
    for seed in range(1, 1 + args.seeds):
        for first in ([], args.first):
            results.append(search(args, first, seed))
            print(results[-1], flush=True)
    pairs = list(zip(results[::2], results[1::2], strict=True))
    write_result(
        args.out or RESULTS / f"halving_{args.algorithm}.json",
        {
            "seconds_ratio": float(np.median([b["seconds"] / a["seconds"] for a, b in pairs])),
            "images_ratio": float(
                np.median([b["images_scored"] / a["images_scored"] for a, b in pairs])
            ),
            "searches": results,
        },
    )


if __name__ == "__main__":
    main()
