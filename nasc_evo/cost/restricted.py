"""Reading the pickles that benchmarks are published as, without running what they say.

A pickle may name any function to be called while it is read. This reader knows the built-in
containers and what numpy needs to rebuild arrays and scalars, in versions of its own that check
what they get; every other name is refused. No state from the file reaches numpy unchecked, because
a crafted data type is enough to make it follow wild pointers.
"""

import bz2
import io
import math
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasc_evo.errors import UserError, one_line

_TYPE_NAME = re.compile(r"b1|[iu][1248]|f[248]|[US]\d{1,4}|O8?")
_BYTE_ORDERS = ("<", ">", "|", "=")


class _DataType:
    """Stands for `numpy.dtype`: simple types only.

    Args:
        name: Such as `f8`; the other two arguments of `numpy.dtype` are ignored.
    """

    def __init__(self, name: str, *_: Any) -> None:
        if not _TYPE_NAME.fullmatch(name):
            raise ValueError(f"arrays of type {name!r} are not read")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take over the byte order; structured types are refused."""
        _version, order, subtype, names, fields, *_ = state
        if order not in _BYTE_ORDERS or any(part is not None for part in (subtype, names, fields)):
            raise ValueError("structured arrays are not read")
        self.dtype = self.dtype.newbyteorder(order)

    @property
    def plain(self) -> np.dtype[Any]:
        """The type, if its values are not Python objects."""
        if self.dtype.hasobject:
            raise ValueError("objects cannot be read from bytes")
        return self.dtype


class _Array(np.ndarray):
    """An array that fills itself from a checked state."""

    def __setstate__(self, state: Any) -> None:
        """Take over shape, type and content."""
        _version, shape, data_type, fortran, data = state
        shape = tuple(int(n) for n in shape)
        if isinstance(data, list):
            if not data_type.dtype.hasobject or len(data) != math.prod(shape):
                raise ValueError(f"{len(data)} objects for an array of shape {shape}")
            dtype = data_type.dtype
        else:
            dtype = data_type.plain
        super().__setstate__((1, shape, dtype, fortran, data))


def _reconstruct(*_: Any) -> _Array:
    """Stand for `numpy.core.multiarray._reconstruct`: the state that follows tells everything."""
    return _Array.__new__(_Array, (0,))


def _scalar(data_type: _DataType, data: bytes) -> Any:
    """Stand for `numpy.core.multiarray.scalar`."""
    (value,) = np.frombuffer(data, data_type.plain)
    return value


def _frombuffer(data: bytes, data_type: _DataType, shape: Any, order: str, *_: Any) -> NDArray:
    """Stand for `numpy.core.numeric._frombuffer`, which pickles of protocol 5 call."""
    return np.frombuffer(data, data_type.plain).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stand for `_codecs.encode`, by which pickles of protocol 2 write bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes written as {encoding!r} are not read")
    return text.encode("latin1")


_CONTAINERS = (dict, frozenset, list, set, tuple)
_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "numpy.dtype": _DataType,
    "numpy.ndarray": "numpy.ndarray",  # only ever an argument, which _reconstruct ignores
    **{f"{m}.{c.__name__}": c for m in ("builtins", "__builtin__") for c in _CONTAINERS},
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}


class _RefusedNameError(Exception):
    """The pickle names something that is not allowed."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name, if it is allowed."""
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise _RefusedNameError(full)
        return _ALLOWED[full]


def read_pickle(path: Path, max_bytes: int) -> Any:
    """Read a pickle of containers, numbers, texts and numpy arrays.

    Args:
        path: The file; compressed by bzip2 if its name ends in `.pbz2`.
        max_bytes: Largest size, after decompression; reading stops there.

    Returns:
        What the file holds.

    Raises:
        UserError: If the file is missing, too large or damaged, or names anything that is not
            needed for such content (nothing of it is then run).
    """
    try:
        with bz2.open(path) if path.suffix == ".pbz2" else open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}.") from error
    except (OSError, EOFError) as error:
        raise UserError(
            f"The file {path} cannot be read ({one_line(error)}); replace it by an intact copy."
        ) from error
    if len(data) > max_bytes:
        raise UserError(
            f"The file {path} holds more than {max_bytes} bytes, too many for the official one."
        )
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except _RefusedNameError as error:
        raise UserError(
            f"The file {path} asks for {error}, which no official benchmark file needs; it was "
            "not run and the file is not read: use the official file."
        ) from error
    except Exception as error:  # a damaged pickle can raise almost anything
        raise UserError(
            f"The file {path} is damaged or not the expected one ({one_line(error)}); replace it "
            "by an intact copy."
        ) from error
