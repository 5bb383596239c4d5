"""Does inherited accuracy order FBNet networks as training each from scratch does?

    python benchmarks/from_scratch.py --folder DIR --part 0/4 [--front RUN/pareto.csv]   # train
    python benchmarks/from_scratch.py --folder DIR [--processor cuda]                    # compare

Random networks, and with --front those of the front of a search, each trained whole from scratch
with one fixed recipe. Start as many processes with `--part I/N` as fit a machine, several share a
GPU; one that was stopped goes on from its checkpoint. Without --part what all have left in the
folder is compared with the accuracies that the same networks inherit: Kendall's tau over all and
the truly better half, beside that of multiply-accumulates, and the mean gap. A table with every
network goes to the result file, and to trained.csv in the folder, for `nasc_evo.calibrate`.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_result
from numpy.typing import NDArray
from scipy.stats import kendalltau

from nasc_evo.assembly import build_dataset
from nasc_evo.data import ImageDataset
from nasc_evo.space import Design, FBNetSpace
from nasc_evo.supernet.deploy import MANIFEST
from nasc_evo.supernet.evaluation import SupernetEvaluator
from nasc_evo.supernet.finetuning import NetworkTrainer
from nasc_evo.supernet.training import TrainingConfig


def networks(space: FBNetSpace, n_random: int, front: Path | None) -> list[tuple[str, Design]]:
    """Return where each network comes from, and the network as an undivided design."""
    rng = np.random.default_rng(0)
    sizes = [len(ops) for ops in space.gene_ops]
    found = [("random", tuple(map(int, rng.integers(0, sizes)))) for _ in range(n_random)]
    if front is not None:
        with open(front, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            found += [("front", tuple(map(int, space.parse(row["arch"])))) for row in rows]
    unique = {ops: source for source, ops in reversed(found)}
    return [
        (unique[ops], Design(space.format(np.array(ops)), ops, (space.n_blocks,), ("",), (0,)))
        for ops in dict.fromkeys(ops for _, ops in found)
    ]


def train(space: FBNetSpace, dataset: ImageDataset, args: argparse.Namespace) -> None:
    """Train every so-many-th network that is not trained yet."""
    part, parts = map(int, args.part.split("/"))
    config = TrainingConfig(
        epochs=args.epochs,
        minutes=args.minutes,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        weight_decay=5e-4,
        crop_padding=4 if dataset.name == "cifar100" else 2,
        ema=0.99,
        validate_every=max(1, args.epochs // 3),
        processor=args.processor,
        threads=1,
        cuda_graphs=False,
    )
    for number, (_, design) in enumerate(networks(space, args.random, args.front)):
        folder = args.folder / f"network_{number}"
        if number % parts != part or (folder / MANIFEST).is_file():
            continue
        trainer = NetworkTrainer(space, dataset, config, folder, design)
        trainer.run()
        print(f"network {number}: {trainer.seconds:.0f} s", file=sys.stderr, flush=True)


def correlations(proxy: NDArray, truth: NDArray) -> dict[str, float]:
    """Return Kendall's tau over all networks and over the truly better half."""
    better = np.argsort(-truth, kind="stable")[: round(len(truth) / 2)]
    return {
        "all": float(kendalltau(proxy, truth).statistic),
        "top_50%": float(kendalltau(proxy[better], truth[better]).statistic),
    }


def compare(space: FBNetSpace, dataset: ImageDataset, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the trained networks say of the inherited accuracies."""
    rows, designs = [], []
    for number, (source, design) in enumerate(networks(space, args.random, args.front)):
        manifest = args.folder / f"network_{number}" / MANIFEST
        if not manifest.is_file():
            continue
        written = json.loads(manifest.read_text(encoding="utf-8"))
        designs.append(design)
        ops = np.array([design.ops])
        rows.append(
            {
                "source": source,
                "arch": design.arch,
                "macs": int(space.macs(ops)[0]),
                "params": int(space.params(ops)[0]),
                "trained": written["accuracy"]["test"]["accuracy"],
                "seconds": written["seconds"],
            }
        )
    if len(rows) < 4:
        sys.exit(f"Only {len(rows)} trained networks in {args.folder}; train more with --part.")
    with open(args.folder / "trained.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["arch", "error"])
        table.writerows([row["arch"], 1 - row["trained"]] for row in rows)
    evaluator = SupernetEvaluator(
        space, dataset, weights=args.weights, processor=args.processor, calibration_images=512
    )
    scores = dict(evaluator.evaluate(designs, "test"))
    for i, row in enumerate(rows):
        row["inherited"] = 1 - scores[i].error
    trained, inherited, macs = (
        np.array([row[name] for row in rows], dtype=float)
        for name in ("trained", "inherited", "macs")
    )
    return {
        "dataset": dataset.name,
        "evaluator": evaluator.describe(),
        "test_images": evaluator.split_size("test"),
        "recipe": written["recipe"],
        "kendall_tau": {
            "inherited": correlations(inherited, trained),
            "macs": correlations(macs, trained),
        },
        "mean_gap_points": float(100 * (trained - inherited).mean()),
        "networks": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--part", help="I/N: train every N-th network, from number I")
    parser.add_argument("--dataset", default="cifar100")
    parser.add_argument("--random", type=int, default=12, help="random networks")
    parser.add_argument("--front", type=Path, help="pareto.csv of a search")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--minutes", type=float, help="a training ends then, if that is earlier")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--processor", default="cpu")
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    dataset = build_dataset({"name": args.dataset, "geometry": 32})
    space = FBNetSpace(32, dataset.n_classes)
    if args.part is not None:
        train(space, dataset, args)
        return
    write_result(
        args.out or RESULTS / f"from_scratch_{args.dataset}.json", compare(space, dataset, args)
    )


if __name__ == "__main__":
    main()
