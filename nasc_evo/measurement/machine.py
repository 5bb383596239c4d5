"""What the machine is, for the headers of tables and of result files."""

import os
import platform
import sys
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return the processor, its usable cores and, if torch is loaded and sees one, the GPU."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    affinity = getattr(os, "sched_getaffinity", None)
    result: dict[str, Any] = {
        "cpu": model,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "python": platform.python_version(),
    }
    if "torch" in sys.modules:
        import torch

        result["torch"] = str(torch.__version__)
        result["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        if torch.cuda.is_available():
            result["gpu"] = torch.cuda.get_device_name()
    return result
