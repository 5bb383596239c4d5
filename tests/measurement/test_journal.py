"""Samples survive; other measurements are refused."""

import json
from pathlib import Path

import pytest

from nasc_evo.errors import UserError
from nasc_evo.measurement.journal import SampleJournal
from nasc_evo.measurement.stopwatch import Burst

IDENTITY = {"space": "fbnet", "threads": 1}
REST = '"round": 0, "references_ms": null, "sitting": 0}'


def write(path, identity=IDENTITY):
    journal = SampleJournal(path, identity)
    journal.add_burst("block stem", 0, Burst((0.1, 0.1234567891), 2, (0.0123456, 0.02)))
    journal.add_burst("run 3", 1, Burst((5.0,), 0))
    journal.add_energy("block stem", 0.5)
    journal.add_energy("block head", 1.5)
    journal.close()
    return journal


def test_round_trip(tmp_path):
    path = tmp_path / "a.samples.jsonl"
    first, again = write(path), SampleJournal(path, IDENTITY)
    again.close()
    assert again.bursts == first.bursts
    assert again.bursts["block stem", 0] == Burst((0.1, 0.123457), 2, (0.012346, 0.02))
    assert again.energies == {"block stem": 0.5, "block head": 1.5}


def test_each_process_has_a_sitting_of_its_own(tmp_path):
    path = tmp_path / "a.samples.jsonl"
    write(path)
    for _ in range(2):
        journal = SampleJournal(path, IDENTITY)
        journal.add_burst("run 3", len(journal.bursts), Burst((5.0,), 0))
        journal.close()
    journal = SampleJournal(path, IDENTITY)
    journal.close()
    assert [burst.sitting for burst in journal.bursts.values()] == [0, 0, 1, 2]


def test_a_torn_last_line_is_dropped_and_overwritten(tmp_path):
    path = tmp_path / "a.samples.jsonl"
    write(path)
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        path.write_bytes(whole[:-cut])
        journal = SampleJournal(path, IDENTITY)
        assert len(journal.bursts) == 2
        assert list(journal.energies) == ["block stem"]
        journal.add_energy("block head", 1.5)
        journal.close()
        assert path.read_bytes() == whole


def test_a_file_cut_in_its_first_line_begins_anew(tmp_path):
    path = tmp_path / "a.samples.jsonl"
    write(path)
    path.write_bytes(path.read_bytes()[:20])
    SampleJournal(path, IDENTITY).close()
    assert json.loads(path.read_text())["threads"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "Line 3 of .* is damaged"),
        ("[1]", "it is no mapping"),
        ('{"item": 1, "energy_mj": 1}', "item is no text"),
        ('{"item": "a", "energy_mj": -1}', "not above 0"),
        (f'{{"item": "a", "samples_ms": [], "left_out": 0, {REST}', "wrong type or range"),
        (f'{{"item": "a", "samples_ms": [1, "x"], "left_out": 0, {REST}', "is no number"),
        (f'{{"item": "a", "samples_ms": [NaN], "left_out": 0, {REST}', "not above 0"),
        (f'{{"item": "a", "samples_ms": [1], "left_out": -1, {REST}', "wrong type or range"),
        (
            f'{{"item": "a", "samples_ms": [1], "left_out": 0, {REST[:-2]}-1}}',
            "wrong type or range",
        ),
        ('{"item": "a", "samples_ms": [1], "left_out": 0, "round": 0}', "'references_ms'"),
        (
            f'{{"item": "a", "samples_ms": [1], "left_out": 0, {REST}'.replace("null", "[0]"),
            "above 0",
        ),
        (
            f'{{"item": "a", "samples_ms": [1], "left_out": 0, {REST}'.replace("null", "[1, 1]"),
            "not one of references_ms for each",
        ),
        ('{"item": "a"}', "'samples_ms'"),
    ],
)
def test_damage_is_one_sentence(tmp_path, line, message):
    path = tmp_path / "a.samples.jsonl"
    write(path)
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        SampleJournal(path, IDENTITY)


def test_another_measurement_and_a_second_process_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.samples.jsonl"
    write(path)
    with pytest.raises(UserError, match="another threads: it had 1, this one has 2; delete it"):
        SampleJournal(path, {**IDENTITY, "threads": 2})
    with monkeypatch.context() as later:
        later.setattr("nasc_evo.measurement.journal.FORMAT", "nasc_evo measurement 5")
        with pytest.raises(UserError, match="another format: it had 'nasc_evo measurement 4'"):
            SampleJournal(path, IDENTITY)
    journal = SampleJournal(path, IDENTITY)
    with pytest.raises(UserError, match="Another measurement is writing"):
        SampleJournal(path, IDENTITY)
    journal.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_is_one_sentence(tmp_path):
    journal = SampleJournal(tmp_path / "a.samples.jsonl", IDENTITY)
    journal._file.close()
    journal._file = open("/dev/full", "ab")  # noqa: SIM115 - the journal closes it
    with pytest.raises(UserError, match="make room and give the same command again"):
        journal.add_energy("block stem", 1.0)
    journal.close()
