"""Accuracy of candidates by inherited weights, without any training.

A candidate takes its weights from the supernet. Its batch-norm statistics, which belong to its
own path, cut, mask and bits, come from one pass over fixed calibration images of the training
split; they are folded into its convolutions, and the folded network - the one that would be
deployed - is scored. The result depends on weights, images, phenotype and *numerics* alone: what
candidates have in common, from the first block to where they begin to differ, is computed once,
and is what it would have been for each alone. See `docs/evaluation.md`.
"""

import contextlib
import ctypes
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nasc_evo.data.images import ImageDataset
from nasc_evo.errors import UserError
from nasc_evo.space.architecture import ArchitectureSpace
from nasc_evo.space.genome import Design
from nasc_evo.supernet.blocks import (
    Block,
    FixedNorm,
    Folded,
    FoldedBlock,
    Normed,
    Unit,
    computes_bfloat16,
    fold_block,
    runs_triton,
)
from nasc_evo.supernet.inputs import prepare, to_input, to_uint8
from nasc_evo.supernet.model import Supernet
from nasc_evo.supernet.prefixes import (
    Images,
    Path,
    PrefixCache,
    packed,
    retiled,
    shared_prefixes,
)
from nasc_evo.supernet.score import Score
from nasc_evo.supernet.transmission import channel_mask, transmit
from nasc_evo.supernet.weights import file_sha256, find_weights, load_supernet

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TILE_VALUES = 3 * 2**19
"""Values up to which the largest tensor within a block grows on a CPU."""
GPU_TILE_KB = 2**20
"""Size up to which it grows on a GPU."""
MOST_THREADS = 1024
"""More than any machine has processors; a process with very many threads dies."""
CLOSE = {
    "fbnet": {"cpu": 32, "cuda": 8},
    "nasbench201": {"cpu": 32, "cuda": 4},
}
"""By space and processor: where a network runs in bfloat16, one in so many images, the closest
decisions, is decided in float32."""
TRITON_KERNELS = 4
"""Raised when evaluation with Triton computes something else than before, norms included."""
KNOWN_DESIGNS = 256
"""Designs whose norms and outputs are remembered for other images."""
KNOWN_BYTES = 2**18
"""Size of a design's outputs up to which they are remembered; norms have at most 0.2 MB."""
SLAB_IMAGES = {"cpu": 128, "cuda": 8192}
"""Images that go through a network together, by processor; powers of two."""


def has_native_bfloat16(device: torch.device) -> bool:
    """Return whether a processor computes in bfloat16 (AVX-512 BF16, AMX, Ampere or newer)."""
    if device.type == "cuda":
        return computes_bfloat16(device)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def gains_from_bfloat16(device: torch.device) -> bool:
    """Return whether a processor that computes in bfloat16 is faster so.

    Intel's without AMX are not: on a Xeon candidates took 1.3 times as long as in float32
    (`python -m nasc_evo.measure evaluator`).
    """
    if not has_native_bfloat16(device):
        return False
    capabilities = torch.cpu.get_capabilities()
    intel = str(capabilities.get("cpu_name", "")).startswith("Intel")
    return device.type == "cuda" or bool(capabilities.get("amx_bf16")) or not intel


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


class Known(NamedTuple):
    """What is remembered of a design.

    Attributes:
        norms: Its norms, a row a block.
        outputs: By split, its logits on the first images `[N, classes]`, before close decisions.
    """

    norms: list[Sequence[FixedNorm]]
    outputs: dict[str, Tensor]


