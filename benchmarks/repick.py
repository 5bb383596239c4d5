"""Time of a new front out of a run of 10,000 evaluations, by `python -m nasc_evo.repick`.

The run is one of FBNet under an accuracy by formula, so that it is there in seconds; reading and
re-costing it does not know the difference. python benchmarks/repick.py
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import RESULTS, write_result
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nasc_evo.config import config_folder
from nasc_evo.hydra_app import register
from nasc_evo.search.folder import RunFolder
from nasc_evo.search.operators import random_genomes
from nasc_evo.supernet.score import Score
from problems import FBNetSplit


class Formula:
    """Rewards arithmetic and channels, with a share of all local designs among the genomes."""

    images = 512

    def evaluate(self, designs, split="search", images=None):
        """Yield the score of each design."""
        for index, design in enumerate(designs):
            size = sum((0, 1, 2, 3)[op % 4] for op in design.ops)
            kept = np.mean([m.count("1") / len(m) if m else 1 for m in design.masks])
            yield index, Score(round((0.2 + 0.5 * size / 66 + 0.25 * kept) * 512), 512)

    def split_size(self, split):
        """Return the number of images."""
        return 512

    def describe(self):
        """Return what a run's manifest says of the accuracies."""
        return {"formula": 1, "images": 512, "dataset": "fashion_mnist"}


def write_run(folder: Path, evaluations: int) -> None:
    """Write the folder of a run of random designs."""
    problem = FBNetSplit(evaluator=Formula())
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = OmegaConf.to_container(compose("config"), resolve=True)
    identity = {"problem": problem.describe(), "seed": 1}
    run = RunFolder(folder, resume=False, identity=identity, config=config, overrides=[])
    problem.on_evaluation = lambda evaluation, computed: run.journal.append(evaluation)
    X = random_genomes(problem.space, 2 * evaluations, np.random.default_rng(0))
    problem.assess(X, max_new=evaluations)
    run.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "repick.json")
    args = parser.parse_args()
    seconds, whole, busy, sweeps = [], [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        write_run(folder, args.evaluations)
        command = [sys.executable, "-m", "nasc_evo.repick", f"run={folder}"]
        for _ in range(args.repeats):
            start, used = time.perf_counter(), _processor_seconds()
            ended = subprocess.run(
                [*command, "link.uplink_mbps=2"], check=True, capture_output=True, text=True
            )
            whole.append(time.perf_counter() - start)
            busy.append(_processor_seconds() - used)
            seconds.append(float(re.search(r"written in ([\d.]+) s", ended.stdout)[1]))
            start = time.perf_counter()
            subprocess.run([*command, "sweep=link.uplink_mbps"], check=True, capture_output=True)
            sweeps.append(time.perf_counter() - start)
    write_result(
        args.out,
        {
            "evaluations": args.evaluations,
            "seconds_from_journal_to_front": _spread(seconds),
            "seconds_of_the_command_with_start_table_and_picture": _spread(whole),
            "processor_seconds_of_the_command": _spread(busy),
            "seconds_of_a_sweep_over_41_rates": _spread(sweeps),
            "load_average": [round(load, 1) for load in os.getloadavg()],
        },
    )


def _processor_seconds() -> float:
    """Return the processor time of all ended children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(float(np.median(values)), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
