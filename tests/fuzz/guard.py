"""What a reader must keep to whatever it is given: one sentence, little memory, little time."""

import os
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nasc_evo.errors import UserError

MEMORY_BYTES = 2 * 2**30
SECONDS = 10


def numbers(default: int) -> range:
    """Return the numbers of the inputs to try.

    Args:
        default: How many without NASC_EVO_FUZZ, which holds another count, or `first:end`.
    """
    first, _, end = os.environ.get("NASC_EVO_FUZZ", str(default)).rpartition(":")
    return range(int(first or 0), int(end))


class HangError(BaseException):
    """Not to be caught as an error of a damaged file."""


def _interrupt(*_: Any) -> None:
    raise HangError(f"took more than {SECONDS} s")


@contextmanager
def limits() -> Iterator[None]:
    """Let no more than 2 GB be allocated on top, and stop after ten seconds of computing."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGVTALRM, _interrupt)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, handler)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def refused(read: Callable[[], Any], what: str) -> str:
    """Read; return the one line of the UserError that came, else nothing.

    Anything else fails, saying `what`.
    """
    start = time.perf_counter()
    try:
        with limits(), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", DeprecationWarning)
            read()
    except UserError as error:
        if any(isinstance(cause, MemoryError) for cause in causes(error)):
            pytest.fail(f"{what}: allocated more than {MEMORY_BYTES} bytes ({error})")
        message = str(error)
        if len(message.splitlines()) != 1 or len(message) > 2000:
            pytest.fail(f"{what}: not one sentence: {message[:3000]!r}")
        return message
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:500]}") from error
    finally:
        assert time.perf_counter() - start < 6 * SECONDS, what
    return ""
