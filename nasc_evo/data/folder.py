"""A user's own images: a folder with one subfolder a class, or IDX files as those of MNIST.

Class names, normalisation and splits follow from the folder and a seed. Nothing is unpickled,
symbolic links are refused, and sizes are checked before anything is decoded.
"""

import hashlib
import io
import os
import re
import shlex
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nasc_evo.data.images import (
    CALIBRATION_IMAGES,
    ImageDataset,
    Images,
    read_idx,
    stratified_order,
)
from nasc_evo.errors import UserError, one_line
from nasc_evo.files import read_bytes

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of Pillow with more than 8 bits a value, which a conversion would cut off."""
FITS = ("crop", "stretch", "pad")
PARTS = ("train", "test")
WHOLE = ""
"""The only part of a set that is not divided into train and test."""
IDX_FILES = {"train": "train", "test": "t10k"}
MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 2**26
MAX_FILES = 2_000_000
MAX_CLASSES = 10_000
MAX_SPLIT_BYTES = 8 * 2**30
"""Largest size of the resized images of a split."""


class Source(Protocol):
    """Where images come from.

    Attributes:
        class_names: Names of the classes.
        labels: For each part, :data:`PARTS` or :data:`WHOLE`, the classes of its images.
        sha256: Changes with the content of the folder.
    """

    class_names: tuple[str, ...]
    labels: dict[str, NDArray[np.int64]]
    sha256: str

    def names(self, part: str) -> list[str]:
        """Return the name of each image of a part, relative to the folder."""

    def read(self, part: str, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return images `[N, H, W, C]` of a part."""


class FolderDataset(ImageDataset):
    """Images out of a folder, see `docs/own_data.md`.

    The folder holds one subfolder a class; or `train` and `test` with one subfolder a class each;
    or the four IDX files of a set such as MNIST. Mean and deviation are those of the calibration
    images, at most 512 training images.

    Args:
        path: The folder.
        geometry: Side of the images that networks see, 32 or 224.
        seed: Of the division into splits.
        test_share: Share of the images that become the test split, where the folder does not give
            one; at least one image a class.
        search_share: Share of the other images that become the search split, likewise.
        fit: How an image becomes a square: `crop` (the centre), `stretch`, or `pad` with black.

    Attributes:
        path: The folder, absolute.
        files_sha256: Hash of the names and sizes of all files; weights belong to it, since
            another content would mean other splits.

    Raises:
        UserError: If an option is out of range or the folder cannot be read as one of images.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        geometry: int = 32,
        *,
        seed: int = 0,
        test_share: float = 0.2,
        search_share: float = 0.1,
        fit: str = "crop",
    ) -> None:
        super().__init__(geometry)
        for name, value in (("test_share", test_share), ("search_share", search_share)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value <= 0.5:
                raise UserError(f"dataset.{name} must be above 0 and at most 0.5, got {value!r}.")
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(f"dataset.seed must be a whole number >= 0, got {seed!r}.")
        if fit not in FITS:
            raise UserError(f"dataset.fit must be one of {', '.join(FITS)}, got {fit!r}.")
        if not isinstance(path, str | os.PathLike) or "\0" in str(path):
            raise UserError(f"dataset.path must be the path of a folder, got {path!r}.")
        self.path = Path(path).expanduser().absolute()
        slug = re.sub(r"[^a-z0-9]+", "_", Path(os.path.normpath(self.path)).name.lower())
        self.name = f"folder_{slug.strip('_')[:40] or 'images'}"
        self.seed, self.fit = seed, fit
        self.test_share, self.search_share = test_share, search_share
        self.image_bytes = 3 * geometry**2
        self.files_sha256: str | None = None
        self.class_names = self._source.class_names
        self.files_sha256 = self._source.sha256
        self.mean, self.std = statistics(self._split("calibration"))

    @property
    def arguments(self) -> str:
        """The options of a command line that name this set."""
        quoted = shlex.quote(f"dataset={self.path}")
        return super().arguments.replace(f"dataset={self.name}", quoted)

    def describe(self) -> dict[str, Any]:
        """Return what weights belong to, with the number of images of each split."""
        return {
            **super().describe(),
            "files_sha256": self.files_sha256,
            "seed": self.seed,
            "test_share": self.test_share,
            "search_share": self.search_share,
            "fit": self.fit,
            "images": {name: len(index) for name, (_, index) in self._division.items()},
        }

    def files(self, split: str) -> list[str]:
        """Return the name of each image of a split, relative to the folder, in order."""
        part, index = self._division[split]
        names = self._source.names(part)
        return [names[i] for i in index]

    @cached_property
    def _source(self) -> Source:
        try:
            source = open_source(self.path, self.geometry, self.fit)
        except OSError as error:
            raise UserError(
                f"The folder of images {self.path} cannot be read ({one_line(error)})."
            ) from error
        if self.files_sha256 not in (None, source.sha256):
            raise UserError(
                f"The folder {self.path} is another one than when this command began; images may "
                "not be added or changed meanwhile."
            )
        return source

    @cached_property
    def _division(self) -> dict[str, tuple[str, NDArray[np.int64]]]:
        """For each split its part and the indices of its images."""
        labels = self._source.labels
        rng = np.random.default_rng(self.seed)
        if WHOLE in labels:
            part = WHOLE
            test, rest = divide(labels[WHOLE], self.test_share, 2, rng)
        else:
            part = "train"
            rest = np.arange(len(labels["train"]))
            test = stratified_order(labels["test"], rng)
        search, train = (
            rest[index] for index in divide(labels[part][rest], self.search_share, 1, rng)
        )
        return {
            "train": (part, np.sort(train)),
            "calibration": (part, train[:CALIBRATION_IMAGES]),
            "search": (part, search),
            "test": (WHOLE if WHOLE in labels else "test", test),
        }

    @cached_property
    def _loaded(self) -> dict[str, Images]:
        return {}

    def _split(self, name: str) -> Images:
        if name not in self._loaded:
            part, index = self._division[name]
            self._loaded[name] = Images(
                self._source.read(part, index), self._source.labels[part][index]
            )
        return self._loaded[name]


def divide(
    y: NDArray[np.int64], share: float, left: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of a share of each class, at least one image, and those of the rest.

    Args:
        y: Classes, `[N]`.
        share: Of the images of each class.
        left: Images of each class that stay in the rest.
        rng: Decides which.

    Returns:
        Both in a random order in which every prefix holds the classes in their shares.
    """
    order = stratified_order(y, rng)
    taken = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = order[y[order] == label]
        count = min(max(1, round(share * len(members))), len(members) - left)
        taken[members[:count]] = True
    return order[taken[order]], order[~taken[order]]


