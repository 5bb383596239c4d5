"""The predictor, what is known before an accuracy is, and the search built on both."""

import json
import os
import subprocess
import sys

import moocore
import numpy as np
import pytest

from nasc_evo.errors import UserError
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.indicators import hypervolume, non_dominated
from nasc_evo.search.loop import run_search
from nasc_evo.search.operators import phenotypes, random_genomes
from nasc_evo.search.predictor import (
    ErrorPredictor,
    _fit_scales,
    _prior_means,
    drawn_in,
    drawn_out,
    expected_hypervolume_gain,
    expected_scalar_gain,
    features,
)
from nasc_evo.search.screening import Screen
from nasc_evo.search.surrogate import rounded, vary
from nasc_evo.space import NASBench201Space, SplitSpace
from problems import FBNetSplit, NASBench201Split
from tests.conftest import needs_data
from tests.search.test_search import Formula, journal_of, problem, search


def tabular(**options):
    needs_data("hwnas/nb201_accuracy.npz")
    return NASBench201Split(dataset="cifar100", evaluator="tabular", **options)


@pytest.mark.parametrize("knee", [np.inf, 0.9, 0.4])
def test_the_gain_is_the_mean_of_sampled_hypervolume_gains(knee):
    rng = np.random.default_rng(0)
    front = np.array([[0.2, 0.8], [0.35, 0.5], [0.6, 0.3]])
    mean, deviation = rng.uniform(0.1, 0.8, 12), rng.uniform(0.01, 0.2, 12)
    cost = rng.uniform(0.05, 1.1, 12)
    gain = expected_hypervolume_gain(mean, deviation, cost, front, knee)
    before = hypervolume(front, np.ones(2))
    for i in range(12):
        errors = drawn_out(np.clip(rng.normal(mean[i], deviation[i], 4000), 0, None), knee)
        after = [hypervolume(np.vstack([front, [e, cost[i]]]), np.ones(2)) for e in errors]
        spread = np.std(after) / np.sqrt(4000)
        assert gain[i] == pytest.approx(np.mean(after) - before, abs=5 * spread + 1e-9)


def test_the_gain_without_a_front_is_the_box_of_the_design():
    gain = expected_hypervolume_gain(
        np.array([0.3]), np.array([1e-9]), np.array([0.4]), np.empty((0, 2))
    )
    assert gain[0] == pytest.approx(0.7 * 0.6)


@pytest.mark.parametrize("knee", [np.inf, 0.4])
def test_the_scalar_gain_is_the_mean_of_sampled_gains(knee):
    rng = np.random.default_rng(1)
    front = rng.uniform(0.3, 0.9, (5, 3))
    weights = np.array([1.0, 2.0, 0.5])
    costs = rng.uniform(0.05, 0.6, (8, 2))
    mean, deviation = rng.uniform(0.1, 0.9, 8), rng.uniform(0.01, 0.3, 8)
    gain = expected_scalar_gain(mean, deviation, costs, front, weights, knee)
    best = (front * weights).max(axis=1).min()
    for i in range(8):
        errors = drawn_out(rng.normal(mean[i], deviation[i], 40000), knee)
        fixed = (costs[i] * weights[1:]).max()
        sampled = np.maximum(best - np.maximum(weights[0] * errors, fixed), 0)
        assert gain[i] == pytest.approx(sampled.mean(), abs=5 * sampled.std() / 200 + 1e-9)


def test_without_a_front_the_scalar_gain_is_that_over_the_reference_point():
    weights = np.array([1.0, 2.0, 0.5])
    gain = expected_scalar_gain(
        np.array([0.3]), np.array([1e-9]), np.array([[0.2, 0.9]]), np.empty((0, 3)), weights
    )
    assert gain[0] == pytest.approx(2.0 - 0.45)


def test_errors_that_are_drawn_in_keep_their_order_and_come_out_again():
    errors = np.linspace(0, 1, 50)
    drawn = drawn_in(errors, 0.4)
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn[errors <= 0.4], errors[errors <= 0.4])
    assert drawn.max() < 0.6
    assert drawn_out(drawn, 0.4) == pytest.approx(errors)


