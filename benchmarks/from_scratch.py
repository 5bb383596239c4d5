"""Does inherited accuracy order FBNet networks as training each from scratch does?

    python benchmarks/from_scratch.py --folder DIR --run RUN --part 0/4            # train
    python benchmarks/from_scratch.py --folder DIR --run RUN [--processor cuda]    # compare

Random networks and those of the front of a search, spread over it, are trained from scratch with
one fixed recipe, and some designs of the front as they are: with their cut, mask and bits. Start as
many processes with `--part I/N` as fit a machine, several share a GPU; one that was stopped goes on
from its checkpoint. Without --part what all have left in the folder is compared with the accuracies
that the same designs inherit: Kendall's tau of whole networks over all and the truly better half,
beside that of multiply-accumulates, and the mean gap; and the hypervolume of designs by trained
accuracies: of masked ones of the front, of its networks and of random ones, both at their fastest
cut without a mask. A table of all goes to the result file, and of whole networks to trained.csv in
the folder, for `nasc_evo.calibrate`.
"""

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import RESULTS, write_result
from numpy.typing import NDArray
from scipy.stats import kendalltau

from nasc_evo.repick import create_problem
from nasc_evo.report.files import read_front
from nasc_evo.search.folder import FORMAT, read_document
from nasc_evo.search.folder import MANIFEST as MANIFEST_OF_RUN
from nasc_evo.search.indicators import hypervolume
from nasc_evo.space import Design
from nasc_evo.supernet.deploy import MANIFEST
from nasc_evo.supernet.evaluation import SupernetEvaluator
from nasc_evo.supernet.finetuning import NetworkTrainer
from nasc_evo.supernet.training import TrainingConfig


class Trained(NamedTuple):
    """What is trained: where it comes from, and its latency in the run's setting."""

    source: str
    design: Design
    latency_ms: float


def run_problem(run: Path) -> Any:
    """Return the problem of a run."""
    config = read_document(run / MANIFEST_OF_RUN, "manifest", FORMAT)["config"]
    return create_problem(config, config)


