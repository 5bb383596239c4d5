"""Timing one thing again and again until what disturbs it can be told from what it takes."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

try:
    import resource
except ImportError:  # Windows cannot tell when a process was interrupted
    resource = None  # type: ignore[assignment]

WARMUP_RUNS = 3
WARMUP_SECONDS = 0.005
MAX_SAMPLES = 500
WINDOW = 5
"""Samples in a row whose median counts."""
OUTLIER_SIGMAS = 5.0
"""Robust standard deviations (1.4826 x median absolute deviation) beyond which a sample is left
out."""


@dataclass(frozen=True)
class Burst:
    """Samples of one thing in a row.

    Attributes:
        samples_ms: Those that count, in the order in which they were taken.
        left_out: How many were disturbed or outliers.
    """

    samples_ms: tuple[float, ...]
    left_out: int

    @property
    def median_ms(self) -> float:
        """Their median."""
        return float(np.median(self.samples_ms))

    @property
    def quietest_ms(self) -> float:
        """The smallest median of :data:`WINDOW` samples in a row."""
        size = min(WINDOW, len(self.samples_ms))
        windows = np.lib.stride_tricks.sliding_window_view(self.samples_ms, size)
        return float(np.median(windows, axis=1).min())


@dataclass(frozen=True)
class Stopwatch:
    """Takes bursts of samples.

    Attributes:
        repeats: Samples wanted, at least.
        min_seconds: Shortest burst.
        max_seconds: Longest burst, once a third of the samples are there.
    """

    repeats: int = 20
    min_seconds: float = 0.01
    max_seconds: float = 1.0

    def burst(self, timed: Callable[[], float]) -> Burst:
        """Warm up, then take samples.

        A sample during which the system gave the processor to another process is left out, unless
        nearly all are, and so are samples far above the median.

        Args:
            timed: Runs once and returns the milliseconds that it took.
        """
        start = time.perf_counter()
        for _ in range(WARMUP_RUNS):
            timed()
        while time.perf_counter() - start < WARMUP_SECONDS:
            timed()
        clean: list[float] = []
        disturbed: list[float] = []
        start = time.perf_counter()
        while True:
            before = interruptions()
            sample = timed()
            (clean if interruptions() == before else disturbed).append(sample)
            seconds = time.perf_counter() - start
            enough = len(clean) >= self.repeats and seconds >= self.min_seconds
            late = seconds >= self.max_seconds and len(clean) + len(disturbed) >= self.repeats / 3
            if enough or late or len(clean) + len(disturbed) >= MAX_SAMPLES:
                break
        if len(clean) < self.repeats / 3:
            clean, disturbed = clean + disturbed, []
        kept = without_outliers(clean)
        return Burst(tuple(kept), len(clean) + len(disturbed) - len(kept))


def interruptions() -> int:
    """Return how often the system has taken the processor away from this process."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def without_outliers(samples: Sequence[float]) -> list[float]:
    """Return samples without those far above their median: disturbances only ever add time."""
    median = float(np.median(samples))
    deviation = float(np.median(np.abs(np.asarray(samples) - median)))
    limit = median + OUTLIER_SIGMAS * 1.4826 * deviation
    return [sample for sample in samples if sample <= limit or deviation == 0]


@dataclass(frozen=True)
class Figure:
    """What several bursts say of one thing.

    Attributes:
        median_ms: The smallest median of a few samples in a row, over all bursts: what else a
            machine does only ever adds time, and comes and goes.
        spread_ms: Interquartile range of all samples of all bursts.
        disagreement: Largest less smallest median of a burst, relative to the smallest.
    """

    median_ms: float
    spread_ms: float
    disagreement: float


def summarize(bursts: Sequence[Burst]) -> Figure:
    """Return the figure of some bursts."""
    medians = [burst.median_ms for burst in bursts]
    low, high = np.quantile([s for burst in bursts for s in burst.samples_ms], [0.25, 0.75])
    quietest = min(burst.quietest_ms for burst in bursts)
    return Figure(quietest, float(high - low), max(medians) / min(medians) - 1)


@contextlib.contextmanager
def pin(threads: int) -> Iterator[list[int] | None]:
    """Bind this process to as many processors as threads; the context is which, None if it cannot.

    Processors of different physical cores come first.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    available = sorted(os.sched_getaffinity(0))
    cores: dict[str, list[int]] = {}
    for cpu in available:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            core = path.read_text()
        except OSError:
            core = str(cpu)
        cores.setdefault(core, []).append(cpu)
    rounds = max(map(len, cores.values()))
    order = [core[i] for i in range(rounds) for core in cores.values() if i < len(core)]
    chosen = sorted(order[:threads])
    _bind(chosen)
    try:
        yield chosen
    finally:
        _bind(available)


def _bind(processors: Sequence[int]) -> None:
    """Bind every thread of this process; later ones inherit it."""
    tasks = Path("/proc/self/task")
    for task in tasks.iterdir() if tasks.is_dir() else [Path("0")]:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.sched_setaffinity(int(task.name), processors)
