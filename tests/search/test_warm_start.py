"""A search that begins with what an earlier run, on another device or link, has scored."""

import json

import numpy as np
import pytest

from nasc_evo.errors import UserError
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.folder import RunFolder
from nasc_evo.search.indicators import hypervolume, non_dominated
from nasc_evo.search.loop import run_search
from nasc_evo.search.warm_start import read_warm_start
from tests.conftest import needs_data
from tests.search.test_search import Formula, problem
from tests.search.test_surrogate import tabular


def earlier(path, one, n_eval=120, seed=1):
    """Run a search into a folder."""
    identity = {"problem": one.describe(), "seed": seed}
    folder = RunFolder(path, resume=False, identity=identity, config={}, overrides=[])
    one.on_evaluation = lambda e, computed: folder.journal.append(e)
    result = run_search(one, create_algorithm("nsga2", one, {"pop_size": 20}), n_eval, seed=seed)
    folder.close()
    return result.evaluations


@pytest.mark.parametrize("name", ["surrogate", "nsga2", "random"])
def test_accuracies_transfer_and_costs_are_new(tmp_path, name):
    old = earlier(tmp_path / "run", problem(device="raspi4", link="lte"))
    evaluator = Formula()
    one = problem(evaluator, device="edgegpu")
    first = read_warm_start(tmp_path / "run", one).apply(one)
    assert evaluator.calls == {}
    assert len(one.evaluations) == len(old) == 120
    by_key = {e.design.key: e for e in old}
    for e in one.search_evaluations():
        assert e.score == by_key[e.design.key].score
        batch = one.space.decode_batch(np.array([e.genome]))
        assert e.metric("latency_ms") == one.costs(batch)["latency_ms"][0]
        assert e.metric("latency_ms") != by_key[e.design.key].metric("latency_ms")
    keys = {e.design.key for e in non_dominated(one, one.search_evaluations())}
    assert {design.key for design in first} <= keys
    algorithm = create_algorithm(name, one, first=first)
    result = run_search(one, algorithm, 50, seed=2)
    assert len(evaluator.calls) == 50  # the budget is one of new designs
    assert len(result.evaluations) == 170


def test_it_helps(tmp_path):
    earlier(tmp_path / "run", problem(device="raspi4", link="lte"), 300)
    values = {}
    for warm in (False, True):
        one = problem(device="pixel3")
        reference = np.array([one.reference_point[name] for name in one.objectives])
        first = read_warm_start(tmp_path / "run", one).apply(one) if warm else ()
        algorithm = create_algorithm("surrogate", one, first=first)
        F = one.objective_values(run_search(one, algorithm, 30, seed=0).evaluations)
        values[warm] = hypervolume(F, reference)
    assert values[True] > values[False]


def test_official_accuracies_transfer_to_the_best_cut_anywhere(tmp_path):
    old = earlier(tmp_path / "run", tabular(device="raspi4"))
    one = tabular(device="edgegpu", link="3g", allow_raw_offload=True)
    read_warm_start(tmp_path / "run", one).apply(one)
    found = one.search_evaluations()
    assert {e.design.arch for e in found} == {e.design.arch for e in old}
    errors = {e.design.arch: e.score.error for e in old}
    for e in found[:20]:
        assert e.score.error == errors[e.design.arch]
        X = np.tile(np.array(e.genome), (len(one.space.cut_choices), 1))
        X[:, one.space.cut_genes[0]] = np.arange(len(X))
        costs = one.costs(one.space.decode_batch(X))["latency_ms"]
        assert e.metric("latency_ms") == costs.min()


def test_designs_outside_the_new_space_are_left_out(tmp_path):
    earlier(tmp_path / "run", problem())
    one = problem(bits=[4], min_device_blocks=10)
    read_warm_start(tmp_path / "run", one).apply(one)
    assert all(
        e.design.cuts[0] >= 10 and e.design.bits[0] in (0, 4) for e in one.search_evaluations()
    )


def test_what_does_not_transfer_is_refused(tmp_path):
    earlier(tmp_path / "run", problem(), 10)

    class Other(Formula):
        def describe(self):
            return {"formula": 2}

    with pytest.raises(UserError, match=r"its evaluator.formula is 1, this run has 2"):
        read_warm_start(tmp_path / "run", problem(Other()))
    with pytest.raises(UserError, match=r"its space.mask_groups is 8, this run has 4"):
        read_warm_start(tmp_path / "run", problem(mask_groups=4))
    nodes = ["edgegpu", "edgegpu", "titan_rtx"]
    chain = {"nodes": nodes, "links": ["wifi", "lte"], "roles": None}
    with pytest.raises(UserError, match="its chain has 1 links, this run's has 2"):
        read_warm_start(tmp_path / "run", problem(chain=chain))
    with pytest.raises(UserError, match="manifest .* is damaged"):
        read_warm_start(tmp_path / "nowhere", problem())
    manifest = tmp_path / "run" / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "identity": {"problem": {"space": 3}}}))
    with pytest.raises(UserError, match="damaged"):
        read_warm_start(tmp_path / "run", problem())


def test_a_warm_run_of_the_command_line_resumes(cli, cli_here, tmp_path):
    needs_data("hwnas/nb201_accuracy.npz")
    common = ["problem=nasbench201", "dataset=cifar100", "evaluator=tabular", "n_eval=40"]
    first = cli(*common, "device=raspi4", "hydra.run.dir=first")
    assert first.returncode == 0, first.stderr
    warm = [*common, "device=edgegpu", "algorithm=surrogate", "warm_start=first"]
    assert cli(*warm, "hydra.run.dir=second").returncode == 0
    lines = (tmp_path / "second" / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    searched = [line for line in lines if b'"split":"search"' in line]
    assert len(searched) == 80  # 40 that transferred, 40 of its own
    front = (tmp_path / "second" / "pareto.csv").read_bytes()
    (tmp_path / "second" / "evaluations.jsonl").write_bytes(b"".join(lines[:55]))
    again = cli(*warm, "resume=second")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "second" / "pareto.csv").read_bytes() == front
    cold = cli_here(*warm[:-1], "resume=second")
    assert cold.returncode == 2
    assert "cannot be resumed with another warm_start" in cold.stderr
    missing = cli_here(*warm[:-1], "warm_start=nowhere", "hydra.run.dir=third")
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr
