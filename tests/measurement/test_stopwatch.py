"""Samples, disturbances and what is left of them."""

import os
import time

import pytest

from nasc_evo.measurement import stopwatch
from nasc_evo.measurement.stopwatch import Burst, Stopwatch, pin, summarize, without_outliers


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
    assert without_outliers(samples) == samples[:-1]
    assert without_outliers([1.0, 1.0, 1.0, 7.0]) == [1.0, 1.0, 1.0, 7.0]


def test_the_figure_is_that_of_the_quietest_round():
    figure = summarize([Burst((2.0, 2.2, 2.4), 0), Burst((1.0, 1.1, 1.2), 1)])
    assert figure.median_ms == 1.1
    noisy = (9.0, 2.0, 8.0, 3.0, 3.1, 2.9, 3.0, 3.2, 9.0, 9.0, 8.0, 7.0)
    assert summarize([Burst(noisy, 0), Burst((3.3,) * 6, 0)]).median_ms == 3.0
    assert figure.disagreement == pytest.approx(1.0)
    assert figure.spread_ms == pytest.approx(2.15 - 1.125)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_pinning_is_undone():
    before = os.sched_getaffinity(0)
    with pin(1) as processors:
        assert os.sched_getaffinity(0) == set(processors)
        assert len(processors) == 1
    assert os.sched_getaffinity(0) == before
