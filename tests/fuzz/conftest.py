"""Results of full runs, for benchmarks/results/fuzz.json."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def record() -> Callable[..., None]:
    """Return a function that adds what a test found to the file of NASC_EVO_FUZZ_RESULTS."""

    def add(name: str, **found: float) -> None:
        target = os.environ.get("NASC_EVO_FUZZ_RESULTS")
        if target:
            path = Path(target)
            results = json.loads(path.read_text()) if path.exists() else {}
            results[name] = found
            path.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")

    return add
