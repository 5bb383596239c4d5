"""`python -m nasc_evo.measure` as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from nasc_evo.config import config_folder
from nasc_evo.cost import CostTable
from nasc_evo.costs import main as costs
from nasc_evo.hydra_app import register
from nasc_evo.measurement.evaluator import TILES_KB, fastest, thread_counts, time_numerics
from nasc_evo.measurement.machine import machine
from nasc_evo.space import FBNetSpace, NASBench201Space
from nasc_evo.supernet.score import Score
from problems import FBNetSplit
from tests.conftest import FAST, FAST_OPTIONS

QUICK = ("rounds=1", "repeats=3", "networks=40")


def start(tmp_path, *args):
    return subprocess.Popen(
        [sys.executable, "-m", "nasc_evo.measure", *args],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test run in the background of a shell would pass on that it ignores Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_lines(path, n, process):
    for _ in range(600):
        if path.exists() and len(path.read_bytes().splitlines()) >= n:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    pytest.fail(f"{path} has too few lines")


@pytest.mark.slow
def test_a_killed_and_an_interrupted_measurement_go_on_and_end_as_a_table(cli, tmp_path):
    journal = tmp_path / "mine.samples.jsonl"
    arguments = (*QUICK, "out=mine.csv")
    kept = b""
    for number, sign in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGTERM)):
        process = start(tmp_path, *arguments)
        wait_for_lines(journal, 20 * (number + 1), process)
        process.send_signal(sign)
        out, err = process.communicate(timeout=60)
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}.get(sign, 143)
        assert "Traceback" not in err
        if sign != signal.SIGKILL:
            assert "the same command goes on" in out
        content = journal.read_bytes()
        assert content.startswith(kept[: kept.rfind(b"\n") + 1])
        kept = content
        assert not (tmp_path / "mine.csv").exists()
    done = cli(*arguments, module="measure")
    assert done.returncode == 0, done.stderr
    content = journal.read_bytes()
    assert content.startswith(kept[: kept.rfind(b"\n") + 1])
    records = [json.loads(line) for line in content.splitlines()[1:]]
    names = [(record["item"], record.get("round")) for record in records]
    assert len(set(names)) == len(names)
    assert len([name for name, _ in names if name.startswith("run ")]) == 120
    assert "Predictions of whole networks, each unknown to the correction: MAPE" in done.stdout
    assert "device=table device.path=mine.csv" in done.stdout

    table = CostTable.load(tmp_path / "mine.csv", FBNetSpace(32, 10))
    assert table.prediction_error() is not None
    assert np.nanmin(table.latency_ms) == 0
    agreement = table.header["agreement"]
    for part in ("whole", "sides"):
        for form in ("plain_addition", "as_corrected"):
            assert set(agreement[part][form]) >= {"r2", "mape_percent", "kendall_tau"}
    if table.energy_mj is None:
        assert "No energy" in done.stdout
    assert costs(["check", str(tmp_path / "mine.csv")]) == 0

    again = cli(*arguments, module="measure")
    assert again.returncode == 2
    assert "out=mine.csv exists" in again.stderr
    other = cli(*QUICK, "seed=2", "out=mine.csv", module="measure")
    assert "out=mine.csv exists" in other.stderr
    (tmp_path / "mine.csv").rename(tmp_path / "kept.csv")
    other = cli(*QUICK, "seed=2", "out=mine.csv", module="measure")
    assert other.returncode == 2
    assert "holds a measurement with another seed: it had 1, this one has 2" in other.stderr

    path = str(tmp_path / "kept.csv")
    problem = FBNetSplit(device=path, server=path, evaluator=FAST)
    assert any("off by" in note for note in problem.notes())
    batch = problem.space.decode_batch(problem.space.xu[None])
    assert problem.costs(batch)["latency_ms"][0] > 2 * table.constant_ms

    found = cli("device=table", "device.path=kept.csv", "hydra.run.dir=mine", *FAST_OPTIONS)
    assert found.returncode == 0, found.stderr
    (tmp_path / "elsewhere").mkdir()
    picked = subprocess.run(
        [sys.executable, "-m", "nasc_evo.repick", "run=../mine", "link=lte"],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=False,
    )
    assert picked.returncode == 0, picked.stderr
    assert (tmp_path / "mine" / "repick" / "link=lte" / "pareto.csv").is_file()


def test_the_other_space_by_onnx_runtime_without_networks(cli, tmp_path):
    pytest.importorskip("onnxruntime", reason="the optional extra onnx is not installed")
    done = cli(
        "problem=nasbench201",
        "backend=onnxruntime",
        "networks=0",
        "rounds=2",
        "name=desk",
        "out=new/cells.csv",
        module="measure",
    )
    assert done.returncode == 0, done.stderr
    assert "how well sums predict is not known" in done.stdout
    table = CostTable.load(tmp_path / "new/cells.csv", NASBench201Space())
    assert table.name == "desk"
    assert table.constant_ms == 0
    assert table.pruned == ("unused", "zero_input")
    assert table.prediction_error() is None
    none, skip, conv_1x1, conv_3x3, _ = table.latency_ms[1]
    assert none == 0 < skip < conv_1x1 < conv_3x3
    assert sorted(os.listdir(tmp_path)) == ["new"]


def test_more_rounds_go_on_from_those_that_there_are(cli, tmp_path):
    options = ("problem=nasbench201", "networks=0", "repeats=3", "out=a.csv")
    one = cli(*options, "rounds=1", "energy=false", module="measure")
    assert one.returncode == 0, one.stderr
    assert "one round, so that its noise is not known" in one.stdout
    assert "No energy" not in one.stdout
    table = CostTable.load(tmp_path / "a.csv", NASBench201Space())
    assert table.header["measurement"]["rounds_disagree_percent"] is None
    first = (tmp_path / "a.samples.jsonl").read_bytes()
    (tmp_path / "a.csv").unlink()
    two = cli(*options, "rounds=2", "energy=false", module="measure")
    assert two.returncode == 0, two.stderr
    assert "rounds disagree by" in two.stdout
    both = (tmp_path / "a.samples.jsonl").read_bytes()
    assert both.startswith(first)
    assert len(both.splitlines()) - 1 == 2 * (len(first.splitlines()) - 1)
    taken = table.header["measurement"]["samples"]
    table = CostTable.load(tmp_path / "a.csv", NASBench201Space())
    assert table.header["measurement"]["samples"] > taken
    (tmp_path / "a.csv").unlink()
    again = cli(*options, "rounds=1", "energy=false", module="measure")
    assert again.returncode == 0, again.stderr
    table = CostTable.load(tmp_path / "a.csv", NASBench201Space())
    assert table.header["measurement"]["samples"] == taken
    assert (tmp_path / "a.samples.jsonl").read_bytes() == both


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["out=a.txt"], "out must be a file whose name ends in .csv, got 'a.txt'"),
        ([], "out must be given, such as out=my.csv"),
        (["out=a.csv", "geometry=64"], "exists at geometry 32 and 224, got 64"),
        (["out=a.csv", "problem=nasbench201", "geometry=224"], "geometry 32, got 224"),
        (["out=a.csv", "problem=resnet"], "There is no problem 'resnet'"),
        (["out=a.csv", "backend=tflite"], "backend must be one of torch, onnxruntime, got 'tflite"),
        (["out=a.csv", "processor=tpu"], "processor must be one of cpu, cuda, got 'tpu'"),
        (["out=a.csv", "launch=lazy"], "launch must be one of eager, graph, got 'lazy'"),
        (["out=a.csv", "launch=graph"], "launch=graph needs processor=cuda"),
        (["out=a.csv", "threads=0"], "threads must be in 1..1024, got 0"),
        (["out=a.csv", "threads=1000"], "threads=1000 is more than the"),
        (["out=a.csv", "networks=5"], "networks must be 0 or at least 40, got 5"),
        (["out=a.csv", "repeats=many"], "repeats"),
        (["out=a.csv", "backend=onnxruntime", "processor=cuda"], "on processor=cpu only, got cuda"),
    ],
)
def test_mistakes_are_one_sentence(cli_here, tmp_path, args, message):
    done = cli_here(*args, module="measure")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.glob("*")) == []


def test_a_missing_library_is_one_sentence(monkeypatch):
    from nasc_evo.errors import UserError
    from nasc_evo.measurement import backends

    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx and onnxruntime; install them with"):
        backends.create_backend("onnxruntime", "cpu", 1, "eager")


def test_without_a_gpu_cuda_is_refused(monkeypatch):
    import torch

    from nasc_evo.errors import UserError
    from nasc_evo.measurement.backends import create_backend

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA device and there is none"):
        create_backend("torch", "cuda", 1, "eager")


ROOT = Path(__file__).parents[1]
COMMANDS = [
    line.split("#")[0].split()[3:]
    for page in ("README.md", "docs/measure.md")
    for line in (ROOT / page).read_text().splitlines()
    if line.startswith("python -m nasc_evo.measure ")
]


@pytest.mark.parametrize("overrides", COMMANDS, ids=" ".join)
def test_the_commands_of_the_pages_compose(overrides):
    from nasc_evo.measurement.session import Plan

    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        if overrides[:1] == ["evaluator"]:
            assert compose("measure_evaluator", overrides[1:]).rounds > 0
            return
        config = compose("measure", overrides)
    assert Plan(**{field.name: config[field.name] for field in fields(Plan)}).rounds > 0
    assert config.out.endswith(".csv")


def test_the_three_commands_of_the_pages_follow_each_other():
    assert len(COMMANDS) >= 6
    for page in ("README.md", "docs/measure.md"):
        text = (ROOT / page).read_text()
        assert "out=my.csv" in text
        assert "python -m nasc_evo.run device=table device.path=my.csv hydra.run.dir=mine" in text
        assert "python -m nasc_evo.repick run=mine link=lte" in text


def test_help_is_quick_and_needs_no_torch(tmp_path):
    code = (
        "import sys; sys.argv += ['--help']; from nasc_evo.measure import main\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('torch', 'pymoo', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "processor=cuda launch=graph" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_the_fastest_numerics_of_the_evaluator_are_proposed(cli_here):
    options = ("designs=1", "rounds=1", "evaluator.images=16", "evaluator.calibration_images=16")
    done = cli_here("evaluator", *options, "problem=nasbench201", module="measure")
    assert done.returncode == 0, done.stderr
    proposed = done.stdout.splitlines()[-1].removeprefix("Fastest here: ").split()
    assert [word.split("=")[0] for word in proposed] == [
        "evaluator.threads",
        "evaluator.dtype",
        "evaluator.tile_kb",
    ]
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        evaluator = compose("config", proposed).evaluator
    assert evaluator.threads in thread_counts(machine()["cores"])
    assert evaluator.tile_kb in TILES_KB["cpu"]
    for text in (f"{evaluator.dtype} ", "1 designs of nasbench201, 16 images each"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rounds=0"], "rounds must be a whole number of at least 1, got 0"),
        (["designs=-1"], "designs must be a whole number of at least 1, got -1"),
        (["evaluator=tabular"], "Only evaluator=supernet has numerics to choose"),
        (["evaluator.images=0"], "evaluator.images must be a positive whole number"),
    ],
)
def test_mistakes_about_the_evaluator_are_one_sentence(cli_here, args, message):
    done = cli_here("evaluator", *args, module="measure")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_numerics_are_timed_in_turns_and_near_ties_take_fewer_threads():
    calls = []

    class Slow:
        def __init__(self, options):
            self.options = options

        def evaluate(self, designs):
            calls.append(self.options["threads"])
            time.sleep(self.options["threads"] / 200)
            return ((i, Score(3, 4)) for i in range(len(designs)))

    choices = [{"threads": 1}, {"threads": 4}]
    timings = time_numerics(Slow, choices, ["a", "b"], rounds=2)
    assert calls == [1, 4] * 3
    assert [timing.options for timing in timings] == choices
    assert timings[0].ms == pytest.approx(2.5, rel=0.5)
    assert timings[1].accuracies == (0.75, 0.75)
    assert fastest(timings) is timings[0]
    tie = [replace(timings[1], ms=1.0), replace(timings[0], ms=1.01)]
    assert fastest(tie) is tie[1]
    assert thread_counts(6) == [1, 2, 4, 6]
