"""Does anything beyond plain training make inherited accuracies order networks better?

    NASC_EVO_DATA=<data> python benchmarks/rank_trainings.py --folder DIR --variant few_shot
    NASC_EVO_DATA=<data> python benchmarks/rank_trainings.py --folder DIR

The first command trains one variant, the second compares all that the folder has. The NAS-Bench-201
supernet that ships for CIFAR-100 is trained on by the recipe of its last stage, as it is (`plain`)
or with one change:

- `few_shot` (Zhao et al., ICML 2021): five copies of all weights, one for each operation of the
  edge from input to output; a network trains and inherits those of its operation there.
- `ranked_macs`, `ranked_told`: rank distillation, after RD-NAS (Dong et al., 2023). Of every two
  of the five networks of a step the one that ought to be better is pushed below the other's loss,
  though each has images of its own here; what ought to be is said by multiply-accumulates, or by
  a Gaussian process that is told 50 official accuracies.
- `better_told`: the networks of a step count the more the better that process says they are.

All have the same time. Then random networks are scored with each of the weights and held against
official accuracies, as `fidelity.py` does; `calibrated` is the estimate that is told 50 of them
besides. Start the variants together, they share a GPU.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from common import RESULTS, write_result
from fidelity import (
    DRAWS,
    calibrated_accuracies,
    correlations,
    inherited_accuracies,
    told_accuracies,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from nasc_evo.data.cifar100 import Cifar100
from nasc_evo.files import read_json
from nasc_evo.search.calibration import find_calibration
from nasc_evo.space import NASBench201Space
from nasc_evo.space.nasbench201 import CONV_1X1, EDGES, STAGE_CHANNELS
from nasc_evo.supernet.blocks import ConvBlock, ConvNorm, HeadBlock, ReductionBlock, batch_norm_unit
from nasc_evo.supernet.evaluation import SupernetEvaluator
from nasc_evo.supernet.fair_turn import NETWORKS, FairTurn, mix, take
from nasc_evo.supernet.model import NASBench201Supernet, ReductionWeights
from nasc_evo.supernet.training import Trainer, TrainingConfig
from nasc_evo.supernet.weights import find_weights, save_supernet
from nasc_evo.tabular import read_accuracies

VARIANTS = ("plain", "few_shot", "ranked_macs", "ranked_told", "better_told")
SPLIT_EDGE = EDGES.index((0, 3))
RANK_WEIGHT = 0.25
"""Of a pair of networks in the wrong order; four of them take all of the worst one's gradient."""
SHARES = (2.0, 1.5, 1.0, 0.4, 0.1)
"""What the best to the worst of five networks count."""


def split_of(space: NASBench201Space, ops: NDArray) -> NDArray:
    """Return which copy of the weights networks `[P, 6]` have: 0 to 4."""
    return space.canonical(ops)[:, SPLIT_EDGE]


class SplitSupernet(nn.Module):
    """Five copies of a supernet's weights, each parameter `[5, ...]`."""

    def __init__(self, supernet: NASBench201Supernet) -> None:
        super().__init__()
        self.space = supernet.space
        self.kinds = [type(module) for module in supernet.middle]
        values = {name: p.detach() for name, p in supernet.named_parameters()}
        self.names = list(values)
        self.stacks = nn.ParameterList([torch.stack([v] * NETWORKS) for v in values.values()])

    def of(self, name: str, copy: Tensor) -> Tensor:
        """Return a weight of a copy, whose number is `copy`, `[1]`."""
        return self.stacks[self.names.index(name)].index_select(0, copy).squeeze(0)

    def under(self, prefixes: Sequence[str]) -> list[nn.Parameter]:
        """Return the stacks of weights whose names begin with one of these."""
        pairs = zip(self.names, self.stacks, strict=True)
        return [stack for name, stack in pairs if name.startswith(tuple(prefixes))]


