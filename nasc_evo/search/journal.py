"""The journal of a run: `evaluations.jsonl`, one line an evaluated phenotype, as it happens."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nasc_evo.errors import UserError, one_line
from nasc_evo.files import parse_json, read_lines
from nasc_evo.problem import Evaluation, describe_evaluation
from nasc_evo.spill import ScoreKey, SpillingDict
from nasc_evo.supernet.score import Score

MAX_LINE_BYTES = 2**20


def to_record(evaluation: Evaluation) -> dict[str, Any]:
    """Return the journal line of an evaluation as a mapping."""
    values = describe_evaluation(evaluation)
    first = {
        "index": evaluation.index,
        "key": evaluation.design.key,
        "genome": list(evaluation.genome),
    }
    last = {
        "status": "failed" if evaluation.failed else "ok",
        "message": evaluation.score.message,
    }
    return first | values | last


class Line(NamedTuple):
    """A line of a journal.

    Attributes:
        key: Phenotype key, split and number of images.
        score: What it says; without correct images for a failure.
        record: The whole line.
        end: Size of the file up to its end.
    """

    key: ScoreKey
    score: Score
    record: dict[str, Any]
    end: int


def read_journal(path: Path) -> Iterator[Line]:
    """Yield the lines of a journal, but a torn last one.

    Raises:
        UserError: If it cannot be read or a line is damaged.
    """
    try:
        for number, line, end in read_lines(path, MAX_LINE_BYTES):
            yield _parsed(path, line, number, end)
    except OSError as error:
        raise UserError(f"The journal {path} cannot be read ({one_line(error)}).") from error


def _parsed(path: Path, line: bytes, number: int, end: int) -> Line:
    try:
        record = parse_json(line)
        key = (record["key"], record["split"], record["images"])
        correct, message = record["correct"], record["message"]
        valid = (
            isinstance(key[0], str)
            and isinstance(key[1], str)
            and isinstance(message, str)
            and type(key[2]) is int
            and key[2] > 0
            and (correct is None or (type(correct) in (int, float) and 0 <= correct <= key[2]))
        )
        if not valid:
            raise ValueError("a field has a wrong type or range")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Line {number} of the journal {path} is damaged ({one_line(error)}); "
            "delete that line, its design will be evaluated again, and resume."
        ) from error
    return Line(key, Score(correct, key[2], message), record, end)


def pack_score(score: Score) -> list[Any]:
    """Return a score as what JSON holds."""
    return [score.correct, score.images, score.message]


def unpack_score(packed: list[Any]) -> Score:
    """Return the score of :func:`pack_score`."""
    return Score(*packed)


class Records:
    """What a journal file holds.

    Args:
        path: The file; need not exist.

    Attributes:
        scores: Of all evaluations but failures.
        failures: The failures, which will be tried again.
        end: Size of what is intact; a torn last line is not.

    Raises:
        UserError: If a line before the last is damaged, or the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scores = SpillingDict(pack_score, unpack_score)
        self.failures = SpillingDict(pack_score, unpack_score)
        self.end = self._read() if path.exists() else 0

    def _read(self) -> int:
        """Take over every score; return the size of what is intact (a torn last line is not)."""
        end = 0
        for line in read_journal(self.path):
            kind = self.failures if line.score.correct is None else self.scores
            kind[line.key] = line.score
            end = line.end
        return end


class Journal(Records):
    """Appends evaluations to a file, flushed line by line.

    Args:
        path: The file; its folder exists.

    Raises:
        UserError: If an existing file has a damaged line before its last.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._file = open(path, "ab")  # noqa: SIM115 - open for the life of the journal
            self._file.truncate(self.end)
        except OSError as error:
            raise UserError(f"The journal {path} cannot be written ({one_line(error)}).") from error

    def append(self, evaluation: Evaluation) -> None:
        """Write one evaluation and flush; what the file held when it was opened is not repeated.

        Raises:
            UserError: If the disk is full or the file cannot be written.
        """
        key = (evaluation.design.key, evaluation.split, evaluation.score.images)
        if key in self.scores or (evaluation.failed and key in self.failures):
            return
        line = json.dumps(to_record(evaluation), allow_nan=False, separators=(",", ":"))
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"The journal {self.path} cannot be written ({one_line(error)}); everything up to "
                "here is kept: make room and resume."
            ) from error

    def close(self) -> None:
        """Close the file; every line was flushed when it was appended."""
        with contextlib.suppress(OSError):  # a full disk has been reported by append
            os.fsync(self._file.fileno())
        with contextlib.suppress(OSError):
            self._file.close()