def test_the_predictor_learns_and_knows_what_it_does_not():
    one = problem()
    X = random_genomes(one.space, 300, np.random.default_rng(0))
    errors = np.array([e.score.error for e in one.assess(X)])
    seen = features(one.space, one.space.decode_batch(X))
    predictor = ErrorPredictor()
    predictor.fit(seen.take(np.arange(200)), errors[:200])
    mean, deviation = predictor.predict(seen.take(np.arange(200, 300)))
    rest = errors[200:]
    assert np.sqrt(np.mean((mean - rest) ** 2)) < 0.3 * rest.std()
    assert 0.5 < np.std((rest - mean) / deviation) < 2
    _, at_known = predictor.predict(seen.take(np.arange(200)))
    assert np.median(at_known) < np.median(deviation)


def test_errors_of_few_classes_are_what_they_are():
    space = FBNetSplit(evaluator=Formula()).space
    batch = space.decode_batch(random_genomes(space, 80, np.random.default_rng(0)))
    known = features(space, batch)
    share = (known.ops > 4).mean(axis=1)
    errors = 0.55 - 0.3 * (share - share.min())  # of two classes, most no better than a guess
    for guessing in (None, 0.5):
        predictor = ErrorPredictor(guessing=guessing)
        predictor.fit(known, errors)
        mean, _ = predictor.predict(known)
        assert abs(mean - errors).max() < 0.01


def test_networks_that_train_alike_are_one_for_the_predictor():
    space = SplitSpace(NASBench201Space(), merge_equal_networks=False)
    ops = space.architecture.architectures[::97]
    X = np.zeros((len(ops), space.n_var), dtype=np.int64)
    X[:, : space.n_arch] = ops
    seen = features(space, space.decode_batch(X))
    X[:, : space.n_arch] = alike = space.architecture.alike(ops)
    other = features(space, space.decode_batch(X))
    assert np.array_equal(seen.ops, alike)
    assert np.array_equal(seen.numbers, other.numbers)


def test_the_gradient_of_the_marginal_likelihood_is_that_of_finite_differences(monkeypatch):
    one = problem()
    X = random_genomes(one.space, 25, np.random.default_rng(3))
    seen = features(one.space, one.space.decode_batch(X))
    y = np.random.default_rng(4).standard_normal(25)
    caught = {}
    monkeypatch.setattr(
        "nasc_evo.search.predictor.minimize",
        lambda objective, start, **_: caught.update(f=objective, x=start) or _Found(start),
    )
    _fit_scales(seen, y, _prior_means(seen.ops.shape[1] + seen.numbers.shape[1]))
    point = caught["x"] + 0.1 * np.random.default_rng(5).standard_normal(len(caught["x"]))
    _, gradient = caught["f"](point)
    for i in range(0, len(point), 7):
        step = np.eye(len(point))[i] * 1e-5
        slope = (caught["f"](point + step)[0] - caught["f"](point - step)[0]) / 2e-5
        assert gradient[i] == pytest.approx(slope, rel=1e-3, abs=1e-5)


class _Found:
    def __init__(self, x):
        self.x = x


@pytest.mark.parametrize("lossless", [False, True])
def test_hopeless_designs_are_those_a_plain_loop_finds(lossless):
    limits = {"latency_ms": 12.0, "macs": 9e7}
    one = tabular(limits=limits) if lossless else problem(limits=limits)
    rng = np.random.default_rng(0)
    known = [e for e in one.assess(random_genomes(one.space, 60, rng)) if e is not None]
    X = random_genomes(one.space, 300, rng)
    if lossless:  # some architectures whose error is known
        X[:60, : one.space.n_arch] = [e.genome[: one.space.n_arch] for e in known]
    batch = one.space.decode_batch(X)
    hopeless = Screen(one, known).hopeless(batch)
    costs = one.costs(batch)
    errors = {e.design.ops: e.score.error for e in known}
    front = one.objective_values(non_dominated(one, known))
    for i, ops in enumerate(batch.ops.tolist()):
        latency = costs["latency_ms"][i]
        error = errors.get(tuple(ops), 0.0) if lossless else 0.0
        exceeds = latency > 12 or costs["macs"][i] > 9e7
        beaten = any(e <= error and t <= latency for e, t in front)
        assert hopeless[i] == (exceeds or beaten)
    assert 0 < hopeless.sum() < len(X)
    if lossless:
        assert hopeless[:60].mean() > hopeless[60:].mean()


