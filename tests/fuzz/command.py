"""The command line in this process, up to the first evaluation."""

from typing import Any

from nasc_evo import hydra_app
from nasc_evo.run import build
from tests.conftest import in_this_process
from tests.fuzz.guard import limits


def build_all(config: Any) -> int:
    """Do what a run does before it evaluates the first design."""
    built = build(config)
    built.problem.describe()
    built.algorithm.setup(built.problem, seed=config.seed)
    return 0


def command_line(given: list[str]) -> tuple[int, str]:
    """Return exit code and error output of a command line, run in this process."""
    with limits():
        done = in_this_process(
            lambda: hydra_app.launch("config", build_all), "nasc_evo.run", *given
        )
    return done.returncode, done.stderr
