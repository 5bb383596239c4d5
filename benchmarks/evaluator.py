"""How fast candidates are scored: beside other ways, and beside what the machine allows.

    python benchmarks/evaluator.py [--problem fbnet] [--algorithm nsga2] [--evaluations 800]
        [--dataset cifar100 --images 5000 --processor cuda]

A real search runs first, and its evaluator is timed. Every k-th of its designs is then scored in
other ways, in turns:

- `alone`: by the same evaluator, one by one, nothing shared;
- `plain`: eager PyTorch in float32, the same calibration and search images in batches of 128,
  convolution, norm and activation one after another;
- `stand_alone`: as supernet projects do it: a network of modules is built, weights are copied,
  batch norm is calibrated anew on 2,560 training images and accuracy measured, both through a
  DataLoader, in float32. Images are in memory and normalised already; the 512 calibration images
  are repeated.

With --rank N, N random designs are scored on 2000 images by the evaluator and, one by one, in
float32: rank correlation and differences. Last comes the roofline: for each kind of convolution its
arithmetic and traffic, what the machine's measured ceilings make of them, and the time taken.
"""

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import RESULTS, write_result
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nasc_evo.problem import SplitProblem
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.loop import run_search
from nasc_evo.search.operators import random_genomes
from nasc_evo.space import Design
from nasc_evo.supernet.blocks import NORM_EPS, ConvNorm, FoldedConv, add
from nasc_evo.supernet.evaluation import DTYPES, SupernetEvaluator, transmissions
from nasc_evo.supernet.inputs import to_input
from nasc_evo.supernet.model import Transmission, run_blocks
from nasc_evo.supernet.score import Score
from nasc_evo.supernet.transmission import channel_mask
from problems import FBNetSplit, NASBench201Split

PROBLEMS = {"fbnet": FBNetSplit, "nasbench201": NASBench201Split}
STAND_ALONE_CALIBRATION = 2560
BATCH = 128
WARM_UP = {"cpu": 1, "cuda": 100}
"""Random designs that are scored first; a GPU compiles and chooses kernels for each new shape."""


class Timed:
    """An evaluator that keeps what it was asked for and how long that took."""

    def __init__(self, evaluator: SupernetEvaluator) -> None:
        self.evaluator = evaluator
        self.images = evaluator.images
        self.designs: list[Design] = []
        self.seconds = 0.0

    def evaluate(
        self, designs: Sequence[Design], split: str = "search", images: int | None = None
    ) -> Iterator[tuple[int, Score]]:
        """Score designs and add up the time."""
        self.designs += designs
        start = time.perf_counter()
        scores = list(self.evaluator.evaluate(designs, split, images))
        self.seconds += time.perf_counter() - start
        return iter(scores)

    def split_size(self, split: str) -> int:
        """Return the number of images of a split."""
        return self.evaluator.split_size(split)

    def describe(self) -> dict[str, Any]:
        """Return what fixes the numbers."""
        return self.evaluator.describe()


def random_designs(problem: SplitProblem, n: int, seed: int) -> list[Design]:
    """Return random designs of a problem."""
    genomes = random_genomes(problem.space, n, np.random.default_rng(seed))
    return problem.space.designs(problem.space.decode_batch(genomes))


def sent_tensors(evaluator: SupernetEvaluator, design: Design) -> list[Transmission]:
    shapes = evaluator.space.cut_shapes
    return [
        (cut, channel_mask(mask, shapes[cut][0]).to(evaluator.device), bits)
        for cut, (mask, bits) in transmissions(design).items()
    ]


