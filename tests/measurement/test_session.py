"""What several rounds of samples become: figures, a correction, and how well these agree."""

from types import SimpleNamespace

import numpy as np
import pytest

from nasc_evo.measurement.pieces import run_features
from nasc_evo.measurement.session import Plan, Session
from nasc_evo.measurement.stopwatch import Burst
from nasc_evo.space import NASBench201Space

CONSTANT_MS = 0.05
CONSTANT_MJ = 2.0
MJ_A_MS = 40.0


@pytest.fixture(scope="module")
def session():
    """A session that holds three rounds of a machine that was busy in two of three bursts."""
    rng = np.random.default_rng(1)
    journal = SimpleNamespace(bursts={}, energies={})
    backend = SimpleNamespace(describe=lambda: {"backend": "none"})
    plan = Plan(rounds=3, networks=20)
    counter = SimpleNamespace(name="made up")
    session = Session(NASBench201Space(32, 10), plan, backend, journal, counter)
    block_ms = dict(zip(session.blocks, rng.uniform(0.1, 0.5, len(session.blocks)), strict=True))
    counts = run_features(session.space, session.runs, list(session.blocks))
    run_ms = CONSTANT_MS + counts @ np.array(list(block_ms.values()))
    true_ms = {
        **{f"block {k}": session.blocks[k].copies * ms for k, ms in block_ms.items()},
        **{f"run {i}": ms for i, ms in enumerate(run_ms)},
    }
    for item, number in session.steps():
        if number is None:  # alone a block takes half as much again
            constant, share = (CONSTANT_MJ, 1) if item.startswith("run") else (0, 1.5)
            own_ms = true_ms[item] - CONSTANT_MS * item.startswith("run")
            journal.energies[item] = constant + share * MJ_A_MS * own_ms * rng.uniform(0.98, 1.02)
            continue
        added = rng.choice([0.0, 0.3, 0.6]) * rng.random(40)
        samples_ms = true_ms[item] * (1 + 0.002 * rng.random(40) + added)
        journal.bursts[item, number] = Burst(tuple(samples_ms), 0)
    session.true_ms = block_ms
    return session


def test_a_busy_machine_is_seen_through(session):
    header, rows = session.table()
    assert header["measurement"]["quantile"] == 0.01
    assert header["agreement"]["rounds"]["kendall_tau"] > 0.8
    whole = header["agreement"]["whole"]["as_corrected"]
    assert whole["mape_percent"] < 2
    assert whole["kendall_tau"] > 0.95
    assert header["constant_ms"] == pytest.approx(CONSTANT_MS, abs=0.03)
    measured_ms = {row["measured_ms"] for row in rows.values()} - {0.0}
    assert sorted(measured_ms) == pytest.approx(sorted(session.true_ms.values()), rel=0.05)


def test_rounds_beyond_the_plan_do_not_count(session):
    rows = session.table()[1]
    item = next(iter(session.blocks))
    session.journal.bursts[f"block {item}", 3] = Burst((1e-3,) * 40, 0)
    assert session.table()[1] == rows


def test_energies_are_corrected_by_whole_networks(session):
    header, rows = session.table()
    agreement = header["energy_agreement"]
    assert agreement["networks"] == 20
    assert agreement["whole"]["plain_addition"]["mape_percent"] > 30
    assert agreement["whole"]["as_corrected"]["mape_percent"] < 3
    assert header["constant_mj"] == pytest.approx(CONSTANT_MJ, abs=1)
    got = sorted({row["energy_mj"] for row in rows.values()} - {0.0})
    true_mj = sorted(MJ_A_MS * ms for ms in session.true_ms.values())
    assert got == pytest.approx(true_mj, rel=0.08)


@pytest.mark.parametrize("item", ["block stem", "run 0"])
def test_there_are_energies_for_all_or_none(session, monkeypatch, item):
    monkeypatch.delitem(session.journal.energies, item)
    header, rows = session.table()
    assert {row["energy_mj"] for row in rows.values()} == {None}
    assert "energy_agreement" not in header
