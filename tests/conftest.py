"""Shared pieces of the tests: a small real problem and a way to run the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from problems import FBNetSplit

FAST = {"images": 64, "calibration_images": 32, "dtype": "float32"}
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


FAST_OPTIONS = (
    "n_eval=14",
    "algorithm.initial=8",
    "evaluator.images=64",
    "evaluator.calibration_images=32",
    "rescore=2",
)
"""Command-line options of a search that takes about half a minute."""
