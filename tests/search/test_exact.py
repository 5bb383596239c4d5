"""The exact front against a plain loop, and searches against the exact front."""

import numpy as np
import pytest

from nasc_evo.errors import UserError
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.exact import all_genomes, exact_front
from nasc_evo.search.indicators import hypervolume
from nasc_evo.search.loop import run_search
from nasc_evo.space import NASBench201Space, SplitSpace
from problems import FBNetSplit, NASBench201Split
from tests.conftest import FAST, needs_data


def problem(**options):
    needs_data("hwnas/nb201_accuracy.npz")
    return NASBench201Split(dataset="cifar100", evaluator="tabular", **options)


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@pytest.mark.parametrize(
    "options",
    [
        {"device": "raspi4"},
        {"device": "edgetpu", "limits": {"latency_ms": 12, "error": 0.5}},
        {"objectives": ("error", "latency_ms", "payload_bytes"), "device": "pixel3"},
    ],
)
def test_truth_equals_a_plain_loop_on_a_subset(options, monkeypatch):
    rng = np.random.default_rng(0)
    subset = np.sort(rng.choice(15625, 60, replace=False))
    p = problem(**options)
    everything = p.space.architecture.architectures
    points = {}
    for ops in everything[subset]:
        for cut in range(len(p.space.cut_choices)):
            x = np.array([*ops, cut])
            (evaluation,) = p.assess(x[None])
            if evaluation.failed:
                continue
            values = tuple(evaluation.metric(name) for name in p.objectives)
            if all(evaluation.metric(name) <= limit for name, limit in p.limits.items()):
                points[evaluation.design.key] = values
    wanted = {
        values
        for values in points.values()
        if not any(dominates(o, values) for o in points.values())
    }
    fresh = problem(**options)
    monkeypatch.setattr(
        "nasc_evo.search.exact.all_genomes",
        lambda space: (X[subset] for X in all_genomes(space)),
    )
    front = exact_front(fresh)
    got = {tuple(e.metric(name) for name in fresh.objectives) for e in front}
    assert got == wanted
    assert len(front) == len(wanted) > 1


def test_searches_stay_below_the_truth_and_come_near():
    p = problem(device="raspi4")
    reference = np.array([p.reference_point[name] for name in p.objectives])
    truth = hypervolume(p.objective_values(exact_front(p)), reference)
    fresh = problem(device="raspi4")
    result = run_search(fresh, create_algorithm("nsga2", fresh, seed=1), 500, seed=1)
    reached = hypervolume(fresh.objective_values(result.evaluations), reference)
    assert 0.97 * truth < reached <= truth


def test_all_genomes_has_every_architecture_at_every_cut():
    space = SplitSpace(NASBench201Space(32, 10), mask_groups=1, bits=(8,), n_links=2)
    cuts = [tuple(X[0, space.cut_genes]) for X in all_genomes(space)]
    n = len(space.cut_choices)
    assert sorted(cuts) == [(a, b) for a in range(n) for b in range(a, n)]
    one = SplitSpace(NASBench201Space(32, 10), merge_equal_networks=False)
    assert sum(len(X) for X in all_genomes(one)) == 15625 * len(one.cut_choices)
    merged = SplitSpace(NASBench201Space(32, 10))
    assert sum(len(X) for X in all_genomes(merged)) == 4930 * len(merged.cut_choices)


def test_no_truth_without_tabular_accuracies():
    with pytest.raises(UserError, match="evaluator=tabular"):
        exact_front(FBNetSplit(evaluator=FAST))


def test_no_front_where_no_design_meets_the_limits():
    assert exact_front(problem(limits={"latency_ms": 1e-6})) == []


@pytest.mark.parametrize("device", ["raspi4", "edgetpu"])
def test_the_fastest_design_is_the_fastest(device):
    p = problem(device=device)
    fastest = p.fastest_design()
    (evaluation,) = p.assess(p.space.encode(fastest)[None])
    assert not evaluation.failed
    X = np.random.default_rng(0).integers(0, p.space.sizes, (500, p.space.n_var))
    others = [e.metric("latency_ms") for e in p.assess(X) if not e.failed]
    assert evaluation.metric("latency_ms") <= min(others)
