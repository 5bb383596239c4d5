"""Accuracy of a Fashion-MNIST supernet on the 10000 official test images, without retraining.

    python benchmarks/supernet_accuracy.py [--weights FILE] [--processor cuda]

Scores the largest network, random networks, and the same random networks with 2 of 8 channel
groups (the most important ones) sent at 8 bits at cuts 10 and 14.
"""

import argparse
from pathlib import Path

import numpy as np
from common import RESULTS, write_result

from nasc_evo.data.fashion_mnist import FashionMnist
from nasc_evo.data.images import Images
from nasc_evo.space import Design, FBNetSpace, SplitSpace
from nasc_evo.supernet.evaluation import SupernetEvaluator
from nasc_evo.supernet.weights import load_importance

KEPT_GROUPS = 2
MASKED_CUTS = (10, 14)


class OfficialFashionMnist(FashionMnist):
    """Fashion-MNIST whose test split is the whole official one."""

    def _split(self, name: str) -> Images:
        return self.load_official("test") if name == "test" else super()._split(name)


def design(space: SplitSpace, ops: np.ndarray, cut: int, kept: int = 8, bits: int = 32) -> Design:
    """Return a design that sends its `kept` most important groups; all local at the last cut."""
    groups = int(space.groups_at[cut])
    order = space.importance[cut, :kept]
    mask = "".join("1" if group in order else "0" for group in range(groups))
    text = space.architecture.format(ops)
    return Design(text, tuple(map(int, ops)), (cut,), (mask,), (bits if mask else 0,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights")
    parser.add_argument("--processor", default="cpu")
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS / "supernet_fashion_mnist.json")
    args = parser.parse_args()

    dataset = OfficialFashionMnist()
    architecture = FBNetSpace(32, dataset.n_classes)
    evaluator = SupernetEvaluator(
        architecture,
        dataset,
        weights=args.weights,
        processor=args.processor,
        chunk=1000 if args.processor == "cuda" else 32,
    )
    space = SplitSpace(
        architecture, bits=(8, 32), channel_importance=load_importance(evaluator.weights)
    )
    rng = np.random.default_rng(1)
    networks = rng.integers(0, 9, (args.networks, architecture.n_genes))
    largest = np.full(architecture.n_genes, 7)
    n = architecture.n_blocks
    designs = [design(space, largest, n)] + [design(space, ops, n) for ops in networks]
    for cut in MASKED_CUTS:
        designs += [design(space, ops, cut, KEPT_GROUPS, 8) for ops in networks]
    accuracy = np.empty(len(designs))
    for index, score in evaluator.evaluate(designs, "test"):
        accuracy[index] = 1 - score.error
    unmasked, *masked = accuracy[1:].reshape(1 + len(MASKED_CUTS), -1)
    quantiles = dict(
        zip(
            ("min", "q25", "median", "q75", "max"),
            np.quantile(unmasked, (0, 0.25, 0.5, 0.75, 1)),
            strict=True,
        )
    )
    write_result(
        args.out,
        {
            "test_images": evaluator.split_size("test"),
            "evaluator": evaluator.describe(),
            "largest": accuracy[0],
            "random": {"networks": args.networks, **quantiles},
            "masked_2_of_8_groups_8_bits": {
                str(cut): {
                    "median": float(np.median(values)),
                    "median_loss": float(np.median(unmasked - values)),
                    "mean_loss": float(np.mean(unmasked - values)),
                }
                for cut, values in zip(MASKED_CUTS, masked, strict=True)
            },
            "importance_order": {str(cut): space.importance[cut].tolist() for cut in range(1, n)},
        },
    )


if __name__ == "__main__":
    main()
