"""Official figures of NAS-Bench-201 as evaluator and by index or string."""

import json

import numpy as np
import pytest

from nasc_evo.data import get_dataset
from nasc_evo.errors import UserError
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.journal import Journal
from nasc_evo.space import FBNetSpace, NASBench201Space
from nasc_evo.tabular import TabularEvaluator, query
from nasc_evo.testing import check_problem
from problems import NASBench201Split
from tests.conftest import needs_data

SPACE = NASBench201Space(32, 100)
INDEX_0 = {
    "edgegpu_latency": 5.807418537139893,
    "edgegpu_energy": 24.226614330768584,
    "raspi4_latency": 10.481976820010459,
    "edgetpu_latency": 0.9571811309997429,
    "pixel3_latency": 3.60585,
    "eyeriss_latency": 3.64562,
    "fpga_latency": 2.57296,
}
"""From the documentation of HW-NAS-Bench, cifar10."""


@pytest.fixture
def official():
    needs_data("hwnas/nb201_hw.npz")
    return needs_data("hwnas/nb201_accuracy.npz")


def problem(**options):
    return NASBench201Split(dataset="cifar100", evaluator="tabular", **options)


def test_query_gives_the_documented_numbers(official):
    by_index = query(0)
    for name, value in INDEX_0.items():
        assert by_index[name] == pytest.approx(value, rel=1e-9)
    assert query(by_index["arch"]) == by_index
    assert by_index["macs"] == 15647370
    with np.load(official) as file:
        best = int(file["cifar100_xtest_200"].argmax())
    assert query(best, "cifar100")["cifar100_xtest_200"] == pytest.approx(73.51, abs=0.005)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((15625,), "0..15624"),
        ((True,), "0..15624"),
        ((1.5,), "0..15624"),
        ((None,), "0..15624"),
        (("|none~0|",), "3 nodes"),
        ((0, "mnist"), "dataset must be one of"),
    ],
)
def test_query_of_nothing_is_one_sentence(official, arguments, says):
    with pytest.raises(UserError, match=says):
        query(*arguments)


def test_scores_are_the_official_accuracies(official):
    p = problem()
    with np.load(official) as file:
        search, test = file["cifar100_xvalid_200_derived"], file["cifar100_xtest_200"]
    designs = [p.space.decode(x) for x in p.space.xl[None]]
    index = SPACE.index(np.array([designs[0].ops]))[0]
    for split, column in (("search", search), ("test", test)):
        ((_, score),) = p.evaluator.evaluate(designs, split)
        assert score.error == pytest.approx(1 - column[index] / 100, abs=1e-12)
        assert score.images == 5000


def test_mask_and_bits_are_no_genes_and_networks_stay_apart(official):
    p = problem()
    assert p.space.n_var == 7
    design = p.space.decode(np.array([3, 0, 0, 1, 0, 0, 3]))
    assert design.masks == ("1",)
    assert design.bits == (8,)
    assert design.ops == (3, 0, 0, 1, 0, 0)
    assert any("counts as lossless" in note for note in p.notes())


@pytest.mark.parametrize("device", ["edgegpu", "edgetpu"])
def test_the_problem_keeps_its_promises(official, device):
    check_problem(problem(device=device, limits={"latency_ms": 20}), n=40)


def test_refused_networks_reach_neither_front_nor_evaluator(official):
    p = problem(device="edgetpu")
    refused = p.space.architecture.architectures[p.chain.nodes[0].table.refused][:5]
    X = np.zeros((5, 7), dtype=int)
    X[:, :6] = refused
    p.evaluator.evaluate = lambda *args: iter(())  # would leave a design without a score
    evaluations = p.assess(X)
    assert [e.failed for e in evaluations] == [True] * 5
    assert evaluations[0].score.message == "the network did not compile for edgetpu"
    assert not p.feasible(evaluations).any()
    out = p.evaluate(X, return_as_dictionary=True)
    worst = [p.reference_point[name] for name in p.objectives]
    assert np.array_equal(out["F"], [worst] * 5)
    assert (out["G"] > 0).all()


def test_refusals_are_journalled_once_with_their_reason(official, tmp_path):
    path = tmp_path / "evaluations.jsonl"
    reasons = []
    for _ in range(2):  # the second time as a resumed run
        p = problem(device="edgetpu")
        refused = np.flatnonzero(p.chain.nodes[0].table.refused)[:3]
        X = np.zeros((3, p.space.n_var), dtype=int)
        X[:, :6] = SPACE.architectures[refused]
        journal = Journal(path)
        p.remember(journal.scores)
        p.on_evaluation = lambda e, computed, to=journal: to.append(e) if computed else None
        p.assess(X)
        journal.close()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        reasons.append([(line["status"], line["message"]) for line in lines])
    assert reasons[0] == [("failed", "the network did not compile for edgetpu")] * 3
    assert reasons[1] == reasons[0]


def test_a_machine_that_refuses_networks_is_a_constraint_too_many_for_moead(official):
    with pytest.raises(UserError, match="remove the machine that cannot run every network"):
        create_algorithm("moead", problem(device="edgetpu"))


def test_mask_groups_are_checked_although_they_have_no_effect(official):
    with pytest.raises(UserError, match="mask_groups=7 does not divide"):
        problem(mask_groups=7)


def test_what_it_cannot_score_is_one_sentence(official, tmp_path, monkeypatch):
    cifar, fashion = get_dataset("cifar100"), get_dataset("fashion_mnist")
    with pytest.raises(UserError, match="no official accuracies for fbnet"):
        TabularEvaluator(FBNetSpace(32, 100), cifar)
    with pytest.raises(UserError, match="not for fashion_mnist"):
        TabularEvaluator(NASBench201Space(32, 10), fashion)
    with pytest.raises(UserError, match="no options"):
        NASBench201Split(dataset="cifar100", evaluator={"name": "tabular", "images": 5})
    with pytest.raises(UserError, match="evaluator must be one of"):
        NASBench201Split(dataset="cifar100", evaluator="oracle")
    monkeypatch.setenv("NASC_EVO_DATA", str(tmp_path))
    with pytest.raises(UserError, match="import-natsbench"):
        TabularEvaluator(SPACE, cifar)
    with pytest.raises(UserError, match="not at hand"):
        query(0)
    (tmp_path / "hwnas").mkdir()
    file = tmp_path / "hwnas" / "nb201_accuracy.npz"
    file.write_bytes(b"no archive")
    with pytest.raises(UserError, match="damaged"):
        TabularEvaluator(SPACE, cifar)
    np.savez(file, cifar100_xvalid_200_derived=np.ones(15625))
    with pytest.raises(UserError, match="lacks 'cifar100_xtest_200'"):
        TabularEvaluator(SPACE, cifar)
    np.savez(file, cifar100_xvalid_200_derived=np.ones(3), cifar100_xtest_200=np.ones(15625))
    with pytest.raises(UserError, match="15625"):
        TabularEvaluator(SPACE, cifar)
