"""Timing one thing again and again until what disturbs it can be told from what it takes."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

try:
    import resource
except ImportError:  # Windows cannot tell when a process was interrupted
    resource = None  # type: ignore[assignment]

WARMUP_RUNS = 3
WARMUP_SECONDS = 0.005
MAX_SAMPLES = 500
QUIET = 0.05
"""Which quantile of what a reference took counts as that on a quiet host."""
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5)
"""Which of the samples of a thing may count; see :func:`steadiest_quantile`."""
QUANTILE_OF_ONE_ROUND = 0.1
"""Which counts where there is nothing to choose it by."""
OUTLIER_SIGMAS = 5.0
"""Robust standard deviations (1.4826 x median absolute deviation) beyond which a sample is left
out."""


@dataclass(frozen=True)
class Burst:
    """Samples of one thing in a row.

    Attributes:
        samples_ms: Those that count, in the order in which they were taken.
        left_out: How many were disturbed or outliers.
        references_ms: What a reference took just before each of these; None without one.
        sitting: Which process took them: 0, or how often the measurement had been gone on with.
    """

    samples_ms: tuple[float, ...]
    left_out: int
    references_ms: tuple[float, ...] | None = None
    sitting: int = 0

    @property
    def median_ms(self) -> float:
        """Their median."""
        return float(np.median(self.samples_ms))

    @property
    def reference_ms(self) -> float:
        """Median of what its reference took."""
        assert self.references_ms is not None
        return float(np.median(self.references_ms))

    @property
    def by_reference(self) -> float:
        """Median of its samples, each in units of its reference."""
        assert self.references_ms is not None
        return float(np.median(np.array(self.samples_ms) / np.array(self.references_ms)))

    def at_pace(self, quiet_ms: float) -> "Burst":
        """Return what the samples would be on a host on which the reference takes so many ms."""
        assert self.references_ms is not None
        pairs = zip(self.samples_ms, self.references_ms, strict=True)
        samples_ms = tuple(sample * quiet_ms / reference for sample, reference in pairs)
        return replace(self, samples_ms=samples_ms, references_ms=None)


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

    def burst(
        self, timed: Callable[[], float], reference: Callable[[], float] | None = None
    ) -> Burst:
        """Warm up, then take samples.

        A sample during which the system gave the processor to another process is left out, unless
        nearly all are, and so are samples far above the median. What disturbs a reference, disturbs
        the sample after it.

        Args:
            timed: Runs once and returns the milliseconds that it took.
            reference: Likewise runs a reference, before each sample.
        """
        start = time.perf_counter()
        for _ in range(WARMUP_RUNS):
            timed()
        while time.perf_counter() - start < WARMUP_SECONDS:
            timed()
        clean: list[tuple[float, float]] = []
        disturbed: list[tuple[float, float]] = []
        start = time.perf_counter()
        while True:
            before = interruptions()
            reference_ms = 0.0 if reference is None else reference()
            sample = timed()
            (clean if interruptions() == before else disturbed).append((sample, reference_ms))
            seconds = time.perf_counter() - start
            enough = len(clean) >= self.repeats and seconds >= self.min_seconds
            late = seconds >= self.max_seconds and len(clean) + len(disturbed) >= self.repeats / 3
            if enough or late or len(clean) + len(disturbed) >= MAX_SAMPLES:
                break
        if len(clean) < self.repeats / 3:
            clean, disturbed = clean + disturbed, []
        limits = [outlier_limit(column) for column in zip(*clean, strict=True)]
        kept = [pair for pair in clean if pair[0] <= limits[0] and pair[1] <= limits[1]]
        samples_ms, references_ms = zip(*kept, strict=True)
        left_out = len(clean) + len(disturbed) - len(kept)
        return Burst(samples_ms, left_out, None if reference is None else references_ms)


def interruptions() -> int:
    """Return how often the system has taken the processor away from this process."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def outlier_limit(samples: Sequence[float]) -> float:
    """Return what samples may take, far above their median: disturbances only ever add time."""
    median = float(np.median(samples))
    deviation = float(np.median(np.abs(np.asarray(samples) - median)))
    return median + OUTLIER_SIGMAS * 1.4826 * deviation if deviation else np.inf


def quiet_reference_ms(things: Sequence[Sequence[Burst]]) -> dict[int, float]:
    """Return what the reference of some things takes on a quiet host, by sitting.

    In another process libraries may choose other algorithms, and the reference itself becomes
    slower or faster. So each sitting has its own figure, such that things are as long in units of
    it in all sittings, in the median over things. A quiet host is one on which the reference takes
    the quantile :data:`QUIET` of its medians in all bursts.

    Args:
        things: The bursts of each; all have references.
    """
    relative: dict[int, list[float]] = {}
    for bursts in things:
        usual = np.median([burst.by_reference for burst in bursts])
        for burst in bursts:
            relative.setdefault(burst.sitting, []).append(burst.by_reference / usual)
    longer = {sitting: float(np.median(ratios)) for sitting, ratios in relative.items()}
    aligned_ms = [longer[b.sitting] * b.reference_ms for bursts in things for b in bursts]
    quiet_ms = float(np.quantile(aligned_ms, QUIET))
    return {sitting: quiet_ms / factor for sitting, factor in longer.items()}


def steadiest_quantile(things: Sequence[Sequence[Burst]]) -> tuple[float, float]:
    """Return the one of :data:`QUANTILES` that even and odd rounds agree best on, over all things.

    What else a machine does only ever adds time: where that is most of what varies, small quantiles
    repeat themselves best. On a quiet machine small ones are those of rare fast moments, and larger
    ones repeat themselves better.

    Args:
        things: The bursts of each, round by round; :data:`QUANTILE_OF_ONE_ROUND` if a round is all.

    Returns:
        The quantile, and how far even and odd rounds are apart in it: the mean of the logarithms of
        their ratios, without sign; infinite where there is but one round.
    """
    if min(map(len, things)) < 2:
        return QUANTILE_OF_ONE_ROUND, np.inf
    figures_ms = np.array(
        [[np.quantile(_samples(half), QUANTILES) for half in halves(bursts)] for bursts in things]
    )
    apart = np.abs(np.log(figures_ms[:, 0] / figures_ms[:, 1])).mean(axis=0)
    best = int(np.argmin(apart))
    return QUANTILES[best], float(apart[best])


def halves(bursts: Sequence[Burst]) -> tuple[Sequence[Burst], Sequence[Burst]]:
    """Return those of even and of odd rounds."""
    return bursts[::2], bursts[1::2]


def _samples(bursts: Sequence[Burst]) -> list[float]:
    return [sample for burst in bursts for sample in burst.samples_ms]


@dataclass(frozen=True)
class Figure:
    """What several bursts say of one thing.

    Attributes:
        latency_ms: The quantile asked for of all samples of all bursts.
        spread_ms: Interquartile range of these.
        disagreement: Largest less smallest median of a burst, relative to the smallest.
    """

    latency_ms: float
    spread_ms: float
    disagreement: float


def summarize(bursts: Sequence[Burst], quantile: float) -> Figure:
    """Return the figure of some bursts.

    Args:
        bursts: One at least.
        quantile: Which of all their samples counts, a share in 0..1.
    """
    medians = [burst.median_ms for burst in bursts]
    latency, low, high = np.quantile(_samples(bursts), [quantile, 0.25, 0.75])
    return Figure(float(latency), float(high - low), max(medians) / min(medians) - 1)


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
