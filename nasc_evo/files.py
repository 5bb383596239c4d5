"""Reading files that nobody vouches for: sizes are checked before anything is allocated."""

import gzip
import io
import json
import math
import os
import pickletools
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from nasc_evo.errors import UserError, one_line

MAX_ARRAYS = 1000
"""Arrays in one file."""
MAX_JSON_BYTES = 16 * 2**20
MAX_DEPTH = 100
MAX_NAME = 1000
ZIP_ENTRY = b"PK\x01\x02"
GZIP_OVERHEAD = 2**16
"""Bytes by which a compressed file may be larger than its content."""


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        FileNotFoundError: If it does not exist.
        OSError: If it is no regular file, holds more than `max_bytes`, or cannot be read.
    """
    path = Path(path)
    if "\0" in str(path):
        raise OSError("a zero byte is in no name of a file")
    check_regular(path)
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(f"{path} holds more than {max_bytes} bytes")
    return content


def check_regular(path: Path) -> None:
    """Raise an OSError if something is there that is no regular file."""
    if path.exists() and not path.is_file():  # a pipe would wait, a device never end
        raise OSError(f"{path} is no file")


def read_lines(path: Path, max_bytes: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield `(number, line, size of the file up to its end)` of each whole line, from 1 on.

    A last line that does not end is torn: it was being written when its writer ended.

    Raises:
        OSError: If it is no regular file, cannot be read, or a line is longer than `max_bytes`.
    """
    check_regular(path)
    end = 0
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(max_bytes), b""), start=1):
            if not line.endswith(b"\n"):
                if len(line) == max_bytes:
                    raise OSError(f"line {number} is too long")
                return
            end += len(line)
            yield number, line, end


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: If it cannot be read or is larger than :data:`MAX_JSON_BYTES`.
        ValueError: If it is no JSON, or nested more than :data:`MAX_DEPTH` times.
    """
    tree = parse_json(read_bytes(path, MAX_JSON_BYTES))
    _check_depth(tree, MAX_DEPTH)
    return tree


def _check_depth(tree: Any, left: int) -> None:
    if left < 0:
        raise ValueError("it is nested too deeply")
    if isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            _check_depth(part, left - 1)


def parse_json(content: bytes) -> Any:
    """Return what JSON in UTF-8 says.

    Raises:
        ValueError: If it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_gzip(path: Path, max_bytes: int) -> bytes:
    """Return the decompressed content of a gzip file.

    Raises:
        OSError: If it cannot be read, is damaged, or holds more than `max_bytes`.
    """
    try:
        with gzip.open(io.BytesIO(read_bytes(path, max_bytes + GZIP_OVERHEAD))) as file:
            content = file.read(max_bytes + 1)
    except (EOFError, zlib.error) as error:
        raise OSError(one_line(error)) from error
    if len(content) > max_bytes:
        raise OSError(f"it holds more than {max_bytes} bytes")
    return content


def check_uncompressed(path: Path) -> None:
    """Check that a zip file, as torch writes them, is no larger in memory than on disk.

    And that it names nothing at length: torch looks through a name it refuses in quadratic time.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: If it cannot be read, or holds or names more.
    """
    check_regular(path)
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        held = sum(member.file_size for member in archive.infolist())
        if held > path.stat().st_size:
            raise ValueError(f"it claims to hold {held} bytes")
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                for code, argument, _ in pickletools.genops(archive.read(name)):
                    if code.name == "GLOBAL" and len(str(argument)) > MAX_NAME:
                        raise ValueError(f"it uses a name of {len(str(argument))} characters")


def read_arrays(
    path: Path, advice: str, max_bytes: int, names: tuple[str, ...] | None = None
) -> dict[str, NDArray]:
    """Read arrays of numbers or texts of an .npz file; nothing is ever unpickled.

    Args:
        path: The file.
        advice: What to do about a damaged file, the end of the sentence.
        max_bytes: Largest size of the file, and of the arrays together.
        names: Arrays to read; all if None.

    Raises:
        UserError: If the file is missing, damaged or too large, or an array is missing.
    """
    try:
        return _arrays(read_bytes(path, max_bytes), max_bytes, names)
    except FileNotFoundError as error:
        raise UserError(f"The data file {path} does not exist.") from error
    except Exception as error:  # zip, zlib, header and key errors have no common ancestor
        raise UserError(
            f"The data file {path} is damaged or not the expected one ({one_line(error)}); {advice}"
        ) from error


def _arrays(content: bytes, max_bytes: int, names: tuple[str, ...] | None) -> dict[str, NDArray]:
    if content.count(ZIP_ENTRY) > MAX_ARRAYS:
        raise ValueError(f"more than {MAX_ARRAYS} arrays")
    arrays: dict[str, NDArray] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if names is None:
            names = tuple(name.removesuffix(".npy") for name in archive.namelist())
        for name in names:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("compressed by a method that numpy does not use")
            with archive.open(member) as file:
                arrays[name] = _array(file, max_bytes)
            max_bytes -= arrays[name].nbytes
    return arrays


def _array(file: Any, max_bytes: int) -> NDArray:
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # a damaged header is parsed as Python
        shape, fortran, dtype = read_header[npy.read_magic(file)](file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "biufU" or any(n < 0 for n in shape):
        raise ValueError(f"arrays of type {dtype} and shape {shape} are not read")
    if size > max_bytes:
        raise ValueError(f"an array of {size} bytes, more than the {max_bytes} allowed")
    content = file.read(size + 1)
    if len(content) != size:
        raise ValueError("the length of an array is not that of its header")
    array = np.frombuffer(bytearray(content), dtype)
    return array.reshape(shape, order="F" if fortran else "C")
