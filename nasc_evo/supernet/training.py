"""Training of supernets: sandwich rule, in-place distillation, transmission in the loop.

Each step trains the largest network on the labels and random networks on its soft answers, the
labels, or a mixture of both. Random networks are drawn *fairly* (every operation of a layer equally
often) or with evenly distributed depths, and some of them send their tensor through a random cut,
mask and quantiser, so that what a search asks for is in distribution. Every random choice is a
function of the seed and the number of the batch, hence training resumed from a checkpoint goes on
exactly as if it had never stopped, and several processes (:mod:`nasc_evo.supernet.processes`) know
without a word what each has to do.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nasc_evo import __version__
from nasc_evo.data.images import ImageDataset
from nasc_evo.errors import UserError, one_line
from nasc_evo.files import check_uncompressed
from nasc_evo.space.architecture import ArchitectureSpace
from nasc_evo.space.fbnet import OPS, SKIP, FBNetSpace
from nasc_evo.space.genome import SplitSpace
from nasc_evo.supernet.blocks import Calibration, batch_norm_unit, has_triton
from nasc_evo.supernet.fair_turn import NETWORKS, FairTurn
from nasc_evo.supernet.inputs import normalize, pad_and_resize, to_input, to_uint8
from nasc_evo.supernet.model import (
    FBNetSupernet,
    Supernet,
    Transmission,
    build_supernet,
    run_blocks,
)
from nasc_evo.supernet.processes import join_processes
from nasc_evo.supernet.progress import TrainingProgress
from nasc_evo.supernet.weights import (
    find_weights,
    load_importance,
    load_supernet,
    read_manifest,
    save_supernet,
)

MASK_GROUPS = 8
KEPT_GROUPS = (1, 2, 3, 4, 6, 8)
TRANSMIT_BITS = (4, 6, 8, 32)


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe.

    Attributes:
        epochs: Passes over the training images.
        minutes: Train this long instead, where that ends before `epochs`: the learning rate then
            falls with the time spent. The first step, which compiles and captures, does not count.
        batch_size: Images a step, in each process where several train together.
        learning_rate: Peak of the schedule (linear warm-up, then cosine to 0).
        warmup: Fraction of the steps spent on warm-up.
        momentum: Nesterov momentum of SGD.
        weight_decay: Of convolutions and classifier, not of norms and biases.
        label_smoothing: For the largest network.
        random_paths: Random networks a step.
        split_batch: Whether each of them trains on a part of the batch of its own, not on all of
            it. On a GPU, five of NAS-Bench-201 then run at once.
        largest_every: Steps between those that train the largest network; in the others it only
            teaches the random ones. 0 for never.
        init: Weight file to start from; None starts afresh.
        distillation: Share of the largest network's soft answers in what random networks learn;
            the rest is the labels.
        even_depth: Share of random networks that skip any number of layers equally often (FBNet
            only). Where every operation is as frequent as the others, hardly any network skips
            many layers, and the fast end of a front inherits far too little.
        transmission: Share of random networks that send through a cut.
        leading: Share of these that send the most important groups of channels, by the order that
            `init` holds, or the first ones where there is none; the others send random ones.
        gradient_clip: Largest norm of the gradient.
        ema: Decay of the averaged weights, which are the result.
        crop_padding: Pixels of the random shift.
        cutout: Side of the square that is blanked, in pixels at 32x32.
        cutmix: Share of steps in which a rectangle of every image comes from another one, and its
            share of the label too (Yun et al., ICCV 2019).
        validate_every: Epochs between validations.
        validation_paths: Random networks a validation scores, beside the largest; a share of
            `even_depth` of them are of even depth.
        validation_images: Images of the search split a validation uses.
        seed: Of everything.
        dtype: `"auto"` (bfloat16 on a GPU, float32 on a CPU), `"float32"` or `"bfloat16"`.
        processor: `"auto"`, `"cpu"` or `"cuda"`.
        threads: Threads of torch on a CPU.
        cuda_graphs: Replay captured blocks on a GPU where Triton is there: with FBNet, and with
            NAS-Bench-201 for `random_paths=5 split_batch=true`. On a GPU, with them or without,
            weights that a step does not use still decay and keep their momentum.
    """

    epochs: int = 60
    minutes: float | None = None
    batch_size: int = 1024
    learning_rate: float = 0.4
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-5
    label_smoothing: float = 0.1
    random_paths: int = 2
    split_batch: bool = False
    largest_every: int = 1
    init: str | None = None
    distillation: float = 1.0
    even_depth: float = 0.0
    transmission: float = 0.5
    leading: float = 0.5
    gradient_clip: float = 5.0
    ema: float = 0.998
    crop_padding: int = 2
    cutout: int = 8
    cutmix: float = 0.0
    validate_every: int = 5
    validation_paths: int = 16
    validation_images: int = 1000
    seed: int = 0
    dtype: str = "auto"
    processor: str = "auto"
    threads: int = 2
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        kinds: dict[Any, tuple[tuple[type, ...], str]] = {
            int: ((int,), "a whole number"),
            float: ((int, float), "a number"),
            float | None: ((int, float, type(None)), "a number or null"),
            bool: ((bool,), "true or false"),
        }
        for field in fields(self):
            types, kind = kinds.get(field.type, ((str, type(None)), "a text"))
            value = getattr(self, field.name)
            if not isinstance(value, types) or isinstance(value, bool) != (field.type is bool):
                raise UserError(f"training.{field.name} must be {kind}, got {value!r}.")
        positive = ("epochs", "batch_size", "learning_rate", "validate_every", "validation_images")
        for name in (*positive, "validation_paths", "threads", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"training.{name} must be above 0, got {getattr(self, name)}.")
        if self.minutes is not None and not self.minutes > 0:
            raise UserError(f"training.minutes must be above 0 or null, got {self.minutes}.")
        for name in (
            *("warmup", "momentum", "label_smoothing"),
            *("distillation", "even_depth", "transmission", "leading", "ema", "cutmix"),
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"training.{name} must be in 0..1, got {getattr(self, name)}.")
        not_negative = ("random_paths", "weight_decay", "crop_padding", "cutout", "seed")
        for name in (*not_negative, "largest_every"):
            if not getattr(self, name) >= 0:
                raise UserError(f"training.{name} must not be negative, got {getattr(self, name)}.")
        if self.split_batch and (not self.random_paths or self.batch_size % self.random_paths):
            raise UserError(
                f"training.split_batch=true gives each of training.random_paths="
                f"{self.random_paths} networks the same number of images; "
                f"training.batch_size={self.batch_size} must be a multiple of it."
            )
        if not self.random_paths and not self.largest_every:
            raise UserError("training.random_paths and training.largest_every are both 0.")
        if self.distillation > 0 and not self.largest_every:
            raise UserError(
                f"training.distillation={self.distillation} has random networks learn from the "
                "largest one, which training.largest_every=0 never trains; set one of them."
            )
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(
                f"training.dtype must be auto, float32 or bfloat16, got '{self.dtype}'."
            )
        if self.processor not in ("auto", "cpu", "cuda"):
            raise UserError(
                f"training.processor must be auto, cpu or cuda, got '{self.processor}'."
            )


