"""Samples as they are taken: a file of JSON lines that an interrupted measurement goes on from."""

import contextlib
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nasc_evo.errors import UserError, brief, one_line
from nasc_evo.files import parse_json, read_bytes
from nasc_evo.measurement.stopwatch import Burst

FORMAT = "nasc_evo measurement 4"
MAX_BYTES = 256 * 2**20


class SampleJournal:
    """Appends bursts and energies to a file, flushed line by line.

    The first line says what is measured, on what, and how; the others are `{"item", "round",
    "samples_ms", "left_out", "references_ms", "sitting"}` or `{"item", "energy_mj"}`.

    Args:
        path: The file.
        identity: What must be equal for a measurement to go on.

    Attributes:
        bursts: By item and round.
        energies: By item.

    Raises:
        UserError: If the file is in use, damaged, or of another measurement.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.bursts: dict[tuple[str, int], Burst] = {}
        self.energies: dict[str, float] = {}
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(f"Another measurement is writing {path}; wait for it.") from error
        except OSError as error:
            raise UserError(f"{path} cannot be written ({one_line(error)}).") from error
        try:
            end = self._read(identity) if path.exists() else 0
            self._file = open(path, "ab")  # noqa: SIM115 - open for the life of the journal
            self._file.truncate(end)
        except OSError as error:
            self.close()
            raise UserError(f"{path} cannot be read or written ({one_line(error)}).") from error
        except BaseException:
            self.close()
            raise
        self._sitting = 1 + max((burst.sitting for burst in self.bursts.values()), default=-1)
        if end == 0:
            self._write({"format": FORMAT, **identity})

    def _read(self, identity: dict[str, Any]) -> int:
        """Read all whole lines; return the size of what is intact (a torn last line is not)."""
        end = 0
        for number, line in enumerate(read_bytes(self.path, MAX_BYTES).splitlines(keepends=True)):
            if not line.endswith(b"\n"):
                break
            try:
                record = parse_json(line)
                if not isinstance(record, dict):
                    raise ValueError("it is no mapping")
                if number > 0:
                    self._take(record)
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise UserError(
                    f"Line {number + 1} of {self.path} is damaged ({one_line(error)}); delete that "
                    "line, it is measured again."
                ) from error
            if number == 0:
                self._check_identity(record, identity)
            end += len(line)
        return end

    def _check_identity(self, record: dict[str, Any], identity: dict[str, Any]) -> None:
        expected = json.loads(json.dumps({"format": FORMAT, **identity}))
        for key in expected | record:
            if record.get(key) != expected.get(key):
                raise UserError(
                    f"{self.path} holds a measurement with another {key}: it had "
                    f"{brief(record.get(key))}, this one has {brief(expected.get(key))}; delete it "
                    "or write to another file."
                )

    def _take(self, record: dict[str, Any]) -> None:
        item = record["item"]
        if not isinstance(item, str):
            raise ValueError("item is no text")
        if "energy_mj" in record:
            self.energies[item] = _positive(record["energy_mj"])
            return
        samples, left_out, number = record["samples_ms"], record["left_out"], record["round"]
        references, sitting = record["references_ms"], record["sitting"]
        whole = all(type(value) is int and value >= 0 for value in (left_out, number, sitting))
        if not isinstance(samples, list) or not samples or not whole:
            raise ValueError("a field has a wrong type or range")
        if references is not None and not (
            isinstance(references, list) and len(references) == len(samples)
        ):
            raise ValueError("there is not one of references_ms for each of samples_ms")
        self.bursts[item, number] = Burst(
            tuple(map(_positive, samples)),
            left_out,
            None if references is None else tuple(map(_positive, references)),
            sitting,
        )

    def add_burst(self, item: str, number: int, burst: Burst) -> None:
        """Write a burst; its times are kept to a nanosecond."""
        kept = Burst(
            tuple(map(_to_a_nanosecond, burst.samples_ms)),
            burst.left_out,
            None
            if burst.references_ms is None
            else tuple(map(_to_a_nanosecond, burst.references_ms)),
            self._sitting,
        )
        self.bursts[item, number] = kept
        self._write({"item": item, "round": number, **asdict(kept)})

    def add_energy(self, item: str, energy_mj: float) -> None:
        """Write an energy."""
        self.energies[item] = energy_mj
        self._write({"item": item, "energy_mj": energy_mj})

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False, separators=(",", ":"))
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({one_line(error)}); everything up to here is "
                "kept: make room and give the same command again."
            ) from error

    def close(self) -> None:
        """Close the file; every line was flushed when it was written."""
        if hasattr(self, "_file"):
            with contextlib.suppress(OSError):  # a full disk has been reported by _write
                self._file.close()
        self._lock.release()


def _to_a_nanosecond(time_ms: float) -> float:
    return max(round(time_ms, 6), 1e-6)


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a figure is no number")
    if not (math.isfinite(value) and value > 0):
        raise ValueError("a figure is not above 0")
    return float(value)
