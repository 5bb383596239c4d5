"""Accuracy of an FBNet supernet on the 10000 official test images, without retraining.

    python benchmarks/supernet_accuracy.py [--dataset cifar100] [--networks 100] [--weights FILE]
        [--processor cuda] [--dtypes bfloat16 float32] [--calibration-images 128 512]

Scores the largest network, random networks, and the first 100 of them with 2 of 8 channel groups
(the most important ones) sent at 8 bits at cuts 10 and 14. Further types and numbers of calibration
images are compared on the unmasked networks.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_result

from nasc_evo.data.cifar100 import Cifar100
from nasc_evo.data.fashion_mnist import FashionMnist
from nasc_evo.data.images import Images
from nasc_evo.space import Design, FBNetSpace, SplitSpace
from nasc_evo.supernet.evaluation import SupernetEvaluator
from nasc_evo.supernet.weights import find_weights, load_importance

KEPT_GROUPS = 2
MASKED_CUTS = (10, 14)
MASKED_NETWORKS = 100


class OfficialFashionMnist(FashionMnist):
    """Fashion-MNIST whose test split is the whole official one."""

    def _split(self, name: str) -> Images:
        return self.load_official("test") if name == "test" else super()._split(name)


DATASETS = {"fashion_mnist": OfficialFashionMnist, "cifar100": Cifar100}


def design(space: SplitSpace, ops: np.ndarray, cut: int, kept: int = 8, bits: int = 32) -> Design:
    """Return a design that sends its `kept` most important groups; all local at the last cut."""
    groups = int(space.groups_at[cut])
    order = space.importance[cut, :kept]
    mask = "".join("1" if group in order else "0" for group in range(groups))
    text = space.architecture.format(ops)
    return Design(text, tuple(map(int, ops)), (cut,), (mask,), (bits if mask else 0,))


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Return minimum, quartiles and maximum."""
    names = ("min", "q25", "median", "q75", "max")
    return dict(zip(names, np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=DATASETS, default="fashion_mnist")
    parser.add_argument("--weights")
    parser.add_argument("--processor", default="cpu")
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--dtypes", nargs="+", default=["auto"])
    parser.add_argument("--calibration-images", nargs="+", type=int, default=[128])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    dataset = DATASETS[args.dataset]()
    out = args.out or RESULTS / f"supernet_{args.dataset}.json"
    architecture = FBNetSpace(32, dataset.n_classes)
    importance = load_importance(find_weights(architecture, dataset, args.weights))
    space = SplitSpace(architecture, bits=(8, 32), channel_importance=importance)
    rng = np.random.default_rng(1)
    networks = rng.integers(0, 9, (args.networks, architecture.n_genes))
    n = architecture.n_blocks
    whole = [design(space, ops, n) for ops in [np.full(architecture.n_genes, 7), *networks]]
    masked = {
        cut: [design(space, ops, cut, KEPT_GROUPS, 8) for ops in networks[:MASKED_NETWORKS]]
        for cut in MASKED_CUTS
    }

    figures: dict[str, Any] = {"networks": args.networks, "numerics": []}
    for dtype, calibration_images in product(args.dtypes, args.calibration_images):
        evaluator = SupernetEvaluator(
            architecture,
            dataset,
            weights=args.weights,
            processor=args.processor,
            dtype=dtype,
            calibration_images=calibration_images,
        )

        def accuracies(designs: list[Design], evaluator: SupernetEvaluator = evaluator) -> Any:
            scores = dict(evaluator.evaluate(designs, "test"))
            return np.array([1 - scores[i].error for i in range(len(designs))])

        largest, *random = accuracies(whole)
        result: dict[str, Any] = {
            "evaluator": evaluator.describe(),
            "test_images": evaluator.split_size("test"),
            "largest": largest,
            "random": quantiles(np.array(random)),
        }
        if not figures["numerics"]:
            result["masked_2_of_8_groups_8_bits"] = {
                str(cut): {
                    "median": float(np.median(values)),
                    "median_loss": float(np.median(random[: len(values)] - values)),
                    "mean_loss": float(np.mean(random[: len(values)] - values)),
                }
                for cut, values in ((cut, accuracies(designs)) for cut, designs in masked.items())
            }
        figures["numerics"].append(result)
        write_result(out, figures)


if __name__ == "__main__":
    main()