class SupernetEvaluator:
    """Scores candidates by the weights they inherit from a supernet.

    Attributes:
        exact_one_in: One in so many images is decided in float32 where others are in bfloat16.

    Args:
        space: The space of architectures.
        dataset: The images.
        images: How many images of the search split a search uses, or `"full"`.
        calibration_images: How many training images give batch norm its statistics.
        dtype: `"float32"`, `"bfloat16"`, or `"auto"`: what the processor is faster in.
            With bfloat16 statistics are computed in float32, and close decisions taken in it.
        tile_kb: Size in kB up to which the largest tensor within a block may grow: as many images
            go through a block at a time. None is what suits caches of most processors, 3 MB in
            bfloat16 and 6 in float32.
        memory_mb: Size of all tensors kept for candidates that begin alike; 0 keeps none, nor the
            norms and outputs of those scored last, which come on top. Has no effect on a result.
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
        tile_kb: int | None = None,
        memory_mb: int = 256,
        threads: int = 2,
        processor: str = "cpu",
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, value, lowest in (
            ("calibration_images", calibration_images, 1),
            ("tile_kb", 1 if tile_kb is None else tile_kb, 1),
            ("memory_mb", memory_mb, 0),
            ("threads", threads, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise UserError(
                    f"evaluator.{name} must be a whole number of at least {lowest}, got {value!r}."
                )
        if threads > MOST_THREADS:
            raise UserError(
                f"evaluator.threads must be at most {MOST_THREADS}, got {threads}; give the number "
                "of processors or less."
            )
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
            dtype = "bfloat16" if gains_from_bfloat16(self.device) else "float32"
        self.space = space
        self.dataset = dataset
        self.calibration_images = calibration_images
        self.dtype = dtype
        self.exact_one_in = CLOSE[space.name][self.device.type]
        if tile_kb is None:
            on_cpu = TILE_VALUES * DTYPES[dtype].itemsize // 1024
            tile_kb = on_cpu if self.device.type == "cpu" else GPU_TILE_KB
        self.tile_kb = tile_kb
        self._prefixes = PrefixCache(memory_mb * 2**20)
        self._scored: tuple[str, int, int] | None = None
        self._known: OrderedDict[Path, Known] = OrderedDict()
        self.threads = threads
        self.weights = find_weights(space, dataset, weights)
        if self.device.type == "cpu":
            keep_freed_memory()
        self._inputs: dict[str, tuple[Tensor, Tensor]] = {}
        self._stored: dict[str, Tensor] = {}
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
        bfloat16 = self.dtype == "bfloat16"
        share = f"the closest 1 of {self.exact_one_in} images in float32"
        close = share if bfloat16 else "as all others"
        on_cpu = self.device.type == "cpu"
        triton = f"Triton (kernels {TRITON_KERNELS}) and " if runs_triton(self.device) else ""
        on_gpu = f"{triton}cuDNN (TF32 where it says float32)"
        library = "oneDNN" if on_cpu else on_gpu
        return {
            "weights_sha256": self._weights_sha256,
            "dataset": self.dataset.name,
            "search_sha256": self._search_sha256,
            "images": self.images,
            "numerics": {
                "dtype": self.dtype,
                "statistics": f"float32, calibration on {self.calibration_images} training images",
                "close_decisions": close,
                "tile_kb": self.tile_kb,
                "threads": self.threads,
                "processor": self.device.type,
                "backend": f"torch eager, folded convolutions by {library}, channels_last",
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
        return to_input(images.x, self.dataset, self.device, torch.float32)

    def _split(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the inputs and labels of a split, kept after the first call."""
        if split not in self._inputs:
            images = self.dataset.split(split)
            stored = self._stored[split] = to_uint8(images.x, self.device)
            inputs = prepare(stored, self.dataset, DTYPES[self.dtype])
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
        paths = [self._path(design) for design in designs]
        outputs = [self._first_outputs(path, split, images) for path in paths]
        order = sorted(range(len(designs)), key=lambda index: (len(outputs[index]), paths[index]))
        for first, group in groupby(order, key=lambda index: len(outputs[index])):
            alike = list(group)
            if self._scored != (split, first, images):  # what is kept is of other images
                self._scored = split, first, images
                self._prefixes.clear()
            shared = shared_prefixes(paths[index] for index in alike)
            for index in alike:
                score = self._score(
                    designs[index], paths[index], split, images, shared, outputs[index]
                )
                yield index, score

    def _first_outputs(self, path: Path, split: str, images: int) -> Tensor:
        """Return what a design says to the first images as far as that is known, `[N, classes]`.

        Whole slabs only, since the others then go through it as they would together with these.
        """
        known = self._known.get(path)
        outputs = None if known is None else known.outputs.get(split)
        none = torch.empty((0, self.space.n_classes), device=self.device)
        if outputs is None or len(outputs) >= images:
            return none
        return none if len(outputs) % SLAB_IMAGES[self.device.type] else outputs

    def _path(self, design: Design) -> Path:
        """Return what a design does to images, a step a block: transmit there, run the block."""
        sent = transmissions(design)
        genes = enumerate(self.supernet.block_genes(design.ops))
        return tuple((sent.get(block, ()), of_block) for block, of_block in genes)

    @torch.inference_mode()
    def _score(
        self,
        design: Design,
        path: Path,
        split: str,
        images: int,
        shared: Collection[Path],
        outputs: Tensor,
    ) -> Score:
        """Score one design on the first `images` images of a split; `outputs` are known of them.

        Raises:
            FloatingPointError: If the network's outputs are not finite.
        """
        x, y = (part[:images] for part in self._split(split))
        x = x[len(outputs) :]
        dtype, slab = DTYPES[self.dtype], SLAB_IMAGES[self.device.type]
        remembered = self._known.get(path)
        known = None if remembered is None else remembered.norms
        begun, start = self._prefixes.longest(path, calibrated=known is None)
        start = start or Images(self._calibration, [], [[part] for part in x.split(slab)])
        sent = {
            cut: (channel_mask(mask, self.space.cut_shapes[cut][0]).to(self.device), bits)
            for cut, (mask, bits) in transmissions(design).items()
        }
        calibration = start.calibration
        if known is not None:
            calibration = calibration.new_empty((0, *calibration.shape[1:]))
        wanted = self._worth_keeping(path, len(x), len(calibration), shared)
        kept: dict[int, Images] = {}
        blocks = self.supernet.blocks(design.ops)
        folded_blocks: list[FoldedBlock] = []
        norms = list(start.norms)

        def further(tiles: Sequence[Tensor], index: int, folded: FoldedBlock) -> Sequence[Tensor]:
            """Return images behind one more block."""
            tiles = retiled(tiles, folded.tile)
            if index in sent:
                tiles = [transmit(tile, *sent[index]) for tile in tiles]
            tiles = [folded(tile) for tile in tiles]
            if index + 1 in kept:
                kept[index + 1].slabs.append(tiles)
            return tiles

        queued = int(self.device.type == "cuda")  # slabs run between calibrations: a GPU has work
        tiles: Sequence[Tensor] = start.slabs[0]
        for index, block in enumerate(blocks[begun:], begun):
            if index in sent:
                calibration = transmit(calibration, *sent[index])
            of_block = None if known is None else known[index]
            folded, calibration = fold_block(
                block, calibration, dtype, self.tile_kb * 1024, slab, of_block
            )
            folded_blocks.append(folded)
            norms.append(folded.norms)
            if index + 1 in wanted:
                kept[index + 1] = Images(calibration, list(norms), [])
            if queued:
                tiles = further(tiles, index, folded)
        parts = [outputs, *(tiles if queued else [])]
        for tiles in start.slabs[queued:]:
            for index, folded in enumerate(folded_blocks, begun):
                tiles = further(tiles, index, folded)
            parts += tiles
        logits = torch.cat(parts)
        keeps = self._prefixes.budget_bytes > 0
        remembers = keeps and logits.nbytes <= KNOWN_BYTES
        rounded = {split: logits.clone()} if remembers else {}
        if dtype != torch.float32:
            close = closest(logits, math.ceil(images / self.exact_one_in))
            inputs = prepare(self._stored[split][close], self.dataset, torch.float32)
            units: list[Callable[[], Unit]] = [partial(Normed, part) for part in start.norms]
            units += [partial(Folded, folded.exact) for folded in folded_blocks]
            exact = [run_exact(part, blocks, units, sent) for part in inputs.split(slab)]
            logits[close] = torch.cat(exact)
        if not logits.isfinite().all():
            raise FloatingPointError("the outputs of the inherited network are not finite")
        for length, behind in kept.items():
            self._prefixes.add(path[:length], behind)
        if keeps:
            earlier = {} if remembered is None else remembered.outputs
            self._known[path] = Known(
                packed(norms) if known is None else known, {**earlier, **rounded}
            )
            self._known.move_to_end(path)
            if len(self._known) > KNOWN_DESIGNS:
                self._known.popitem(last=False)
        return Score(int((logits.argmax(dim=1) == y).sum()), images)

    def _worth_keeping(
        self, path: Path, images: int, calibration_images: int, shared: Collection[Path]
    ) -> set[int]:
        """Return after how many blocks images of a candidate are to be kept, having made room.

        That is where the paths of its population part, at its cut (other masks and bits share the
        head), and where resolution falls, for candidates to come; the longest prefixes first, as
        far as all fit.
        """
        shapes = self.space.cut_shapes
        value_bytes = images * DTYPES[self.dtype].itemsize + calibration_images * 4
        wanted, total = set(), 0
        for length in range(len(path) - 1, 0, -1):
            worth = (
                path[:length] in shared
                or path[length][0]
                or shapes[length][1] < shapes[length - 1][1]
            )
            nbytes = value_bytes * math.prod(shapes[length])
            fits = total + nbytes <= self._prefixes.budget_bytes
            here = self._prefixes.get(path[:length], calibrated=calibration_images > 0)
            if worth and fits and here is None:
                wanted.add(length)
                total += nbytes
        self._prefixes.make_room(total)
        return wanted


