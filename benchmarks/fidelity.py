"""Does inherited accuracy order networks as real training does?

    NASC_EVO_DATA=<data> python benchmarks/fidelity.py [--weights FILE] [--processor cuda]

Scores every distinct network of NAS-Bench-201 by the weights it inherits on CIFAR-100 and compares
with the official accuracies after 200 epochs of training (test, mean over seeds): rank correlation
over all networks and over the truly best ones, beside counting multiply-accumulates or parameters,
SynFlow (a proxy that trains nothing) and the official 12-epoch training; and the true hypervolume
of the front that each of them would choose together with a device's latency, relative to the exact
front. Beside them the calibrated estimate, fitted to 50 networks whose official accuracy it is
told, for several draws of them, and (`told`) what the same process says without any inherited
accuracy.
"""

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, write_result
from moocore import hypervolume
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr
from torch import Tensor

from nasc_evo.cost.network import official_costs
from nasc_evo.data.cifar100 import Cifar100
from nasc_evo.search.calibration import Calibration
from nasc_evo.space import Design, NASBench201Space
from nasc_evo.supernet.blocks import CellBlock, ConvNorm, HeadBlock, add, convolve
from nasc_evo.supernet.evaluation import SupernetEvaluator
from nasc_evo.supernet.model import build_supernet, run_blocks
from nasc_evo.supernet.weights import file_sha256
from nasc_evo.tabular import read_accuracies

SLICES = (1.0, 0.5, 0.2, 0.1, 0.05)
CALIBRATED_ON = 50
DRAWS = 10
DEVICES = ("edgegpu", "raspi4", "pixel3", "eyeriss", "fpga")


def inherited_accuracies(
    space: NASBench201Space, evaluator: SupernetEvaluator, indices: NDArray, images: int | str
) -> NDArray:
    """Return accuracies of the networks of the given official indices, whole and undivided."""
    count = evaluator.split_size("search") if images == "full" else int(images)
    designs = []
    for ops in space.architectures[indices]:
        genes = tuple(map(int, ops))
        designs.append(Design(space.format(ops), genes, (space.n_blocks,), ("",), (0,)))
    accuracies = np.full(len(designs), np.nan)
    start = time.monotonic()
    for i, score in evaluator.evaluate(designs, "search", count):
        accuracies[i] = 1 - score.error
        if i % 500 == 499:
            print(
                f"{i + 1} networks, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True
            )
    return accuracies


