"""Samples, disturbances and what is left of them."""

import os
import time

import numpy as np
import pytest

from nasc_evo.measurement import stopwatch
from nasc_evo.measurement.stopwatch import (
    QUANTILES,
    Burst,
    Stopwatch,
    outlier_limit,
    pin,
    quiet_reference_ms,
    steadiest_quantile,
    summarize,
)


def test_a_burst_has_warm_up_and_enough_samples():
    calls = []

    def timed():
        calls.append(time.perf_counter())
        time.sleep(0.002)
        return 2.0

    burst = Stopwatch(repeats=12, min_seconds=0, max_seconds=5).burst(timed)
    assert burst.samples_ms == (2.0,) * len(burst.samples_ms)
    assert len(burst.samples_ms) + burst.left_out >= 12
    assert len(calls) >= 12 + stopwatch.WARMUP_RUNS


def test_a_slow_thing_has_fewer_samples():
    def timed():
        time.sleep(0.02)
        return 20.0

    burst = Stopwatch(repeats=30, min_seconds=0, max_seconds=0.1).burst(timed)
    assert 10 <= len(burst.samples_ms) + burst.left_out < 30


def test_samples_in_which_the_processor_was_taken_away_are_left_out(monkeypatch):
    count = iter(range(10**6))
    interrupted = iter([0, 0, 0, 1] * 1000)  # every other sample has one
    total = 0

    def interruptions():
        nonlocal total
        total += next(interrupted)
        return total

    monkeypatch.setattr(stopwatch, "interruptions", interruptions)
    burst = Stopwatch(10, 0, 5).burst(lambda: 1.0 + next(count) * 1e-9)
    assert len(burst.samples_ms) == 10
    assert burst.left_out in (9, 10)


def test_where_all_samples_are_disturbed_they_count(monkeypatch):
    count = iter(range(10**6))
    monkeypatch.setattr(stopwatch, "interruptions", lambda: next(count))
    burst = Stopwatch(10, 0, 0.01).burst(lambda: 1.0)
    assert len(burst.samples_ms) >= 4
    assert burst.left_out == 0


def test_outliers_are_far_above_the_median_only():
    samples = [1.0, 1.01, 0.99, 1.02, 0.98, 0.2, 9.0]
    assert sorted(samples)[-2] < outlier_limit(samples) < samples[-1]
    assert outlier_limit([1.0, 1.0, 1.0, 7.0]) == np.inf


def test_a_figure_is_a_quantile_of_all_samples():
    bursts = [Burst((2.0, 2.2, 2.4), 0), Burst((1.0, 1.1, 1.2), 1)]
    figure = summarize(bursts, 0.5)
    assert figure.latency_ms == pytest.approx(1.6)
    assert summarize(bursts, 0.05).latency_ms == pytest.approx(1.025)
    assert figure.disagreement == pytest.approx(1.0)
    assert figure.spread_ms == pytest.approx(2.15 - 1.125)


def bursts_of(true_ms, sample, rng, rounds=6):
    return [[Burst(tuple(sample(ms, rng)), 0) for _ in range(rounds)] for ms in true_ms]


def errors_by_quantile(things, true_ms):
    """Return the spread of what each quantile makes of the true latency, without its bias."""
    ratios = {
        quantile: [
            summarize(bursts, quantile).latency_ms / ms
            for bursts, ms in zip(things, true_ms, strict=True)
        ]
        for quantile in QUANTILES
    }
    return {quantile: np.std(np.log(ratio)) for quantile, ratio in ratios.items()}


def busy(ms, rng):
    """Most rounds share the processor with something that takes a while."""
    return ms * (1 + 0.01 * rng.random(20) + rng.choice([0, 0.5, 2]) * rng.random(20))


def quiet(ms, rng):
    """A processor whose clock is now and then faster than it can sustain."""
    fast = rng.random(20) < 0.03
    return ms * (1 + 0.02 * rng.standard_normal(20)) * np.where(fast, 0.8, 1)


def test_a_reference_runs_before_each_sample_and_tells_its_pace(monkeypatch):
    calls = []

    def interruptions():  # once, during the third reference
        return int(calls.count("reference") > 2)

    def timed():
        calls.append("sample")
        return {5: 100.0, 6: 16.0}.get(calls.count("reference"), 4.0 * calls.count("reference"))

    def reference():
        calls.append("reference")
        return 20.0 if calls.count("reference") == 6 else 0.2 * calls.count("reference")

    monkeypatch.setattr(stopwatch, "interruptions", interruptions)
    burst = Stopwatch(repeats=6, min_seconds=0, max_seconds=5).burst(timed, reference)
    assert calls[-14:] == 7 * ["reference", "sample"]
    assert burst == Burst((4.0, 8.0, 16.0, 28.0), 3, pytest.approx((0.2, 0.4, 0.8, 1.4)))
    assert burst.reference_ms == pytest.approx(0.6)
    assert burst.by_reference == pytest.approx(20)
    assert burst.at_pace(0.1) == Burst(pytest.approx((2.0,) * 4), 3)
    assert Stopwatch(5, 0, 5).burst(timed).references_ms is None


def test_a_reference_that_another_process_changed_is_known_by_what_it_stands_beside():
    """Things of 1 and 3 ms and references of 0.5 ms, in the second process of 0.6 ms."""
    pace = np.linspace(1, 2, 21)

    def bursts(thing_ms, sittings):
        return [
            Burst((thing_ms * pace[i],) * 3, 0, ((0.6 if sitting else 0.5) * pace[i],) * 3, sitting)
            for i, sitting in enumerate(sittings)
        ]

    things = [bursts(ms, [0] * 14 + [1] * 7) for ms in (1.0, 3.0)]
    assert quiet_reference_ms(things) == pytest.approx({0: 0.525, 1: 0.63})
    things = [bursts(ms, [0] * 21) for ms in (1.0, 3.0)]
    assert quiet_reference_ms(things) == pytest.approx({0: 0.525})
    things = [bursts(1.0, [0] * 21), bursts(3.0, [1] * 21)]  # nothing stands beside both
    assert quiet_reference_ms(things)[0] == quiet_reference_ms(things)[1]


@pytest.mark.parametrize(("machine", "low"), [(busy, True), (quiet, False)])
def test_the_quantile_that_rounds_agree_on_is_near_the_most_accurate(machine, low):
    rng = np.random.default_rng(1)
    true_ms = rng.uniform(0.1, 3, size=200)
    things = bursts_of(true_ms, machine, rng)
    chosen, apart = steadiest_quantile(things)
    assert 0 < apart < 0.1
    assert (chosen <= 0.1) == low
    errors = errors_by_quantile(things, true_ms)
    assert errors[chosen] <= 1.1 * min(errors.values())
    assert errors[chosen] < 0.5 * max(errors.values())


def test_a_single_round_leaves_nothing_to_choose_by():
    rng = np.random.default_rng(1)
    assert steadiest_quantile(bursts_of([1.0, 2.0], quiet, rng, rounds=1)) == (0.1, np.inf)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_pinning_is_undone():
    before = os.sched_getaffinity(0)
    with pin(1) as processors:
        assert os.sched_getaffinity(0) == set(processors)
        assert len(processors) == 1
    assert os.sched_getaffinity(0) == before
