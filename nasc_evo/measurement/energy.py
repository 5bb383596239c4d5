"""Energy by a counter of the device itself: NVML on NVIDIA GPUs, RAPL on Linux processors.

Both count the whole device, idle power included, while the work is repeated. Where no counter can
be read there is no energy: nothing is estimated.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

RAPL = Path("/sys/class/powercap")
MIN_SECONDS = 0.1
MAX_SECONDS = 1.0


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


def energy_of(run: Callable[[], float], counter: Counter) -> float | None:
    """Return the millijoules of one run, None if the counter stands still.

    Counters move in steps: the work is repeated from one step to another, and the counter is read
    about once a millisecond.

    Args:
        run: Works once and returns the milliseconds that it took.
        counter: Of the device that works.
    """
    runs_a_look = max(1, int(1 / max(run(), 1e-3)))

    def until_a_step(seconds: float) -> tuple[float, int]:
        """Work at least so long and until the counter moves; return it and the runs."""
        runs, last, start = 0, counter.read_mj(), time.perf_counter()
        while (passed := time.perf_counter() - start) < MAX_SECONDS:
            for _ in range(runs_a_look):
                run()
            runs += runs_a_look
            now = counter.read_mj()
            if now != last and passed >= seconds:
                return now, runs
            last = now
        raise TimeoutError

    try:
        begin, _ = until_a_step(0)
        end, runs = until_a_step(MIN_SECONDS)
    except TimeoutError:
        return None
    return (end - begin) / runs
