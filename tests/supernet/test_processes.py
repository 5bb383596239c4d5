"""Training on several processes: what two of them do together, and that they agree."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nasc_evo.errors import UserError
from nasc_evo.space import Design
from nasc_evo.supernet.finetuning import NetworkTrainer
from nasc_evo.supernet.processes import Processes, join_processes
from nasc_evo.supernet.training import Trainer
from tests.conftest import needs_data
from tests.supernet.test_training import CONFIG, SPACE, Blobs

SCRIPT = """
import sys
from pathlib import Path
from nasc_evo.supernet.training import Trainer
from tests.supernet.test_processes import RECIPE
from tests.conftest import needs_data
from tests.supernet.test_training import SPACE, Blobs
import torch

trainer = Trainer(SPACE, Blobs(), RECIPE, Path(sys.argv[1]))
trainer.run(max_seconds=None if len(sys.argv) < 3 else 0)
torch.save(trainer.supernet.state_dict(), f"{sys.argv[1]}-{trainer.processes.number}.pt")
"""
RECIPE = replace(CONFIG, epochs=1, momentum=0.0, gradient_clip=1e9, cutmix=0.5)
"""One epoch of 40 images is two steps of two processes with batches of 10."""


def start_two(
    command: list[str], folder: Path, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes, from a folder."""
    root = Path(__file__).parents[2]
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", *command),
        ],
        check=check,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        timeout=240,
        stdout=subprocess.PIPE,
        text=True,
    )


def train_together(folder: Path, *arguments: str) -> list[dict[str, torch.Tensor]]:
    """Train on two processes; return the weights that each of them ends with."""
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    start_two([str(script), str(folder), *arguments], folder.parent)
    return [torch.load(f"{folder}-{number}.pt", weights_only=True) for number in range(2)]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Return the folder of a training by two processes, and the weights each ends with."""
    folder = tmp_path_factory.mktemp("processes") / "together"
    return folder, *train_together(folder)


def test_two_processes_train_on_the_mean_of_their_gradients(together, tmp_path):
    folder, one, other = together
    alone = Trainer(SPACE, Blobs(), RECIPE, tmp_path / "alone")
    alone.steps //= 2
    weights = list(alone.supernet.parameters())
    for _ in range(2):
        parts = []
        for number in range(2):
            alone.processes = Processes(number, 2)
            batch = alone.batch_number
            x, y = alone.batch(batch)
            target = torch.nn.functional.one_hot(y, 2) * 0.9 + 0.05
            alone.optimizer.zero_grad(set_to_none=False)
            alone.add_gradients(*alone.mix(x, target, batch))
            parts.append([None if w.grad is None else w.grad.clone() for w in weights])
        alone.optimizer.param_groups[0]["lr"] = alone.learning_rate()
        alone.optimizer.param_groups[1]["lr"] = alone.learning_rate()
        for weight, first, second in zip(weights, *parts, strict=True):
            a, b = (torch.zeros_like(weight) if g is None else g for g in (first, second))
            weight.grad = (a + b) / 2
        alone.optimizer.step()
        alone.step += 1
    for name, value in alone.supernet.state_dict().items():
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(one[name], other[name]), name
    assert {path.name for path in folder.iterdir()} == {
        *("checkpoint.pt", "log.csv"),
        *("fbnet_32_blobs.json", "fbnet_32_blobs.safetensors"),
    }


def test_training_together_resumes_with_as_many_processes_only(together, tmp_path):
    _, whole, _ = together
    train_together(tmp_path / "parts", "stop")
    with pytest.raises(UserError, match="number of processes"):
        Trainer(SPACE, Blobs(), RECIPE, tmp_path / "parts")
    resumed, other = train_together(tmp_path / "parts")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert all(torch.equal(resumed[name], value) for name, value in other.items())


def test_a_training_that_is_stopped_in_time_keeps_its_checkpoint(tmp_path):
    needs_data("fashion-mnist/train-images-idx3-ubyte.gz")
    command = ["-m", "nasc_evo.train", "training.batch_size=16", "max_minutes=0.001"]
    result = start_two([*command, "hydra.run.dir=t"], tmp_path, check=False)
    assert result.stdout.count("continue with the same command and resume=t") == 1
    assert (tmp_path / "t" / "checkpoint.pt").is_file()


def test_processes_that_begin_differently_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(Processes, "differ", lambda self, values: values[0] == 0)
    with pytest.raises(UserError, match="begin differently, this one at step 0: give all"):
        Trainer(SPACE, Blobs(), RECIPE, tmp_path)


def test_one_network_is_not_trained_by_two_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "nasc_evo.supernet.training.join_processes", lambda: Processes(number=1, count=2)
    )
    monkeypatch.setattr(Processes, "differ", lambda self, values: False)
    ops = (8,) * SPACE.n_genes
    design = Design(SPACE.format(np.array(ops)), ops, (SPACE.n_blocks,), ("",), (0,))
    with pytest.raises(UserError, match="by one process, not by 2"):
        NetworkTrainer(SPACE, Blobs(), RECIPE, tmp_path, design)


def test_processes_that_cannot_be_connected_are_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE"):
        join_processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="torchrun"):
        join_processes()
