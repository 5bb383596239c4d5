"""Counters of energy, made up as files."""

import time

import pytest

from nasc_evo.measurement import energy
from nasc_evo.measurement.backends import on_the_clock
from nasc_evo.measurement.energy import RaplCounter, energy_of, find_counter


def zone(folder, name, value, kind="package-0"):
    path = folder / name
    path.mkdir()
    (path / "name").write_text(f"{kind}\n")
    (path / "energy_uj").write_text(f"{value}\n")
    (path / "max_energy_range_uj").write_text("1000000\n")
    return path / "energy_uj"


def test_rapl_adds_packages_and_goes_on_where_a_counter_begins_anew(tmp_path):
    first, second = zone(tmp_path, "intel-rapl:0", 5000), zone(tmp_path, "intel-rapl:1", 1000)
    zone(tmp_path, "intel-rapl:0:0", 77, kind="core")
    counter = RaplCounter(tmp_path)
    assert counter.read_mj() == 6.0
    first.write_text("7000")
    assert counter.read_mj() == 8.0
    second.write_text("500")
    assert counter.read_mj() == pytest.approx(1007.5)


def test_where_nothing_can_be_read_there_is_no_counter(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="no processor packages"):
        RaplCounter(tmp_path)
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    monkeypatch.setattr(RaplCounter.__init__, "__defaults__", (tmp_path,))
    assert find_counter("cpu") is None


class Steps:
    """A counter of 2 W that moves every 5 ms and takes its time to be read."""

    name = "made up"

    def __init__(self, reading_seconds=0.0):
        self.reading_seconds = reading_seconds

    def read_mj(self):
        time.sleep(self.reading_seconds)
        return 2e3 * (time.perf_counter() // 0.005) * 0.005


class Work:
    """Runs of so many seconds, with a wait at the end of each row; the first may be slow."""

    def __init__(self, run_seconds, wait_seconds=0.0, first_seconds=0.0):
        self.run_seconds = run_seconds
        self.wait_seconds = wait_seconds
        self.first_seconds = first_seconds

    def __call__(self, n):
        time.sleep(n * self.run_seconds + self.wait_seconds + self.first_seconds)
        self.first_seconds = 0.0


@pytest.mark.parametrize("reading_seconds", [0.0, 0.05])
def test_energy_is_power_times_time_however_long_a_reading_takes(monkeypatch, reading_seconds):
    monkeypatch.setattr(energy, "MIN_SECONDS", 0.3)
    got = energy_of(Work(0.001), Steps(reading_seconds))
    assert got == pytest.approx(2e3 * 0.001, rel=0.3)


@pytest.mark.parametrize("first_seconds", [0.0, 0.02])
def test_a_wait_at_the_end_hardly_counts(monkeypatch, first_seconds):
    monkeypatch.setattr(energy, "MIN_SECONDS", 0.1)
    got = energy_of(Work(1e-5, 5e-4, first_seconds), Steps())
    assert got == pytest.approx(2e3 * 1e-5, rel=0.4)


class Broken:
    """A counter that stands still, runs backwards, or cannot be read after some readings."""

    name = "broken"

    def __init__(self, readings, step_mj):
        self.readings = readings
        self.step_mj = step_mj
        self.mj = 1e3

    def read_mj(self):
        self.readings -= 1
        self.mj += self.step_mj
        if self.readings < 0:
            raise OSError("gone")
        return self.mj


@pytest.mark.parametrize(("readings", "step_mj"), [(10**9, 0), (10**9, -1), (2, 1), (0, 1)])
def test_a_counter_that_does_not_count_gives_nothing(monkeypatch, readings, step_mj):
    monkeypatch.setattr(energy, "MAX_SECONDS", 0.1)
    assert energy_of(Work(0.001), Broken(readings, step_mj)) is None


def test_a_prepared_piece_runs_as_often_as_it_is_told():
    runs = []
    prepared = on_the_clock(lambda: runs.append(time.sleep(0.002)))
    assert prepared.timed() >= 2
    prepared.repeat(5)
    assert len(runs) == 6
