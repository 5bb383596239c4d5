"""Image classification sets and their splits.

Four splits serve four purposes: `train` trains a supernet, `calibration` (a part of train) gives
batch norm its statistics, `search` (held out from train) scores candidates, and `test` (official
test images) is for final figures alone.
"""

import hashlib
import inspect
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from numpy.typing import NDArray

from nasc_evo.errors import UserError, one_line
from nasc_evo.files import read_arrays, read_bytes, read_gzip

SPLITS = ("train", "calibration", "search", "test")
CALIBRATION_IMAGES = 512
SPLIT_SEED = 2022
MAX_NPZ_BYTES = 256 * 2**20
"""Largest size of a file of images, compressed or not; that of CIFAR-100 is 184 MB."""


@dataclass(frozen=True)
class Images:
    """Images and labels of one split, at the size in which the set stores them.

    Attributes:
        x: `[N, H, W, C]` uint8, one or three channels.
        y: `[N]` int64 class indices.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def first(self, n: int) -> "Images":
        """Return the first `n` images."""
        return Images(self.x[:n], self.y[:n])


class ImageDataset(ABC):
    """A set of labelled images; its networks see `geometry` x `geometry` pixels, 3 channels.

    Attributes:
        name: Short name, as in configurations.
        class_names: Names of the classes.
        mean: Mean of the training pixels in 0..1 after padding, a channel.
        std: Their standard deviation.
        padding: Zero pixels added on each side before anything else.
        image_bytes: Size of one stored uint8 image, which raw offload sends.
    """

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: int = 0
    image_bytes: int

    def __init__(self, geometry: int = 32) -> None:
        if geometry not in (32, 224):
            raise UserError(f"A data set's geometry must be 32 or 224, got {geometry}.")
        self.geometry = geometry

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled for a worker: not the images, which it loads itself."""
        kept = [
            name
            for kind in type(self).__mro__
            for name, value in vars(kind).items()
            if isinstance(value, cached_property)
        ]
        return {name: value for name, value in vars(self).items() if name not in kept}

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def arguments(self) -> str:
        """The options of a command line that name this set."""
        geometry = "" if self.geometry == 32 else f" dataset.geometry={self.geometry}"
        return f"dataset={self.name}{geometry}"

    def describe(self) -> dict[str, Any]:
        """Return what must be equal for weights to be those of this set."""
        return {
            "geometry": self.geometry,
            "dataset": self.name,
            "n_classes": self.n_classes,
            "class_names": list(self.class_names),
        }

    def split(self, name: str) -> Images:
        """Return one split.

        Raises:
            UserError: If the split does not exist or its files are missing or damaged.
        """
        if name not in SPLITS:
            raise UserError(f"A split is one of {', '.join(SPLITS)}, got '{name}'.")
        return self._split(name)

    @abstractmethod
    def _split(self, name: str) -> Images:
        """Return one of the four splits."""

    def digest(self, images: Images) -> str:
        """Return the sha256 of images and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(images.x).tobytes())
        digest.update(np.ascontiguousarray(images.y).tobytes())
        return digest.hexdigest()


def stratified_order(y: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a random order of all indices in which every prefix holds each class in its share."""
    rank = np.empty(len(y))
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        places = rng.permutation(len(members)) + rng.random(len(members))
        rank[members] = places / len(members)
    return np.argsort(rank, kind="stable")


