"""What several rounds of samples become: figures, a correction, and how well these agree."""

import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from nasc_evo.measurement import session as session_module
from nasc_evo.measurement import stopwatch
from nasc_evo.measurement.backends import Prepared
from nasc_evo.measurement.pieces import beside_keys, run_features, table_keys
from nasc_evo.measurement.session import Plan, Session
from nasc_evo.measurement.stopwatch import Burst, Stopwatch
from nasc_evo.space import NASBench201Space

CONSTANT_MS = 0.05
BESIDE_MS = 0.1
CONSTANT_MJ = 2.0
MJ_A_MS = 40.0
QUIET_MS = {"block": 0.09, "run": 3.0}
"""What references take."""
OTHER_REFERENCE = 1.3


def made_up_session(rng, plan, counter=None):
    """Return a session without samples, and how long each item truly takes."""
    journal = SimpleNamespace(bursts={}, energies={})
    backend = SimpleNamespace(describe=lambda: {"backend": "none"})
    session = Session(NASBench201Space(32, 10), plan, backend, journal, counter)
    block_ms = dict(zip(session.blocks, rng.uniform(0.1, 0.5, len(session.blocks)), strict=True))
    beside_ms = dict.fromkeys(beside_keys(session.space), BESIDE_MS)
    counts = run_features(session.space, session.runs, [*block_ms, *beside_ms])
    run_ms = CONSTANT_MS + counts @ np.array([*block_ms.values(), *beside_ms.values()])
    true_ms = {
        **{f"block {k}": session.blocks[k].copies * ms for k, ms in block_ms.items()},
        **{f"run {i}": ms for i, ms in enumerate(run_ms)},
    }
    session.true_ms = block_ms
    return session, true_ms


@pytest.fixture(scope="module")
def session():
    """A session that holds three rounds of a machine that was busy in two of three bursts."""
    rng = np.random.default_rng(1)
    plan = Plan(rounds=3, networks=120)
    session, true_ms = made_up_session(rng, plan, SimpleNamespace(name="made up"))
    journal = session.journal
    for item, number in session.steps():
        if number is None:  # alone a block takes twice as much
            constant, share = (CONSTANT_MJ, 1) if item.startswith("run") else (0, 2)
            own_ms = true_ms[item] - CONSTANT_MS * item.startswith("run")
            journal.energies[item] = constant + share * MJ_A_MS * own_ms * rng.uniform(0.98, 1.02)
            continue
        added = rng.choice([0.0, 0.3, 0.6]) * rng.random(40)
        samples_ms = true_ms[item] * (1 + 0.002 * rng.random(40) + added)
        journal.bursts[item, number] = Burst(tuple(samples_ms), 0)
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


def on_a_busy_host(rng, plan, tells=True):
    """Return a session of a GPU whose host takes up to three times as long when it is busy.

    A tenth of what is measured does not depend on the host. Of the samples of each graph, 40 to
    80 % are twice as long. From within the third round on another process has other references.
    """
    session, true_ms = made_up_session(rng, plan)
    session.plan = replace(plan, processor="cuda")
    pace, steps = 1.0, session.steps()
    for step, (item, number) in enumerate(steps):
        kind, _, key = item.partition(" ")
        if kind == "graph":
            samples_ms = 0.25 * true_ms[f"block {key}"] * (1 + 0.01 * rng.random(20))
            samples_ms *= np.where(rng.random(20) < rng.uniform(0.4, 0.8), 2, 1)
            session.journal.bursts[item, number] = Burst(tuple(samples_ms), 0)
            continue
        if rng.random() < 0.1:
            pace = 1 + rng.random() ** 2
        paces = pace * rng.choice([1, 1.5], 5)  # from one sample to the next, too
        samples_ms = (0.1 + 0.9 * paces) * true_ms[item] * (1 + 0.02 * rng.random(5))
        told = paces if tells else rng.uniform(1, 2, 5)
        sitting = int(step > 0.6 * len(steps))
        own_ms = QUIET_MS[kind] * (OTHER_REFERENCE if sitting else 1)
        told_ms = own_ms * told * rng.uniform(0.95, 1.05, 5)
        burst = Burst(tuple(samples_ms), 0, tuple(told_ms), sitting)
        session.journal.bursts[item, number] = burst
    return session


