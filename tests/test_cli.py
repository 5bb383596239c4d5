"""The command line as a user meets it, in processes of its own."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from nasc_evo.config import config_folder, group_options
from nasc_evo.hydra_app import Limits, instantiate, register
from nasc_evo.problem import METRICS
from nasc_evo.search.algorithms import create_algorithm
from tests.conftest import FAST_OPTIONS, needs_data

GROUPS = (
    *("algorithm", "backhaul", "chain", "dataset", "device", "edge", "evaluator", "link"),
    *("parallel", "problem", "server"),
)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "pareto.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_times(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, name)
        for group in GROUPS
        for name in group_options(group)
        if name != "folder"  # has no weights that ship: a mistake below
    ],
)
def test_every_option_of_every_group_composes_and_builds(group, option, tmp_path):
    if option == "agemoea":
        pytest.importorskip("numba", reason="the optional extra agemoea is not installed")
    overrides = [f"{group}={option}"]
    if group in ("edge", "backhaul"):
        overrides.append("chain=device_edge_cloud")
    nasbench201_only = ("edgetpu", "tabular")
    if option in nasbench201_only:  # exist for this space, and on this data set
        needs_data("hwnas/nb201_accuracy.npz")
        others = {"problem": "nasbench201", "dataset": "cifar100", "evaluator": "tabular"}
        overrides += [f"{key}={value}" for key, value in others.items() if key != group]
    if option == "raw_offload":
        overrides.append("allow_raw_offload=true")
    if option == "table":
        table = Path(__file__).parents[1] / "nasc_evo/cost/tables/fbnet_32_pixel3.csv"
        overrides.append(f"{group}.path={table}")
    if option == "trace":
        (tmp_path / "rates.csv").write_text("uplink_mbps\n3\n5.5\n12\n")
        overrides.append(f"{group}.trace={tmp_path / 'rates.csv'}")
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", overrides)
    problem = instantiate(config.problem)
    options = OmegaConf.to_container(config.algorithm)
    assert create_algorithm(options.pop("name"), problem, options) is not None
    X = problem.space.xl[None]
    assert problem.costs(problem.space.decode_batch(X))["latency_ms"][0] > 0
    if group in ("device", "edge", "server"):
        node = problem.chain.nodes[{"device": 0, "edge": 1, "server": -1}[group]]
        assert node.name == ("pixel3" if option == "table" else option)
    if group in ("link", "backhaul"):
        assert problem.chain.links[-(group == "backhaul")].name == option


def test_every_metric_may_be_limited():
    assert tuple(field.name for field in fields(Limits)) == METRICS


def test_a_search_writes_what_it_promises(cli, cli_here, tmp_path):
    options = (*FAST_OPTIONS, "rescore=2", "limits.latency_ms=15")
    result = cli(*options, "hydra.run.dir=out")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "out"
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "pareto.csv",
        "pareto.json",
        "evaluations.jsonl",
        "front.png",
        "front.svg",
        "manifest.json",
        ".hydra",
    }
    front = rows(folder)
    document = json.loads((folder / "pareto.json").read_text())
    assert [int(row["design_id"]) for row in front] == [
        design["design_id"] for design in document["front"]
    ]
    journal = without_times(folder)
    by_index = {line["index"]: line for line in journal}
    for row in front:
        assert float(row["latency_ms"]) <= 15
        assert by_index[int(row["design_id"])]["arch"] == row["arch"]
        parts = sum(float(row[name]) for name in ("device_ms", "link_ms", "server_ms"))
        assert parts == pytest.approx(float(row["latency_ms"]))
        assert row["error_test"] != ""
    pairs = [(float(row["error"]), float(row["latency_ms"])) for row in front]
    for a in pairs:
        assert not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in pairs)
    searched = [line for line in journal if line["images"] == 64]
    assert len({line["key"] for line in searched}) == len(searched) == 14
    assert document["front_images"] == 2000
    assert document["recommended"]["design_id"] in [int(row["design_id"]) for row in front]
    assert len(document["references"]) == 4
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["finished"]["evaluations"] == 14
    assert "Pareto set under latency_ms <= 15" in result.stdout
    assert "Recommended: design" in result.stdout

    again = cli_here(*options, "hydra.run.dir=out")
    assert again.returncode == 2
    assert "holds a run already; continue it with resume=" in again.stderr

    other = cli_here(*options, "resume=out", "seed=2")
    assert other.returncode == 2
    assert "cannot be resumed with another seed: it had 1, this command has 2" in other.stderr

    before = (folder / "pareto.csv").read_bytes()
    resumed = cli(*options, "resume=out")
    assert resumed.returncode == 0, resumed.stderr
    assert (folder / "pareto.csv").read_bytes() == before
    assert without_times(folder) == journal


@pytest.mark.slow
def test_ctrl_c_leaves_a_front_and_resuming_ends_like_an_uninterrupted_run(
    cli, tmp_path, finished_run
):
    command = [sys.executable, "-m", "nasc_evo.run", *FAST_OPTIONS, "hydra.run.dir=parts"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HYDRA_FULL_ERROR": "0"},
        # a test run in the background of a shell would pass on that it ignores Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = tmp_path / "parts" / "evaluations.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "resume=parts" in out
    assert len(rows(tmp_path / "parts")) >= 1
    done = journal.read_bytes().count(b"\n")
    assert done < 14
    with open(journal, "ab") as file:
        file.write(b'{"index": 99, "key": "torn')
    resumed = cli(*FAST_OPTIONS, "resume=parts")
    assert resumed.returncode == 0, resumed.stderr
    assert without_times(tmp_path / "parts") == without_times(finished_run)
    for name in ("pareto.csv", "pareto.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (finished_run / name).read_bytes()


def test_a_limit_out_of_reach_ends_with_3_and_the_nearest_design(cli, tmp_path):
    result = cli(*FAST_OPTIONS, "limits.latency_ms=1", "hydra.run.dir=out")
    assert result.returncode == 3, result.stderr
    assert "latency_ms is 3.035 instead of at most 1" in result.stdout
    assert "even the fastest design of the space takes 3.035 ms, the limit is 1 ms" in result.stdout
    assert rows(tmp_path / "out") == []
    assert (tmp_path / "out" / "pareto.csv").read_text().startswith("design_id,arch,cut,")
    document = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert document["least_infeasible"]["latency_ms"] == pytest.approx(3.0347, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["device=edgegup"], "There is no device 'edgegup'; available are edgegpu, edgetpu"),
        (["+algorithm.name=[8,8]"], "algorithm must be one of"),
        (["algorithm=nsga4"], "There is no algorithm 'nsga4'; available are accuracy_then_cut"),
        (["limit.latency_ms=5"], "limit"),
        (["n_eval=many"], "n_eval"),
        (["n_eval=0"], "n_eval must be a whole number of at least 1, got 0"),
        (["link.uplink_mbps=0"], "link.uplink_mbps must be a finite number above 0, got 0"),
        (["link.uplink_mbps=-3"], "got -3"),
        (["link.uplink_mbps=nan"], "got nan"),
        (["link.uplink=3"], "uplink"),
        (["limits.latency_ms=-1"], "limits.latency_ms must be a finite number above 0, got -1"),
        (["objectives=[error,speed]"], "An objective must be one of error, latency_ms"),
        (["bits=[5,9]"], "bits must be a list of different widths"),
        (["bits=99"], "bits must be a list of different widths"),
        (["bits=[8.0]"], "bits must be a list of different widths"),
        (["objectives=error"], "Give a list of at least two different objectives, got error"),
        (["mask_groups=3"], "mask_groups=3 does not divide the 16 channels"),
        (["min_device_blocks=30"], "min_device_blocks must be in 1..24"),
        (["algorithm=moead", "limits.latency_ms=9"], "algorithm=moead takes no limits"),
        (["evaluator.images=3000"], "more than the 2000 images of the search split"),
        (["evaluator.weights=x.safetensors"], "There is no weight file x.safetensors"),
        (["dataset=folder"], "dataset.path must be given, such as dataset.path=photos"),
        (["dataset=none"], "fashion_mnist, folder or the folder of your own images"),
        (["dataset.geometry=224", "server=edgegpu"], "No weights ship for fbnet on fashion_mnist"),
        (
            ["dataset=cifar100", "dataset.geometry=224", "server=edgegpu"],
            "train them with `python -m nasc_evo.train",
        ),
        (["device=table"], "device.path must be given"),
        (["device=table", "device.path=none.csv"], "There is no cost table file none.csv"),
        (["resume=nowhere"], "is no folder of an earlier run"),
        (["rescore=some"], "rescore must be a positive whole number or 'all', got 'some'"),
        (["parallel=spark"], "There is no parallel 'spark'; available are dask, loky, ray, serial"),
        (["parallel=loky", "parallel.n_jobs=0"], "parallel.n_jobs must be a positive whole number"),
        (["max_time=soon"], "max_time must be a time such as 2h, 1h30m or 90s, got 'soon'"),
        (["max_failed=2"], "max_failed must be a number in 0..1, got 2"),
        (["patience=0"], "patience must be a whole number of at least 1, got 0"),
        (["seed=-1"], "seed must be a whole number of at least 0, got -1"),
        (["objectives=[error,latency_p95_ms]"], "latency_p95_ms is of links whose rates vary"),
        (["link=trace"], "link.trace must be given"),
        (["link=trace", "link.trace=no.csv"], "There is no file no.csv of rates (link.trace)"),
        (["edge=raspi4"], "edge has no effect: chain=device_server is of device, server, link"),
        (["backhaul.rtt_ms=3"], "backhaul.rtt_ms has no effect"),
        (["device=raspi4", "chain.nodes=[edgegpu,titan_rtx]"], "device has no effect: chain="),
        (["n_eval"], "n_eval"),
        (["=3"], "must be a string"),
        (["objectives=[error,energy_mj]"], "energy_mj cannot be computed"),
    ],
)
def test_a_users_mistake_is_one_sentence(cli_here, tmp_path, options, message):
    result = cli_here(*options)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["device=edgegup", "n_eval=0", "resume=nowhere"])
def test_a_mistake_ends_a_process_as_it_ends_here(cli, cli_here, tmp_path, option):
    there, here = cli(option), cli_here(option)
    assert there.returncode == here.returncode == 2
    assert (there.stdout, there.stderr) == (here.stdout, here.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_named_problems_in_the_way_is_recognised(cli, tmp_path):
    (tmp_path / "problems").mkdir()
    (tmp_path / "problems" / "__init__.py").write_text("")
    result = cli("n_eval=2")
    assert result.returncode == 2
    assert "hides the package 'problems' of nasc_evo" in result.stderr


def test_help_answers_at_once(cli):
    def computing() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    cli("--help")
    before = computing()
    result = cli("--help")
    assert computing() - before < 2  # less than 1 s on an idle machine, see the README
    assert result.returncode == 0
    assert "device: edgegpu, edgetpu" in result.stdout


def test_hydra_copies_its_sources_without_all_configurations():
    register()
    store = ConfigStore.instance()
    assert deepcopy(store) is store  # else --help takes three times as long
    loaded = store.load("run_schema.yaml").node
    loaded.seed = 5
    assert OmegaConf.is_missing(store.load("run_schema.yaml").node, "seed")


def test_training_from_the_command_line_stops_and_resumes(cli, tmp_path):
    needs_data("fashion-mnist/train-images-idx3-ubyte.gz")
    options = ["training.batch_size=16", "training.epochs=1", "max_minutes=0.01"]
    result = cli(*options, "hydra.run.dir=t", module="train")
    assert result.returncode == 130, result.stderr
    assert "continue with the same command and resume=t" in result.stdout
    assert (tmp_path / "t" / "checkpoint.pt").exists()
    resumed = cli(*options, "resume=t", module="train")
    assert resumed.returncode == 130, resumed.stderr
    assert "step 0 of" not in resumed.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["problem=resnet"], "There is no problem 'resnet'; available are fbnet"),
        (["training.epochs=0"], "training.epochs must be above 0, got 0"),
        (["training.epoch=3"], "epoch"),
        (["+training.foo=1"], "training has no option 'foo'"),
        (["max_minutes=-1"], "max_minutes must be above 0"),
        (["resume=nowhere"], "holds no checkpoint.pt"),
    ],
)
def test_a_mistake_in_training_is_one_sentence(cli_here, options, message):
    needs_data("fashion-mnist/train-images-idx3-ubyte.gz")
    result = cli_here(*options, module="train")
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_exact_front_and_a_search_held_against_it(cli, cli_here, tmp_path):
    needs_data("hwnas/nb201_accuracy.npz")
    options = ("problem=nasbench201", "dataset=cifar100", "evaluator=tabular", "device=raspi4")
    truth = cli("device=raspi4", "hydra.run.dir=t", module="truth")
    assert truth.returncode == 0, truth.stderr
    assert "The exact front has" in truth.stdout
    columns = (tmp_path / "t" / "truth.csv").read_text().splitlines()[0]
    again = cli_here("device=raspi4", "hydra.run.dir=t", module="truth")
    assert again.returncode == 2
    assert "already holds a truth.csv" in again.stderr
    result = cli(*options, "truth=t/truth.csv", "n_eval=200", "hydra.run.dir=out")
    assert result.returncode == 0, result.stderr
    assert "% of the exact front's" in result.stdout
    assert columns == (tmp_path / "out" / "pareto.csv").read_text().splitlines()[0]
    document = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert 0.8 < document["hypervolume"]["relative_to_truth"] <= 1
    # nothing was left out of a front that needs no re-scoring
    assert all(float(row["error_test"]) > 0 for row in rows(tmp_path / "out"))
    other = cli_here(*options, "link=lte", "truth=t/truth.csv", "hydra.run.dir=other")
    assert other.returncode == 2
    assert "is of another problem: its links.0" in other.stderr
    (tmp_path / "t" / "truth.csv").write_text(
        "".join((tmp_path / "t" / "truth.csv").read_text().splitlines(keepends=True)[:3])
    )
    cut = cli_here(*options, "truth=t/truth.csv", "hydra.run.dir=other")
    assert cut.returncode == 2
    assert "not that of the .json beside it" in cut.stderr
    missing = cli_here(*options, "truth=t/nothing.csv", "hydra.run.dir=other")
    assert missing.returncode == 2
    assert "write them with `python -m nasc_evo.truth`" in missing.stderr


def test_the_exact_front_under_impossible_limits_ends_with_3(cli_here):
    needs_data("hwnas/nb201_accuracy.npz")
    result = cli_here("limits.latency_ms=1e-6", module="truth")
    assert result.returncode == 3
    assert "No design of the space meets the limits: even the fastest design of" in result.stdout


def test_tabular_accuracies_of_another_problem_are_refused(cli_here):
    needs_data("hwnas/nb201_accuracy.npz")
    for options, says in (
        (("evaluator=tabular", "dataset=cifar100"), "no official accuracies for fbnet"),
        (("evaluator=tabular", "problem=nasbench201"), "not for fashion_mnist"),
    ):
        result = cli_here(*options)
        assert result.returncode == 2
        assert says in result.stderr
        assert "Traceback" not in result.stderr
