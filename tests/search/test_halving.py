"""Successive halving: what is scored on few images only could not have entered the front."""

from dataclasses import replace

import numpy as np
import pytest

from nasc_evo.errors import UserError
from nasc_evo.halving import Ceilings, Halving
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.final import final_result
from nasc_evo.search.indicators import non_dominated
from nasc_evo.search.loop import run_search
from nasc_evo.search.warm_start import WarmStart
from nasc_evo.supernet.score import Score
from problems import FBNetSplit

IMAGES = 2000
FIRST = [100, 400]


class Coins:
    """Each image is right with a probability that the architecture decides; draws are fixed."""

    images = IMAGES

    def __init__(self):
        self.scored = 0

    def evaluate(self, designs, split="search", images=None):
        for index, design in enumerate(designs):
            share = np.mean([op != 8 for op in design.ops]) * np.mean(design.ops) / 8
            rng = np.random.default_rng([*design.ops, sum(design.cuts)])
            self.scored += images
            yield index, Score(int((rng.random(IMAGES)[:images] < share).sum()), images)

    def split_size(self, split):
        return IMAGES

    def describe(self):
        return {"name": "coins"}


def search(halving, n_eval=240):
    problem = FBNetSplit(evaluator=Coins(), halving=halving, limits={"latency_ms": 20})
    made = create_algorithm("nsga2", problem, {"pop_size": 40})
    return problem, run_search(problem, made, n_eval, seed=3)


def test_who_stops_could_not_have_entered_the_front():
    problem, result = search({"images": FIRST, "confidence": 0.99})
    stopped = [e for e in result.evaluations if e.score.images < IMAGES]
    assert len(result.evaluations) == 240
    assert 40 < len(stopped) < 240
    assert {e.score.images for e in stopped} == set(FIRST)
    assert problem.evaluator.scored < 0.85 * 240 * IMAGES
    front = non_dominated(problem, result.evaluations)
    assert all(e.score.images == IMAGES for e in front)
    scores = dict(Coins().evaluate([e.design for e in stopped], images=IMAGES))
    true = [replace(e, score=scores[i], split="") for i, e in enumerate(stopped)]
    late = non_dominated(problem, [*front, *true])
    assert sum(e.split == "" for e in late) <= 0.02 * len(stopped)


def test_a_search_resumed_from_what_was_scored_is_the_same():
    problem, result = search({"images": FIRST})
    again = FBNetSplit(evaluator=Coins(), halving={"images": FIRST}, limits={"latency_ms": 20})
    scores = {
        (e.design.key, e.split, e.score.images): e.score for e in problem.evaluations.values()
    }
    again.remember(scores)
    made = create_algorithm("nsga2", again, {"pop_size": 40})
    repeated = run_search(again, made, 240, seed=3)
    assert again.evaluator.scored == 0
    assert [e.design.key for e in repeated.evaluations] == [
        e.design.key for e in result.evaluations
    ]


def test_who_asks_from_outside_a_search_gets_all_images():
    problem, result = search({"images": FIRST})
    stopped = [e for e in result.evaluations if e.score.images < IMAGES]
    X = np.array([e.genome for e in stopped[:3]])
    assert [e.score.images for e in problem.assess(X)] == [e.score.images for e in stopped[:3]]
    assert all(e.score.images == IMAGES for e in problem.assess(X, halved=False))
    final = final_result(problem, result.evaluations)
    assert final.references
    errors = {e.score.error for e in problem.evaluations.values() if e.score.images == IMAGES}
    assert {row["error"] for row in final.references} <= errors


def test_a_warm_start_needs_no_image():
    _, result = search({"images": []}, n_eval=60)
    X = np.array([e.genome for e in result.evaluations])
    scores = {(e.design.key, "search", IMAGES): e.score for e in result.evaluations}
    problem = FBNetSplit(evaluator=Coins(), halving={"images": FIRST}, limits={"latency_ms": 20})
    WarmStart(X, scores, "").apply(problem)
    assert problem.evaluator.scored == 0
    assert all(e.score.images == IMAGES for e in problem.search_evaluations())


