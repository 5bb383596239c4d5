"""CIFAR-100 (Krizhevsky 2009), read from the official binary version, which needs no pickle."""

import io
import tarfile
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nasc_evo.data.images import HeldOutDataset, Images, check_sha256, data_folder, fetch, read_npz
from nasc_evo.errors import UserError, one_line
from nasc_evo.files import read_gzip

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
ARCHIVE_HASH = "md5:03b5dce01913d631647c71ecec9e9cb8"
IMAGES = {"train": 50000, "test": 10000}
RECORD_BYTES = 2 + 3 * 32 * 32
"""Coarse label, fine label, then the red, green and blue planes."""
MAX_ARCHIVE_BYTES = 192 * 2**20
"""Largest size of the archive after decompression; the official one has 185 MB."""
MAX_MEMBERS = 100
ARRAY_SHA256 = {
    "x_train": "4e457917601a66aed021f5fa37957b56c6319557c0a8ed5484de3c390af45430",
    "y_train": "9f11b9f97aad759ba6df0a33e3218b01d8deaf4ed3a14aa1185d69b9ad7ebcb3",
    "x_test": "4cb8e5d9309da489bf6b19cc10cd96c3ae6f8daf225380b605aaee4c0d6aee19",
    "y_test": "4dad7d09c7c97d33f6cb928d705cf4196221316fd6e31bdd978a08ed9103ee0b",
}


class Cifar100(HeldOutDataset):
    """CIFAR-100: 45000 training, 5000 search and 10000 test images.

    Read from `$NASC_EVO_DATA/cifar100.npz` (`x_train, y_train, x_test, y_test`, uint8) where that
    exists, else from the official archive, downloaded once.
    """

    name = "cifar100"
    class_names = tuple(f"class_{i}" for i in range(100))
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    image_bytes = 3 * 32 * 32
    n_search = 5000

    @cached_property
    def _arrays(self) -> dict[str, NDArray]:
        folder = data_folder()
        path = None if folder is None else folder / "cifar100.npz"
        if path is not None and path.is_file():
            shapes: dict[str, tuple[int | None, ...]] = {}
            for part, count in IMAGES.items():
                shapes |= {f"x_{part}": (count, 32, 32, 3), f"y_{part}": (count,)}
            arrays = read_npz(path, shapes)
        else:
            path = fetch(URL, ARCHIVE_HASH, "CIFAR-100")
            arrays = read_archive(path)
        arrays = {name: array.astype(np.uint8) for name, array in arrays.items()}
        check_sha256(arrays, ARRAY_SHA256, str(path))
        return arrays

    def load_official(self, part: str) -> Images:
        """Return the official `"train"` (50000) or `"test"` (10000) images."""
        return Images(self._arrays[f"x_{part}"], self._arrays[f"y_{part}"].astype(np.int64))


def read_archive(path: Path) -> dict[str, NDArray]:
    """Decode `train.bin` and `test.bin` of the official binary archive, in memory.

    Raises:
        UserError: If the archive is damaged or holds something else.
    """
    arrays: dict[str, NDArray] = {}
    try:
        content = read_gzip(path, MAX_ARCHIVE_BYTES)
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            members = {member.name: member for member in islice(archive, MAX_MEMBERS)}
            for part, count in IMAGES.items():
                member = members[f"cifar-100-binary/{part}.bin"]
                if not member.isreg() or member.size != count * RECORD_BYTES:
                    raise ValueError(f"{member.name} is no file of {count} images")
                file = archive.extractfile(member)
                content = b"" if file is None else file.read()
                records = np.frombuffer(content, dtype=np.uint8).reshape(count, RECORD_BYTES)
                planes = records[:, 2:].reshape(count, 3, 32, 32)
                arrays[f"x_{part}"] = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
                arrays[f"y_{part}"] = records[:, 1].copy()
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise UserError(
            f"The archive {path} is damaged or not the official CIFAR-100 binary version "
            f"({one_line(error)}); delete it and run again."
        ) from error
    return arrays
