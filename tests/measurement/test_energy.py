"""Counters of energy, made up as files."""

import time

import pytest

from nasc_evo.measurement import energy
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
    """A counter of 2 W that moves every 5 ms."""

    name = "made up"

    def read_mj(self):
        return 2e3 * (time.perf_counter() // 0.005) * 0.005


def test_energy_is_power_times_time(monkeypatch):
    monkeypatch.setattr(energy, "MIN_SECONDS", 0.05)

    def run():
        start = time.perf_counter()
        time.sleep(0.001)
        return (time.perf_counter() - start) * 1e3

    start, runs = time.perf_counter(), 0

    def counted():
        nonlocal runs
        runs += 1
        return run()

    got = energy_of(counted, Steps())
    a_run = 2e3 * (time.perf_counter() - start) / runs
    assert got == pytest.approx(a_run, rel=0.3)


def test_a_counter_that_stands_still_gives_nothing(monkeypatch):
    monkeypatch.setattr(energy, "MAX_SECONDS", 0.02)

    class Still:
        name = "still"

        def read_mj(self):
            return 1.0

    assert energy_of(lambda: 1.0, Still()) is None