class SplitTurn(FairTurn):
    """A fair turn each of whose networks has the weights of its copy."""

    def __init__(
        self,
        split: SplitSupernet,
        device: torch.device,
        dtype: torch.dtype,
        unit: Any = batch_norm_unit,
        take: Any = take,
        mix: Any = mix,
    ) -> None:
        self._unit, self._take, self._mix = unit, take, mix
        self._make_turns(device, dtype)
        self._copies = torch.arange(NETWORKS, device=device)
        self._split = split
        identity = torch.ones(STAGE_CHANNELS[-1], 1, 1, 1, device=device)
        of = split.of

        def norm(weight: Tensor, name: str, copy: Tensor, **more: Any) -> ConvNorm:
            return ConvNorm(weight, of(f"{name}.gamma", copy), of(f"{name}.beta", copy), **more)

        def stem(copy: Tensor) -> Any:
            return ConvBlock((norm(of("stem", copy), "stem_norm", copy, relu=False),))

        def head(copy: Tensor) -> Any:
            last = norm(identity, "head_norm", copy, groups=STAGE_CHANNELS[-1])
            return HeadBlock(last, of("classifier_weight", copy), of("classifier_bias", copy))

        def reduction(path: str) -> Callable[[Tensor], Any]:
            def build(copy: Tensor) -> Any:
                return ReductionBlock(
                    norm(of(f"{path}.first", copy), f"{path}.first_norm", copy, stride=2),
                    norm(of(f"{path}.second", copy), f"{path}.second_norm", copy, relu=False),
                    of(f"{path}.shortcut", copy),
                )

            return build

        self.stages = [self._each_by_copy(stem)]
        self.weights = [split.under(["stem"])]
        for index, kind in enumerate(split.kinds):
            path = f"middle.{index}"
            if kind is ReductionWeights:
                self.stages.append(self._each_by_copy(reduction(path)))
            else:
                edges = [_SplitEdge(self, f"{path}.{edge}", edge, norm) for edge in range(6)]
                self.stages.append(self._cell(cast(nn.ModuleList, edges)))
            self.weights.append(split.under([f"{path}."]))
        self.stages.append(self._each_by_copy(head))
        self.weights.append(split.under(["head_norm", "classifier"]))

    def _begin(self, architectures: np.ndarray) -> None:
        super()._begin(architectures)
        space = cast(NASBench201Space, self._split.space)
        self._copies.copy_(torch.from_numpy(split_of(space, architectures)))

    def _each_by_copy(self, build: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            parts = x.chunk(NETWORKS)
            built = [build(self._copies[n : n + 1]) for n in range(NETWORKS)]
            return torch.cat([b(p, self._unit) for b, p in zip(built, parts, strict=True)])

        return run


class _SplitEdge:
    """An edge of one cell, whose weights are those of the copy of the network that has an op."""

    def __init__(self, turn: SplitTurn, path: str, edge: int, norm: Any) -> None:
        self._turn, self._path, self._edge, self._norm = turn, path, edge, norm

    def conv(self, op: int) -> ConvNorm:
        size = "1x1" if op == CONV_1X1 else "3x3"
        turn = self._turn
        network = turn._turns[self._edge].network_of[op : op + 1]
        copy = turn._copies.index_select(0, network)
        weight = turn._split.of(f"{self._path}.conv_{size}", copy)
        return self._norm(weight, f"{self._path}.norm_{size}", copy, relu=False)


class RankTrainer(Trainer):
    """Trains a variant; see the top of this file.

    Args:
        variant: One of :data:`VARIANTS`.
        merit: How good networks are said to be, by official index.
        others: As of :class:`Trainer`.
    """

    def __init__(self, variant: str, merit: NDArray, *others: Any) -> None:
        super().__init__(*others)
        self.variant, self.merit = variant, merit
        if variant == "few_shot":
            self.whole = cast(NASBench201Supernet, self.supernet)
            self.supernet = cast(Any, SplitSupernet(self.whole).to(self.device))
            self.averaged = [p.detach().clone() for p in self.supernet.parameters()]
            self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.SGD:
        optimizer = super()._optimizer()
        if isinstance(self.supernet, SplitSupernet):
            every = [p for group in optimizer.param_groups for p in group["params"]]
            decayed, free = optimizer.param_groups
            decayed["params"] = [p for p in every if p.ndim > 2]
            free["params"] = [p for p in every if p.ndim <= 2]
        return optimizer

    @cached_property
    def graphs(self) -> Any:
        """The five networks of a turn; captured on a GPU."""
        if self.device.type == "cpu":
            if self.variant == "few_shot":
                return SplitTurn(cast(Any, self.supernet), self.device, self.dtype)
            return FairTurn(cast(NASBench201Supernet, self.supernet), self.dtype)
        from nasc_evo.supernet import graphs, kernels

        if self.variant != "few_shot":
            return graphs.captured_turn(self.supernet, self.config.batch_size, self.dtype)
        turn = SplitTurn(
            cast(Any, self.supernet),
            self.device,
            self.dtype,
            kernels.fused_norm_unit,
            kernels.take,
            kernels.mix,
        )
        graphs.capture_stages(turn, self.whole, self.config.batch_size, self.dtype)
        return turn

    def add_gradients(self, x: Tensor, target: Tensor) -> Tensor:
        """Add the gradients of a step, whose five networks count and are compared as asked."""
        space = cast(NASBench201Space, self.space)
        networks, transmissions = self.random_networks()
        logits = self.graphs(x, networks, transmissions)
        losses = F.cross_entropy(logits, target, reduction="none").view(NETWORKS, -1).mean(dim=1)
        order = np.argsort(-self.merit[space.index(np.array(networks))], kind="stable")
        ranked = losses[torch.from_numpy(order).to(self.device)]
        loss = ranked.sum()
        if self.variant == "better_told":
            loss = (ranked * torch.tensor(SHARES, device=self.device)).sum()
        elif self.variant.startswith("ranked"):
            excess = F.relu(ranked[:, None] - ranked[None, :]).triu(1)
            loss = loss + RANK_WEIGHT * excess.sum()
        loss.backward()
        return losses.mean()

    def _validate_and_keep(self, loss: float | None, rate: float) -> dict[str, float]:
        """Keep the newest weights."""
        print(f"{self.variant}: step {self.step}, {rate:.0f} images/s", file=sys.stderr, flush=True)
        self.best = {"mean": 0.0, "step": self.step}
        return {"mean": 0.0}

    def finish(self) -> Path:
        """Write the averaged weights: those of copies each to a folder of its own."""
        details = {"recipe": self.recipe(), "steps": self.step, "seconds": round(self.seconds, 1)}
        copies = NETWORKS if self.variant == "few_shot" else 1
        for copy in range(copies):
            whole = NASBench201Supernet(cast(NASBench201Space, self.space))
            with torch.no_grad():
                for p, value in zip(whole.parameters(), self.averaged, strict=True):
                    p.copy_(value[copy] if copies > 1 else value)
            folder = self.folder / str(copy)
            save_supernet(whole, self.dataset, folder, {}, details)
        return self.folder


def told_merit(space: NASBench201Space, dataset: Cifar100) -> NDArray:
    """Return accuracies of all networks, estimated from the 50 official ones of the calibration."""
    calibration = find_calibration(space, find_weights(space, dataset, None))
    assert calibration is not None
    ops, errors = calibration.ops, calibration.trained
    return told_accuracies(space, space.architectures, ops, 1 - errors)


def train(args: argparse.Namespace) -> None:
    """Train one variant."""
    if (args.folder / args.variant).exists():
        sys.exit(f"{args.folder / args.variant} is there already; trainings start anew.")
    dataset = Cifar100()
    space = NASBench201Space(32, dataset.n_classes)
    merit = space.macs(space.architectures).astype(float)
    if args.variant.endswith("told"):
        merit = told_merit(space, dataset)
    config = TrainingConfig(
        epochs=100000,
        minutes=args.minutes,
        batch_size=args.batch_size,
        learning_rate=0.04,
        warmup=0.03,
        weight_decay=5e-4,
        label_smoothing=0.0,
        random_paths=NETWORKS,
        split_batch=True,
        largest_every=0,
        init=str(find_weights(space, dataset, None)),
        distillation=0.0,
        transmission=0.1,
        gradient_clip=10.0,
        ema=0.999,
        crop_padding=4,
        cutout=0,
        validate_every=20,
        seed=3,
        processor=args.processor,
    )
    RankTrainer(args.variant, merit, space, dataset, config, args.folder / args.variant).run()


def score(args: argparse.Namespace, variant: str, ops: NDArray) -> NDArray:
    """Return the accuracies that networks inherit of a variant's weights; `"shipped"` for ours."""
    dataset = Cifar100()
    space = NASBench201Space(32, dataset.n_classes)
    represented = space.index(space.canonical(ops))
    folder = args.folder / variant
    copies = split_of(space, ops) if variant == "few_shot" else np.zeros(len(ops), dtype=int)
    accuracies = np.full(len(ops), np.nan)
    for copy in np.unique(copies):
        path = folder / str(copy) / "nasbench201_32_cifar100.safetensors"
        evaluator = SupernetEvaluator(
            space,
            dataset,
            weights=None if variant == "shipped" else str(path),
            processor=args.processor,
            calibration_images=args.calibration_images,
        )
        rows = np.flatnonzero(copies == copy)
        indices, inverse = np.unique(represented[rows], return_inverse=True)
        accuracies[rows] = inherited_accuracies(space, evaluator, indices, args.images)[inverse]
    return accuracies


def compare(args: argparse.Namespace) -> None:
    """Score networks with the weights of every variant that is there and write what that says."""
    dataset = Cifar100()
    space = NASBench201Space(32, dataset.n_classes)
    path, official = read_accuracies()
    if official is None:
        sys.exit(f"The official figures are missing: {path}.")
    indices = np.sort(
        np.random.default_rng(0).choice(len(space.architectures), args.sample, replace=False)
    )
    ops = space.architectures[indices]
    truth = official["cifar100_xtest_200"][indices] / 100
    found = [v for v in VARIANTS if (args.folder / v / "0").is_dir()]
    results = {}
    for variant in ["shipped", *found]:
        inherited = score(args, variant, ops)
        told = [
            correlations(calibrated_accuracies(space, ops, inherited, truth, draw), truth)
            for draw in range(DRAWS)
        ]
        taus = {share: [t[share]["kendall_tau"] for t in told] for share in told[0]}
        manifest = args.folder / variant / "0" / "nasbench201_32_cifar100.json"
        results[variant] = {
            "steps": read_json(manifest)["steps"] if variant in found else 0,
            "median_accuracy": float(np.median(inherited)),
            "rank": correlations(inherited, truth),
            "calibrated_kendall_tau": {share: float(np.mean(t)) for share, t in taus.items()},
        }
        print(variant, results[variant], file=sys.stderr, flush=True)
    figures = {"images": args.images, "networks": len(indices), "variants": results}
    write_result(args.out, figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--minutes", type=float, default=11.0)
    parser.add_argument("--batch-size", type=int, default=1280)
    parser.add_argument("--processor", default="cuda")
    parser.add_argument("--images", default="1000", help="search images a network is scored on")
    parser.add_argument("--calibration-images", type=int, default=512)
    parser.add_argument("--sample", type=int, default=2000, help="networks")
    parser.add_argument("--out", type=Path, default=RESULTS / "rank_trainings.json")
    args = parser.parse_args()
    if args.variant is None:
        compare(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
