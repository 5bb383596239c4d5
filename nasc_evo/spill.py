"""Dictionaries whose memory does not grow: all but their newest entries lie in a temporary file."""

import json
import sqlite3
import weakref
from array import array
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    ValuesView,
)
from itertools import islice
from operator import methodcaller
from typing import Any, Generic, TypeVar, overload

from nasc_evo.errors import UserError, one_line

ScoreKey = tuple[str, str, int]
"""Phenotype key, split, number of images."""
Value = TypeVar("Value")
IN_MEMORY = 4096
"""Most entries that are in memory; with more, half of them go to the file."""
MAKE = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    CREATE TABLE entries (position INTEGER PRIMARY KEY, key TEXT UNIQUE, value TEXT);
"""


class SpillingDict(Mapping[ScoreKey, Value], Generic[Value]):
    """A dictionary in the order in which keys came; nothing is ever deleted but everything.

    The file is a temporary database of SQLite, without a name and gone with its process; there is
    none as long as everything fits into :data:`IN_MEMORY`. A position of 8 bytes an entry stays in
    memory.

    Args:
        pack: Turns a value into what JSON holds, floats exactly; numbers of numpy become plain.
        unpack: Makes the value of it again.
    """

    def __init__(self, pack: Callable[[Value], Any], unpack: Callable[[Any], Value]) -> None:
        self._pack, self._unpack = pack, unpack
        self.clear()

    def clear(self) -> None:
        """Delete all entries."""
        self._newest: dict[ScoreKey, Value] = {}
        self._moved = 0
        self._positions: dict[tuple[str, int], array[int]] = {}
        self._file: sqlite3.Connection | None = None

    def __len__(self) -> int:
        return self._moved + len(self._newest)

    def __contains__(self, key: object) -> bool:
        return key in self._newest or self._find("position", key) is not None

    def __getitem__(self, key: ScoreKey) -> Value:
        if key in self._newest:
            return self._newest[key]
        text = self._find("value", key)
        if text is None:
            raise KeyError(key)
        return self._unpack(json.loads(text))

    def __setitem__(self, key: ScoreKey, value: Value) -> None:
        """Set an entry; one that is there keeps its place.

        Raises:
            UserError: If there is no room for the temporary file.
        """
        if key in self._newest:
            self._newest[key] = value
        elif self._find("position", key) is not None:
            self._run(
                "UPDATE entries SET value = ? WHERE key = ?", [(self._text(value), _text(key))]
            )
        else:
            self._newest[key] = value
            self._positions.setdefault(key[1:], array("q")).append(len(self) - 1)
            if len(self._newest) > IN_MEMORY:
                self._move_oldest()

    def _move_oldest(self) -> None:
        oldest = list(islice(self._newest.items(), IN_MEMORY // 2))
        rows = [
            (position, _text(key), self._text(value))
            for position, (key, value) in enumerate(oldest, start=self._moved)
        ]
        self._run("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)
        rest = dict(islice(self._newest.items(), len(oldest), None))
        # nothing can interrupt these two; rows beyond the position are not looked at
        self._newest, self._moved = rest, self._moved + len(oldest)

    def _text(self, value: Value) -> str:
        return json.dumps(self._pack(value), default=methodcaller("item"), separators=(",", ":"))

    def _run(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        try:
            if self._file is None:
                self._file = sqlite3.connect("", check_same_thread=False)
                weakref.finalize(self, self._file.close)
                self._file.executescript(MAKE)
            with self._file:
                self._file.executemany(statement, rows)
        except sqlite3.Error as error:
            raise UserError(
                f"The temporary file of what is known cannot be written ({one_line(error)}); make "
                "room in the folder of temporary files or set TMPDIR to another one."
            ) from error

    def _find(self, column: str, key: object) -> Any:
        """Return a column of the row of a key, None if there is none."""
        if self._file is None:
            return None
        query = f"SELECT {column} FROM entries WHERE key = ? AND position < ?"
        row = self._file.execute(query, (_text(key), self._moved)).fetchone()
        return None if row is None else row[0]

    def __iter__(self) -> Iterator[ScoreKey]:
        return (key for key, _ in self._pairs(unpack=False))

    def items(self) -> ItemsView[ScoreKey, Value]:
        """Return keys and values, in order."""
        return _Items(self)

    def values(self) -> ValuesView[Value]:
        """Return values, in order."""
        return _Values(self)

    def _pairs(self, unpack: bool = True) -> Iterator[tuple[ScoreKey, Any]]:
        moved, newest = self._moved, self._newest
        if self._file is not None:
            query = "SELECT key, value FROM entries WHERE position < ? ORDER BY position"
            for key, text in self._file.execute(query, (moved,)):
                yield tuple(json.loads(key)), self._unpack(json.loads(text)) if unpack else None
        yield from newest.items()

    def select(self, split: str, images: int) -> Sequence[Value]:
        """Return the values of a split and number of images so far, in order.

        A list where all are in memory, else a sequence that reads them when they are asked for.
        """
        selected = _Selected(self, self._positions.get((split, images), array("q")))
        return list(selected) if self._file is None else selected

    def at(self, positions: Iterable[int]) -> Iterator[Value]:
        """Yield the values at places in the order of all entries."""
        moved, newest = self._moved, list(self._newest.values())
        query = "SELECT value FROM entries WHERE position = ?"
        for position in positions:
            if position >= moved:
                yield newest[position - moved]
            else:
                assert self._file is not None
                (text,) = self._file.execute(query, (position,)).fetchone()
                yield self._unpack(json.loads(text))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle entry by entry: a file cannot be."""
        return type(self), (self._pack, self._unpack), None, None, iter(self.items())


class _Items(ItemsView[ScoreKey, Value]):
    _mapping: SpillingDict[Value]

    def __iter__(self) -> Iterator[tuple[ScoreKey, Value]]:
        return self._mapping._pairs()


class _Values(ValuesView[Value]):
    _mapping: SpillingDict[Value]

    def __iter__(self) -> Iterator[Value]:
        return (value for _, value in self._mapping._pairs())


class _Selected(Sequence[Value]):
    """Some values of a dictionary, as they were when this was made."""

    def __init__(self, entries: SpillingDict[Value], positions: "array[int]") -> None:
        self._entries = entries
        self._positions = positions[:]

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Value]:
        return self._entries.at(self._positions)

    @overload
    def __getitem__(self, index: int) -> Value: ...

    @overload
    def __getitem__(self, index: slice) -> list[Value]: ...

    def __getitem__(self, index: int | slice) -> Value | list[Value]:
        if isinstance(index, slice):
            return list(self._entries.at(self._positions[index]))
        (value,) = self._entries.at([self._positions[index]])
        return value


def _text(key: object) -> str:
    return json.dumps(key)
