"""The command line in this process, up to the first evaluation."""

import io
import os
import sys
from typing import Any
from unittest import mock

import pytest

from nasc_evo import hydra_app
from nasc_evo.run import build
from tests.fuzz.guard import limits


def build_all(config: Any) -> int:
    """Do what a run does before it evaluates the first design."""
    built = build(config)
    built.problem.describe()
    built.algorithm.setup(built.problem, seed=config.seed)
    return 0


def command_line(given: list[str]) -> tuple[int, str]:
    """Return exit code and error output of a command line, run in this process."""
    errors = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with (
        mock.patch.object(sys, "argv", ["nasc_evo.run", *given]),
        mock.patch.object(sys, "stderr", errors),
        mock.patch.dict(os.environ, HYDRA_FULL_ERROR="0"),
        limits(),
        pytest.raises(SystemExit) as ended,
    ):
        hydra_app.launch("config", build_all)
    return ended.value.code, errors.buffer.getvalue().decode()
