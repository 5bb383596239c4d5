"""What the joint search is compared with: each does what its paper says, and costs are true."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from nasc_evo.errors import UserError
from nasc_evo.search.algorithms import ALGORITHMS, create_algorithm
from nasc_evo.search.asng import CategoricalASNG
from nasc_evo.search.indicators import non_dominated
from nasc_evo.search.loop import run_search
from nasc_evo.space.fbnet import OPS
from tests.search.test_search import Formula, journal_of, problem, search
from tests.search.test_surrogate import tabular

TABLES = Path(__file__).parents[2] / "nasc_evo/cost/tables"
BASELINES = (
    "surrogate",
    "nsga2",
    "random",
    "regularised_evolution",
    "nsga2_pymoo",
    "all_local",
    "raw_offload",
    "fixed_network",
    "accuracy_then_cut",
    "nas_then_cut",
    "best_cut_inside",
    "prune_at_cut",
    "nasc",
    "msunas",
)


def run(name, one, n_eval=80, seed=1, **options):
    algorithm = create_algorithm(name, one, options, seed=seed, n_eval=n_eval)
    return run_search(one, algorithm, n_eval, seed=seed).evaluations


def rows(name):
    lines = [line for line in (TABLES / name).read_text().splitlines() if not line.startswith("#")]
    return {(r["position"], r["op"]): float(r["latency_ms"]) for r in csv.DictReader(lines)}


def constant_ms(name):
    lines = (TABLES / name).read_text().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("# constant_ms:"))


def recosted(design, raw_bytes=784, uplink=18.88, downlink=54.97, rtt=2.0, device="edgegpu"):
    """Latency of an FBNet design from the CSV files, by a plain loop."""
    device, server = rows(f"fbnet_32_{device}.csv"), rows("fbnet_32_h100.csv")
    blocks = [[("stem", "-")]]
    blocks += [[(f"layer_{i + 1}", OPS[op])] for i, op in enumerate(design.ops)]
    blocks += [[("head", "-"), ("avgpool", "-"), ("fc", "-")]]
    (cut,) = design.cuts
    total = sum(device[row] for block in blocks[:cut] for row in block)
    total += sum(server[row] for block in blocks[cut:] for row in block)
    if cut == len(blocks):
        return total
    total += constant_ms("fbnet_32_h100.csv")
    if cut == 0:
        sent = raw_bytes
    else:
        widths = [16, 24, 32, 64, 112, 184, 352]
        strides, layers = [1, 1, 2, 2, 1, 2, 1], [1, 4, 4, 4, 4, 4, 1]
        shapes, size = [(16, 32)], 32
        for width, stride, n in zip(widths, strides, layers, strict=True):
            size //= stride
            shapes += [(width, size)] * n
        channels, size = shapes[cut - 1]
        kept = design.masks[0].count("1") * channels // len(design.masks[0])
        sent = math.ceil(kept * size * size * design.bits[0] / 8) + 4 * kept + 1
    return total + rtt + 8e-3 * sent / uplink + 8e-3 * 40 / downlink


@pytest.mark.parametrize("name", BASELINES)
def test_fronts_are_costed_right_and_searches_repeat_themselves(name):
    options = {"allow_raw_offload": name == "raw_offload"}
    one = problem(**options)
    found = run(name, one)
    again = run(name, problem(**options))
    assert journal_of(found) == journal_of(again)
    assert 1 <= len(found) <= 80
    front = non_dominated(one, found)
    assert front
    link = one.chain.links[0]
    for e in front:
        latency = recosted(e.design, downlink=link.downlink_mbps)
        assert e.metric("latency_ms") == pytest.approx(latency, rel=1e-9)


@pytest.mark.parametrize("name", BASELINES)
def test_replayed_searches_compute_nothing_twice(name):
    evaluator = Formula()
    one = problem(evaluator, allow_raw_offload=True)
    whole = run(name, one, 60)
    known = {key: e.score for key, e in list(one.evaluations.items())[:30]}
    fresh = Formula()
    two = problem(fresh, allow_raw_offload=True)
    two.remember(known)
    assert journal_of(run(name, two, 60)) == journal_of(whole)
    assert len(fresh.calls) == max(len(whole) - 30, 0)
    assert set(evaluator.calls.values()) == {1}


@pytest.mark.parametrize(
    "name",
    [n for n in ALGORITHMS if n not in ("prune_at_cut", "relaxed_masks", "moead", "agemoea")],
)
def test_every_algorithm_searches_with_official_accuracies_under_a_limit(name):
    one = tabular(device="pixel3", allow_raw_offload=True, limits={"latency_ms": 40})
    found = run(name, one, 60)
    assert found
    assert len({e.design.key for e in found}) == len(found) <= 60


def test_all_local_and_raw_offload_keep_to_their_cut():
    one = problem(allow_raw_offload=True)
    assert {e.design.cuts for e in run("all_local", one)} == {(24,)}
    one.forget()
    assert {e.design.cuts for e in run("raw_offload", one)} == {(0,)}
    with pytest.raises(UserError, match="raw_offload needs allow_raw_offload=true"):
        create_algorithm("raw_offload", problem())


def test_a_fixed_network_is_cut_everywhere_and_only_its_cut_changes():
    one = problem()
    found = run("fixed_network", one)
    assert {e.design.arch for e in found} == {"|".join(["k3_e6"] * 22)}
    assert sorted(e.design.cuts[0] for e in found) == list(range(2, 25))
    assert all(set(e.design.masks[0]) <= {"1"} and e.design.bits[0] in (0, 8) for e in found)
    latencies = [e.metric("latency_ms") for e in found]
    assert latencies == sorted(latencies)
    one.forget()
    other = "|".join(["k5_e3"] * 22)
    assert {e.design.arch for e in run("fixed_network", one, network=other)} == {other}
    with pytest.raises(UserError, match="has 22 operations"):
        create_algorithm("fixed_network", one, {"network": "k3_e6"})
    with pytest.raises(UserError, match="hand_designed or the text form"):
        create_algorithm("fixed_network", one, {"network": 3})


def test_steps_keep_what_they_decided_first():
    one = problem()
    found = run("nas_then_cut", one, 100, share=0.6)
    first = [e for e in found[:60] if e.design.cuts == (24,)]
    assert len(first) == 60
    second = found[60:]
    architectures = {e.design.arch for e in non_dominated(one, first)}
    assert {e.design.arch for e in second} <= architectures
    assert any(e.design.cuts != (24,) for e in second)

    one.forget()
    found = run("accuracy_then_cut", one, 100, share=0.6)
    best = min(found[:60], key=lambda e: e.score.error)
    assert {e.design.arch for e in found[60:]} == {best.design.arch}
    assert {e.design.cuts for e in found[:60]} == {(24,)}


def test_pruning_removes_the_least_sensitive_group_first():
    class Sensitive(Formula):
        """Loses the more, the later the group that is not sent."""

        def evaluate(self, designs, split="search", images=None):
            for i, score in super().evaluate(designs, split, images):
                for mask in designs[i].masks:
                    lost = sum(2.0**-k for k, bit in enumerate(mask) if bit == "0")
                    score = type(score)(max(0.0, score.correct - 10 * lost), score.images)
                yield i, score

    one = problem(Sensitive())
    found = run("prune_at_cut", one, 200, share=0.2)
    masks = [e.design.masks[0] for e in found[40:] if e.design.masks[0]]
    cuts = [e.design.cuts[0] for e in found[40:]]
    assert masks[0] == "1" * 8
    assert len(masks[1:9]) == 8
    assert all(mask.count("1") == 7 for mask in masks[1:9])
    # the last group is the least sensitive one and stays away from then on
    assert all(mask[7] == "0" and mask.count("1") == 6 for mask in masks[9:16])
    first_cut = cuts[: cuts.index(next(c for c in cuts if c != cuts[0]))]
    assert len(first_cut) == 1 + sum(range(2, 9))
    with pytest.raises(UserError, match="has no masks"):
        create_algorithm("prune_at_cut", tabular())


def test_asng_finds_the_optimum_of_a_known_distribution():
    """Each variable has one best category; the loss counts the others, with noise."""
    rng = np.random.default_rng(0)
    categories = [9] * 10 + [20]
    for seed in range(5):
        best = rng.integers(0, categories)
        draw = np.random.default_rng(seed)
        asng = CategoricalASNG(categories)
        for _ in range(3000):
            samples = np.array([asng.sample(draw) for _ in range(2)])
            noise = 0.1 * draw.standard_normal(2)
            asng.update(samples, (samples != best).sum(axis=1) + noise)
        assert (asng.mode() == best).all()
        assert asng.theta[np.arange(len(best)), best].min() > 0.5


def test_asng_keeps_distributions_and_ignores_ties():
    asng = CategoricalASNG([3, 1, 5])
    start = asng.theta.copy()
    samples = np.array([[0, 0, 1], [2, 0, 3]])
    asng.update(samples, np.array([1.0, 1.0]))
    assert (asng.theta == start).all()
    asng.update(samples, np.array([0.0, 1.0]))
    assert asng.theta[0, 0] > start[0, 0]
    assert asng.theta[0, 2] < start[0, 2]
    rng = np.random.default_rng(0)
    for _ in range(500):
        drawn = np.array([asng.sample(rng) for _ in range(4)])
        asng.update(drawn, drawn[:, 0] + rng.random(4))
        assert asng.theta.sum(axis=1) == pytest.approx(1)
        assert (asng.theta >= asng.margin - 1e-12).all()
        assert (asng.theta[~asng.valid] == 0).all()
        assert drawn.max(axis=0).tolist() <= [2, 0, 4]
    assert asng.mode()[0] == 0


def test_asng_samples_its_distribution():
    asng = CategoricalASNG([4, 2])
    asng.theta = np.array([[0.1, 0.2, 0.3, 0.4], [0.75, 0.25, 0, 0]])
    rng = np.random.default_rng(0)
    drawn = np.array([asng.sample(rng) for _ in range(20000)])
    for row, theta in zip(drawn.T, asng.theta, strict=True):
        assert np.bincount(row, minlength=4) / 20000 == pytest.approx(theta, abs=0.015)


def test_nasc_meets_its_thresholds_and_spends_the_budget():
    one = problem()
    found = run("nasc", one, 400)
    assert len(found) == 400
    assert all(set(e.design.masks[0]) <= {"1"} for e in found)
    late = [found[k * 50 + 40 : (k + 1) * 50] for k in range(8)]
    means = [np.mean([e.metric("latency_ms") for e in part]) for part in late]
    assert means[0] < means[-1]


def test_steps_of_evolution_use_one_population_for_each_weighting():
    one = problem()
    found = run("regularised_evolution", one, 100, weights=1, pop_size=10)
    assert len(found) == 100
    reference = [one.reference_point[name] for name in one.objectives]
    worst = (one.objective_values(found) / reference).max(axis=1)
    assert worst[50:].mean() < worst[:10].mean()


def test_msunas_goes_on_where_its_predicted_front_is_known():
    one = tabular(device="edgegpu")
    assert len(run("msunas", one, 150, initial=50)) == 150


def test_search_helper_still_makes_populations():
    assert len(search(problem(), "nsga2_pymoo", 60).evaluations) == 60


def test_relaxed_masks_follow_the_supernet_and_the_expected_time():
    import torch

    from nasc_evo.search.relaxed_masks import ExpectedTime
    from problems import FBNetSplit
    from tests.conftest import FAST

    one = FBNetSplit(evaluator=FAST, device="raspi4", link="5g")
    space = one.space
    scale = one.reference_point["latency_ms"]
    time = ExpectedTime(one)
    rng = np.random.default_rng(0)
    X = np.tile(space.xu, (20, 1))
    X[:, : space.n_arch] = rng.integers(0, 9, (20, space.n_arch))
    X[:, space.cut_genes[0]] = rng.integers(0, len(space.cut_choices), 20)
    for x, latency in zip(X, one.costs(space.decode_batch(X))["latency_ms"], strict=True):
        ops = torch.nn.functional.one_hot(torch.tensor(x[: space.n_arch]), 9).float()
        cut = torch.nn.functional.one_hot(
            torch.tensor(x[space.cut_genes[0]]), len(space.cut_choices)
        ).float()
        unsent = torch.zeros(len(space.cut_choices))
        assert float(time(ops, cut, unsent)) * scale == pytest.approx(latency, rel=1e-5)

    found = run("relaxed_masks", one, 14, lambdas=2, batch=8)
    again = FBNetSplit(evaluator=FAST, device="raspi4", link="5g")
    assert journal_of(found) == journal_of(run("relaxed_masks", again, 14, lambdas=2, batch=8))
    assert 2 <= len(found) <= 8
    latencies = [e.metric("latency_ms") for e in found]
    assert latencies[-1] < latencies[0]  # the weight of the time has grown
    link = one.chain.links[0]
    rates = {"uplink": link.uplink_mbps, "downlink": link.downlink_mbps, "rtt": link.rtt_ms}
    alone = [recosted(e.design, device="raspi4", **rates) for e in found]
    assert latencies == pytest.approx(alone, rel=1e-9)


def test_relaxed_masks_need_gradients():
    with pytest.raises(UserError, match="accuracies from a table have no gradient"):
        create_algorithm("relaxed_masks", tabular())
    with pytest.raises(UserError, match="follows gradients through a supernet"):
        run("relaxed_masks", problem())


def test_radial_basis_functions_are_those_of_scipy():
    from scipy.interpolate import RBFInterpolator

    from nasc_evo.search.msunas import SMOOTHING, radial_basis

    rng = np.random.default_rng(0)
    U, V = (np.eye(5)[rng.integers(0, 5, (n, 6))].reshape(n, 30) for n in (80, 50))
    errors = rng.random(80)
    theirs = RBFInterpolator(U, errors, kernel="linear", degree=0, smoothing=SMOOTHING)(V)
    assert radial_basis(U, errors)(V) == pytest.approx(theirs, abs=1e-9)
