"""Accuracy against the share of channels that is sent, and against bits, at every cut.

    python benchmarks/masks_and_bits.py [--networks 8] [--images 128] [--dataset fashion_mnist]
        [--weights FILE] [--processor cuda]

Random networks of the FBNet supernet that ships, without retraining. At each inner cut they send
8, 4, 2 or 1 of 8 channel groups at 8 bits, the most important groups or random ones, and all groups
at 8, 6, 4 and 2 bits; accuracy lost is that against the same network without a cut, on the same
images. Batch-norm statistics come from calibration images that went through the same mask and
quantiser, as in a search.

One line a network goes to a file beside the result; a benchmark that was stopped goes on with it.
`--picture` draws the result of an earlier run again.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_result

from nasc_evo.assembly import build_dataset
from nasc_evo.space import Design, FBNetSpace, SplitSpace
from nasc_evo.supernet.evaluation import SupernetEvaluator
from nasc_evo.supernet.weights import find_weights, load_importance

GROUPS = 8
KEPT = (8, 4, 2, 1)
ORDERS = ("importance", "random")
BITS = (8, 6, 4, 2)
SEED = 1
PICTURE = Path(__file__).parents[1] / "docs" / "masks_and_bits.png"


def sent_at(space: SplitSpace, cut: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield order, number of kept groups, mask and bits of everything that is tried at a cut."""
    orders = {"importance": space.importance[cut], "random": rng.permutation(GROUPS)}
    for name, order in orders.items():
        for kept in KEPT[1:]:
            mask = "".join("1" if group in order[:kept] else "0" for group in range(GROUPS))
            yield {"cut": cut, "order": name, "kept": kept, "bits": 8, "mask": mask}
    for bits in BITS:
        yield {"cut": cut, "order": "all", "kept": GROUPS, "bits": bits, "mask": "1" * GROUPS}


def measure(evaluator: SupernetEvaluator, space: SplitSpace, number: int) -> dict[str, Any]:
    """Return the accuracy of a random network without a cut and of what it sends at each cut."""
    rng = np.random.default_rng([SEED, number])
    architecture = space.architecture
    ops = tuple(int(op) for op in rng.integers(0, 9, architecture.n_genes))
    arch, n = architecture.format(np.array(ops)), architecture.n_blocks
    rows = [row for cut in range(1, n) for row in sent_at(space, cut, rng)]
    designs = [Design(arch, ops, (r["cut"],), (r["mask"],), (r["bits"],)) for r in rows]
    scores = dict(evaluator.evaluate([Design(arch, ops, (n,), ("",), (0,)), *designs]))
    whole, *accuracies = (1 - scores[i].error for i in range(len(scores)))
    for row, accuracy in zip(rows, accuracies, strict=True):
        row["accuracy"] = accuracy
    return {"arch": arch, "whole": whole, "sent": rows}


