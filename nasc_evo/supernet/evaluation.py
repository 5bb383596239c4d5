"""Accuracy of candidates by inherited weights, without any training.

A candidate takes its weights from the supernet. Its batch-norm statistics, which belong to its
own path, cut, mask and bits, come from one pass over fixed calibration images of the training
split; they are folded into its convolutions, and the folded network - the one that would be
deployed - is scored. The result depends on weights, images, phenotype and *numerics* alone.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nasc_evo.data.images import ImageDataset
from nasc_evo.errors import UserError
from nasc_evo.space.architecture import ArchitectureSpace
from nasc_evo.space.genome import Design
from nasc_evo.supernet.blocks import Calibration, Unit
from nasc_evo.supernet.inputs import to_input
from nasc_evo.supernet.model import Supernet
from nasc_evo.supernet.score import Score
from nasc_evo.supernet.transmission import channel_mask
from nasc_evo.supernet.weights import file_sha256, find_weights, load_supernet

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def has_native_bfloat16() -> bool:
    """Return whether this processor computes in bfloat16 (AVX-512 BF16 or AMX)."""
    try:
        capabilities = torch.cpu.get_capabilities()
    except AttributeError:  # torch < 2.11
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning them to the system each time.

    Activations of tens of megabytes come and go with every layer; getting fresh pages for each of
    them takes a third of the time of a calibration. Without glibc nothing happens.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)


class SupernetEvaluator:
    """Scores candidates by the weights they inherit from a supernet.

    Args:
        space: The space of architectures.
        dataset: The images.
        images: How many images of the search split a search uses, or `"full"`.
        calibration_images: How many training images give batch norm its statistics.
        dtype: `"float32"`, `"bfloat16"`, or `"auto"`: bfloat16 where the processor has it.
        chunk: Images evaluated at a time.
        threads: Threads of torch.
        processor: `"cpu"` or a torch device such as `"cuda"`.
        weights: Weight file; by default the one that ships for space and data set.

    Raises:
        UserError: If an option is out of range or there are no weights.
    """

    def __init__(
        self,
        space: ArchitectureSpace,
        dataset: ImageDataset,
        *,
        images: int | str = 512,
        calibration_images: int = 128,
        dtype: str = "auto",
        chunk: int = 32,
        threads: int = 2,
        processor: str = "cpu",
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, value in (
            ("calibration_images", calibration_images),
            ("chunk", chunk),
            ("threads", threads),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"evaluator.{name} must be a positive whole number, got {value!r}.")
        whole = isinstance(images, int) and not isinstance(images, bool)
        if images != "full" and not (whole and images >= 1):  # type: ignore[operator]
            raise UserError(
                f"evaluator.images must be a positive whole number or 'full', got {images!r}."
            )
        if dtype not in (*DTYPES, "auto"):
            raise UserError(
                f"evaluator.dtype must be one of auto, {', '.join(DTYPES)}, got {dtype!r}."
            )
        if str(processor).split(":")[0] not in ("cpu", "cuda"):
            raise UserError(f"evaluator.processor must be cpu or cuda, got {processor!r}.")
        self.device = torch.device(processor)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("evaluator.processor=cuda needs a CUDA device and there is none.")
        if dtype == "auto":
            fast = self.device.type == "cuda" or has_native_bfloat16()
            dtype = "bfloat16" if fast else "float32"
        self.space = space
        self.dataset = dataset
        self.calibration_images = calibration_images
        self.dtype = dtype
        self.chunk = chunk
        self.threads = threads
        self.weights = find_weights(space, dataset, weights)
        if self.device.type == "cpu":
            keep_freed_memory()
        self._inputs: dict[str, tuple[Tensor, Tensor]] = {}
        available = len(dataset.split("calibration"))
        if calibration_images > available:
            raise UserError(
                f"evaluator.calibration_images={calibration_images} is more than the {available} "
                f"calibration images of {dataset.name}."
            )
        available = self.split_size("search")
        self.images: int = available if images == "full" else int(images)
        if self.images > available:
            raise UserError(
                f"evaluator.images={self.images} is more than the {available} images of the "
                f"search split of {dataset.name}; give at most that or 'full'."
            )

    def split_size(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self._split(split)[1])

    def describe(self) -> dict[str, Any]:
        """Return weights, images and numerics: what an accuracy is a function of."""
        return {
            "weights_sha256": self._weights_sha256,
            "dataset": self.dataset.name,
            "search_sha256": self._search_sha256,
            "images": self.images,
            "numerics": {
                "dtype": self.dtype,
                "statistics": f"calibration on {self.calibration_images} training images",
                "chunk": self.chunk,
                "threads": self.threads,
                "processor": self.device.type,
                "backend": "torch eager, folded convolutions (by oneDNN on a CPU), channels_last",
            },
        }

    @cached_property
    def _weights_sha256(self) -> str:
        return file_sha256(self.weights)

    @cached_property
    def _search_sha256(self) -> str:
        return self.dataset.digest(self.dataset.split("search"))

    @cached_property
    def supernet(self) -> Supernet:
        """The network whose weights candidates inherit."""
        supernet = load_supernet(self.space, self.dataset, self.weights)
        return supernet.to(self.device)

    @cached_property
    def _calibration(self) -> Tensor:
        images = self.dataset.split("calibration").first(self.calibration_images)
        return to_input(images.x, self.dataset, self.device, DTYPES[self.dtype])

    def _split(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the inputs and labels of a split, kept after the first call."""
        if split not in self._inputs:
            images = self.dataset.split(split)
            inputs = to_input(images.x, self.dataset, self.device, DTYPES[self.dtype])
            self._inputs[split] = inputs, torch.from_numpy(images.y).to(self.device)
        return self._inputs[split]

    def evaluate(
        self, designs: Sequence[Design], split: str = "search", images: int | None = None
    ) -> Iterator[tuple[int, Score]]:
        """Yield `(index, score)` of each design in turn, as :class:`Evaluator` says."""
        available = self.split_size(split)
        if images is None:
            images = self.images if split == "search" else available
        if not 1 <= images <= available:
            raise UserError(f"images must be in 1..{available} for {split}, got {images}.")
        torch.set_num_threads(self.threads)
        for index, design in enumerate(designs):
            yield index, self.score(design, split, images)

    @torch.inference_mode()
    def score(self, design: Design, split: str, images: int) -> Score:
        """Score one design on the first `images` images of a split.

        Raises:
            FloatingPointError: If the network's outputs are not finite.
        """
        calibration = Calibration()
        self.logits(design, self._calibration, calibration)
        x, y = self._split(split)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        for start in range(0, images, self.chunk):
            chunk = slice(start, min(start + self.chunk, images))
            logits = self.logits(design, x[chunk], calibration.folded())
            correct += (logits.argmax(dim=1) == y[chunk]).sum()
            finite &= logits.isfinite().all()
        if not finite:
            raise FloatingPointError("the outputs of the inherited network are not finite")
        return Score(int(correct), images)

    def logits(self, design: Design, x: Tensor, unit: Unit) -> Tensor:
        """Return the logits `[N, classes]` of a design for inputs `x`; `unit` runs convolutions."""
        transmissions = []
        before = None
        for cut, mask, bits in zip(design.cuts, design.masks, design.bits, strict=True):
            relayed, before = cut == before, cut  # a relay sends on what it got, as it is
            if mask and not relayed:
                channels = self.space.cut_shapes[cut][0]
                transmissions.append((cut, channel_mask(mask, channels).to(x.device), bits))
        return self.supernet(x, design.ops, unit, transmissions)