class StandAlone(nn.Module):
    """A candidate as modules of its own with copied weights."""

    def __init__(self, evaluator: SupernetEvaluator, design: Design, shape: Tensor) -> None:
        super().__init__()
        self.blocks = evaluator.supernet.blocks(design.ops)
        self.sent = sent_tensors(evaluator, design)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        self.relu = nn.ReLU(inplace=True)

        def build(x: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
            out, per_group, k, _ = conv.weight.shape
            module = nn.Conv2d(
                per_group * conv.groups, out, k, conv.stride, k // 2, groups=conv.groups, bias=False
            )
            norm = nn.BatchNorm2d(out, eps=NORM_EPS, momentum=None)
            with torch.no_grad():
                module.weight.copy_(conv.weight)
                norm.weight.copy_(conv.gamma)
                norm.bias.copy_(conv.beta)
            self.convs.append(module)
            self.norms.append(norm)
            return x.new_zeros((1, out, *(size // conv.stride for size in x.shape[2:])))

        run_blocks(self.blocks, shape, build)
        self.to(shape.device)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        modules = iter(zip(self.convs, self.norms, strict=True))

        def unit(x: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
            module, norm = next(modules)
            y = norm(module(x))
            return self.relu(y) if conv.relu else add(y, plus)

        return run_blocks(self.blocks, x, unit, self.sent)


@torch.no_grad()
def stand_alone(evaluator: SupernetEvaluator, images: dict[str, Any], design: Design) -> int:
    """Return how many images a stand-alone network gets right."""
    net = StandAlone(evaluator, design, images["x"][:1])
    net.train()
    for (x,) in DataLoader(TensorDataset(images["training"]), BATCH, shuffle=False):
        net(x)
    net.eval()
    correct = 0
    for x, y in DataLoader(TensorDataset(images["x"], images["y"]), BATCH):
        correct += int((net(x).argmax(dim=1) == y).sum())
    return correct


@torch.no_grad()
def plain(evaluator: SupernetEvaluator, images: dict[str, Any], design: Design) -> int:
    """Return how many images eager PyTorch gets right, network by network."""
    blocks, sent = evaluator.supernet.blocks(design.ops), sent_tensors(evaluator, design)
    statistics_of: list[tuple[Tensor, Tensor]] = []

    def convolved(x: Tensor, conv: ConvNorm) -> Tensor:
        padding = conv.weight.shape[-1] // 2
        return F.conv2d(x, conv.weight, None, conv.stride, padding, 1, conv.groups)

    def finished(
        y: Tensor, conv: ConvNorm, norm: tuple[Tensor, Tensor], plus: Tensor | None
    ) -> Tensor:
        y = F.batch_norm(y, *norm, conv.gamma, conv.beta, False, eps=NORM_EPS)
        return F.relu(y) if conv.relu else add(y, plus)

    def calibrate(x: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
        y = convolved(x, conv)
        norm = torch.batch_norm_update_stats(y, None, None, 0.0)
        statistics_of.append(norm)
        return finished(y, conv, norm, plus)

    run_blocks(blocks, images["calibration"], calibrate, sent)
    correct = 0
    for x, y in zip(images["x"].split(BATCH), images["y"].split(BATCH), strict=True):
        known = iter(statistics_of)

        def evaluate(x: Tensor, conv: ConvNorm, plus: Tensor | None = None) -> Tensor:
            return finished(convolved(x, conv), conv, next(known), plus)  # noqa: B023

        correct += int((run_blocks(blocks, x, evaluate, sent).argmax(dim=1) == y).sum())
    return correct


def training_images(evaluator: SupernetEvaluator) -> Tensor:
    """Return what stand-alone networks calibrate on: all calibration images, repeated."""
    dataset = evaluator.dataset
    x = dataset.split("calibration").x
    x = to_input(x, dataset, evaluator.device, torch.float32).contiguous()
    repeats = -(-STAND_ALONE_CALIBRATION // len(x))
    return x.repeat(repeats, 1, 1, 1)[:STAND_ALONE_CALIBRATION]


def ceilings(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Return the rates of a large matrix product and of a large copy."""
    a = torch.randn(4096, 2048, device=device).to(dtype)
    b = torch.randn(2048, 2048, device=device).to(dtype)
    source = torch.zeros(2**26, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return {
        "product_gflops": 2 * 4096 * 2048 * 2048 / best(lambda: a @ b, device) / 1e9,
        "copy_gbytes_per_s": 2 * source.nbytes / best(lambda: target.copy_(source), device) / 1e9,
    }


def best(function: Callable[[], Any], device: torch.device, repeats: int = 7) -> float:
    """Return the shortest time of a function in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def roofline(
    evaluator: SupernetEvaluator, designs: Sequence[Design], seconds: float
) -> dict[str, Any]:
    """Return floor and time of each kind of convolution when the designs are scored alone."""
    dtype = DTYPES[evaluator.dtype]
    limit = ceilings(dtype, evaluator.device)
    parts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    run = FoldedConv.__call__

    def timed(conv: FoldedConv, x: Tensor, plus: Tensor | None = None) -> Tensor:
        if x.dtype != dtype:  # a close decision
            return run(conv, x, plus)
        if x.device.type == "cuda":  # what was queued before is not its
            torch.cuda.synchronize()
        start = time.perf_counter()
        y = run(conv, x, plus)
        if y.device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        kind = (
            "depthwise" if conv.groups > 1 else "dense 3x3" if conv.weight.shape[-1] > 1 else "1x1"
        )
        part = parts[f"{kind}, {x.shape[2]}x{x.shape[3]}"]
        per_output = conv.weight.numel() / conv.bias.numel()
        flop = 2 * y.numel() * per_output
        moved = x.nbytes + y.nbytes + (0 if plus is None else plus.nbytes)
        part["seconds"] += took
        part["gflop"] += flop / 1e9
        part["gbytes"] += moved / 1e9
        dense = 0 if conv.groups > 1 else flop / limit["product_gflops"] / 1e9
        part["floor_seconds"] += max(dense, moved / limit["copy_gbytes_per_s"] / 1e9)
        return y

    FoldedConv.__call__ = timed  # type: ignore[method-assign]
    try:
        dict(evaluator.evaluate(designs))
    finally:
        FoldedConv.__call__ = run  # type: ignore[method-assign]
    n = len(designs)
    rows = {
        kind: {
            "ms": round(part["seconds"] / n * 1e3, 2),
            "floor_ms": round(part["floor_seconds"] / n * 1e3, 2),
            "gflop": round(part["gflop"] / n, 3),
            "mbytes": round(part["gbytes"] / n * 1e3, 1),
            "gflops": round(part["gflop"] / part["seconds"], 1),
            "gbytes_per_s": round(part["gbytes"] / part["seconds"], 1),
        }
        for kind, part in sorted(parts.items(), key=lambda item: -item[1]["seconds"])
    }
    exact = evaluator.calibration_images / evaluator.images
    exact += 0 if dtype == torch.float32 else 1 / evaluator.exact_one_in
    images = 1 + exact * 4 / dtype.itemsize
    floor_ms = sum(row["floor_ms"] for row in rows.values())
    return {
        "ceilings": {name: round(value, 1) for name, value in limit.items()},
        "ms_a_candidate": round(seconds / n * 1e3, 1),
        "floor_ms_with_float32_parts": round(floor_ms * images, 1),
        "convolutions_of_search_images": rows,
    }


def rank(
    evaluator: SupernetEvaluator, exact: SupernetEvaluator, designs: Sequence[Design]
) -> dict[str, Any]:
    """Return how well scores on 2000 images agree with those in float32, one by one."""
    images = min(2000, evaluator.split_size("search"))
    ours = dict(evaluator.evaluate(designs, images=images))
    alone = [dict(exact.evaluate([design], images=images))[0] for design in designs]
    a = np.array([ours[i].error for i in range(len(designs))])
    b = np.array([score.error for score in alone])
    between = (images * np.abs(b[:, None] - b)[np.triu_indices(len(b), 1)]).round()
    return {
        "designs": len(designs),
        "images": images,
        "pairs_within_an_image_percent": round(float((between <= 1).mean() * 100), 2),
        "kendall_tau": round(float(kendalltau(a, b).statistic), 4),
        "largest_difference_points": round(float(np.abs(a - b).max() * 100), 3),
        "mean_difference_points": round(float((a - b).mean() * 100), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=PROBLEMS, default="fbnet")
    parser.add_argument("--algorithm", default="nsga2")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--weights")
    parser.add_argument("--evaluations", type=int, default=800)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--memory-mb", type=int, default=256, help="for what candidates share")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=12)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--processor", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names = ("images", "threads", "processor", "weights")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    kept = {"memory_mb": args.memory_mb}
    problem: SplitProblem = PROBLEMS[args.problem](
        server="titan_rtx",  # behind it cuts vary more than behind the default
        dataset={"name": args.dataset, "geometry": 32},
        evaluator={"name": "supernet", **options, **kept},
    )
    made = problem.evaluator
    assert isinstance(made, SupernetEvaluator)
    problem._evaluator = timed = Timed(made)
    del problem.__dict__["evaluator"]
    begun = time.perf_counter()
    dict(made.evaluate(random_designs(problem, WARM_UP[made.device.type], seed=7)))
    warm_up = time.perf_counter() - begun
    made._prefixes.clear()
    start = time.perf_counter()
    run_search(
        problem, create_algorithm(args.algorithm, problem, {}, seed=1), args.evaluations, seed=1
    )
    wall = time.perf_counter() - start
    step = max(1, len(timed.designs) // args.sample)
    sample = timed.designs[::step][: args.sample]

    exact = SupernetEvaluator(made.space, made.dataset, dtype="float32", memory_mb=0, **options)
    images = {
        "calibration": exact._calibration.contiguous(),
        "x": exact._split("search")[0][: made.images].contiguous(),
        "y": exact._split("search")[1][: made.images],
    }
    images["training"] = training_images(made)
    alone = SupernetEvaluator(made.space, made.dataset, memory_mb=0, **options)
    dict(alone.evaluate(sample[:1]))
    ways: dict[str, Callable[[Design], Any]] = {
        "alone": lambda design: dict(alone.evaluate([design]))[0].correct,
        "plain": lambda design: plain(made, images, design),
        "stand_alone": lambda design: stand_alone(made, images, design),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    correct: dict[str, list[int]] = {name: [] for name in ways}
    torch.set_num_threads(args.threads)
    if made.device.type == "cuda":  # kernels are compiled and chosen
        for way in ways.values():
            for design in sample:
                way(design)
    for design in sample:
        for name, way in ways.items():
            begun = time.perf_counter()
            correct[name].append(way(design))
            seconds[name].append(time.perf_counter() - begun)
    ours = timed.seconds / len(timed.designs)
    figures: dict[str, Any] = {
        "problem": args.problem,
        "dataset": args.dataset,
        "algorithm": args.algorithm,
        "numerics": made.describe()["numerics"],
        "images": made.images,
        "memory_mb": args.memory_mb,
        "cores": len(os.sched_getaffinity(0)),
        "warm_up": {
            "evaluations": WARM_UP[made.device.type],
            "seconds": round(warm_up, 1),
        },
        "search": {
            "evaluations": len(timed.designs),
            "seconds": round(wall, 1),
            "seconds_outside_the_evaluator": round(wall - timed.seconds, 1),
            "ms_a_candidate": round(ours * 1e3, 1),
        },
        "sample": {
            name: {
                "designs": len(values),
                "ms_a_candidate": round(statistics.mean(values) * 1e3, 1),
                "times_as_long_as_in_the_search": round(statistics.mean(values) / ours, 2),
                "mean_accuracy": round(float(np.mean(correct[name])) / made.images, 4),
            }
            for name, values in seconds.items()
        },
    }
    if args.rank:
        figures["rank_against_float32_one_by_one"] = rank(
            made, exact, random_designs(problem, args.rank, seed=5)
        )
    figures["roofline"] = roofline(alone, sample, sum(seconds["alone"]))
    out = args.out or RESULTS / f"evaluator_{args.problem}_{args.algorithm}.json"
    write_result(out, figures)


if __name__ == "__main__":
    main()
