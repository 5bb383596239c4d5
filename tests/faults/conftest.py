"""Which faults each back end survives; passed tests fill the table of docs/faults.md."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

INTRODUCTION = """# What a run survives

Written by the tests of `tests/faults`: every row was seen in a real process, on the back end it
names. `NASC_EVO_FAULT_MATRIX=docs/faults.md NASC_EVO_FAULTS=full python -m pytest tests/faults`
writes this page anew; CI runs the same tests with fewer repetitions, and kill -9 and SIGTERM of the
main process on fewer back ends.

| fault | back end | outcome |
| --- | --- | --- |
"""

FULL = os.environ.get("NASC_EVO_FAULTS") == "full"
"""Whether tests take the time for all repetitions."""

MARK = "NASC_EVO_TEST"

_rows: list[tuple[str, str, str]] = []


@pytest.fixture
def descendants(monkeypatch) -> Callable[[], list[str]]:
    """Return a function that lists all living processes that were started since, by a mark.

    Unlike a process group, what a process inherits in its environment cannot be left.
    """
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)

    def living() -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if marked and state != "Z":
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:  # it has ended meanwhile
                continue
        return found

    return living


@pytest.fixture
def survived(request):
    """Return a function that notes a fault, a back end and the outcome, if the test passes."""
    noted: list[tuple[str, str, str]] = []
    yield lambda fault, backend, outcome: noted.append((fault, backend, outcome))
    if not request.node.failed:
        _rows.extend(noted)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.failed = getattr(item, "failed", False) or report.failed
    return report


def pytest_sessionfinish():
    path = os.environ.get("NASC_EVO_FAULT_MATRIX")
    if path:
        lines = [f"| {' | '.join(row)} |\n" for row in dict.fromkeys(_rows)]
        Path(path).write_text(INTRODUCTION + "".join(lines), encoding="utf-8")
