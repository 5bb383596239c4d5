"""Energy by a counter of the device itself: NVML on NVIDIA GPUs, RAPL on Linux processors.

Both count the whole device, idle power included, while the work is repeated. Where no counter can
be read there is no energy: nothing is estimated.
"""

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.stats import theilslopes

RAPL = Path("/sys/class/powercap")
SECONDS_A_READING = 0.005
WARMUP_SECONDS = 0.1
SECONDS_A_LOOK = 0.005
"""How long work goes on in a row at least, so that waiting for its end hardly counts."""
MIN_SECONDS = 0.5
MAX_SECONDS = 2.0
MIN_STEPS = 4


class Counter(Protocol):
    """A counter of energy."""

    name: str

    def read_mj(self) -> float:
        """Return the energy so far in millijoules."""


class RaplCounter:
    """The processor packages of this machine.

    Args:
        folder: Where the system shows them.

    Raises:
        OSError, ValueError: If there are none, or they cannot be read.
    """

    name = "RAPL, processor packages"

    def __init__(self, folder: Path = RAPL) -> None:
        self._zones = [
            zone
            for zone in sorted(folder.glob("intel-rapl:*"))
            if (zone / "name").read_text().startswith("package")
        ]
        if not self._zones:
            raise OSError("no processor packages")
        self._range = [float((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        self._last = self._read()
        self._turns = [0.0] * len(self._zones)

    def _read(self) -> list[float]:
        return [float((zone / "energy_uj").read_text()) for zone in self._zones]

    def read_mj(self) -> float:
        """Return the energy of all packages; a counter that began anew goes on."""
        now = self._read()
        for i, (before, after) in enumerate(zip(self._last, now, strict=True)):
            self._turns[i] += self._range[i] * (after < before)
        self._last = now
        return 1e-3 * sum(map(sum, zip(now, self._turns, strict=True)))


class NvmlCounter:
    """The current CUDA device of torch.

    Raises:
        OSError: If NVML is missing, or this GPU has no counter.
    """

    name = "NVML, whole GPU board"

    def __init__(self) -> None:
        import torch

        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._call("nvmlInit_v2")
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        self._device = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(self._device))
        self.read_mj()

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._nvml, name)(*arguments)
        if code:
            raise OSError(f"{name} gives error {code}")

    def read_mj(self) -> float:
        """Return the energy since the driver was loaded."""
        value = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self._device, ctypes.byref(value))
        return float(value.value)


def find_counter(processor: str) -> Counter | None:
    """Return a counter for a processor, None where none can be read."""
    try:
        return NvmlCounter() if processor == "cuda" else RaplCounter()
    except (OSError, ValueError, AttributeError):
        return None


def energy_of(repeat: Callable[[int], None], counter: Counter) -> float | None:
    """Return the millijoules of one run, None if the counter does not tell.

    Counters move in steps, of which each comes a little early or late, and reading one may take
    milliseconds: another thread watches it while the work goes on. The figure is the median slope
    over all pairs of steps (Theil and Sen).

    Args:
        repeat: Works so many times and waits for the end of all.
        counter: Of the device that works.
    """
    runs_a_look = 1
    start = time.perf_counter()
    while time.perf_counter() - start < WARMUP_SECONDS:
        if _seconds(repeat, runs_a_look) < SECONDS_A_LOOK:
            runs_a_look *= 2
    watch = _Watch(counter)
    runs, passed, start = [0], [0.0], time.perf_counter()
    try:
        watch.start()
        while passed[-1] < MAX_SECONDS:
            repeat(runs_a_look)
            runs.append(runs[-1] + runs_a_look)
            passed.append(time.perf_counter() - start)
            if passed[-1] >= MIN_SECONDS and len(watch.steps) >= MIN_STEPS:
                break
    finally:
        watch.stop()
    steps = [(at - start, mj) for at, mj in watch.steps if start < at < start + passed[-1]]
    if len(steps) < 2:
        return None
    at, energy_mj = np.transpose(steps)
    slope = float(theilslopes(energy_mj, np.interp(at, passed, runs)).slope)
    return slope if 0 < slope < np.inf else None


def _seconds(repeat: Callable[[int], None], runs: int) -> float:
    start = time.perf_counter()
    repeat(runs)
    return time.perf_counter() - start


class _Watch(threading.Thread):
    """Watches a counter.

    Attributes:
        steps: When it was seen to have moved, by `time.perf_counter`, and what it showed.
    """

    def __init__(self, counter: Counter) -> None:
        super().__init__(daemon=True)
        self.steps: list[tuple[float, float]] = []
        self._counter = counter
        self._over = threading.Event()

    def run(self) -> None:
        """Watch until :meth:`stop`, or until the counter cannot be read any more."""
        with contextlib.suppress(OSError, ValueError):
            last = self._counter.read_mj()
            while not self._over.wait(SECONDS_A_READING):
                now = self._counter.read_mj()
                if now != last:
                    self.steps.append((time.perf_counter(), now))
                last = now

    def stop(self) -> None:
        """End watching."""
        self._over.set()
        if self.is_alive():
            self.join()