def test_what_a_machine_refuses_is_hopeless():
    one = tabular(device="edgetpu")
    batch = one.space.decode_batch(random_genomes(one.space, 200, np.random.default_rng(0)))
    refused = np.array([bool(reason) for reason in one.chain.refusals(batch)])
    assert refused.any()
    assert (Screen(one, []).hopeless(batch) == refused).all()


def test_a_batch_is_what_choosing_one_after_another_gives():
    one = tabular(device="raspi4")
    algorithm = create_algorithm("surrogate", one)
    scored = run_search(one, algorithm, 60, seed=0).evaluations
    X = random_genomes(one.space, 400, np.random.default_rng(1))
    batch = one.space.decode_batch(X)
    mean, deviation = algorithm.predictor.predict(features(one.space, batch))
    point = np.array([one.reference_point["error"], one.reference_point["latency_ms"]])
    cost = one.cut_costs(batch)[0][:, 0] / point[1]
    front = one.objective_values(non_dominated(one, scored)) / point
    front, plain = front[(front < 1).all(axis=1)], []
    mean, deviation = mean / point[0], algorithm.exploration * deviation / point[0]
    knee = algorithm.predictor.knee / point[0]
    for _ in range(12):
        gain = rounded(expected_hypervolume_gain(mean, deviation, cost, front, knee))
        gain[plain] = -1
        plain.append(int(np.argmax(gain)))
        front = np.vstack([front, [drawn_out(mean[plain[-1]], knee), cost[plain[-1]]]])
        front = front[(front < 1).all(axis=1)]
        front = front[moocore.is_nondominated(front, keep_weakly=False)]
    assert algorithm._choose(X, scored, 12) == plain


def test_designs_over_a_limit_are_never_evaluated():
    one = problem(limits={"latency_ms": 6.0, "payload_bytes": 3000})
    result = search(one, "surrogate", 100, pop_size=None)
    assert len(result.evaluations) == 100
    assert one.feasible(result.evaluations).all()


def test_virtual_offspring_are_genomes_near_and_far():
    for options in ({}, {"mask_groups": "channels"}, {"mask_groups": 1, "bits": [8]}):
        space = problem(**options).space
        rng = np.random.default_rng(0)
        X = random_genomes(space, 400, rng)
        children = space.check(vary(space, X, X[::-1], rng))
        changed = (children != X)[:, : space.n_arch].sum(axis=1)
        assert changed.min() == 0
        assert changed.max() >= 6
        batch = space.decode_batch(children)
        keys = [design.key for design in space.designs(batch)]
        same = {}
        for key, phenotype in zip(keys, phenotypes(batch), strict=True):
            assert same.setdefault(phenotype, key) == key
        assert len(same) == len(set(keys))


def test_the_last_bits_of_a_gain_are_dropped():
    values = np.array([0.0, 1.0, 1 / 3, 1e-12 / 3, -2 / 3])
    assert rounded(values).tolist() == rounded(values * (1 + 1e-14)).tolist()
    assert rounded(values) == pytest.approx(values, rel=1e-8)


def test_the_predictor_saves_evaluations():
    values = {}
    for name, pop_size in (("surrogate", None), ("nsga2", 20)):
        values[name] = []
        for seed in range(3):
            one = problem()
            reference = np.array([one.reference_point[name] for name in one.objectives])
            F = one.objective_values(search(one, name, 150, seed, pop_size).evaluations)
            values[name].append(hypervolume(F, reference))
    assert min(values["surrogate"]) > max(values["nsga2"])


