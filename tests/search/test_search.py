"""Search, journal and final result on a problem whose accuracy is a cheap function.

The function stands in for the supernet where a test is about the search itself: it is exact,
deterministic and rewards what a network would (more arithmetic, more channels, more bits).
"""

import json
from dataclasses import replace

import numpy as np
import pytest

from nasc_evo.cost import CostTable
from nasc_evo.errors import UserError
from nasc_evo.problem import SplitProblem
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.final import final_result, front_rows
from nasc_evo.search.indicators import (
    hypervolume,
    knee,
    least_infeasible,
    non_dominated,
    spread_subset,
)
from nasc_evo.search.journal import Journal
from nasc_evo.search.loop import run_search
from nasc_evo.space import FBNetSpace
from nasc_evo.supernet.score import Score
from nasc_evo.testing import check_problem
from problems import FBNetSplit


class Formula:
    """Accuracy by a formula; counts how often each design was really scored."""

    images = 100

    def __init__(self, fail_on=None, interrupt_after=None):
        self.calls = {}
        self.fail_on, self.interrupt_after = fail_on, interrupt_after

    def evaluate(self, designs, split="search", images=None):
        images = self.images if images is None else images
        for index, design in enumerate(designs):
            if self.interrupt_after is not None and len(self.calls) >= self.interrupt_after:
                raise KeyboardInterrupt
            key = (design.key, split, images)
            self.calls[key] = self.calls.get(key, 0) + 1
            if self.fail_on is not None and self.fail_on(design):
                yield index, Score(None, images, "made to fail")
                continue
            size = sum((0, 1, 2, 3)[op % 4] for op in design.ops if op != 8)
            kept = np.mean([m.count("1") / len(m) if m else 1 for m in design.masks])
            bits = np.mean([b or 8 for b in design.bits])
            share = 0.2 + 0.5 * size / 66 + 0.2 * kept + 0.1 * bits / 8
            yield index, Score(round(share * 0.99 * images), images)

    def split_size(self, split):
        return {"search": 1000, "test": 500}[split]

    def describe(self):
        return {"formula": 1}


def problem(evaluator=None, **options) -> SplitProblem:
    return FBNetSplit(evaluator=evaluator or Formula(), **options)


def search(problem, name="nsga2", n_eval=120, seed=1, pop_size=20):
    options = {} if pop_size is None else {"pop_size": pop_size}
    algorithm = create_algorithm(name, problem, options, seed=seed, n_eval=n_eval)
    return run_search(problem, algorithm, n_eval, seed=seed)


def journal_of(result):
    return [(e.index, e.design.key, e.score.correct, e.metric("latency_ms")) for e in result]


POPULATIONS = ("nsga2", "nsga3", "agemoea", "moead", "random", "nsga2_pymoo", "best_cut_inside")


@pytest.mark.parametrize("name", POPULATIONS)
def test_every_algorithm_spends_its_budget_and_repeats_itself(name):
    if name == "agemoea":
        pytest.importorskip("numba", reason="the optional extra agemoea is not installed")
    first = search(problem(), name)
    again = search(problem(), name)
    assert len(first.evaluations) == 120
    assert journal_of(first.evaluations) == journal_of(again.evaluations)
    other = search(problem(), name, seed=2)
    assert journal_of(first.evaluations) != journal_of(other.evaluations)


@pytest.mark.parametrize(
    "name", [n for n in POPULATIONS if n not in ("moead", "agemoea", "nsga2_pymoo")]
)
def test_searches_under_limits_repeat_themselves(name):
    limits = {"latency_ms": 6.0, "payload_bytes": 3000}
    first, again = (search(problem(limits=limits), name) for _ in range(2))
    assert journal_of(first.evaluations) == journal_of(again.evaluations)
    assert any(problem(limits=limits).feasible(first.evaluations))


def test_no_design_is_evaluated_twice():
    evaluator = Formula()
    search(problem(evaluator), n_eval=200)
    assert set(evaluator.calls.values()) == {1}
    assert len(evaluator.calls) == 200


