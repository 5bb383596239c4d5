"""Another front out of a run: against a plain loop, and the command line."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nasc_evo import repick as command
from nasc_evo.config import absolute_files, config_folder
from nasc_evo.cost import Link
from nasc_evo.cost.table import TABLES
from nasc_evo.errors import UserError
from nasc_evo.hydra_app import EXIT_INFEASIBLE, register
from nasc_evo.problem import SplitProblem
from nasc_evo.search.folder import JOURNAL, RunFolder
from nasc_evo.search.operators import random_genomes
from nasc_evo.search.repick import RecordedEvaluator, RecordedRun, Repick
from nasc_evo.space import Design
from problems import FBNetSplit
from tests.conftest import FAST, needs_data
from tests.search.test_search import Formula
from tests.test_chains import EDGE_CLOUD


class Recorded(Formula):
    """Accuracy by formula, described as a run would."""

    def describe(self):
        return {"formula": 1, "images": 100, "dataset": "fashion_mnist"}


def write_run(folder: Path, *overrides: str, n: int = 120, **options) -> SplitProblem:
    """Write the folder of a run of random designs, every fifth of them all local."""
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    chosen = {name: config[name] for name in ("chain", "objectives", "limits")}
    problem = FBNetSplit(evaluator=Recorded(), **{**chosen, **options})
    identity = {"problem": problem.describe(), "seed": 1}
    run = RunFolder(folder, resume=False, identity=identity, config=config, overrides=[])
    problem.on_evaluation = lambda evaluation, computed: run.journal.append(evaluation)
    X = random_genomes(problem.space, n, np.random.default_rng(0))
    X[::5, problem.space.cut_genes] = problem.space.xu[problem.space.cut_genes]
    problem.assess(X)
    run.close()
    return problem


def repicked(folder: Path, *words: str) -> Repick:
    request = command.read_request([f"run={folder}", *words])
    run = RecordedRun.read(folder)
    changed = command.changed_config(run.config, request.changes)
    evaluator = RecordedEvaluator(run.problem["evaluator"])
    return Repick(run, command.create_problem(run.config, changed, evaluator=evaluator))


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("link.uplink_mbps=0.4",),
        ("link=lte", "device=raspi4"),
        ("link.uplink_mbps=200", "limits.latency_ms=25", "limits.error=0.6"),
        ("server=edgegpu", "objectives=[error,latency_ms,payload_bytes]"),
    ],
)
def test_a_new_front_is_that_of_a_plain_loop_over_all_that_is_known(tmp_path, words):
    problem = write_run(tmp_path / "run")
    picked = repicked(tmp_path / "run", *words)
    new, space = picked.problem, picked.problem.space
    known = {}
    for e in problem.evaluations.values():
        known[e.design] = e.score.error
    n = space.architecture.n_blocks
    local = {d.ops: (d.arch, error) for d, error in known.items() if d.cuts == (n,)}
    for ops, (arch, error) in local.items():
        for cut in range(2, n + 1):
            inner = cut < n
            mask, bits = ("11111111" if inner else "",), (32 if inner else 0,)
            known.setdefault(Design(arch, ops, (cut,), mask, bits), error)
    points = {}
    for design, error in known.items():
        costs = new.costs(space.batch([design]))
        values = {**{name: float(c[0]) for name, c in costs.items() if c.ndim == 1}, "error": error}
        if all(values[name] <= limit for name, limit in new.limits.items()):
            points[design.key] = tuple(values[name] for name in new.objectives)
    wanted = {v for v in points.values() if not any(dominates(o, v) for o in points.values())}
    front = picked.front()
    assert {tuple(row) for row in new.objective_values(front).tolist()} == wanted
    assert all(points[e.design.key] for e in front)
    origins = picked.origins(front)
    assert set(origins) == {e.index for e in front}
    if words == ("link.uplink_mbps=200", "limits.latency_ms=25", "limits.error=0.6"):
        assert any("nothing is lost" in text for text in origins.values())


def test_an_unchanged_repick_costs_what_the_run_did(tmp_path):
    problem = write_run(tmp_path / "run")
    picked = repicked(tmp_path / "run")
    for mine, theirs in zip(picked.evaluations, problem.evaluations.values(), strict=True):
        assert mine == theirs


def test_a_chain_is_repicked_with_its_own_links(tmp_path):
    problem = write_run(
        tmp_path / "run", "chain=device_edge_cloud", "device=raspi4", "server=titan_rtx"
    )
    picked = repicked(tmp_path / "run", "backhaul=lte", "backhaul.rtt_ms=5", "link.uplink_mbps=9")
    chain = {**EDGE_CLOUD, "links": [replace(Link.create("wifi"), uplink_mbps=9), None]}
    chain["links"][1] = replace(Link.create("lte"), rtt_ms=5)
    other = FBNetSplit(evaluator=Recorded(), chain=chain)
    designs = [e.design for e in problem.evaluations.values()]
    costs = other.costs(other.space.batch(designs))
    got = [e.metric("latency_ms") for e in picked.evaluations]
    assert got == costs["latency_ms"].tolist()
    assert picked.front()


def test_without_loss_the_accuracy_does_not_depend_on_the_cut():
    problem = FBNetSplit(evaluator=FAST, bits=[4, 32])
    space = problem.space
    x = random_genomes(space, 1, np.random.default_rng(3))[0]
    x[space.mask_genes] = 1
    x[space.bits_genes] = 1
    X = np.tile(x, (4, 1))
    X[:, space.cut_genes[0]] = np.searchsorted(space.cut_choices, [2, 9, 17, 24])
    assert len({e.score for e in problem.assess(X)}) == 1


def test_offers_are_not_evaluated_and_would_enlarge_the_front(tmp_path):
    write_run(tmp_path / "run")
    picked = repicked(tmp_path / "run", "link.uplink_mbps=300")
    front = picked.front()
    offers = picked.offers(front, 6)
    assert len(offers) > 3
    known = {e.design.key: e for e in (*picked.evaluations, *picked.derived)}
    points = picked.problem.objective_values(front)
    for offer in offers:
        assert offer.design.key not in known
        (parent,) = (e for e in picked.evaluations if e.index == offer.parent)
        assert parent.score.error == offer.error
        assert offer.design.ops == parent.design.ops
        genome = picked.problem.space.encode(offer.design)
        assert picked.problem.space.decode(genome) == offer.design
        costs = picked.problem.costs(picked.problem.space.decode_batch(genome[None]))
        assert costs["latency_ms"][0] == offer.latency_ms
        assert not any(dominates(p, (offer.error, offer.latency_ms)) for p in points.tolist())
    assert len(picked.offers(front, 3)) == 3
    assert picked.offers(front, 0) == []


def test_the_designs_kept_for_a_sweep_give_the_same_fronts(tmp_path):
    write_run(tmp_path / "run")
    picked = repicked(tmp_path / "run")
    few = picked.over_any_links()
    assert len(few.evaluations) < 0.6 * (len(picked.evaluations) + 23 * 24)
    for rate in (0.1, 1.0, 18.88, 500.0):
        links = [replace(picked.problem.chain.links[0], uplink_mbps=rate)]
        chain = picked.problem.chain.with_links(links)
        fronts = [
            other.problem.objective_values(other.with_chain(chain).front())
            for other in (picked, few)
        ]
        assert np.array_equal(*fronts)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def tabular_run(cli, tmp_path) -> Path:
    needs_data("hwnas/nb201_accuracy.npz")
    options = ("problem=nasbench201", "dataset=cifar100", "evaluator=tabular", "n_eval=150")
    result = cli(*options, "device=raspi4", "limits.latency_ms=25", "hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    return tmp_path / "run"


def test_the_command_line_writes_a_front_and_a_sweep(cli, tabular_run):
    result = cli("run=run", "link.uplink_mbps=2", module="repick")
    assert result.returncode == 0, result.stderr
    folder = tabular_run / "repick" / "link.uplink_mbps=2"
    document = json.loads((folder / "pareto.json").read_text())
    assert document["repick"]["changes"] == {"link.uplink_mbps": 2}
    assert document["problem"]["links"][0]["uplink_mbps"] == 2
    front = rows(folder / "pareto.csv")
    assert {str(d["design_id"]) for d in document["front"]} == {r["design_id"] for r in front}
    assert set(document["repick"]["origins"]) == {r["design_id"] for r in front}
    assert all(float(row["latency_ms"]) <= 25 for row in front)
    assert (folder / "front.png").stat().st_size > 10_000
    # every architecture of the run at every cut: no network of it does better
    best = min(float(row["error"]) for row in front)
    old = rows(tabular_run / "pareto.csv")
    assert best >= min(float(row["error"]) for row in old)

    result = cli("run=run", "sweep=link.uplink_mbps", "out=swept", module="repick")
    assert result.returncode == 0, result.stderr
    swept = rows(tabular_run.parent / "swept" / "sweep.csv")
    assert len(swept) == 41
    assert [float(swept[i]["link.uplink_mbps"]) for i in (0, 10, 40)] == [0.1, 1.0, 1000.0]
    errors = [float(row["error"]) for row in swept if row["error"]]
    assert errors == sorted(errors, reverse=True)
    assert len({row["cut"] for row in swept}) > 1
    assert (tabular_run.parent / "swept" / "sweep.png").stat().st_size > 10_000
    assert cli("run", module="collect").returncode == 0  # finds the run, not what lies below it


def test_evaluating_offers_writes_a_journal_that_counts_the_next_time(tmp_path, monkeypatch):
    write_run(tmp_path / "run", "evaluator.weights=null", n=30)
    evaluator = Recorded()

    def create(config, changed, **objects):
        if not objects:
            objects = {"evaluator": evaluator}
        return original(config, changed, **objects)

    original = command.create_problem
    monkeypatch.setattr(command, "create_problem", create)
    words = [f"run={tmp_path / 'run'}", "link.uplink_mbps=300", f"out={tmp_path / 'out'}"]
    assert command.main([*words, "evaluate=4"]) == 0
    assert len(evaluator.calls) == 4
    lines = (tmp_path / "out" / JOURNAL).read_text().splitlines()
    indices = [json.loads(line)["index"] for line in lines]
    assert indices == [30, 31, 32, 33]
    origins = json.loads((tmp_path / "out" / "pareto.json").read_text())["repick"]["origins"]
    assert command.main(words) == 0
    again = json.loads((tmp_path / "out" / "pareto.json").read_text())["repick"]["origins"]
    assert again == origins
    assert command.main([*words, "evaluate=2"]) == 0
    assert len(evaluator.calls) == 6
    assert set(evaluator.calls.values()) == {1}
    assert len((tmp_path / "run" / JOURNAL).read_text().splitlines()) == 30


def test_another_evaluator_is_refused(tmp_path, capsys):
    write_run(tmp_path / "run", n=30)
    words = [f"run={tmp_path / 'run'}", "link.uplink_mbps=300", "evaluate=1"]
    assert command.main(words) == 2
    assert "New designs cannot be scored as those of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["link.uplink_mbps=2"], "Give the folder of a run: run="),
        (["run=nowhere"], "run=nowhere is no folder of a run: it has no manifest.json"),
        (["run={run}", "link.uplink_mbps=0"], "uplink_mbps must be a finite number above 0, got 0"),
        (["run={run}", "link.uplink=3"], "There is no option link.uplink"),
        (["run={run}", "link=fibre"], "There is no link 'fibre'; available are"),
        (["run={run}", "problem=nasbench201"], "'problem' cannot change; device, edge, server"),
        (["run={run}", "mask_groups=4"], "'mask_groups' cannot change"),
        (
            ["run={run}", "chain=device_edge_cloud"],
            "of another space: its n_links was 1, now it is 2",
        ),
        (["run={run}", "evaluate=-1"], "evaluate must be a whole number >= 0, got -1"),
        (["run={run}", "evaluate=many"], "got 'many'"),
        (["run={run}", "sweep=link.rtt_ms"], "sweep must be one of link.uplink_mbps"),
        (["run={run}", "link.uplink_mbps=1,2"], "has several values"),
        (["run={run}", "link.rtt_ms=1", "link.rtt_ms=2"], "link.rtt_ms is given twice"),
        (["run={run}", "+link.foo=1"], "nothing can be added or removed here"),
        (["run={run}", "link.uplink_mbps"], "is no KEY=VALUE"),
        (["run={run}", "objectives=[error]"], "at least two different objectives"),
        (["run={run}", "server=table"], "server.path must be given"),
        (["run={run}", "out={run}"], "is the folder of a run; write to another one"),
        (
            ["run={run}", "edge=raspi4"],
            "edge has no effect: chain=device_server is of device, server, link",
        ),
        (["run={run}", "backhaul.rtt_ms=3"], "backhaul.rtt_ms has no effect"),
        (["run={run}", "sweep=backhaul.uplink_mbps"], "backhaul.uplink_mbps has no effect"),
        (
            ["run={run}", "sweep=link.uplink_mbps", "link.uplink_mbps=2"],
            "link.uplink_mbps is swept, so that link.uplink_mbps=2 has no effect",
        ),
        (
            ["run={run}", "sweep=link.uplink_mbps", "link=uav"],
            "cannot be swept: a trace or relay gives the rates of uav",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, words, message):
    write_run(tmp_path / "run", n=5)
    code = command.main([word.format(run=tmp_path / "run") for word in words])
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert captured.err.startswith("Error: ")
    assert len(captured.err.strip().splitlines()) == 1


def test_limits_that_no_design_meets_are_said(tmp_path, capsys):
    write_run(tmp_path / "run", n=20)
    words = [f"run={tmp_path / 'run'}", "limits.latency_ms=0.5"]
    assert command.main(words) == EXIT_INFEASIBLE
    out = capsys.readouterr().out
    assert "No design meets the limits; the nearest one (" in out
    folder = tmp_path / "run" / "repick" / "limits.latency_ms=0.5"
    nearest = json.loads((folder / "pareto.json").read_text())["least_infeasible"]
    assert f"latency_ms is {nearest['latency_ms']:.4g} instead of at most 0.5" in out
    assert rows(folder / "pareto.csv") == []
    assert command.main([*words, "sweep=link.uplink_mbps"]) == EXIT_INFEASIBLE
    assert "none, no design meets the limits" in capsys.readouterr().out


def test_a_chain_that_was_given_as_a_whole_is_changed_as_a_whole(tmp_path):
    write_run(tmp_path / "run", "chain.nodes=[raspi4,titan_rtx]", n=10)
    with pytest.raises(UserError, match="device has no effect: the chain was given as a whole"):
        repicked(tmp_path / "run", "device=edgegpu")
    picked = repicked(tmp_path / "run", "chain.nodes=[pixel3,titan_rtx]")
    assert picked.problem.chain.nodes[0].name == "pixel3"


@pytest.mark.parametrize("field", ["chain", "limits", "objectives"])
@pytest.mark.parametrize(("value", "got"), [(None, "None"), (3, "3")])
def test_a_configuration_without_its_parts_is_one_sentence(field, value, got):
    config = {"chain": {}, "limits": {}, "objectives": [], field: value}
    with pytest.raises(UserError, match=f"{field} in the configuration of the run .*, got {got}"):
        command.changed_config(config, {"limits.latency_ms": 9})


def test_an_option_of_a_part_that_is_a_list_is_one_sentence():
    config = {"chain": {}, "limits": {}, "objectives": [], "link": []}
    with pytest.raises(UserError, match=r"There is no option link\.uplink_mbps"):
        command.changed_config(config, {"link.uplink_mbps": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "skip"}, "Design 0 in the journal of"),
        ({"cut": 99}, "is damaged"),
        ({"mask": "1"}, "is damaged"),
        ({"bits": None}, "is damaged"),
    ],
)
def test_a_damaged_design_is_one_sentence(tmp_path, change, message):
    write_run(tmp_path / "run", n=10)
    path = tmp_path / "run" / JOURNAL
    first, *others = path.read_text().splitlines()
    record = json.loads(first) | change
    path.write_text("\n".join([json.dumps(record), *others, ""]))
    with pytest.raises(UserError, match=message):
        repicked(tmp_path / "run")


def test_the_folder_of_a_run_is_left_as_it_is(tmp_path):
    write_run(tmp_path / "run", n=5)
    before = {
        path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()
    }
    assert command.main([f"run={tmp_path / 'run'}", f"out={tmp_path / 'run'}"]) == 2
    assert command.main([f"run={tmp_path / 'run'}", "link.uplink_mbps=1"]) == 0
    after = {
        path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()
    }
    assert after == before


def test_a_table_that_has_changed_since_is_said(tmp_path, capsys):
    shipped = (TABLES / "fbnet_32_edgegpu.csv").read_text()
    table = tmp_path / "mine.csv"
    table.write_text(shipped)
    device = ("device=table", f"device.path={table}")
    write_run(tmp_path / "run", *device, n=20)
    assert command.main([f"run={tmp_path / 'run'}"]) == 0
    assert "is not the one that the run had" not in capsys.readouterr().out
    table.write_text(shipped.replace("\nstem,-,", "\nstem,-,1", 1))
    assert command.main([f"run={tmp_path / 'run'}"]) == 0
    said = "Note: the cost table of edgegpu is not the one that the run had."
    assert said in capsys.readouterr().out


def test_two_processes_do_not_evaluate_into_one_folder(tmp_path, capsys):
    write_run(tmp_path / "run", n=20)
    (tmp_path / "out").mkdir()
    words = [f"run={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "evaluate=2"]
    with command.held(tmp_path / "out"):
        assert command.main(words) == 2
    assert "Another repick evaluates designs into" in capsys.readouterr().err
    assert not (tmp_path / "out" / JOURNAL).exists()


def test_a_run_with_files_of_the_user_is_repicked_from_another_folder(tmp_path, monkeypatch):
    files = {"path": "mine.csv", "trace": "~/rates.csv", "weights": None}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    got = absolute_files({"device": files, "chain": {"nodes": [files]}, "seed": 1})
    wanted = {"path": str(tmp_path / "mine.csv"), "trace": "/home/me/rates.csv", "weights": None}
    assert got == {"device": wanted, "chain": {"nodes": [wanted]}, "seed": 1}