def statistics(images: Images) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of pixels in 0..1, each for three channels."""
    pixels = images.x.reshape(-1, images.x.shape[-1])
    counts = [np.bincount(channel, minlength=256) / len(pixels) for channel in pixels.T]
    values = np.arange(256) / 255
    means = [float(count @ values) for count in counts]
    spreads = [
        float(np.sqrt(count @ (values - mean) ** 2))
        for count, mean in zip(counts, means, strict=True)
    ]
    channels = range(3) if len(means) == 3 else (0, 0, 0)
    red, green, blue = ((round(means[i], 4), max(round(spreads[i], 4), 1 / 255)) for i in channels)
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])


def open_source(path: Path, geometry: int, fit: str) -> Source:
    """Return what a folder holds.

    Raises:
        OSError: If it cannot be listed.
        UserError: If it is no folder of images.
    """
    if not path.is_dir():
        raise UserError(
            f"There is no folder of images {path}; give dataset.path a folder with one subfolder "
            "a class."
        )
    prefixes = [f"{prefix}-images-idx3-ubyte" for prefix in IDX_FILES.values()]
    names = {entry.name.removesuffix(".gz") for entry in os.scandir(path) if entry.is_file()}
    idx = names.issuperset(prefixes)
    source: Source = IdxFiles(path) if idx else ImageFiles(path, geometry, fit)
    needed = 3 if WHOLE in source.labels else 2
    for part, labels in source.labels.items():
        counts = np.bincount(labels, minlength=len(source.class_names))
        least = int(np.argmin(counts))
        wanted = 1 if part == "test" else needed
        if counts[least] < wanted:
            raise UserError(
                f"Class '{source.class_names[least]}' of {path / part} has {counts[least]} images; "
                f"every class needs at least {wanted}, so that each split has one."
            )
    return source


class IdxFiles:
    """The four IDX files of a set such as MNIST or KMNIST, compressed or not.

    Args:
        path: Their folder.
    """

    def __init__(self, path: Path) -> None:
        self._images: dict[str, NDArray[np.uint8]] = {}
        self.labels = {}
        digest = hashlib.sha256()
        for part, prefix in IDX_FILES.items():
            images = read_idx(_either(path / f"{prefix}-images-idx3-ubyte"), (None, None, None))
            labels = read_idx(_either(path / f"{prefix}-labels-idx1-ubyte"), (len(images),))
            if not (min(images.shape) > 0 and max(images.shape[1:]) <= 1024):
                raise UserError(f"The {part} images of {path} have the shape {images.shape}.")
            self._images[part] = images[..., None]
            self.labels[part] = labels.astype(np.int64)
            digest.update(images.tobytes() + labels.tobytes())
        n_classes = 1 + max(int(labels.max()) for labels in self.labels.values())
        self.class_names = tuple(f"class_{i}" for i in range(n_classes))
        self.sha256 = digest.hexdigest()

    def names(self, part: str) -> list[str]:
        """Return names made of part and place."""
        return [f"{part}/{i}" for i in range(len(self.labels[part]))]

    def read(self, part: str, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return grey images `[N, H, W, 1]`, as they are stored."""
        return self._images[part][index]


def _either(path: Path) -> Path:
    """Return a file or its compressed form."""
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


