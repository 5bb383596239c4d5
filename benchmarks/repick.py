"""Time of a new front out of a run of 10,000 evaluations, by `python -m nasc_evo.repick`.

The run is one of FBNet under an accuracy by formula, so that it is there in seconds; reading and
re-costing it does not know the difference. python benchmarks/repick.py
"""

import argparse
import os
import re
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

PROCESSOR_TIME = """
import sys, time
time.perf_counter = time.process_time
from nasc_evo.repick import main
sys.exit(main(sys.argv[1:]))
"""
"""The command by the clock of its processor, which stands still while others have it."""


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
    seconds, busy, whole, sweeps = [], [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        write_run(folder, args.evaluations)
        command = [sys.executable, "-m", "nasc_evo.repick"]
        change, sweep = (f"run={folder}", "link.uplink_mbps=2"), "sweep=link.uplink_mbps"
        for _ in range(args.repeats):
            took, said = timed([*command, *change])
            whole.append(took)
            seconds.append(said)
            busy.append(timed([sys.executable, "-c", PROCESSOR_TIME, *change])[1])
            sweeps.append(timed([*command, f"run={folder}", sweep])[1])
    write_result(
        args.out,
        {
            "evaluations": args.evaluations,
            "seconds_from_journal_to_front": _spread(seconds),
            "processor_seconds_from_journal_to_front": _spread(busy),
            "seconds_of_the_command_with_start_table_and_picture": _spread(whole),
            "seconds_of_a_sweep_over_41_rates": _spread(sweeps),
            "load_average": [round(load, 1) for load in os.getloadavg()],
        },
    )


def timed(command: list[str]) -> tuple[float, float]:
    """Return the seconds that a command took, and those that it says its result took."""
    start = time.perf_counter()
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    took = time.perf_counter() - start
    return took, float(re.search(r"written in ([\d.]+) s", ended.stdout)[1])


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(float(np.median(values)), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
