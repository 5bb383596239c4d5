"""Corrections on made-up machines whose truth is known."""

import numpy as np
import pytest

from nasc_evo.measurement.agreement import choose, free, held_out, plain, scaled, scores

KINDS = 12
ALONE = np.linspace(0.05, 0.6, KINDS)
NONE = np.zeros(KINDS, dtype=bool)


def made_up(truth, constant=0.0, noise=0.0, n=60, seed=0):
    """Return counts, latencies and networks of n networks, whole and both sides."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 3, (2, n, KINDS))
    first[:, 0] = second[:, 0] = 1
    counts = np.stack([first + second, first, second], axis=1).reshape(-1, KINDS).astype(float)
    latency = constant + counts @ truth
    return counts, latency * rng.normal(1, noise, len(latency)), np.arange(3 * n) // 3


def error(correction, truth, constant):
    counts, measured, _ = made_up(truth, constant, seed=1)
    return scores(measured, correction.predict(counts))["mape_percent"]


def test_scores_by_hand():
    got = scores(np.array([1.0, 2.0, 4.0]), np.array([1.1, 1.8, 4.0]))
    assert got["mape_percent"] == pytest.approx(100 * (0.1 + 0.1) / 3, abs=1e-3)
    assert got["bias_percent"] == pytest.approx(0, abs=1e-3)
    assert got["kendall_tau"] == 1
    assert got["r2"] == pytest.approx(1 - 0.05 / np.square([4 / 3, 1 / 3, 5 / 3]).sum(), abs=1e-4)


def test_plain_addition_stays_where_it_is_right():
    counts, measured, networks = made_up(ALONE, noise=0.002)
    correction = choose(ALONE, NONE, counts, measured, networks)
    assert correction.form == "plain"
    assert correction.constant == 0
    assert np.array_equal(correction.figures, ALONE)


def test_constant_and_scale_are_found():
    truth = 0.8 * ALONE + 0.01
    counts, measured, networks = made_up(truth, constant=0.3)
    correction = scaled(ALONE, NONE, counts, measured)
    assert correction.constant == pytest.approx(0.3)
    assert correction.figures == pytest.approx(truth)
    chosen = choose(ALONE, NONE, counts, measured * 1.0, networks)
    assert chosen.form == "scaled"
    assert error(chosen, truth, 0.3) < 0.01
    assert error(plain(ALONE, NONE), truth, 0.3) > 1


def test_single_kinds_that_deviate_are_found():
    truth = ALONE.copy()
    truth[[3, 7]] *= (0.4, 1.8)
    counts, measured, networks = made_up(truth, constant=0.1, noise=0.005)
    chosen = choose(ALONE, NONE, counts, measured, networks)
    assert chosen.form == "blocks"
    assert error(chosen, truth, 0.1) < 1 < error(scaled(ALONE, NONE, counts, measured), truth, 0.1)


def test_predictions_do_not_know_the_network_they_are_of():
    truth = ALONE.copy()
    truth[[3, 7]] *= (0.4, 1.8)
    counts, measured, order = made_up(truth, constant=0.1, noise=0.02)
    networks = 10 * order
    predicted = held_out(ALONE, NONE, counts, measured, networks)
    slow = np.where(order == 7, 3 * measured, measured)
    changed = held_out(ALONE, NONE, counts, slow, networks) != predicted
    assert not changed[order % 10 == 7].any()
    assert changed[order % 10 != 7].all()
    fitted = choose(ALONE, NONE, counts, measured, networks).predict(counts)
    own, of_others = (scores(measured, p)["mape_percent"] for p in (fitted, predicted))
    assert own < of_others < 3


def test_no_figure_is_negative_and_unseen_kinds_keep_their_measured_latency():
    truth = ALONE.copy()
    truth[5] = 0
    counts, measured, _ = made_up(truth)
    counts[:, 9] = 0
    measured = counts @ truth
    correction = free(ALONE, NONE, counts, measured, 0.01)
    start = scaled(ALONE, NONE, counts, measured)
    assert (correction.figures >= 0).all()
    assert correction.constant >= 0
    assert correction.figures[9] == pytest.approx(start.figures[9])
    assert correction.figures[5] < 0.1 * ALONE[5]


def test_what_is_beside_blocks_counts_only_where_it_is_fitted():
    truth, beside = ALONE.copy(), NONE.copy()
    truth[[2, 8]], beside[[2, 8]] = (0.3, 0.02), True
    counts, measured, networks = made_up(truth, constant=0.1, noise=0.002, n=120)
    for correction in (plain(ALONE, beside), scaled(ALONE, beside, counts, measured)):
        assert (correction.figures[beside] == 0).all()
    chosen = choose(ALONE, beside, counts, measured, networks)
    assert chosen.form == "blocks"
    assert chosen.figures == pytest.approx(truth, abs=0.02)
    ignored = free(ALONE, beside, np.where(beside, 0, counts), measured, 0.1)
    assert ignored.figures[beside] == pytest.approx(0)