class ImageFiles:
    """Image files in one subfolder a class, perhaps below `train` and `test`.

    Args:
        path: The folder.
        geometry: Side of the squares that images become.
        fit: How, see :class:`FolderDataset`.
    """

    def __init__(self, path: Path, geometry: int, fit: str) -> None:
        self._path, self._geometry, self._fit = path, geometry, fit
        folders = [entry.name for entry in _entries(path) if entry.is_dir()]
        divided = sorted(folders) == sorted(PARTS) and all(
            any(entry.is_dir() for entry in _entries(path / part)) for part in PARTS
        )
        listed = {part: _classes(path / part) for part in (PARTS if divided else (WHOLE,))}
        self.class_names = tuple(next(iter(listed.values())))
        for part, classes in listed.items():
            if tuple(classes) != self.class_names:
                other = sorted(set(classes) ^ set(self.class_names))[0]
                raise UserError(
                    f"Class '{other}' is in only one of train and test of {path}; both need the "
                    "same subfolders."
                )
            if not 2 <= len(classes) <= MAX_CLASSES:
                raise UserError(
                    f"The folder {path / part} has {len(classes)} subfolders with images; one a "
                    f"class is needed, 2 to {MAX_CLASSES}."
                )
        self._names: dict[str, list[str]] = {}
        self.labels: dict[str, NDArray[np.int64]] = {}
        digest = hashlib.sha256()
        for part, classes in listed.items():
            self._names[part] = [
                os.path.join(part, label, name) for label in classes for name in classes[label]
            ]
            counts = [len(names) for names in classes.values()]
            self.labels[part] = np.repeat(np.arange(len(classes)), counts)
            sizes = (size for names in classes.values() for size in names.values())
            for name, size in zip(self._names[part], sizes, strict=True):
                digest.update(f"{Path(name).as_posix()}\0{size}\n".encode(errors="surrogateescape"))
        self.sha256 = digest.hexdigest()

    def names(self, part: str) -> list[str]:
        """Return the paths of the files relative to the folder."""
        return self._names[part]

    def read(self, part: str, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return images `[N, geometry, geometry, 3]`."""
        side = self._geometry
        if len(index) * 3 * side**2 > MAX_SPLIT_BYTES:
            raise UserError(
                f"{len(index)} images of {side}x{side} pixels do not fit into {MAX_SPLIT_BYTES} "
                f"bytes; make {self._path} smaller."
            )
        images = np.empty((len(index), side, side, 3), dtype=np.uint8)
        for row, i in enumerate(index):
            images[row] = read_image(self._path / self._names[part][i], side, self._fit)
        return images


def _entries(path: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted, without hidden names; symbolic links are refused."""
    with os.scandir(path) as scan:
        entries = sorted(
            (entry for entry in scan if not entry.name.startswith(".")), key=lambda e: e.name
        )
    for entry in entries:
        if entry.is_symlink():
            raise UserError(
                f"{entry.path} is a symbolic link; put the files themselves into the folder."
            )
    return entries


def _classes(path: Path) -> Mapping[str, Mapping[str, int]]:
    """Return for each subfolder the names and sizes of its images."""
    classes, left = {}, MAX_FILES
    for entry in _entries(path):
        if not entry.is_dir():
            if entry.name.lower().endswith(SUFFIXES):
                raise UserError(
                    f"The image {entry.path} lies in no class; put it into a subfolder named after "
                    "its class."
                )
            continue
        classes[entry.name] = _image_sizes(_entries(path / entry.name))
        left -= len(classes[entry.name])
        if left < 0:
            raise UserError(f"The folder {path} holds more than {MAX_FILES} images.")
    return classes


def _image_sizes(entries: Iterable[os.DirEntry[str]]) -> dict[str, int]:
    sizes = {}
    for entry in entries:
        if not entry.name.lower().endswith(SUFFIXES) or not entry.is_file():
            raise UserError(
                f"{entry.path} is no image file; the folder of a class holds files that end with "
                f"{', '.join(SUFFIXES)} and nothing else."
            )
        sizes[entry.name] = entry.stat().st_size
    return sizes


def read_image(path: Path, side: int, fit: str) -> NDArray[np.uint8]:
    """Return an image file as a square `[side, side, 3]`.

    Args:
        path: The file.
        side: Pixels.
        fit: One of :data:`FITS`.

    Raises:
        UserError: If it is too large, damaged, of another format or of more than 8 bits a value.
    """
    try:
        content = read_bytes(path, MAX_FILE_BYTES)
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content), formats=FORMATS) as opened,
        ):
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}x{height} pixels, more than {MAX_PIXELS} in all")
            if opened.mode in DEEP_MODES:
                raise ValueError(f"mode {opened.mode} of more than 8 bits a value; convert it")
            opened.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded no larger than needed
            image: Any = ImageOps.exif_transpose(opened).convert("RGB")
            if fit == "crop":
                image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
            elif fit == "pad":
                image = ImageOps.pad(image, (side, side), Image.Resampling.BILINEAR)
            else:
                image = image.resize((side, side), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except Exception as error:  # decoders raise many types
        raise UserError(
            f"The image {path} cannot be read ({one_line(error)}); replace or remove it."
        ) from error
