"""What the statistics of batch norm do to accuracies and their order.

    python benchmarks/norm_statistics.py [--dataset cifar100] [--networks 60] [--images 2000]

Random FBNet networks are scored with statistics of more or fewer training images, as in searches,
and with those of the very images that are scored, in batches: accuracy and Kendall's tau against
statistics of all calibration images, in float32.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, write_result
from numpy.typing import NDArray
from scipy.stats import kendalltau

from nasc_evo.assembly import build_dataset
from nasc_evo.space import Design, FBNetSpace
from nasc_evo.supernet.blocks import batch_norm_unit
from nasc_evo.supernet.evaluation import SupernetEvaluator

CALIBRATION_IMAGES = (32, 64, 128, 256, 512, 1024, 2048)
BATCHES = (128, 1000)


@torch.inference_mode()
def by_own_batches(
    evaluator: SupernetEvaluator, designs: Sequence[Design], batch: int
) -> NDArray[np.float64]:
    """Return accuracies where images are normalised by the batch in which they are scored."""
    x, y = (part[: evaluator.images] for part in evaluator._split("search"))
    accuracies = []
    for design in designs:
        correct = sum(
            int((evaluator.supernet(part, design.ops, batch_norm_unit).argmax(1) == labels).sum())
            for part, labels in zip(x.split(batch), y.split(batch), strict=True)
        )
        accuracies.append(correct / len(y))
    return np.array(accuracies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="cifar100")
    parser.add_argument("--weights")
    parser.add_argument("--networks", type=int, default=60)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    dataset = build_dataset({"name": args.dataset, "geometry": 32})
    space = FBNetSpace(32, dataset.n_classes)
    rng = np.random.default_rng(0)
    designs = [
        Design(space.format(ops), tuple(map(int, ops)), (space.n_blocks,), ("",), (0,))
        for ops in rng.integers(0, 9, (args.networks, space.n_genes))
    ]

    def make(calibration_images: int) -> SupernetEvaluator:
        return SupernetEvaluator(
            space,
            dataset,
            weights=args.weights,
            images=args.images,
            calibration_images=calibration_images,
            dtype="float32",
            threads=args.threads,
            processor=args.processor,
        )

    available = len(dataset.split("calibration"))
    found = {}
    for count in (*(n for n in CALIBRATION_IMAGES if n < available), available):
        scores = dict(make(count).evaluate(designs))
        found[f"{count} training images"] = np.array(
            [1 - scores[i].error for i in range(len(designs))]
        )
    reference = found[f"{available} training images"]
    for batch in BATCHES:
        found[f"the images scored, in batches of {batch}"] = by_own_batches(make(1), designs, batch)
    figures = {
        "dataset": dataset.name,
        "networks": args.networks,
        "images": args.images,
        "statistics": {
            name: {
                "mean_accuracy": round(float(values.mean()), 4),
                "kendall_tau": round(float(kendalltau(values, reference).statistic), 4),
                "largest_difference_points": round(100 * float(abs(values - reference).max()), 2),
            }
            for name, values in found.items()
        },
    }
    write_result(args.out or RESULTS / f"norm_statistics_{dataset.name}.json", figures)


if __name__ == "__main__":
    main()