def synflow(space: NASBench201Space, ops: NDArray, seed: int = 0) -> NDArray:
    """Return the logarithm of the SynFlow score of networks, `[P, genes]`.

    Of a network with fresh weights, their absolute values, no norms and an input of ones, the sum
    over all weights of weight times gradient of the summed output (Tanaka et al., NeurIPS 2020; as
    a proxy: Abdelfattah et al., ICLR 2021). Nodes add, as in the benchmark. Networks without a path
    are one below the lowest score.
    """
    supernet = build_supernet(space, torch.Generator().manual_seed(seed)).double()
    weights = [p for p in supernet.parameters() if p.ndim > 1]
    with torch.no_grad():
        for weight in weights:
            weight.abs_()

    def unit(x: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
        y = convolve(x, conv)
        return y.relu() if conv.relu else add(y, plus)

    ones = torch.ones(1, 3, space.geometry, space.geometry, dtype=torch.float64)
    scores = np.empty(len(ops))
    for i, genes in enumerate(ops):
        *body, head = supernet.blocks(tuple(map(int, genes)))
        assert isinstance(head, HeadBlock)
        body = [replace(b, mean=False) if isinstance(b, CellBlock) else b for b in body]
        pooled = unit(run_blocks(body, ones, unit), head.conv).mean(dim=(2, 3))
        (pooled @ head.weight.T).sum().backward()
        scores[i] = sum(float((w.detach() * w.grad).sum()) for w in weights if w.grad is not None)
        supernet.zero_grad(set_to_none=True)
    lowest = scores[scores > 0].min()
    return np.log(np.where(scores > 0, scores, lowest / math.e))


def correlations(proxy: NDArray, truth: NDArray) -> dict[str, dict[str, float]]:
    """Return Kendall's tau and Spearman's rho over the truly best share of the networks."""
    order = np.argsort(-truth, kind="stable")
    result = {}
    for share in SLICES:
        best = order[: round(share * len(order))]
        result[f"top_{share:.0%}"] = {
            "kendall_tau": float(kendalltau(proxy[best], truth[best]).statistic),
            "spearman_rho": float(spearmanr(proxy[best], truth[best]).statistic),
        }
    return result


def front(error: NDArray, latency: NDArray) -> NDArray:
    """Return the indices of the networks that no other beats in error and latency."""
    order = np.lexsort((error, latency))
    best = np.minimum.accumulate(np.concatenate([[np.inf], error[order][:-1]]))
    return order[error[order] < best]


def chosen_hypervolume(proxy_error: NDArray, true_error: NDArray, latency: NDArray) -> float:
    """Return the true hypervolume of the front chosen by a proxy, relative to the exact front.

    The reference point is the worst true error and latency.
    """
    valid = np.isfinite(latency) & (latency >= 0) & np.isfinite(proxy_error)
    points = np.column_stack([true_error, latency])[valid]
    reference = points.max(axis=0)
    volumes = [
        hypervolume(points[front(error[valid], latency[valid])], ref=reference)
        for error in (proxy_error, true_error)
    ]
    return float(volumes[0] / volumes[1])


def compare(
    proxies: dict[str, NDArray], truth: NDArray, indices: NDArray, devices: dict[str, NDArray]
) -> dict[str, Any]:
    """Return correlations and front quality of every proxy (higher is better) of the accuracy."""
    result = {}
    for name, proxy in proxies.items():
        result[name] = {
            "rank": correlations(proxy, truth),
            "true_hypervolume_of_chosen_front": {
                device: chosen_hypervolume(-proxy, 1 - truth, latency[indices])
                for device, latency in devices.items()
            },
        }
    return result


def draw_told(space: NASBench201Space, ops: NDArray, draw: int) -> NDArray:
    """Return the places of the networks whose true accuracy is told: no two compute the same."""
    _, different = np.unique(space.index(space.canonical(ops)), return_index=True)
    return np.random.default_rng(draw).choice(different, CALIBRATED_ON, replace=False)


def calibrated_accuracies(
    space: NASBench201Space, ops: NDArray, inherited: NDArray, truth: NDArray, draw: int
) -> NDArray:
    """Return estimates of true accuracies by a calibration that is told some of them."""
    told = draw_told(space, ops, draw)
    calibration = Calibration(space, ops[told], 1 - inherited[told], 1 - truth[told])
    accuracies = estimated(calibration, ops, inherited)
    return np.where(np.isfinite(accuracies), accuracies, inherited)


def told_accuracies(
    space: NASBench201Space, ops: NDArray, told: NDArray, truth: NDArray
) -> NDArray:
    """Return estimates by a calibration to which all networks inherit the same.

    Args:
        space: The space.
        ops: The networks, `[P, genes]`.
        told: Those whose accuracy is told, `[n, genes]`.
        truth: Their accuracies, `[n]`.
    """
    calibration = Calibration(space, told, np.full(len(told), 0.5), 1 - truth)
    return estimated(calibration, ops, np.full(len(ops), 0.5))


def estimated(calibration: Calibration, ops: NDArray, inherited: NDArray) -> NDArray:
    """Return the accuracies that a calibration estimates, `[P]`."""
    parts = np.array_split(np.arange(len(ops)), max(1, len(ops) // 2000))
    return np.concatenate(
        [1 - calibration.estimate(ops[part], 1 - inherited[part])[:, 0] for part in parts]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights")
    parser.add_argument("--processor", default="cpu")
    parser.add_argument("--images", default="full", help="search images a network is scored on")
    parser.add_argument("--calibration-images", type=int, default=512)
    parser.add_argument("--sample", type=int, help="score this many random networks instead of all")
    parser.add_argument("--out", type=Path, default=RESULTS / "fidelity_nasbench201.json")
    args = parser.parse_args()

    dataset = Cifar100()
    space = NASBench201Space(32, dataset.n_classes)
    n = len(space.architectures)
    evaluator = SupernetEvaluator(
        space,
        dataset,
        weights=args.weights,
        processor=args.processor,
        calibration_images=args.calibration_images,
    )
    indices = np.arange(n)
    if args.sample is not None:
        indices = np.sort(np.random.default_rng(0).choice(n, args.sample, replace=False))
    representatives, inverse = np.unique(
        space.index(space.canonical(space.architectures[indices])), return_inverse=True
    )
    start = time.monotonic()
    accuracies = inherited_accuracies(space, evaluator, representatives, args.images)
    seconds = time.monotonic() - start
    inherited = accuracies[inverse]
    path, official = read_accuracies()
    costs = official_costs(n)
    if official is None or costs is None:
        sys.exit(f"The official figures are missing: {path} and its neighbours.")
    truth = official["cifar100_xtest_200"][indices] / 100
    ops = space.architectures[indices]
    proxies = {
        "inherited": inherited,
        "macs": space.macs(ops).astype(float),
        "params": space.params(ops).astype(float),
    }
    proxies |= {
        f"calibrated_{draw}": calibrated_accuracies(space, ops, inherited, truth, draw)
        for draw in range(DRAWS)
    }
    for draw in range(DRAWS):
        told = draw_told(space, ops, draw)
        proxies[f"told_{draw}"] = told_accuracies(space, ops, ops[told], truth[told])
    proxies["synflow"] = synflow(space, space.architectures[representatives])[inverse]
    proxies |= {
        name: official[name][indices] for name in ("cifar100_xtest_12_1seed",) if name in official
    }
    devices = {
        device: costs.values[
            costs.datasets.index("cifar10"), costs.metrics.index(f"{device}_latency")
        ]
        for device in DEVICES
    }
    write_result(
        args.out,
        {
            "weights_sha256": file_sha256(evaluator.weights),
            "evaluator": evaluator.describe(),
            "images": args.images,
            "networks": len(indices),
            "distinct_networks": len(representatives),
            "seconds": round(seconds, 1),
            "inherited_accuracy": dict(
                zip(
                    ("min", "q25", "median", "q75", "max"),
                    np.quantile(inherited, (0, 0.25, 0.5, 0.75, 1)).tolist(),
                    strict=True,
                )
            ),
            "proxies": compare(proxies, truth, indices, devices),
        },
    )
    np.savez_compressed(
        args.out.with_suffix(".npz"), index=indices, inherited=inherited.astype(np.float32)
    )


if __name__ == "__main__":
    main()