@pytest.mark.parametrize("tells", [True, False])
def test_the_pace_of_a_host_is_evened_out_where_a_reference_tells_it(tells):
    session = on_a_busy_host(np.random.default_rng(2), Plan(rounds=4, networks=120), tells)
    session.journal.bursts["run 0", 4] = Burst((1e-3,), 0, (1e-3,))  # beyond the plan
    header, rows = session.table()
    host = header["measurement"]["host"]
    assert 29 < host["slower_percent"]["median"] < 70
    assert host["evened_out"] == tells
    whole = header["agreement"]["whole"]["as_corrected"]
    assert (whole["mape_percent"] < 1.5) == (whole["kendall_tau"] > 0.95) == tells
    if tells:
        assert header["measurement"]["quantile"] >= 0.25
        assert header["launch"]["quantile"] < 0.25
        for kind, quiet_ms in QUIET_MS.items():
            low_ms, high_ms = host["quiet_ms"][kind]
            assert quiet_ms < low_ms < 1.13 * quiet_ms
            assert high_ms / low_ms == pytest.approx(OTHER_REFERENCE, rel=0.05)
        measured_ms = {row["measured_ms"] for row in rows.values()} - {0.0}
        assert sorted(measured_ms) == pytest.approx(sorted(session.true_ms.values()), rel=0.1)
        assert header["launch"]["median_share_percent"] == pytest.approx(75, abs=3)


def test_a_single_round_does_not_tell_whether_evening_out_helps():
    session = on_a_busy_host(np.random.default_rng(2), Plan(rounds=1, networks=40))
    header, rows = session.table()
    assert not header["measurement"]["host"]["evened_out"]
    stem_ms = np.quantile(session.journal.bursts["block stem", 0].samples_ms, 0.1)
    assert rows["stem", "-"]["measured_ms"] == pytest.approx(stem_ms, rel=1e-5)


def test_drift_of_the_pace_that_references_do_not_tell_is_not_evened_out():
    """Every other round is slower, and references are noise."""
    rng = np.random.default_rng(3)
    session, true_ms = made_up_session(rng, Plan(rounds=4, networks=40))
    session.plan = replace(session.plan, processor="cuda")
    for item, number in session.steps():
        kind, _, key = item.partition(" ")
        ms = true_ms[f"block {key}"] if kind == "graph" else true_ms[item]
        samples_ms = ms * (1 + 0.2 * (number % 2)) * (1 + 0.01 * rng.random(5))
        references_ms = None if kind == "graph" else tuple(rng.uniform(1, 1.5, 5))
        session.journal.bursts[item, number] = Burst(tuple(samples_ms), 0, references_ms)
    header, _ = session.table()
    assert not header["measurement"]["host"]["evened_out"]
    assert header["agreement"]["whole"]["as_corrected"]["mape_percent"] < 1