def summary(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each cut and setting the median accuracy and loss over networks."""
    rows = []
    for i, first in enumerate(networks[0]["sent"]):
        accuracies = np.array([network["sent"][i]["accuracy"] for network in networks])
        losses = np.array([network["whole"] for network in networks]) - accuracies
        rows.append(
            {key: first[key] for key in ("cut", "order", "kept", "bits")}
            | {
                "median_accuracy": float(np.median(accuracies)),
                "median_loss": float(np.median(losses)),
                "mean_loss": float(losses.mean()),
                "worst_loss": float(losses.max()),
            }
        )
    return rows


def find(rows: list[dict[str, Any]], order: str, kept: int, bits: int) -> list[dict[str, Any]]:
    """Return the rows of one setting, by cut."""
    order = "all" if kept == GROUPS else order
    wanted = (order, kept, bits)
    return [row for row in rows if (row["order"], row["kept"], row["bits"]) == wanted]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the median loss at every cut, in points, and its mean over cuts, as Markdown."""
    settings = [(order, kept, 8) for order in ORDERS for kept in KEPT[1:]]
    settings += [("all", GROUPS, bits) for bits in BITS]
    names = [
        f"{bits} bits" if kept == GROUPS else f"{kept}/{GROUPS} {order}"
        for order, kept, bits in settings
    ]
    losses = np.array([[100 * r["median_loss"] for r in find(rows, *which)] for which in settings])
    lines = [f"| cut | {' | '.join(names)} |", "|" + " --- |" * (1 + len(names))]
    for cut, column in [*enumerate(losses.T, start=1), ("mean", losses.mean(axis=1))]:
        lines.append(
            f"| {cut} | {' | '.join(f'{round(value, 1) + 0.0:.1f}' for value in column)} |"
        )
    return "\n".join(lines)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw the median loss at every cut against what is sent."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = figures["rows"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for kept, colour in zip(KEPT, ("black", "tab:blue", "tab:orange", "tab:red"), strict=True):
        for order, style in zip(ORDERS, ("-", "--"), strict=True):
            if kept == GROUPS and order == "random":
                continue
            chosen = find(rows, order, kept, 8)
            label = "all" if kept == GROUPS else f"{kept}/{GROUPS} {order}"
            values = [100 * row["median_loss"] for row in chosen]
            left.plot([row["cut"] for row in chosen], values, style, color=colour, label=label)
    for bits, colour in zip(BITS, ("black", "tab:blue", "tab:orange", "tab:red"), strict=True):
        chosen = find(rows, "all", GROUPS, bits)
        values = [100 * row["median_loss"] for row in chosen]
        right.plot([row["cut"] for row in chosen], values, color=colour, label=f"{bits} bits")
    left.set(xlabel="cut", ylabel="accuracy lost, points", title="groups sent, 8 bits")
    right.set(xlabel="cut", title="all groups, fewer bits")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    fig.suptitle(
        f"{figures['dataset']}: median over {len(figures['networks'])} random FBNet networks, "
        f"{figures['images']} images"
    )
    fig.savefig(path, dpi=110)


def read_done(path: Path, identity: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the networks of a benchmark that was stopped; those of another one are dropped."""
    if not path.is_file():
        return []
    first, *lines = path.read_text().splitlines()
    whole = [line for line in lines if line.endswith("}")]
    return [json.loads(line) for line in whole] if json.loads(first) == identity else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--weights")
    parser.add_argument("--processor", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--calibration-images", type=int, default=64)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path, help="only draw this result")
    args = parser.parse_args()

    if args.picture:
        figures = json.loads(args.picture.read_text())
        print(table(figures["rows"]))
        draw(figures, PICTURE)
        return
    dataset = build_dataset(args.dataset)
    out = args.out or RESULTS / f"masks_and_bits_{dataset.name}.json"
    architecture = FBNetSpace(dataset.geometry, dataset.n_classes)
    importance = load_importance(find_weights(architecture, dataset, args.weights))
    space = SplitSpace(architecture, mask_groups=GROUPS, channel_importance=importance)
    evaluator = SupernetEvaluator(
        architecture,
        dataset,
        weights=args.weights,
        processor=args.processor,
        threads=args.threads,
        images=args.images,
        calibration_images=args.calibration_images,
    )
    identity = {"evaluator": evaluator.describe(), "seed": SEED, "groups": GROUPS, "bits": BITS}
    identity = json.loads(json.dumps(identity))
    work = out.with_suffix(".partial.jsonl")
    networks = read_done(work, identity)[: args.networks]
    with open(work, "w", encoding="utf-8") as file:
        for line in [identity, *networks]:
            file.write(json.dumps(line) + "\n")
        for number in range(len(networks), args.networks):
            done = measure(evaluator, space, number)
            networks.append(done)
            file.write(json.dumps(done) + "\n")
            file.flush()
            print(f"{number + 1}/{args.networks}: {done['whole']:.3f} without a cut", flush=True)
    figures = {
        "dataset": dataset.name,
        "images": args.images,
        "calibration_images": args.calibration_images,
        "evaluator": evaluator.describe(),
        "rows": summary(networks),
        "networks": [{key: network[key] for key in ("arch", "whole")} for network in networks],
    }
    write_result(out, figures)
    work.unlink()
    print(table(figures["rows"]))
    draw(figures, PICTURE)


if __name__ == "__main__":
    main()