class HeldOutDataset(ImageDataset):
    """A set whose `search` and `calibration` splits are cut from one array of training images.

    Attributes:
        n_search: Images of the search split.
    """

    n_search: int

    @abstractmethod
    def load_official(self, part: str) -> Images:
        """Return the official `"train"` or `"test"` images."""

    @cached_property
    def _official_train(self) -> Images:
        return self.load_official("train")

    def split_indices(self, y: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Return the indices into the official training images of the splits made from them."""
        order = stratified_order(y, np.random.default_rng(SPLIT_SEED))
        n = self.n_search
        return {
            "search": order[:n],
            "calibration": order[n : n + CALIBRATION_IMAGES],
            "train": np.sort(order[n:]),
        }

    def _split(self, name: str) -> Images:
        if name == "test":
            return self.load_official("test")
        train = self._official_train
        index = self.split_indices(train.y)[name]
        return Images(train.x[index], train.y[index])


def data_folder() -> Path | None:
    """Return the folder of `$NASC_EVO_DATA`, if that is set.

    Raises:
        UserError: If it is set to something that is no folder.
    """
    value = os.environ.get("NASC_EVO_DATA")
    if not value:
        return None
    folder = Path(value)
    if not folder.is_dir():
        raise UserError(f"NASC_EVO_DATA must name a folder, got '{value}'.")
    return folder


def fetch(url: str, known_hash: str, description: str) -> Path:
    """Download a file once into the user's cache, with a progress bar, and check its hash.

    Raises:
        UserError: If it cannot be downloaded or is not the known file.
    """
    folder = Path(pooch.os_cache("nasc_evo"))
    try:
        path = pooch.retrieve(
            url,
            known_hash=known_hash,
            path=folder,
            fname=url.rsplit("/", 1)[-1],
            downloader=pooch.HTTPDownloader(progressbar=_DownloadProgress(description)),
        )
    except Exception as error:
        raise UserError(
            f"Could not download {description} from {url} ({one_line(error)}); "
            f"put the file into {folder} by hand or set NASC_EVO_DATA to a folder that holds the "
            "data set (see the README)."
        ) from error
    return Path(path)


class _DownloadProgress:
    """The progress interface of pooch on rich."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.total = 0
        self._progress: Any = None

    def update(self, n: int) -> None:
        """Advance by `n` bytes."""
        if self._progress is None:
            from rich.progress import DownloadColumn, Progress

            self._progress = Progress(*Progress.get_default_columns(), DownloadColumn())
            self._progress.start()
            self._task = self._progress.add_task(self.description, total=self.total)
        self._progress.update(self._task, advance=n)

    def reset(self) -> None:
        """Do nothing: pooch calls this before a final jump to 100 %."""

    def close(self) -> None:
        """Finish the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def read_npz(path: Path, shapes: dict[str, tuple[int | None, ...]]) -> dict[str, NDArray]:
    """Read the named uint8 or integer arrays of an .npz file without unpickling anything.

    Args:
        path: The file.
        shapes: Names of the arrays to read and their shapes; None allows any length.

    Raises:
        UserError: If the file is missing, damaged, or an array is missing or of another shape.
    """
    arrays = read_arrays(path, "replace it by an intact copy.", MAX_NPZ_BYTES, tuple(shapes))
    for name, shape in shapes.items():
        got = arrays[name]
        same = len(got.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, got.shape, strict=True)
        )
        if not same or got.dtype.kind not in "iu":
            raise UserError(
                f"Array '{name}' of {path} must be whole numbers of shape {shape}, "
                f"got {got.dtype} of shape {got.shape}."
            )
    return arrays


def check_sha256(arrays: dict[str, NDArray], expected: dict[str, str], origin: str) -> None:
    """Raise a UserError unless every array has its recorded sha256."""
    for name, digest in expected.items():
        if hashlib.sha256(np.ascontiguousarray(arrays[name]).tobytes()).hexdigest() != digest:
            raise UserError(
                f"'{name}' of {origin} does not have its recorded sha256; the file is damaged or "
                "another version: replace it by the official one."
            )


def read_idx(path: Path, shape: tuple[int | None, ...]) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, compressed by gzip where its name ends with `.gz`.

    Args:
        path: The file.
        shape: Shape the array must have; None allows any length.

    Raises:
        UserError: If the file is damaged or holds another array.
    """
    offset = 4 + 4 * len(shape)
    known = [n for n in shape if n is not None]
    limit = offset + int(np.prod(known)) if len(known) == len(shape) else MAX_NPZ_BYTES
    try:
        read = read_gzip if path.suffix == ".gz" else read_bytes
        content = read(path, limit)
    except OSError as error:
        raise UserError(
            f"The file {path} is damaged ({one_line(error)}); replace it by the official one."
        ) from error
    found = tuple(np.frombuffer(content[4:offset].ljust(offset - 4), dtype=">u4").tolist())
    fits = all(want in (None, have) for want, have in zip(shape, found, strict=True))
    magic = bytes([0, 0, 8, len(shape)])
    if not (content.startswith(magic) and fits and len(content) == offset + math.prod(found)):
        raise UserError(
            f"The file {path} is no IDX file of {shape} unsigned bytes; "
            "replace it by the official one."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=offset).reshape(found)


def get_dataset(name: str, geometry: int = 32, **options: Any) -> ImageDataset:
    """Return a data set by its name.

    Args:
        name: `cifar100`, `fashion_mnist`, or `folder` for images of one's own.
        geometry: Side of the images that networks see.
        options: Of :class:`nasc_evo.data.folder.FolderDataset`.

    Raises:
        UserError: If there is no set of this name, or an option is unknown or out of range.
    """
    from nasc_evo.data.cifar100 import Cifar100
    from nasc_evo.data.fashion_mnist import FashionMnist
    from nasc_evo.data.folder import FolderDataset

    datasets: dict[str, Callable[..., ImageDataset]] = {
        "cifar100": Cifar100,
        "fashion_mnist": FashionMnist,
        "folder": FolderDataset,
    }
    if name not in datasets:
        raise UserError(f"There is no data set '{name}'; available are {', '.join(datasets)}.")
    kind = datasets[name]
    try:
        inspect.signature(kind).bind(geometry=geometry, **options)
    except TypeError as error:
        raise UserError(f"The data set {name} has wrong options: {one_line(error)}.") from error
    return kind(geometry=geometry, **options)
