"""How many images a second the trainer puts through networks of a supernet, forward and backward.

    python benchmarks/training_speed.py [--problems nasbench201] [--steps 40]

On random images of the size of CIFAR-100; an image through one network counts once. A step of FBNet
trains the largest network and two random ones, a step of NAS-Bench-201 five random ones that split
the batch. With and without captured blocks, which share one process: the captured ones come first.
The floor of FBNet is the memory traffic of its wide tensors alone, at the bandwidth of a large
copy: each of a block's two is written once and read once by what comes next, twice more by its
batch norm, and their gradients likewise; see `floor_ms`.
"""

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import RESULTS, write_result

from nasc_evo.data.images import ImageDataset, Images
from nasc_evo.space import FBNetSpace, NASBench201Space
from nasc_evo.space.fbnet import OPS, SKIP, conv_op
from nasc_evo.supernet.training import Trainer, TrainingConfig

PASSES = 20
"""Reads and writes of each wide tensor, forward and backward: written and read by convolutions (4
and 6, weight gradients included), batch norm with ReLU (statistics 1, output 2, backward sums 2,
gradient 3), and the reads of their saved inputs (2)."""


RECIPES = {
    "fbnet": TrainingConfig(),
    "nasbench201": TrainingConfig(
        batch_size=1280, random_paths=5, split_batch=True, largest_every=0, distillation=0.0
    ),
}


class RandomImages(ImageDataset):
    """Noise in 100 classes."""

    name = "noise"
    class_names = tuple(map(str, range(100)))
    mean = (0.5, 0.5, 0.5)
    std = (0.29, 0.29, 0.29)
    image_bytes = 3072

    def _split(self, name: str) -> Images:
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (10240, 32, 32, 3), dtype=np.uint8)
        return Images(x, rng.integers(0, 100, len(x)))


def copy_gb_per_second() -> float:
    """Return bytes read and written a second by a large copy on the GPU."""
    x = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    y.copy_(x)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        y.copy_(x)
    torch.cuda.synchronize()
    return 10 * 2 * x.numel() / (time.perf_counter() - start) / 1e9


def floor_ms(trainer: Trainer, gb_per_second: float) -> float:
    """Return the time that the wide tensors of a step need on average."""
    space = trainer.space
    assert isinstance(space, FBNetSpace)

    def wide(layer: int, op: int) -> float:
        g = space.layers[layer]
        if op == SKIP:
            return 0.0
        hidden = conv_op(OPS[op]).expansion * g.channels_in
        return hidden * (g.size_in**2 + g.size_out**2)

    layers = range(len(space.layers))
    largest = sum(wide(layer, op) for layer, op in enumerate(trainer.supernet.largest()))
    random = sum(np.mean([wide(layer, op) for op in range(len(OPS))]) for layer in layers)
    values = (largest + trainer.config.random_paths * float(random)) * trainer.config.batch_size
    return PASSES * 2 * values / gb_per_second / 1e6


def measure(problem: str, config: TrainingConfig, steps: int) -> dict[str, Any]:
    """Return median time and rate of steps, after as many to warm up."""
    dataset = RandomImages()
    space = {"fbnet": FBNetSpace, "nasbench201": NASBench201Space}[problem](32, 100)
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        trainer = Trainer(space, dataset, config, Path(folder))
        times = []
        for _ in range(2 * steps):
            begin = time.perf_counter()
            trainer.train_step()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - begin) * 1e3)
    step_ms = float(np.median(times[steps:]))
    result = {
        "problem": problem,
        "captured": trainer.graphs is not None,
        "step_ms": step_ms,
        "batch_size": config.batch_size,
        "images_per_second": trainer.networks_a_step * config.batch_size / step_ms * 1e3,
        "seconds_to_start": time.perf_counter() - start - sum(times[steps:]) / 1e3,
        "memory_gb": torch.cuda.max_memory_reserved() / 1e9,
    }
    if problem == "fbnet":
        result["floor_ms"] = floor_ms(trainer, copy_gb_per_second())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="default: that of the recipe")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS / "training_speed.json")
    args = parser.parse_args()

    results = []
    for problem, captured in itertools.product(args.problems, (True, False)):
        recipe = replace(RECIPES[problem], cuda_graphs=captured, processor="cuda")
        for size in args.batch_sizes or [recipe.batch_size]:
            results.append(measure(problem, replace(recipe, batch_size=size), args.steps))
            print(results[-1], flush=True)
            torch.cuda.empty_cache()
        write_result(args.out, {"copy_gb_per_second": copy_gb_per_second(), "results": results})


if __name__ == "__main__":
    main()