def test_evolution_beats_random_search():
    reference = problem().reference_point
    box = np.array([reference["error"], reference["latency_ms"]])
    volumes = {}
    for name in ("nsga2", "random"):
        volumes[name] = []
        for seed in range(5):
            one = problem()
            front = non_dominated(one, search(one, name, 300, seed).evaluations)
            volumes[name].append(hypervolume(one.objective_values(front), box))
    assert np.median(volumes["nsga2"]) > np.median(volumes["random"])


def test_a_replayed_search_computes_nothing_twice_and_ends_alike(tmp_path):
    whole = search(problem(), n_eval=150)
    path = tmp_path / "evaluations.jsonl"
    for stop in (1, 37, 100):
        path.unlink(missing_ok=True)
        journal = Journal(path)
        one = problem(Formula(interrupt_after=stop))
        one.on_evaluation = lambda e, computed, journal=journal: journal.append(e)
        result = search(one, n_eval=150)
        assert result.interrupted
        journal.close()
        journal = Journal(path)
        assert len(journal.scores) == stop
        evaluator = Formula()
        two = problem(evaluator)
        two.remember(journal.scores)
        resumed = search(two, n_eval=150)
        assert journal_of(resumed.evaluations) == journal_of(whole.evaluations)
        assert len(evaluator.calls) == 150 - stop
        journal.close()


