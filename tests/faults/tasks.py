"""What tests have workers do; imports nothing that takes time."""

import os
import signal
import time
from pathlib import Path


def see(seconds: float) -> tuple[int, str | None]:
    """Return process and GPUs of a worker, after a while in which others get tasks too."""
    time.sleep(seconds)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def die_once(flag: str) -> str:
    """Kill the worker the first time."""
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return flag


def repeat(value: str) -> str:
    """Return the value, or raise if it is `bad`."""
    if value == "bad":
        raise ValueError(value)
    return value