@pytest.mark.parametrize("device", ["raspi4", "edgegpu"])
def test_near_the_exact_front_after_200_evaluations(device):
    from nasc_evo.search.exact import exact_front

    one = tabular(device=device)
    reference = np.array([one.reference_point[name] for name in one.objectives])
    truth = hypervolume(one.objective_values(exact_front(one)), reference)
    one.forget()
    algorithm = create_algorithm("surrogate", one)
    evaluations = run_search(one, algorithm, 200, seed=0).evaluations
    F = one.objective_values(evaluations)
    assert 0.999 * truth < hypervolume(F, reference) <= truth
    # what is no better than guessing costs least of all, and yet is not tried time and again
    assert sum(e.score.error > 0.98 for e in evaluations[20:]) <= 10


def test_a_small_space_ends_with_its_exact_front():
    one = tabular(device="edgegpu", limits={"latency_ms": 1.2})
    from nasc_evo.search.exact import exact_front

    truth = one.objective_values(exact_front(one))
    one.forget()
    algorithm = create_algorithm("surrogate", one)
    result = run_search(one, algorithm, 3000, seed=0)
    found = one.objective_values(non_dominated(one, result.evaluations))
    assert len(result.evaluations) < 3000
    assert "could enter the front" in result.stop_reason
    assert hypervolume(found, truth.max(axis=0) * 1.1) == pytest.approx(
        hypervolume(truth, truth.max(axis=0) * 1.1), rel=0.02
    )


def test_three_objectives_and_a_limit_on_the_error():
    one = problem(objectives=["payload_bytes", "error", "latency_ms"], limits={"error": 0.5})
    result = search(one, "surrogate", 60, pop_size=None)
    assert len(result.evaluations) == 60
    assert one.feasible(result.evaluations).mean() > 0.5


def test_three_objectives_and_a_limit_that_nothing_meets():
    limits = {"error": 1e-6}
    one = problem(objectives=["payload_bytes", "error", "latency_ms"], limits=limits)
    assert len(search(one, "surrogate", 40, pop_size=None).evaluations) == 40


def test_without_the_error_there_is_nothing_to_predict():
    with pytest.raises(UserError, match="needs error among the objectives"):
        create_algorithm("surrogate", problem(objectives=["latency_ms", "payload_bytes"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": 1}, "algorithm.initial must be a whole number in 2.."),
        ({"batch": 0}, "algorithm.batch must be a whole number in 1.."),
        ({"exploration": 0}, "algorithm.exploration must be a number above 0"),
        ({"offspring": "many"}, "algorithm.offspring must be a whole number"),
        ({"best_cut_rate": 2}, "best_cut_rate must be a number in 0..1"),
        ({"pop_size": 20}, "has no option 'pop_size'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        create_algorithm("surrogate", problem(), options)


def test_failures_do_not_stop_it():
    one = problem(Formula(fail_on=lambda design: design.ops[0] == 7))
    result = search(one, "surrogate", 80, pop_size=None)
    assert any(e.failed for e in result.evaluations)
    assert len(result.evaluations) == 80


SCRIPT = """
import json
from tests.search.test_search import journal_of, problem, search
print(json.dumps(journal_of(search(problem(), "surrogate", 70, pop_size=None).evaluations)))
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_another_process_with_other_threads_finds_the_same(threads):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PYTHONPATH": os.pathsep.join(p for p in ("", os.getcwd()) if p),
    }
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    ).stdout
    here = journal_of(search(problem(), "surrogate", 70, pop_size=None).evaluations)
    assert json.loads(output) == json.loads(json.dumps(here))


def test_it_works_with_the_inherited_accuracy_of_the_shipped_supernet():
    from tests.conftest import FAST

    one = FBNetSplit(evaluator=FAST)
    algorithm = create_algorithm("surrogate", one, {"initial": 6, "batch": 3, "offspring": 50})
    result = run_search(one, algorithm, 12, seed=1)
    assert len(result.evaluations) == 12