def spread(rows: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """Return rows spread evenly over some, the first and the last among them."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows)))
    return [rows[place] for place in dict.fromkeys(places.round().astype(int).tolist())]


def chosen(problem: Any, args: argparse.Namespace) -> list[Trained]:
    """Return what is to be trained, without repetitions."""
    space = problem.space.architecture
    rng = np.random.default_rng(0)
    sizes = [len(ops) for ops in space.gene_ops]
    networks = [("random", tuple(map(int, rng.integers(0, sizes)))) for _ in range(args.random)]
    rows, _ = read_front(args.run / "pareto.csv", ("error", "latency_ms"))
    rows.sort(key=lambda row: float(row["latency_ms"]))
    networks += [
        ("front", tuple(map(int, space.parse(row["arch"])))) for row in spread(rows, args.front)
    ]
    found = []
    for source, ops in networks:
        design = Design(space.format(np.array(ops)), ops, (space.n_blocks,), ("",), (0,))
        found.append(Trained(source, design, fastest_ms(problem, design)))
    masked = [row for row in rows if "0" in row["mask"] or row["bits"] not in ("0", "32")]
    for row in spread(masked, args.masked):
        ops = tuple(map(int, space.parse(row["arch"])))
        sent = (int(row["cut"]),), (row["mask"],), (int(row["bits"]),)
        design = Design(row["arch"], ops, *sent)
        found.append(Trained("masked", design, float(row["latency_ms"])))
    return list({item.design.key: item for item in reversed(found)}.values())[::-1]


def fastest_ms(problem: Any, design: Design) -> float:
    """Return the latency of a network at its fastest cut, where all channels are sent."""
    space = problem.space
    cuts = range(1, space.architecture.n_blocks)
    every = [design] + [
        replace(design, cuts=(cut,), masks=("1" * int(space.groups_at[cut]),), bits=(32,))
        for cut in cuts
    ]
    return float(problem.costs(space.batch(every))["latency_ms"].min())


def train(problem: Any, args: argparse.Namespace) -> None:
    """Train every so-many-th design that is not trained yet."""
    space, dataset = problem.space.architecture, problem.evaluator.dataset
    part, parts = map(int, args.part.split("/"))
    config = TrainingConfig(
        epochs=args.epochs,
        minutes=args.minutes,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        weight_decay=5e-4,
        crop_padding=4 if dataset.name == "cifar100" else 2,
        ema=0.99,
        cutmix=args.cutmix,
        validate_every=max(1, args.epochs // 3),
        processor=args.processor,
        threads=1,
        cuda_graphs=False,
    )
    groups = problem.space.mask_groups
    for number, (_, design, _) in enumerate(chosen(problem, args)):
        folder = args.folder / f"network_{number}"
        if number % parts != part or (folder / MANIFEST).is_file():
            continue
        trainer = NetworkTrainer(space, dataset, config, folder, design, mask_groups=groups)
        trainer.run()
        print(f"network {number}: {trainer.seconds:.0f} s", file=sys.stderr, flush=True)


def correlations(proxy: NDArray, truth: NDArray) -> dict[str, float]:
    """Return Kendall's tau over all networks and over the truly better half."""
    better = np.argsort(-truth, kind="stable")[: round(len(truth) / 2)]
    return {
        "all": float(kendalltau(proxy, truth).statistic),
        "top_50%": float(kendalltau(proxy[better], truth[better]).statistic),
    }


def front_holds(problem: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return hypervolumes by trained accuracy: of the front, and of random networks."""
    point = problem.reference_point
    reference = np.array([point["error"], point["latency_ms"]])

    def volume(*sources: str) -> dict[str, Any]:
        some = [row for row in rows if row["source"] in sources]
        F = np.array([[1 - row["trained"], row["latency_ms"]] for row in some])
        return {"designs": len(some), "hypervolume": hypervolume(F.reshape(-1, 2), reference)}

    return {
        "reference_point": point,
        "masked_designs_of_the_front": volume("masked"),
        "networks_of_the_front": volume("front"),
        "random_networks": volume("random"),
    }


def compare(problem: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the trained designs say of the inherited accuracies."""
    space, dataset = problem.space.architecture, problem.evaluator.dataset
    rows, designs = [], []
    for number, (source, design, latency_ms) in enumerate(chosen(problem, args)):
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
                "cut": design.cuts[0],
                "mask": design.masks[0],
                "bits": design.bits[0],
                "latency_ms": latency_ms,
                "macs": int(space.macs(ops)[0]),
                "params": int(space.params(ops)[0]),
                "trained": written["accuracy"]["test"]["accuracy"],
                "steps": written["steps"],
                "seconds": written["seconds"],
            }
        )
    undivided = np.array([row["source"] != "masked" for row in rows], dtype=bool)
    if undivided.sum() < 4:
        sys.exit(f"Only {undivided.sum()} whole networks in {args.folder}; train more with --part.")
    with open(args.folder / "trained.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["arch", "error"])
        table.writerows(
            [row["arch"], 1 - row["trained"]] for row in rows if row["source"] != "masked"
        )
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
    gap = 100 * (trained - inherited)
    return {
        "dataset": dataset.name,
        "evaluator": evaluator.describe(),
        "test_images": evaluator.split_size("test"),
        "recipe": written["recipe"],
        "kendall_tau_of_whole_networks": {
            "inherited": correlations(inherited[undivided], trained[undivided]),
            "macs": correlations(macs[undivided], trained[undivided]),
        },
        "mean_gap_points": {
            source: float(gap[[row["source"] == source for row in rows]].mean())
            for source in dict.fromkeys(row["source"] for row in rows)
        },
        "does_the_front_hold": front_holds(problem, rows),
        "designs": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--part", help="I/N: train every N-th network, from number I")
    parser.add_argument("--run", type=Path, required=True, help="folder of a search")
    parser.add_argument("--random", type=int, default=12, help="random networks")
    parser.add_argument("--front", type=int, default=12, help="networks of the front")
    parser.add_argument("--masked", type=int, default=6, help="masked designs of the front")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--minutes", type=float, help="a training ends then, if that is earlier")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--cutmix", type=float, default=0.0)
    parser.add_argument("--processor", default="cpu")
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    problem = run_problem(args.run)
    if args.part is not None:
        train(problem, args)
        return
    figures = compare(problem, args)
    write_result(args.out or RESULTS / f"from_scratch_{figures['dataset']}.json", figures)


if __name__ == "__main__":
    main()
