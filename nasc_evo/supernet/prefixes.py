"""Computation that candidates share: tensors behind the blocks on which they agree.

A *path* is what a candidate does to its images, a step a block; candidates whose paths begin alike
compute the same up to there. Sorted by path, those that agree on most follow one another.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from nasc_evo.supernet.blocks import FixedNorm

Step = Any
"""What identifies a step; steps at one place of two paths can be compared and hashed."""
Path = tuple[Step, ...]
Tiles = list[Tensor]
"""Images in parts, in order, each `[N, C, H, W]`."""


@dataclass(frozen=True)
class Images:
    """The images of an evaluation behind some blocks of a candidate.

    Attributes:
        calibration: Those that give norms their statistics, `[N, C, H, W]`; none, `[0, C, H, W]`,
            where the norms were known before.
        norms: What they gave to the norms so far, a list a block.
        slabs: Those that are scored.
    """

    calibration: Tensor
    norms: list[Sequence[FixedNorm]]
    slabs: list[Tiles]

    @property
    def nbytes(self) -> int:
        """Size of all of them."""
        norms = (part for of_block in self.norms for norm in of_block for part in norm)
        tiles = (tile for tiles in self.slabs for tile in tiles)
        return self.calibration.nbytes + sum(tensor.nbytes for tensor in chain(norms, tiles))


class PrefixCache:
    """Images behind prefixes of paths; the least recently used ones make room.

    Args:
        budget_bytes: Size that all of them may have together.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.nbytes = 0
        self._images: OrderedDict[Hashable, Images] = OrderedDict()

    def get(self, prefix: Path, *, calibrated: bool = False) -> Images | None:
        """Return the images behind a prefix, None where they are not here.

        Args:
            prefix: The prefix.
            calibrated: Whether images of calibration have to be among them.
        """
        images = self._images.get(prefix)
        lacking = calibrated and images is not None and len(images.calibration) == 0
        return None if lacking else images

    def clear(self) -> None:
        """Drop all images."""
        self._images.clear()
        self.nbytes = 0

    def longest(self, path: Path, *, calibrated: bool = False) -> tuple[int, Images | None]:
        """Return the length of the longest prefix of a path that is here, and its images."""
        for length in range(len(path) - 1, 0, -1):
            images = self.get(path[:length], calibrated=calibrated)
            if images is not None:
                self._images.move_to_end(path[:length])
                return length, images
        return 0, None

    def add(self, prefix: Path, images: Images) -> None:
        """Keep the images behind a prefix in place of others, unless they alone are too many."""
        if images.nbytes > self.budget_bytes:
            return
        replaced = self._images.pop(prefix, None)
        self.nbytes -= 0 if replaced is None else replaced.nbytes
        self.make_room(images.nbytes)
        self._images[prefix] = images
        self.nbytes += images.nbytes

    def make_room(self, nbytes: int) -> None:
        """Drop the least recently used images until so much more fits, or none is left."""
        while self._images and self.nbytes + nbytes > self.budget_bytes:
            self.nbytes -= self._images.popitem(last=False)[1].nbytes


def packed(norms: Sequence[Sequence[FixedNorm]]) -> list[Sequence[FixedNorm]]:
    """Return norms, a row a block, with all values in one tensor; small ones cut up memory."""
    parts = [part for of_block in norms for norm in of_block for part in norm]
    if not parts:
        return [[] for _ in norms]
    views = iter(torch.cat(parts).split([len(part) for part in parts]))
    return [[FixedNorm(next(views), next(views)) for _ in of_block] for of_block in norms]


def shared_prefixes(paths: Iterable[Path]) -> set[Path]:
    """Return the longest common prefixes of neighbours in a sorted row of paths."""
    shared = set()
    for one, other in pairwise(paths):
        length = 0
        while length < len(one) and one[length] == other[length]:
            length += 1
        shared.add(one[:length])
    return shared


def retiled(tiles: Sequence[Tensor], size: int) -> Tiles:
    """Return images in tiles of a size, the last one smaller; sizes are powers of two."""
    first = len(tiles[0])
    if first > size:
        return [part for tile in tiles for part in tile.split(size)]
    together = size // first
    if first == size or together == 1 or len(tiles) == 1:
        return list(tiles)
    groups = (tiles[start : start + together] for start in range(0, len(tiles), together))
    return [torch.cat(list(group)) if len(group) > 1 else group[0] for group in groups]