def closest(logits: Tensor, n: int) -> Tensor:
    """Return the indices of the `n` images whose two likeliest classes are nearest."""
    first, second = logits.topk(2, dim=1).values.unbind(dim=1)
    return (first - second).topk(n, largest=False).indices


def run_exact(
    x: Tensor,
    blocks: Sequence[Block],
    units: Sequence[Callable[[], Unit]],
    sent: Mapping[int, tuple[Tensor, int]],
) -> Tensor:
    """Return the logits of a network of known norms, in the type of `x`.

    Args:
        x: Inputs, `[N, 3, H, W]`.
        blocks: All blocks.
        units: Make the unit of each, with its norms.
        sent: Which channels are sent, and at how many bits, by cut.
    """
    for index, (block, unit) in enumerate(zip(blocks, units, strict=True)):
        if index in sent:
            x = transmit(x, *sent[index])
        x = block(x, unit())
    return x


def transmissions(design: Design) -> dict[int, tuple[str, int]]:
    """Return mask and bits by the cut where a design sends a changed tensor."""
    sent: dict[int, tuple[str, int]] = {}
    for cut, mask, bits in zip(design.cuts, design.masks, design.bits, strict=True):
        if mask and cut not in sent:  # a relay sends on what it got, as it is
            sent[cut] = mask, bits
    return sent
