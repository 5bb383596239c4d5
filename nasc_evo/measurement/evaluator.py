"""Which numerics of the supernet evaluator are the fastest on this machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nasc_evo.space import Design

TILES_KB = {"cpu": (768, 1536, 3072, 6144, 12288), "cuda": (2**16, 2**18, 2**20)}
"""Sizes of tiles that are tried, by processor."""


@dataclass(frozen=True)
class Timing:
    """How long designs take with some numerics.

    Attributes:
        options: `threads`, `dtype` and `tile_kb`.
        ms: Median over rounds of the time of a design, in milliseconds.
        spread_percent: Range over rounds, of the median.
        accuracies: Of each design.
    """

    options: dict[str, Any]
    ms: float
    spread_percent: float
    accuracies: tuple[float, ...]


def time_numerics(
    make: Callable[[dict[str, Any]], Any],
    choices: Sequence[dict[str, Any]],
    designs: Sequence[Design],
    rounds: int,
    on_round: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time every choice of numerics, in turns, so that a change of the machine's speed hits all.

    Args:
        make: Makes an evaluator with such options.
        choices: The options.
        designs: What is scored, the same each time.
        rounds: Turns that count; one before them warms up.
        on_round: Called after each choice in each turn.
    """
    evaluators = [make(options) for options in choices]
    times: list[list[float]] = [[] for _ in choices]
    accuracies: list[tuple[float, ...]] = [() for _ in choices]
    for turn in range(rounds + 1):
        for index, evaluator in enumerate(evaluators):
            start = time.perf_counter()
            scores = dict(evaluator.evaluate(designs))
            elapsed = time.perf_counter() - start
            if turn:
                times[index].append(elapsed / len(designs) * 1e3)
            accuracies[index] = tuple(1 - scores[i].error for i in range(len(designs)))
            on_round()
    return [
        Timing(
            options,
            statistics.median(ms),
            (max(ms) - min(ms)) / statistics.median(ms) * 100,
            accuracy,
        )
        for options, ms, accuracy in zip(choices, times, accuracies, strict=True)
    ]


def fastest(timings: Sequence[Timing]) -> Timing:
    """Return the fastest; of those within 2 % of it the one of the fewest threads."""
    best = min(timing.ms for timing in timings)
    close = [timing for timing in timings if timing.ms <= 1.02 * best]
    return min(close, key=lambda timing: (timing.options["threads"], timing.ms))


def thread_counts(cores: int) -> list[int]:
    """Return 1, 2, 4, ... and the number of cores."""
    counts = {cores}
    count = 1
    while count < cores:
        counts.add(count)
        count *= 2
    return sorted(counts)
