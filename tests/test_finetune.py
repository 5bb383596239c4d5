"""`python -m nasc_evo.finetune` on a run of the shipped supernet."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nasc_evo.errors import UserError
from nasc_evo.finetune import choose, inherited_weights
from nasc_evo.supernet.deploy import DeployedNetwork
from tests.conftest import needs_data

RUN = (
    *(
        "n_eval=6",
        "algorithm=nsga2",
        "algorithm.pop_size=4",
        "evaluator.images=64",
        "evaluator.calibration_images=32",
    ),
    *("evaluator.dtype=float32", "evaluator.threads=1", "rescore=2", "hydra.run.dir=r"),
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    command = [sys.executable, "-m", "nasc_evo.run", *RUN]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    return folder / "r"


@pytest.fixture
def run(run_folder, tmp_path) -> Path:
    """A copy that a test may change, in the folder in which `cli` works."""
    shutil.copytree(run_folder, tmp_path / "r")
    return tmp_path / "r"


def front(run: Path) -> list[dict[str, str]]:
    with open(run / "pareto.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_inherited_weights_give_the_accuracies_of_the_run(cli, run, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the run had one: its number counts
    rows = front(run)
    row = next((row for row in rows if row["mask"]), rows[0])
    done = cli(
        "run=r", f"design={row['design_id']}", "mode=inherit", "hydra.run.dir=n", module="finetune"
    )
    assert done.returncode == 0, done.stderr
    assert "The run found" in done.stdout
    network = DeployedNetwork.load(tmp_path / "n")
    written = network.manifest
    assert network.design.arch == row["arch"]
    assert written["design"]["masks"] == [row["mask"]]
    for split, column in (("search", "error"), ("test", "error_test")):
        figures = written["accuracy"][split]
        assert figures["images"] == 2000
        assert figures["accuracy"] == pytest.approx(1 - float(row[column]), abs=1.5 / 2000)
    (link,) = written["links"]
    assert (link["kept_channels"] if link else 0) == int(row["kept_channels"])


def test_training_one_network_stops_and_goes_on(cli, cli_here, run, tmp_path):
    needs_data("fashion-mnist/train-images-idx3-ubyte.gz")
    options = (
        *("run=r", "mode=scratch", "training.batch_size=8", "training.epochs=1"),
        *("training.validation_images=16", "training.threads=1", "max_minutes=0.02"),
    )
    first = cli(*options, "hydra.run.dir=n", module="finetune")
    assert first.returncode == 130, first.stderr
    assert "continue with the same command and resume=n" in first.stdout
    again = cli(*options, "resume=n", module="finetune")
    assert again.returncode == 130, again.stderr
    assert "step 0 of" not in again.stdout
    other = cli_here(*options, "resume=n", "training.seed=5", module="finetune")
    assert other.returncode == 2
    assert "belongs to another space, data set, recipe or number" in other.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "run must be given, such as run=outputs"),
        (["run=none"], "run=none is no folder of a run"),
        (["run=r", "design=999"], "design=999 is not on the front of r; its designs are"),
        (["run=r", "design=x"], "design"),
        (["run=r", "mode=copy"], "mode must be one of inherit, finetune, scratch, got 'copy'"),
        (["run=r", "max_minutes=0"], "max_minutes must be above 0"),
        (["run=r", "resume=none"], "resume=none holds no checkpoint.pt"),
        (["run=r", "resume=r", "mode=inherit"], "there is nothing to resume"),
        (["run=r", "training=default"], "has no option training.cuda_graphs"),
        (["run=r", "training.epochs=0"], "training.epochs must be above 0"),
    ],
)
def test_a_mistake_is_one_sentence(cli_here, run, options, message):
    if any("training.epochs" in option for option in options):
        needs_data("fashion-mnist/train-images-idx3-ubyte.gz")
    done = cli_here(*options, module="finetune")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def change(run: Path, **values) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["identity"]["problem"]["evaluator"].update(values)
    (run / "manifest.json").write_text(json.dumps(manifest))


def test_runs_whose_images_or_weights_are_gone_are_refused(run):
    chosen = choose(run, None)
    assert inherited_weights(run, chosen).is_file()
    change(run, weights_sha256="0" * 64)
    with pytest.raises(UserError, match="is not the one of the run"):
        inherited_weights(run, choose(run, None))
    chosen.details["run"]["evaluator"] = {"accuracies": "official"}
    with pytest.raises(UserError, match="train with mode=scratch"):
        inherited_weights(run, chosen)
    change(run, search_sha256="0" * 64)
    with pytest.raises(UserError, match="search images of fashion_mnist are not those"):
        choose(run, None)


def test_a_front_without_designs_is_refused(run):
    header = (run / "pareto.csv").read_text().splitlines()[0]
    (run / "pareto.csv").write_text(header + "\n")
    with pytest.raises(UserError, match=r"its designs are none"):
        choose(run, 3)
    document = json.loads((run / "pareto.json").read_text()) | {"recommended": None}
    (run / "pareto.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="is empty"):
        choose(run, None)


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint(run, tmp_path):
    needs_data("fashion-mnist/train-images-idx3-ubyte.gz")
    command = [sys.executable, "-m", "nasc_evo.finetune", "run=r", "training.batch_size=8"]
    process = subprocess.Popen(
        [*command, "training.threads=1", "hydra.run.dir=n"], cwd=tmp_path, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()  # training has begun
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert (tmp_path / "n" / "checkpoint.pt").is_file()
