"""Shall the operations of an FBNet layer share weights, and does half precision lose any accuracy?

    NASC_EVO_DATA=<data> python benchmarks/weight_sharing.py --folder DIR --variant entangled
    NASC_EVO_DATA=<data> python benchmarks/weight_sharing.py --folder DIR --variant separate
    python benchmarks/weight_sharing.py --folder DIR

The first two train supernets for Fashion-MNIST from the beginning for the same time, one whose
operations are slices of one set of weights a layer, as in the supernets that ship, and one in
which each operation has weights of its own. Start them together, they share a GPU. The third
writes what both say: accuracies of the largest and of random networks on search images, with
float32 weights and with these rounded to half precision, as weight files hold them.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

import torch
from common import RESULTS, write_result
from torch import Tensor, nn

from nasc_evo.data.fashion_mnist import FashionMnist
from nasc_evo.space import FBNetSpace
from nasc_evo.space.fbnet import OPS
from nasc_evo.supernet.blocks import ConvBlock
from nasc_evo.supernet.model import FBNetLayer, FBNetSupernet, Supernet
from nasc_evo.supernet.training import Trainer, TrainingConfig

VARIANTS = ("entangled", "separate")


class SeparateLayer(nn.Module):
    """A layer each of whose operations has weights of its own."""

    def __init__(self, layer: FBNetLayer, generator: torch.Generator) -> None:
        super().__init__()
        self.own = nn.ModuleDict({name: FBNetLayer(layer.geometry, generator) for name in OPS})

    def block(self, name: str) -> ConvBlock:
        """Return the block of operation `name`."""
        return cast(FBNetLayer, self.own[name]).block(name)


class SharingTrainer(Trainer):
    """Trains one variant from the beginning; arguments beyond it are those of :class:`Trainer`."""

    def __init__(self, variant: str, *others: Any) -> None:
        super().__init__(*others)
        self.variant = variant
        self.supernet = self.build().to(self.device)
        self.averaged = [p.detach().clone() for p in self.supernet.parameters()]
        self.optimizer = self._optimizer()

    def build(self) -> FBNetSupernet:
        """Return a supernet with fresh weights."""
        generator = torch.Generator().manual_seed(self.config.seed)
        supernet = FBNetSupernet(cast(FBNetSpace, self.space), generator)
        if self.variant == "separate":
            layers = [SeparateLayer(cast(FBNetLayer, x), generator) for x in supernet.layers]
            supernet.layers = nn.ModuleList(layers)
        return supernet

    def averaged_supernet(self, weights: list[Tensor] | None = None) -> Supernet:
        """Return a supernet with the averaged (or the given) weights."""
        supernet = self.build().to(self.device)
        with torch.no_grad():
            for p, value in zip(supernet.parameters(), weights or self.averaged, strict=True):
                p.copy_(value)
        return supernet.eval().requires_grad_(False)

    def finish(self) -> Path:
        """Write what the averaged weights are worth."""
        self.dtype = torch.float32
        halved = [p.half().float() for p in self.averaged]
        figures = {
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "float32_weights": self.validate(self.averaged_supernet()),
            "float16_weights": self.validate(self.averaged_supernet(halved)),
        }
        path = self.folder / "figures.json"
        path.write_text(json.dumps(figures), encoding="utf-8")
        return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--networks", type=int, default=100, help="random ones that are scored")
    parser.add_argument("--processor", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS / "weight_sharing.json")
    args = parser.parse_args()
    if args.variant is None:
        files = {v: args.folder / v / "figures.json" for v in VARIANTS}
        for variant, path in files.items():
            if not path.is_file():
                sys.exit(f"{path} is missing; train --variant {variant} first.")
        found = {v: json.loads(path.read_text(encoding="utf-8")) for v, path in files.items()}
        write_result(args.out, {"dataset": "fashion_mnist", "variants": found})
        return
    if (args.folder / args.variant).exists():
        sys.exit(f"{args.folder / args.variant} is there already; trainings start anew.")
    config = TrainingConfig(
        epochs=100000,
        minutes=args.minutes,
        batch_size=args.batch_size,
        learning_rate=0.25,
        random_paths=4,
        transmission=0.3,
        gradient_clip=10.0,
        ema=0.99,
        cutout=4,
        validate_every=100000,
        validation_paths=args.networks,
        validation_images=2000,
        processor=args.processor,
        cuda_graphs=False,
    )
    dataset = FashionMnist()
    space = FBNetSpace(32, dataset.n_classes)
    SharingTrainer(args.variant, space, dataset, config, args.folder / args.variant).run()


if __name__ == "__main__":
    main()
