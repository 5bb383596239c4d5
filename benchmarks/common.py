"""What every benchmark writes beside its figures: date, machine, versions, commit."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nasc_evo.measurement.machine import machine

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """Return the commit of the checkout, marked when files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        folder = Path(__file__).parent
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command() -> str:
    """Return the command line that repeats this benchmark, without where its result went."""
    arguments = sys.argv[1:]
    if "--out" in arguments:
        at = arguments.index("--out")
        del arguments[at : at + 2]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def write_result(path: Path, figures: dict[str, Any]) -> None:
    """Write figures with their circumstances as JSON and print them."""
    document = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "command": command(),
        "machine": machine(),
        **figures,
    }
    text = json.dumps(document, indent=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    print(text)