def test_journal_drops_a_torn_last_line_and_names_a_damaged_one(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    journal = Journal(path)
    one = problem()
    one.on_evaluation = lambda e, computed: journal.append(e)
    search(one, n_eval=5)
    journal.close()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for end in range(len(whole) - len(lines[-1]), len(whole)):
        path.write_bytes(whole[:end])
        torn = Journal(path)
        assert len(torn.scores) == 4
        torn.close()
        assert path.read_bytes() == b"".join(lines[:4])
    for damaged in (b"{}\n", b"not json\n", lines[2].replace(b'"correct":', b'"correct":9')):
        path.write_bytes(b"".join([*lines[:2], damaged, *lines[3:]]))
        with pytest.raises(UserError, match=r"Line 3 of the journal .* is damaged"):
            Journal(path)


def test_journal_lines_hold_everything(tmp_path):
    journal = Journal(tmp_path / "evaluations.jsonl")
    one = problem()
    one.on_evaluation = lambda e, computed: journal.append(e)
    search(one, n_eval=3)
    journal.close()
    record = json.loads((tmp_path / "evaluations.jsonl").read_text().splitlines()[1])
    names = "index key genome arch cut mask bits correct images error device_ms link_ms server_ms"
    for name in [*names.split(" "), "latency_ms", "payload_bytes", "energy_mj", "status"]:
        assert name in record
    assert record["index"] == 1
    assert one.space.decode(np.array(record["genome"])).key == record["key"]


def test_the_final_front_is_non_dominated_feasible_and_of_one_fidelity():
    one = problem(limits={"latency_ms": 12.0})
    result = final_result(one, search(one, n_eval=200).evaluations, rescore=8)
    rows = front_rows(result)
    assert 1 <= len(rows) <= 8
    assert result.images == 1000
    assert {d.evaluation.score.images for d in result.front} == {1000}
    assert all(d.test is not None and d.test.score.images == 500 for d in result.front)
    for a in rows:
        assert a["latency_ms"] <= 12
        for b in rows:
            better = a["error"] <= b["error"] and a["latency_ms"] <= b["latency_ms"]
            assert a is b or not better
    assert [row["latency_ms"] for row in rows] == sorted(row["latency_ms"] for row in rows)
    kinds = [(row["architecture_of"], row["kind"]) for row in result.references]
    assert kinds == [
        ("the most accurate design", "all local"),
        ("the most accurate design", "raw offload"),
        ("the fastest design", "all local"),
        ("the fastest design", "raw offload"),
    ]
    for row in result.references:
        assert row["meets_limits"] == (row["latency_ms"] <= 12)
        assert row["link_ms"] == 0 if row["kind"] == "all local" else row["device_ms"] == 0


def test_rescoring_all_keeps_more_designs():
    one = problem()
    evaluations = search(one, n_eval=200).evaluations
    few = final_result(one, evaluations, rescore=3)
    everything = final_result(one, evaluations, rescore="all")
    assert len(few.front) <= 3 < len(everything.front)
    with pytest.raises(UserError, match="rescore must be a positive whole number or 'all', got 0"):
        final_result(one, evaluations, rescore=0)


def test_designs_that_miss_a_limit_after_rescoring_are_not_reported():
    class Optimist(Formula):
        def evaluate(self, designs, split="search", images=None):
            for index, score in super().evaluate(designs, split, images):
                gain = 0.2 * score.images if score.images == self.images else 0
                yield index, Score(min(score.images, round(score.correct + gain)), score.images)

    one = problem(Optimist(), limits={"error": 0.15})
    result = final_result(one, search(one, n_eval=150).evaluations, rescore=2)
    assert result.front == []
    assert result.least_infeasible.score.images == 1000
    assert result.least_infeasible.score.error > 0.15


def test_an_interrupted_result_computes_nothing_more():
    evaluator = Formula()
    one = problem(evaluator)
    evaluations = search(one, n_eval=60).evaluations
    calls = len(evaluator.calls)
    result = final_result(one, evaluations, interrupted=True)
    assert len(evaluator.calls) == calls
    assert result.images == 100
    assert not result.rescored


def test_an_impossible_limit_returns_the_least_infeasible_design():
    one = problem(limits={"latency_ms": 0.5})
    evaluations = search(one, n_eval=40).evaluations
    result = final_result(one, evaluations)
    assert result.front == []
    lowest = min(e.metric("latency_ms") for e in evaluations)
    assert result.least_infeasible.metric("latency_ms") == lowest
    assert least_infeasible(one, []) is None


def test_a_failing_candidate_is_recorded_and_excluded():
    one = problem(Formula(fail_on=lambda design: design.ops[0] == 7))
    result = search(one, n_eval=100)
    failed = [e for e in result.evaluations if e.failed]
    assert failed
    assert all(e.score.message == "made to fail" for e in failed)
    assert len(result.evaluations) == 100
    assert not any(e.failed for e in non_dominated(one, result.evaluations))


def test_the_reference_point_is_fixed_before_the_run():
    point = problem().reference_point
    assert point["error"] == 0.9
    device = problem().chain.nodes[0].table.latency_ms
    assert point["latency_ms"] == pytest.approx(np.nanmax(device, axis=1).sum())
    assert problem(limits={"latency_ms": 9.0}).reference_point["latency_ms"] == 9.0


def test_moead_with_limits_and_unknown_algorithms_are_refused():
    with pytest.raises(UserError, match="moead takes no limits"):
        create_algorithm("moead", problem(limits={"latency_ms": 9.0}))
    with pytest.raises(UserError, match="algorithm must be one of nsga2, nsga3"):
        create_algorithm("nsga4", problem())
    with pytest.raises(UserError, match="pop_size must be a whole number in 4.."):
        create_algorithm("nsga2", problem(), {"pop_size": 3})
    with pytest.raises(UserError, match="has no option"):
        create_algorithm("nsga2", problem(), {"eta": 3})
    one = problem()
    with pytest.raises(UserError, match="n_eval must be a whole number of at least 1, got 0"):
        run_search(one, create_algorithm("nsga2", one), 0, seed=1)


def test_three_objectives_with_energy():
    device = {"name": "edgegpu", "path": None, "idle_mw": 1900.0}
    one = problem(device=device, objectives=["error", "latency_ms", "energy_mj"])
    result = search(one, "nsga3", n_eval=60)
    assert np.isfinite(one.objective_values(result.evaluations)).all()
    with pytest.raises(
        UserError, match=r"energy_mj cannot be computed without the idle power of edgegpu"
    ):
        problem(limits={"energy_mj": 50.0})
    with pytest.raises(UserError, match="energy_mj in the cost table of raspi4"):
        problem(device="raspi4", objectives=["error", "energy_mj"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ["error"]}, "at least two different objectives"),
        ({"objectives": ["error", "error"]}, "at least two different objectives"),
        ({"objectives": ["error", "speed"]}, "got 'speed'"),
        ({"limits": {"latency": 5}}, "got 'latency'"),
        ({"limits": {"latency_ms": -5}}, "limits.latency_ms must be a finite number above 0"),
        ({"limits": {"latency_ms": float("nan")}}, "got nan"),
        ({"limits": {"latency_ms": "fast"}}, "got 'fast'"),
        ({"device": "tx3"}, "No cost table of 'tx3' ships .*; available are edgegpu"),
        ({"device": "missing.csv"}, "There is no cost table file missing.csv"),
        ({"device": {"name": "edgegpu", "idle": 1}}, "has the fields name, path, idle_mw, arr"),
        ({"device": {"name": "edgegpu", "idle_mw": -1}}, "device.idle_mw must be a number >= 0"),
        ({"link": "fibre"}, "There is no link 'fibre'"),
        ({"dataset": "mnist"}, "There is no data set 'mnist'"),
        ({"chain": {"nodes": ["edgegpu"], "links": []}}, "needs 2 to 5 nodes"),
    ],
)
def test_impossible_problems_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        problem(**options)