STAGE = ("sha256", "recipe", "steps", "processes", "seconds", "validation", "machine", "commit")


def even_depth_path(path: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return an FBNet path `[layers]` that skips any number of layers, each number as likely.

    Layers that are not skipped keep their operation, or get any other one where that was to skip.
    """
    layers = len(path)
    others = np.delete(np.arange(len(OPS)), SKIP)
    kept = np.where(path == SKIP, rng.choice(others, layers), path)
    skipped = rng.permutation(layers) < rng.integers(0, layers + 1)
    return np.where(skipped, SKIP, kept)


def _checksum(value: Tensor) -> int:
    """Return a number that depends on every bit of a float32 tensor."""
    return int(value.contiguous().view(torch.int32).sum(dtype=torch.int64))


def _stages(manifest: Mapping[str, Any]) -> list[Any]:
    """Return how stored weights were trained: the stages before their last one, and that one."""
    last = {key: manifest[key] for key in STAGE if key in manifest}
    earlier = manifest.get("earlier_stages")
    return [*(earlier if isinstance(earlier, list) else []), last]


class Trainer:
    """Trains the supernet of a space on a data set.

    Attributes:
        criterion: Which of the accuracies of :meth:`validate` says what weights are the best.

    Args:
        space: Space of architectures.
        dataset: Training images.
        config: The recipe.
        folder: Where checkpoint, log and weights go; training goes on from a checkpoint there.

    Raises:
        UserError: If the checkpoint belongs to another recipe or is damaged.
    """

    criterion = "mean"

    def __init__(
        self,
        space: ArchitectureSpace,
        dataset: ImageDataset,
        config: TrainingConfig,
        folder: Path,
    ) -> None:
        self.space, self.dataset, self.config, self.folder = space, dataset, config, folder
        self._check_recipe()
        processor = config.processor
        if processor == "auto":
            processor = "cuda" if torch.cuda.is_available() else "cpu"
        if processor == "cuda" and not torch.cuda.is_available():
            raise UserError("training.processor=cuda needs a CUDA device and there is none.")
        self.processes = join_processes()
        self.device = torch.device(processor)
        if processor == "cuda":
            if self.processes.local >= torch.cuda.device_count():
                raise UserError(
                    f"{self.processes.local + 1} or more processes train on this machine, which "
                    f"has {torch.cuda.device_count()} GPUs; start one a GPU."
                )
            self.device = torch.device(processor, self.processes.local)
            torch.cuda.set_device(self.device)
        dtype = config.dtype
        if dtype == "auto":
            dtype = "bfloat16" if processor == "cuda" else "float32"
        self.dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
        torch.set_num_threads(config.threads)
        train = dataset.split("train")
        if config.batch_size > len(train):
            raise UserError(
                f"training.batch_size={config.batch_size} is more than the {len(train)} training "
                f"images of {dataset.name}."
            )
        self.train_sha256 = dataset.digest(train)
        self.x = to_uint8(train.x, self.device)
        self.y = torch.from_numpy(train.y).to(self.device)
        self.earlier_stages: list[Any] = []
        self.importance: dict[int, NDArray[np.float64]] = {}
        if config.init is None:
            self.supernet = build_supernet(space, torch.Generator().manual_seed(config.seed))
        else:
            path = find_weights(space, dataset, config.init)
            self.supernet = load_supernet(space, dataset, path).train().requires_grad_(True)
            self.earlier_stages = _stages(read_manifest(path, space, dataset))
            self.importance = load_importance(path)
        self.group_order = SplitSpace(
            space, mask_groups=MASK_GROUPS, channel_importance=self.importance
        ).importance
        self.supernet.to(self.device)
        self.averaged = [p.detach().clone() for p in self.supernet.parameters()]
        self.gradients = self.processes.gradients(self.supernet)
        self.optimizer = self._optimizer()
        self.batches_per_epoch = len(train) // config.batch_size
        self.steps_per_epoch = max(1, self.batches_per_epoch // self.processes.count)
        self.steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.seconds = 0.0
        self.best: dict[str, Any] = {self.criterion: -1.0}
        self.checkpoint = folder / "checkpoint.pt"
        self._log_file = folder / "log.csv"
        if self.checkpoint.exists():
            self._load()
        if self.processes.differ([self.step, *map(_checksum, self.averaged)]):
            raise UserError(
                f"The processes of this training begin differently, this one at step {self.step}: "
                "give all of them the same files and the same folder, with its checkpoint."
            )

    def _check_recipe(self) -> None:
        """Raise a UserError if the space has no use for an option."""
        if self.config.even_depth > 0 and not isinstance(self.space, FBNetSpace):
            raise UserError(
                f"training.even_depth={self.config.even_depth} is for the layers of FBNet, which "
                f"may be skipped; set it to 0 for {self.space.name}."
            )

    def _optimizer(self) -> torch.optim.SGD:
        decayed = [p for p in self.supernet.parameters() if p.ndim > 1]
        free = [p for p in self.supernet.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        fused = self.device.type == "cuda"
        if fused:  # the momentum of all weights must begin in the same step
            for p in self.supernet.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        momentum = self.config.momentum
        return torch.optim.SGD(
            groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=fused
        )

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, *stream])

    @property
    def progress(self) -> float:
        """Share of the training that is done, 1 at its end: of the steps or of the time."""
        spent = 0.0 if self.config.minutes is None else self.seconds / (60 * self.config.minutes)
        return min(1.0, max(self.step / self.steps, spent))

    def learning_rate(self) -> float:
        """Return the learning rate of the next step: linear warm-up, then cosine to 0."""
        done = self.progress
        warmup = max(self.config.warmup, 1 / self.steps)
        peak, first = self.config.learning_rate, 1 / self.steps
        if done < warmup:
            return peak * (done + first) / (warmup + first)
        return peak * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))

    def fair_path(self, index: int) -> tuple[int, ...]:
        """Return random path `index`; each run of as many paths as there are ops uses each once."""
        choices = [len(ops) for ops in self.space.gene_ops]
        turn, place = divmod(index, max(choices))
        rng = self._rng(1, turn)
        columns = [rng.permutation(max(choices)) % n for n in choices]
        return tuple(int(column[place]) for column in columns)

    def random_path(self, index: int) -> tuple[int, ...]:
        """Return random path `index`: a fair one, or one of even depth where that is asked for."""
        rng, path = self._rng(8, index), np.array(self.fair_path(index))
        if rng.random() >= self.config.even_depth:
            return tuple(path.tolist())
        return tuple(even_depth_path(path, rng).tolist())

    def random_transmission(self, rng: np.random.Generator) -> list[Transmission]:
        """Return a random cut with a mask, whole groups, and bits: leading or random groups."""
        cut = int(rng.integers(1, self.space.n_blocks))
        kept = int(rng.choice(KEPT_GROUPS))
        groups = (
            self.group_order[cut]
            if rng.random() < self.config.leading
            else rng.permutation(MASK_GROUPS)
        )
        mask = np.zeros(MASK_GROUPS, dtype=bool)
        mask[groups[:kept]] = True
        channels = np.repeat(mask, self.space.cut_shapes[cut][0] // MASK_GROUPS)
        tensor = torch.from_numpy(channels).to(self.device)
        return [(cut, tensor, int(rng.choice(TRANSMIT_BITS)))]

    def random_networks(self) -> tuple[list[tuple[int, ...]], list[list[Transmission]]]:
        """Return the random networks of this process's step, and what each of them sends."""
        number, count = self.batch_number, self.config.random_paths
        networks = [self.random_path(number * count + i) for i in range(count)]
        rng = self._rng(4, number)
        sent = [
            self.random_transmission(rng) if rng.random() < self.config.transmission else []
            for _ in networks
        ]
        return networks, sent

    @property
    def batch_number(self) -> int:
        """Number of the batch that this process trains on next; no two have the same."""
        return self.step * self.processes.count + self.processes.number

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the augmented images and the labels of a batch."""
        epoch, place = divmod(number, self.batches_per_epoch)
        size = self.config.batch_size
        index = self._order(epoch)[place * size : (place + 1) * size]
        images = pad_and_resize(self.x[index], self.dataset)
        images = self._augment(images, self._rng(3, number))
        return normalize(images, self.dataset, self.dtype), self.y[index]

    @lru_cache(maxsize=1)  # noqa: B019
    def _order(self, epoch: int) -> Tensor:
        """Return the order in which an epoch takes the training images."""
        order = self._rng(2, epoch).permutation(len(self.y))
        return torch.from_numpy(order).to(self.device)

    def _augment(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Shift, flip and blank a square, each image its own way."""
        n, _, height, width = images.shape
        scale = height // 32
        shift = self.config.crop_padding * scale
        side = self.config.cutout * scale

        def draw(high: int) -> Tensor:
            return torch.from_numpy(rng.integers(0, high, n)).to(self.device)

        dy, dx = draw(2 * shift + 1), draw(2 * shift + 1)
        flip = draw(2).bool()
        top, left = draw(height) - side // 2, draw(width) - side // 2
        rows = torch.arange(height, device=self.device)
        columns = torch.arange(width, device=self.device)
        source = torch.where(flip[:, None], width - 1 - columns, columns)
        y_index = (rows + dy[:, None])[:, None, :, None]
        x_index = (source + dx[:, None])[:, None, None, :]
        padded = F.pad(images, (shift,) * 4)
        channel = torch.arange(images.shape[1], device=self.device)[None, :, None, None]
        sample = torch.arange(n, device=self.device)[:, None, None, None]
        images = padded[sample, channel, y_index, x_index]
        in_rows = (rows >= top[:, None]) & (rows < (top + side)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + side)[:, None])
        return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)

    def mix(self, x: Tensor, target: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return images and label probabilities `[N, classes]` of a batch, mixed in its share."""
        rng = self._rng(7, number)
        if rng.random() >= self.config.cutmix:
            return x, target
        height, width = x.shape[2:]
        side = math.sqrt(rng.random())
        (top, bottom), (left, right) = (
            np.clip(np.rint(rng.random() * n + np.array([-0.5, 0.5]) * side * n), 0, n).astype(int)
            for n in (height, width)
        )
        other = torch.from_numpy(rng.permutation(len(x))).to(x.device)
        mixed = x.clone()
        mixed[:, :, top:bottom, left:right] = x[other, :, top:bottom, left:right]
        share = (bottom - top) * (right - left) / (height * width)
        return mixed, torch.lerp(target, target[other], share)

    def logits(
        self, x: Tensor, ops: Sequence[int], transmissions: Sequence[Transmission] = ()
    ) -> Tensor:
        """Return what one network of the supernet says to a batch of training images."""
        captured = None if isinstance(self.graphs, FairTurn) else self.graphs
        blocks = (captured or self.supernet).blocks(ops)
        return run_blocks(blocks, x, batch_norm_unit, transmissions)

    @cached_property
    def graphs(self) -> Any:
        """Captured blocks, None where blocks run one kernel after the other."""
        config, supernet = self.config, self.supernet
        if not (config.cuda_graphs and self.device.type == "cuda" and has_triton()):
            return None
        if isinstance(supernet, FBNetSupernet):
            fits = not config.split_batch  # every batch has the captured size
        else:
            fits = config.split_batch and config.random_paths == NETWORKS
        if not fits:
            return None
        from nasc_evo.supernet.graphs import BlockGraphs, captured_turn

        if isinstance(supernet, FBNetSupernet):
            return BlockGraphs(supernet, config.batch_size, self.dtype)
        return captured_turn(supernet, config.batch_size, self.dtype)

    @property
    def networks_a_step(self) -> float:
        """Networks through which a step puts each image, in the mean."""
        config = self.config
        largest = 1 / config.largest_every if config.largest_every else 0.0
        return largest + (1 if config.split_batch else config.random_paths)

    def train_step(self) -> Tensor:
        """Do one step; return its loss, see :meth:`add_gradients`."""
        config, step, number = self.config, self.step, self.batch_number
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        x, y = self.batch(number)
        kept = self.device.type == "cuda" or self.gradients is not None
        self.optimizer.zero_grad(set_to_none=not kept)
        smoothing = config.label_smoothing
        target = F.one_hot(y, self.space.n_classes) * (1 - smoothing)
        x, target = self.mix(x, target + smoothing / self.space.n_classes, number)
        loss = self.add_gradients(x, target)
        if self.gradients is not None:
            self.processes.average(self.gradients)
        torch.nn.utils.clip_grad_norm_(self.supernet.parameters(), config.gradient_clip)
        self.optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        parameters = [p.detach() for p in self.supernet.parameters()]
        torch._foreach_lerp_(self.averaged, parameters, 1 - decay)
        self.step += 1
        return loss.detach()

    def add_gradients(self, x: Tensor, target: Tensor) -> Tensor:
        """Add the gradients of a step; return the loss of the largest network.

        Random networks learn from the largest one's answers, the labels, or a mixture of both.
        Where the largest network takes no part, the loss is that of a random one.

        Args:
            x: Images.
            target: Probabilities of their labels, `[N, classes]`.
        """
        config = self.config
        loss = None
        trains_largest = config.largest_every > 0 and self.step % config.largest_every == 0
        if trains_largest or config.distillation > 0:
            with torch.set_grad_enabled(trains_largest):
                logits = self.logits(x, self.supernet.largest())
                loss = F.cross_entropy(logits, target)
            if trains_largest:
                loss.backward()
            target = torch.lerp(target, logits.detach().softmax(dim=1), config.distillation)
        count = config.random_paths
        networks, transmissions = self.random_networks()
        if isinstance(self.graphs, FairTurn):
            random_loss = F.cross_entropy(self.graphs(x, networks, transmissions), target)
            (count * random_loss).backward()
            return random_loss if loss is None else loss
        for i, ops in enumerate(networks):
            images, labels = x, target
            if config.split_batch:
                images, labels = x.chunk(count)[i], target.chunk(count)[i]
            random_loss = F.cross_entropy(self.logits(images, ops, transmissions[i]), labels)
            random_loss.backward()
            loss = random_loss if loss is None else loss
        assert loss is not None
        return loss

    def run(
        self,
        report: Callable[[TrainingProgress], None] = lambda progress: None,
        max_seconds: float | None = None,
        checkpoint_seconds: float = 120.0,
    ) -> Path | None:
        """Train to the end, or until `max_seconds` have passed.

        Args:
            report: Called after every step.
            max_seconds: Stop with a checkpoint after this time.
            checkpoint_seconds: Seconds between checkpoints.

        Returns:
            What :meth:`finish` wrote, or None if time ran out first. Of several processes only
            the first writes anything; the others return the folder.
        """
        first = self.processes.first
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
        start = saved = self.processes.clock()
        clock = None
        first_step = self.step
        images_a_step = self.config.batch_size * self.processes.count * self.networks_a_step
        loss_shown = None
        try:
            while self.progress < 1:
                loss = self.train_step()
                validation = None
                now = self.processes.clock()
                self.seconds += 0.0 if clock is None else now - clock
                clock = now
                ended = self.progress == 1
                if self.step % 10 == 0 or ended:
                    loss_shown = float(loss)
                    if not math.isfinite(loss_shown):
                        raise UserError(
                            f"The training loss is not finite at step {self.step}; lower "
                            "training.learning_rate."
                        )
                rate = (self.step - first_step) * images_a_step / (now - start)
                period = self.config.validate_every * self.steps_per_epoch
                if first and (self.step % period == 0 or ended):
                    validation = self._validate_and_keep(loss_shown, rate)
                report(TrainingProgress(self.step, self.steps, loss_shown, rate, validation))
                if first and now - saved > checkpoint_seconds:
                    self.save()
                    saved = now
                if max_seconds is not None and now - start > max_seconds:
                    break
        finally:
            if first:
                self.save()
        self.processes.wait_for_first()
        if self.progress < 1:
            return None
        return self.finish() if first else self.folder

    def averaged_supernet(self, weights: list[Tensor] | None = None) -> Supernet:
        """Return a supernet with the averaged (or the given) weights."""
        supernet = build_supernet(self.space).to(self.device)
        with torch.no_grad():
            for p, value in zip(supernet.parameters(), weights or self.averaged, strict=True):
                p.copy_(value)
        return supernet.eval().requires_grad_(False)

    def _validate_and_keep(self, loss: float | None, rate: float) -> dict[str, float]:
        validation = self.validate(self.averaged_supernet())
        if validation[self.criterion] >= self.best.get(self.criterion, -1.0):
            weights = [p.cpu().clone() for p in self.averaged]
            self.best = {**validation, "step": self.step, "weights": weights}
        row = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 3),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "loss": loss,
            **validation,
            "images_per_second": round(rate, 1),
        }
        new = not self._log_file.exists()
        with open(self._log_file, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        return validation

    def validation_paths(self, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """Return the random networks of a validation, those of even depth first."""
        sizes = [len(ops) for ops in self.space.gene_ops]
        count, paths = self.config.validation_paths, []
        for number in range(count):
            path = rng.integers(0, sizes)
            even = number < self.config.even_depth * count
            paths.append(tuple((even_depth_path(path, rng) if even else path).tolist()))
        return paths

    @torch.inference_mode()
    def validate(self, supernet: Supernet) -> dict[str, float]:
        """Return accuracies on search images of the largest and of random networks."""
        images = self.dataset.split("search").first(self.config.validation_images)
        x = to_input(images.x, self.dataset, self.device, self.dtype)
        y = torch.from_numpy(images.y).to(self.device)
        calibration_images = self.dataset.split("calibration").first(256)
        calibration_x = to_input(calibration_images.x, self.dataset, self.device, self.dtype)
        rng = self._rng(5)
        paths = [supernet.largest()]
        paths += self.validation_paths(rng)
        accuracies = []
        for ops in paths:
            calibration = Calibration()
            supernet(calibration_x, ops, calibration)
            correct = 0
            for part, labels in zip(x.split(250), y.split(250), strict=True):
                predicted = supernet(part, ops, calibration.folded()).argmax(dim=1)
                correct += int((predicted == labels).sum())
            accuracies.append(correct / len(y))
        return {
            "largest": accuracies[0],
            "median": float(np.median(accuracies[1:])),
            "lowest": min(accuracies[1:]),
            "mean": float(np.mean(accuracies)),
        }

    def channel_importance(
        self, supernet: Supernet, n_paths: int = 8
    ) -> dict[int, NDArray[np.float64]]:
        """Return a score a channel at each inner cut: larger means worse to leave out.

        The score is the first-order estimate of the change of the loss when the channel is set to
        zero, `|mean over images of sum(activation x gradient)|` (Molchanov et al., ICLR 2017),
        summed over random networks.
        """
        images = self.dataset.split("calibration")
        x = to_input(images.x, self.dataset, self.device, self.dtype)
        y = torch.from_numpy(images.y).to(self.device)
        rng = self._rng(6)
        sizes = [len(ops) for ops in self.space.gene_ops]
        scores = {
            cut: np.zeros(self.space.cut_shapes[cut][0]) for cut in range(1, self.space.n_blocks)
        }
        for _ in range(n_paths):
            activations = []
            value = x
            for index, block in enumerate(supernet.blocks(tuple(rng.integers(0, sizes)))):
                if index > 0:
                    value = value.detach().requires_grad_(True) if index == 1 else value
                    value.retain_grad()
                    activations.append(value)
                value = block(value, batch_norm_unit)
            F.cross_entropy(value, y).backward()
            for cut, activation in enumerate(activations, start=1):
                assert activation.grad is not None
                change = (activation.float() * activation.grad.float()).sum(dim=(2, 3))
                scores[cut] += change.abs().mean(dim=0).double().detach().cpu().numpy()
        return scores

    def finish(self) -> Path:
        """Write the best averaged weights with importance and manifest; return the weight file.

        Where masks were drawn by the importance of channels that `init` holds, that stays.
        """
        weights = [p.to(self.device) for p in self.best["weights"]]
        supernet = self.averaged_supernet(weights)
        kept = ("largest", "median", "lowest", "mean", "step")
        validation = {key: self.best[key] for key in kept if key in self.best}
        details = {
            "recipe": self.recipe(),
            "steps": self.step,
            "processes": self.processes.count,
            "seconds": round(self.seconds, 1),
            "earlier_stages": self.earlier_stages,
            "train_sha256": self.train_sha256,
            "validation": {
                "split": "search",
                "images": self.config.validation_images,
                **validation,
            },
            "versions": {"nasc_evo": __version__, "torch": str(torch.__version__)},
        }
        importance = self.channel_importance(supernet)
        if self.config.transmission * self.config.leading > 0:
            importance |= self.importance
        return save_supernet(supernet, self.dataset, self.folder, importance, details)

    def recipe(self) -> dict[str, Any]:
        """Return the recipe as manifests state it: weights to start from by their sha256."""
        init = self.earlier_stages[-1]["sha256"] if self.earlier_stages else None
        return asdict(self.config) | {"init": init}

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a checkpoint to go on here."""
        return {
            "space": self.space.name,
            "geometry": self.space.geometry,
            "dataset": self.dataset.name,
            "train_sha256": self.train_sha256,
            "recipe": self.recipe() | {"processor": "", "threads": 0},
            "processes": self.processes.count,
        }

    def save(self) -> None:
        """Write the checkpoint; a crash while writing leaves the earlier one."""
        state = {
            "identity": json.dumps(self.identity(), sort_keys=True),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.supernet.state_dict(),
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def _load(self) -> None:
        try:
            check_uncompressed(self.checkpoint)
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            written = json.loads(state["identity"])
            defaults = {f.name: f.default for f in fields(TrainingConfig)}
            written["recipe"] = defaults | written["recipe"]  # an older one lacks newer options
            written = {"processes": 1, **written}
            if written == self.identity():
                if type(state["step"]) is not int or not 0 <= state["step"] <= self.steps:
                    raise ValueError(f"step {state['step']!r} of {self.steps}")
                if [v.shape for v in state["averaged"]] != [v.shape for v in self.averaged]:
                    raise ValueError("the averaged weights are those of another network")
                self.supernet.load_state_dict(state["model"])
                self.averaged = [value.to(self.device) for value in state["averaged"]]
                self.optimizer.load_state_dict(state["optimizer"])
                for group in self.optimizer.param_groups:
                    group["fused"] = self.device.type == "cuda"
                self.step, self.best = state["step"], state["best"]
                self.seconds = float(state["seconds"])
                return
        except Exception as error:  # torch.load has no common type for damaged files
            raise UserError(
                f"The checkpoint {self.checkpoint} is damaged ({one_line(error)[:200]}); delete it "
                "to train from the beginning."
            ) from error
        raise UserError(
            f"The checkpoint {self.checkpoint} belongs to another space, data set, recipe or "
            "number of processes; train in another folder, or as it was begun."
        )
