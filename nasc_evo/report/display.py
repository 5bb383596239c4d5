"""What a run shows while it works: a progress bar in a terminal, plain lines elsewhere."""

import math
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nasc_evo.problem import Evaluation, SplitProblem
from nasc_evo.search.indicators import hypervolume, non_dominated
from nasc_evo.supernet.progress import TrainingProgress

PLAIN_SECONDS = 10.0
HEARTBEAT_SECONDS = 30.0
REFRESH_SECONDS = 0.2


def short_path(path: Path) -> str:
    """Return a path as short as it can be typed from the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def create_console() -> Console:
    """Return a console; logs and files are not folded to the width of a small terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = 110
    return console


class ProgressDisplay:
    """A progress bar in a terminal, a plain line now and then elsewhere.

    Args:
        title: What is being done.
        total: Steps in all.
        completed: Steps done already.
        console: Where to print.
    """

    def __init__(self, title: str, total: int, completed: int, console: Console) -> None:
        self.console = console
        self.total = total
        self.started = self.shown = time.monotonic()
        self.progress = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(title, total=total, completed=completed, state="")
        self.line = f"{title}: nothing has ended yet"
        self.ended = threading.Event()
        self.heartbeat = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        """Start showing."""
        self.progress.start()
        if not self.console.is_terminal:
            self.heartbeat.start()
        return self

    def _beat(self) -> None:
        """Print the last line again where nothing was printed for a while: the run is alive."""
        while not self.ended.wait(HEARTBEAT_SECONDS / 6):
            silent = time.monotonic() - self.shown
            if silent >= HEARTBEAT_SECONDS:
                self.shown = time.monotonic()
                minutes = (self.shown - self.started) / 60
                line = f"{self.line}; working for {minutes:.1f} min"
                self.console.print(line, highlight=False, soft_wrap=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing."""
        self.ended.set()
        self.progress.stop()

    def show(self, completed: int, state: str, line: str, *, now: bool = False) -> None:
        """Show `state` in the bar, or print `line` if it is time for one or `now` is set."""
        self.line = line
        if self.console.is_terminal:
            self.progress.update(self.task, completed=completed, state=state)
        elif now or time.monotonic() - self.shown >= PLAIN_SECONDS:
            self.shown = time.monotonic()
            self.console.print(line, highlight=False, soft_wrap=True)


class SearchDisplay(ProgressDisplay):
    """Shows evaluations, hypervolume, best accuracy under the limits and the time left.

    Args:
        problem: The problem searched.
        n_eval: The budget.
        console: Where to print.
    """

    def __init__(self, problem: SplitProblem, n_eval: int, console: Console) -> None:
        super().__init__("Searching", n_eval, 0, console)
        self.problem = problem
        self.reference = np.array([problem.reference_point[name] for name in problem.objectives])
        self.front: list[Evaluation] = []
        self.new: list[Evaluation] = []
        self.done = 0
        self.computed = 0
        self.refreshed = -math.inf

    def add(self, evaluation: Evaluation, computed: bool) -> None:
        """Take note of one evaluation of the search, on all its images or on the first ones."""
        images, counts = self.problem.evaluator.images, self.problem.halving.images
        counted = evaluation.score.images == (*counts, images)[0]
        self.done += counted
        self.computed += counted and computed
        if evaluation.score.images == images:
            self.new.append(evaluation)
        ended = counted and self.done == self.total
        if not ended and time.monotonic() - self.refreshed < REFRESH_SECONDS:
            return
        self.refreshed = time.monotonic()
        self.front = non_dominated(self.problem, [*self.front, *self.new])
        self.new.clear()
        state = self.state()
        line = f"{self.done}/{self.total} evaluations, {state}, {self.time_left()}"
        self.show(self.done, state, line, now=ended)

    def state(self) -> str:
        """Return hypervolume and best accuracy as text."""
        if not self.front:
            return "no design meets the limits yet"
        value = hypervolume(self.problem.objective_values(self.front), self.reference)
        best = min(e.score.error for e in self.front)
        under = " under the limits" if self.problem.limits else ""
        return f"hypervolume {value:.4f}, best accuracy{under} {100 * (1 - best):.1f} %"

    def time_left(self) -> str:
        """Return an estimate of the time left as text."""
        if self.computed == 0:
            return "replaying the journal"
        seconds = (time.monotonic() - self.started) / self.computed * (self.total - self.done)
        return f"about {seconds:.0f} s left"


class TrainingDisplay(ProgressDisplay):
    """Shows steps, images a second, loss and validation of a training.

    Args:
        step: Steps done already.
        steps: Steps in all.
        console: Where to print.
    """

    def __init__(self, step: int, steps: int, console: Console) -> None:
        super().__init__("Training", steps, step, console)
        self.validation = ""

    def update(self, progress: TrainingProgress) -> None:
        """Show the state after a step."""
        if progress.validation is not None:
            accuracies = (f"{100 * v:.1f} % {name}" for name, v in progress.validation.items())
            self.validation = f", accuracy {', '.join(accuracies)}"
        loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
        state = f"{progress.images_per_second:.0f} images/s{loss}{self.validation}"
        line = f"{progress.step}/{progress.steps} steps, {state}"
        self.show(progress.step, state, line, now=progress.validation is not None)


def run_training(
    trainer: Any, console: Console, shown: str, max_minutes: float | None
) -> Path | None:
    """Run a training to its end, say how to go on where it is stopped; return what it wrote.

    Args:
        trainer: A `nasc_evo.supernet.training.Trainer`.
        console: Where to print.
        shown: Its folder as the user is told it.
        max_minutes: Time after which it stops and None is returned; None for no limit.

    Raises:
        KeyboardInterrupt: If the user or the system stopped it.
    """
    path = None
    try:
        with TrainingDisplay(trainer.step, trainer.steps, console) as display:
            seconds = None if max_minutes is None else 60 * max_minutes
            path = trainer.run(display.update, max_seconds=seconds)
    finally:
        if path is None and isinstance(sys.exception(), KeyboardInterrupt | None):
            console.print(
                f"Stopped at step {trainer.step} of {trainer.steps}; continue with the same "
                f"command and resume={shown}",
                highlight=False,
                soft_wrap=True,
            )
    return path
