"""Reading the pickles that benchmarks are published as, without running what they say.

A pickle may name any function to be called while it is read. This reader knows the built-in
containers and what numpy needs to rebuild arrays and scalars, in versions of its own that check
what they get; every other name is refused. No state from the file reaches numpy unchecked, because
a crafted data type is enough to make it follow wild pointers.

It builds on the interpreter's unpickler in Python. The one in C allocates whatever size a few bytes
claim, and hashes keys nested so deeply that the process crashes.
"""

import bz2
import io
import math
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasc_evo.errors import UserError, brief, one_line
from nasc_evo.files import read_bytes

_TYPE_NAME = re.compile(r"b1|[iu][1248]|f[248]|[US][1-9]\d{0,3}|O8?")
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
        if any(n < 0 for n in shape):
            raise ValueError(f"an array of shape {shape}")
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


def _content(data: Any, data_type: _DataType) -> NDArray:
    """Return bytes as values; no array, whose memory may be freed under a view of it."""
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"values read from a {type(data).__name__} instead of bytes")
    return np.frombuffer(bytes(data), data_type.plain)


def _scalar(data_type: _DataType, data: bytes) -> Any:
    """Stand for `numpy.core.multiarray.scalar`."""
    (value,) = _content(data, data_type)
    return value


def _frombuffer(data: bytes, data_type: _DataType, shape: Any, order: str, *_: Any) -> NDArray:
    """Stand for `numpy.core.numeric._frombuffer`, which pickles of protocol 5 call."""
    return _content(data, data_type).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stand for `_codecs.encode`, by which pickles of protocol 2 write bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes written as {brief(encoding)} are not read")
    return text.encode("latin1")


def _check_keys(keys: Iterable[Any]) -> None:
    """Raise unless all are simple values or short tuples of such, which are hashed at once."""
    for key in keys:
        parts = key if type(key) is tuple else (key,)
        for part in parts[:MAX_KEY_PARTS]:
            huge = isinstance(part, int) and abs(part) >= 2**64
            if huge or not isinstance(part, _KEY_TYPES):
                raise ValueError("a key that is no simple value")
        if len(parts) > MAX_KEY_PARTS:
            raise ValueError(f"a key of {len(parts)} parts")


def _mapping(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
    """Stand for `dict` and `collections.OrderedDict`, whose order a `dict` keeps as well."""
    pairs = [(key, value) for key, value in pairs]
    _check_keys(key for key, _ in pairs)
    return dict(pairs)


def _set(items: Iterable[Any] = ()) -> set[Any]:
    """Stand for `set`."""
    items = list(items)
    _check_keys(items)
    return set(items)


def _frozenset(items: Iterable[Any] = ()) -> frozenset[Any]:
    """Stand for `frozenset`."""
    return frozenset(_set(items))


MAX_OPERATIONS = 8 * 10**6
"""Steps of one pickle, each of which makes one small object; twice what 437,000 figures take."""
MAX_KEY_PARTS = 8
_KEY_TYPES = (str, bytes, int, float, type(None), np.number, np.str_, np.bool_)
_CONTAINERS = {
    "dict": _mapping,
    "frozenset": _frozenset,
    "list": list,
    "set": _set,
    "tuple": tuple,
}
_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": _mapping,
    "_codecs.encode": _encode,
    "numpy.dtype": _DataType,
    "numpy.ndarray": "numpy.ndarray",  # only ever an argument, which _reconstruct ignores
    **{f"{m}.{name}": c for m in ("builtins", "__builtin__") for name, c in _CONTAINERS.items()},
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}


class _RefusedNameError(Exception):
    """The pickle names something that is not allowed."""


class _Unpickler(pickle._Unpickler):
    """Reads one pickle.

    Args:
        data: The pickle.
    """

    stack: list[Any]
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.operations = MAX_OPERATIONS
        self.call_items = 4 * len(data)
        """Items that calls may still be given; in a good file nearly each stands there itself."""

    def count_items(self, values: Iterable[Any]) -> None:
        """Take the sizes of arguments off what calls may be given."""
        self.call_items -= sum(len(value) for value in values if hasattr(value, "__len__"))
        if self.call_items < 0:
            raise ValueError("it builds more than it holds")

    def load_bytearray8(self) -> None:
        """Read bytes of which it is said how many follow; only those that do are allocated."""
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    def check_build(self) -> None:
        """Check whose state is set to what."""
        instance, state = self.stack[-2:]
        if not isinstance(instance, _DataType | _Array):
            raise ValueError("a state of something that has none")
        self.count_items(state)

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name, if it is allowed."""
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise _RefusedNameError(full)
        return _ALLOWED[full]


_CHECKS: dict[bytes, Callable[[_Unpickler], None]] = {
    pickle.BUILD: _Unpickler.check_build,
    pickle.REDUCE: lambda reader: reader.count_items(reader.stack[-1]),
    pickle.SETITEM: lambda reader: _check_keys(reader.stack[-2:-1]),
    pickle.SETITEMS: lambda reader: _check_keys(reader.stack[::2]),
    pickle.DICT: lambda reader: _check_keys(reader.stack[::2]),
    pickle.ADDITEMS: lambda reader: _check_keys(reader.stack),
    pickle.FROZENSET: lambda reader: _check_keys(reader.stack),
}
"""What is checked before an operation."""
_OPERATIONS: dict[int, Callable[[Any], None]] = {
    **pickle._Unpickler.dispatch,
    pickle.BYTEARRAY8[0]: _Unpickler.load_bytearray8,
}
_LEFT_OUT = (
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID),
    *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)
"""Operations that no such file needs."""


def _guarded(code: int, operation: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return an operation that is counted and checked."""
    check = _CHECKS.get(bytes([code]))

    def guarded(reader: _Unpickler) -> None:
        reader.operations -= 1
        if reader.operations < 0:
            raise ValueError(f"more than {MAX_OPERATIONS} operations")
        if check is not None:
            check(reader)
        operation(reader)

    return guarded


_Unpickler.dispatch = {
    code: _guarded(code, operation)
    for code, operation in _OPERATIONS.items()
    if bytes([code]) not in _LEFT_OUT
}


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
        data = read_bytes(path, max_bytes)
        if path.suffix == ".pbz2":
            with bz2.open(io.BytesIO(data)) as file:
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
        return _Unpickler(data).load()
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