def test_what_launches_runs_beside_a_reference_of_its_like(monkeypatch):
    session, _ = made_up_session(np.random.default_rng(0), Plan(rounds=2, repeats=3, networks=40))
    session.plan = replace(session.plan, processor="cuda")
    first_block, first_run = next(iter(session.blocks.values())), session.runs[0]
    asked = []

    def timed_like(thing):
        """The reference of blocks takes 1, 9 and 2 ms in turn, that of runs 3, all else 7."""
        asked.append(thing)
        times_ms = itertools.cycle(
            {(first_block, False, True): (1.0, 9.0, 2.0), (first_run, False): (3.0,)}.get(
                thing, (7.0,)
            )
        )
        return Prepared(timed=lambda: next(times_ms), repeat=lambda runs: None)

    def add_burst(item, number, burst):
        session.journal.bursts[item, number] = burst

    session.backend.prepare = lambda piece, *, graph, whole: timed_like((piece, graph, whole))
    session._prepare_run = lambda run, graph: timed_like((run, graph))
    session.journal.add_burst = add_burst
    monkeypatch.setattr(stopwatch, "WARMUP_SECONDS", 0)
    monkeypatch.setattr(stopwatch, "interruptions", lambda: 0)
    monkeypatch.setattr(session_module, "Stopwatch", partial(Stopwatch, min_seconds=0))
    session.measure(lambda done, item: None)
    bursts = session.journal.bursts
    told = {(item.split()[0], b.references_ms) for (item, _), b in bursts.items()}
    assert told == {("block", (2.0,) * 3), ("graph", None), ("run", (3.0,) * 3)}
    assert asked.count((first_block, False, True)) == 1
    everything = 2 + 2 * (2 * len(session.blocks) + len(session.runs))
    assert len(asked) == everything
    bursts["run 5", 1] = replace(bursts["run 5", 1], references_ms=None)  # by hand
    session.measure(lambda done, item: None)
    assert len(asked) == everything + 1
    assert bursts["run 5", 1].references_ms == (3.0,) * 3


def test_networks_grow_only_where_they_need_no_reference():
    assert (
        Plan().growing == Plan(processor="cuda", launch="graph").growing == ("rounds", "networks")
    )
    assert Plan(processor="cuda").growing == ("rounds",)


def test_rounds_beyond_the_plan_do_not_count(session, monkeypatch):
    rows = session.table()[1]
    again = Session(session.space, session.plan, session.backend, session.journal, session.counter)
    item = next(iter(session.blocks))
    monkeypatch.setitem(session.journal.bursts, (f"block {item}", 3), Burst((1e-3,) * 40, 0))
    assert again.table()[1] == rows


def test_energies_are_corrected_by_whole_networks(session):
    header, rows = session.table()
    agreement = header["energy_agreement"]
    assert agreement["networks"] == 40
    assert 0 < agreement["range_mj"][0] < agreement["range_mj"][1]
    assert agreement["whole"]["plain_addition"]["mape_percent"] > 30
    assert agreement["whole"]["as_corrected"]["mape_percent"] < 3
    assert header["constant_mj"] == pytest.approx(CONSTANT_MJ, abs=1)
    keys = {place: key[0] for place, key in table_keys(session.space).items() if key is not None}
    got = {key: rows[place]["energy_mj"] for place, key in keys.items() if key in session.blocks}
    expected = {key: MJ_A_MS * session.true_ms[key] for key in got}
    for stage in ("stage_1", "stage_2", "stage_3"):  # an edge that pools and its node go together
        got[f"avg_pool_3x3 {stage}"] += rows[f"{stage}_pools", "1"]["energy_mj"]
        expected[f"avg_pool_3x3 {stage}"] += MJ_A_MS * BESIDE_MS
    assert got == pytest.approx(expected, rel=0.08)


def test_what_is_beside_blocks_is_known_from_whole_networks(session):
    rows = session.table()[1]
    for kind in beside_keys(session.space):
        by_times = [rows[kind, str(times)] for times in range(4)]
        assert [row["measured_ms"] for row in by_times] == [0.0] * 4
        once_ms = by_times[1]["latency_ms"]
        expected = [times * once_ms for times in range(4)]
        assert [row["latency_ms"] for row in by_times] == pytest.approx(expected, rel=1e-4)
        assert 0.2 * BESIDE_MS < once_ms < 3 * BESIDE_MS
        once_mj = by_times[1]["energy_mj"]
        expected = [times * once_mj for times in range(4)]
        assert [row["energy_mj"] for row in by_times] == pytest.approx(expected, rel=1e-4)
        assert once_mj > 0


@pytest.mark.parametrize("item", ["block stem", "run 0"])
def test_there_are_energies_for_all_or_none(session, monkeypatch, item):
    monkeypatch.delitem(session.journal.energies, item)
    header, rows = session.table()
    assert {row["energy_mj"] for row in rows.values()} == {None}
    assert "energy_agreement" not in header
    assert header["measurement"]["energy"] is None