def test_conformance_of_the_shipped_problem_and_its_variants():
    for options in (
        {},
        {"allow_raw_offload": True, "limits": {"latency_ms": 12.0}},
        {"mask_groups": "channels", "bits": [8, 16, 32]},
        {"device": "edgegpu", "server": "edgegpu"},
        {"mask_groups": 1},
    ):
        check_problem(problem(**options))


def test_conformance_finds_a_broken_problem():
    class Random(Formula):
        def evaluate(self, designs, split="search", images=None):
            rng = np.random.default_rng()
            for index, _ in enumerate(designs):
                yield index, Score(int(rng.integers(0, 100)), 100)

    with pytest.raises(AssertionError, match="depends on the order"):
        check_problem(problem(Random()), n=8)


def test_spread_and_knee():
    F = np.array([[0.0, 10.0], [0.1, 5.0], [0.2, 1.0], [0.9, 0.5], [1.0, 0.0]])
    assert knee(F) == 2
    assert knee(np.array([[0.8, 4.0], [0.1, 16.0]])) == 1
    assert spread_subset(F, 9).tolist() == [0, 1, 2, 3, 4]
    assert set(spread_subset(F, 3)) == {0, 2, 4}


def test_a_design_no_better_than_guessing_is_not_recommended():
    class Steps(Formula):
        """Guessing where little is sent, else nearly as good as the best at its latency."""

        def evaluate(self, designs, split="search", images=None):
            for index, score in super().evaluate(designs, split, images):
                guesses = designs[index].bits[0] == 4
                yield index, Score(score.images // 10, score.images) if guesses else score

    one = FBNetSplit(evaluator=Steps())
    result = final_result(one, search(one, n_eval=80).evaluations)
    F = one.objective_values([design.evaluation for design in result.front])
    assert F[0, 0] >= 0.9 > F[1, 0]  # the front begins with guessing
    assert result.recommended == 1 + knee(F[1:]) != knee(F)


def test_tables_of_zeros_leave_nothing_to_minimise():
    table = CostTable.shipped("edgegpu", FBNetSpace(32, 10))
    zeros = replace(table, latency_ms=np.zeros_like(table.latency_ms))
    with pytest.raises(UserError, match="No design of the space has a latency_ms above 0"):
        search(problem(device=zeros, server=zeros))
