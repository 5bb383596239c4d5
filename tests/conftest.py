"""Shared pieces of the tests: a small real problem and ways to run the command line."""

import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from problems import FBNetSplit

FAST = {"images": 64, "calibration_images": 32, "dtype": "float32", "threads": 1}
"""Evaluator options that make an inherited evaluation take a tenth of a second or two."""


def needs_data(name: str) -> Path:
    """Return a path under $NASC_EVO_DATA; skip where it is missing, but fail in CI."""
    folder = os.environ.get("NASC_EVO_DATA", "")
    path = Path(folder) / name
    if folder and path.exists():
        return path
    reason = f"needs NASC_EVO_DATA with {name}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def problem() -> FBNetSplit:
    """The default problem with a fast evaluator; do not change it."""
    return FBNetSplit(evaluator=FAST)


@pytest.fixture
def cli(tmp_path: Path):
    """Return a function that runs a module of the package in `tmp_path`, as a user would."""

    def run(*args: str, module: str = "run", timeout: float = 300) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", f"nasc_evo.{module}", *args]
        environment = {**os.environ, "HYDRA_FULL_ERROR": "0", "COLUMNS": "120"}
        return subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            check=False,
        )

    return run


def in_this_process(call: Callable[[], None], *words: str) -> subprocess.CompletedProcess:
    """Return how a command line ends that `call` runs: its exit code and what it prints.

    Args:
        call: Reads `sys.argv` and ends by SystemExit.
        words: The command line, with the name of the program.
    """
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)
    )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch.object(sys, "argv", list(words)),
            mock.patch.object(sys, "stdout", out),
            mock.patch.object(sys, "stderr", err),
            mock.patch.dict(os.environ, HYDRA_FULL_ERROR="0"),
            pytest.raises(SystemExit) as ended,
        ):
            call()
    finally:
        signal.signal(signal.SIGTERM, handler)
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess(words, ended.value.code, *texts)


@pytest.fixture
def cli_here(tmp_path: Path, monkeypatch):
    """Return a function that does what `cli` does in this process: for mistakes found at once."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, module: str = "run") -> subprocess.CompletedProcess:
        main = importlib.import_module(f"nasc_evo.{module}").main
        return in_this_process(main, f"nasc_evo.{module}", *args)

    return run


FAST_OPTIONS = (
    "n_eval=14",
    "algorithm.initial=8",
    "evaluator.images=64",
    "evaluator.calibration_images=32",
    "evaluator.threads=1",  # two of a process on two busy processors wait for each other
    "rescore=1",
)
"""Command-line options of a search that takes some ten seconds."""


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """The folder of a run with FAST_OPTIONS that nothing disturbed; do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "-m", "nasc_evo.run", *FAST_OPTIONS, "hydra.run.dir=run"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"