@pytest.mark.parametrize("name", ["surrogate", "accuracy_then_cut", "regularised_evolution"])
def test_algorithms_that_ask_for_accuracies_otherwise_refuse(name):
    problem = FBNetSplit(evaluator=Coins(), halving={"images": FIRST})
    with pytest.raises(UserError, match=f"algorithm={name} asks for accuracies otherwise"):
        create_algorithm(name, problem)


def test_without_an_error_to_minimise_there_is_nothing_to_halve():
    problem = FBNetSplit(
        evaluator=Coins(), halving={"images": FIRST}, objectives=["latency_ms", "payload_bytes"]
    )
    with pytest.raises(UserError, match="needs error among the objectives"):
        problem.evaluator  # noqa: B018


def test_shares_of_whole_counts_are_exact():
    """An error of k of n leaves room for k - 1, a limit of k of n for k."""
    for n, k in ((12, 1), (2000, 1999), (2000, 86), (4129, 1234)):
        halving = Halving([1], 0.99)
        ceilings = Ceilings(limit=k / n)
        (at_limit,) = ceilings.of(np.array([[1.0]]), np.zeros(1))
        for ceiling, allowed in ((k / n, k - 1), (at_limit, k)):
            assert not halving.stops(Score(n - allowed, n), ceiling, n)
            assert halving.stops(Score(n - allowed - 1, n), ceiling, n)


def test_without_counts_every_design_is_scored_on_all_images():
    problem, result = search({"images": []}, n_eval=80)
    assert problem.evaluator.scored == 80 * IMAGES
    assert all(e.score.images == IMAGES for e in result.evaluations)


def test_a_decision_to_stop_is_a_test_of_the_share_of_wrong_images():
    halving = Halving([100], 0.99)
    assert not halving.stops(Score(60, 100), 0.40, 2000)  # as many wrong as the limit has
    assert not halving.stops(Score(55, 100), 0.40, 2000)  # may be chance
    assert halving.stops(Score(40, 100), 0.40, 2000)
    assert halving.stops(Score(100, 100), 0.0, 2000)  # no error is below 0
    assert halving.stops(Score(None, 100, "failed"), 1.0, 2000)
    # wrongly stopped at the very limit: at most in one of a hundred samples
    rng = np.random.default_rng(0)
    wrong = rng.permuted(np.tile(np.arange(2000) < 799, (2000, 1)), axis=1)[:, :100].sum(axis=1)
    share = np.mean([halving.stops(Score(100 - int(w), 100), 0.4, 2000) for w in wrong])
    assert share <= 0.015


def test_ceilings_are_the_errors_of_those_that_cost_no_more():
    ceilings = Ceilings(limit=0.5)
    assert ceilings.of(np.array([[3.0]]), np.zeros(1)) == pytest.approx(0.5, abs=1e-4)
    ceilings.add(np.array([0.4, 0.2, 0.3]), np.array([[1.0], [4.0], [5.0]]))
    costs = np.array([[0.5], [1.0], [3.0], [6.0], [6.0]])
    found = ceilings.of(costs, np.array([0, 0, 0, 0, 0.1]))
    assert found == pytest.approx([0.5, 0.4, 0.4, 0.2, -1.0], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": [200, 100]}, "rising whole numbers above 0"),
        ({"images": [0]}, "rising whole numbers above 0"),
        ({"images": 100}, "rising whole numbers above 0"),
        ({"images": [100], "confidence": 0.5}, "between 0.5 and 1, both excluded, got 0.5"),
        ({"rungs": [100]}, "has the options images and confidence"),
        ({"images": [IMAGES]}, "fewer than the 2000"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        search(options, n_eval=1)


def test_official_accuracies_cannot_be_halved():
    from problems import NASBench201Split
    from tests.conftest import needs_data

    needs_data("hwnas/nb201_accuracy.npz")
    problem = NASBench201Split(dataset="cifar100", evaluator="tabular", halving={"images": [100]})
    with pytest.raises(UserError, match="evaluator=tabular knows whole ones"):
        problem.evaluator  # noqa: B018
