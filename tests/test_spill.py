"""Dictionaries that keep their newest entries in memory, against plain ones."""

import copy
import pickle
import sqlite3

import numpy as np
import pytest

from nasc_evo import spill
from nasc_evo.errors import UserError
from nasc_evo.problem import SplitProblem
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.final import final_result
from nasc_evo.search.folder import JOURNAL
from nasc_evo.search.journal import Journal
from nasc_evo.search.loop import Budget, run_search
from nasc_evo.spill import SpillingDict
from nasc_evo.supernet.score import Score
from problems import FBNetSplit
from tests.search.test_search import Formula


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(spill, "IN_MEMORY", 16)


def same(value):
    return value


def filled(n):
    """Return a dictionary of random assignments, some of them repeated, and the plain one."""
    rng = np.random.default_rng(0)
    one, plain = SpillingDict(same, same), {}
    for number in rng.integers(0, max(1, n), n).tolist():
        key = (f'"{number}|é', "search" if number % 3 else "test", 64 << number % 2)
        one[key] = plain[key] = [number, rng.random(), None]
    return one, plain


@pytest.mark.parametrize("n", [0, 1, 16, 17, 200])
def test_it_is_a_dictionary(n):
    one, plain = filled(n)
    assert len(one) == len(plain)
    assert list(one) == list(plain)
    assert list(one.items()) == list(plain.items())
    assert list(one.values()) == list(plain.values())
    assert one == plain
    assert all(key in one and one[key] == value for key, value in plain.items())
    other = ("nothing", "search", 64)
    assert other not in one
    assert one.get(other) is None
    with pytest.raises(KeyError):
        one[other]
    assert len(one._newest) <= 16
    assert (one._file is None) == (len(plain) <= 16)


@pytest.mark.parametrize("n", [10, 200])
def test_a_selection_is_a_sequence_of_that_moment(n):
    one, plain = filled(n)
    expected = [value for key, value in plain.items() if key[1:] == ("search", 64)]
    selected = one.select("search", 64)
    one[("later", "search", 64)] = [0]
    assert len(selected) == len(expected)
    assert list(selected) == expected
    assert [selected[i] for i in range(-2, 2)] == [expected[i] for i in range(-2, 2)]
    assert selected[1:-1] == expected[1:-1]
    with pytest.raises(IndexError):
        selected[len(expected)]
    assert list(one.select("search", 1)) == []


@pytest.mark.parametrize("n", [10, 200])
def test_copies_are_whole_and_apart(n):
    one, plain = filled(n)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert other == plain
        other[("more", "search", 64)] = [1]
        assert one == plain
    one.clear()
    assert len(one) == 0
    assert list(one) == []
    assert list(one.select("search", 64)) == []


def test_an_interrupted_move_is_repeated(monkeypatch):
    one, plain = filled(100)
    run = one._run

    def interrupted(statement, rows):
        run(statement, rows[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(one, "_run", interrupted)
    keys = [(f"new {number}", "search", 64) for number in range(17 - len(one._newest))]
    plain |= {key: [1] for key in keys}
    for key in keys[:-1]:
        one[key] = [1]
    with pytest.raises(KeyboardInterrupt):
        one[keys[-1]] = [1]
    assert list(one.items()) == list(plain.items())
    monkeypatch.setattr(one, "_run", run)
    for number in range(100):
        one[(f"newer {number}", "test", 1)] = plain[(f"newer {number}", "test", 1)] = [number]
    assert list(one.items()) == list(plain.items())


def test_numbers_of_numpy_become_plain():
    one = SpillingDict(same, same)
    for number in range(40):
        one[(str(number), "search", 1)] = [np.int64(number), np.float32(0.1)]
    assert one[("0", "search", 1)] == [0, float(np.float32(0.1))]


def test_no_room_is_one_sentence(monkeypatch):
    def full(*args, **options):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(UserError, match=r"cannot be written \(database or disk is full\); make"):
        filled(100)


class Moody(Formula):
    """Fails for some designs."""

    def evaluate(self, designs, split="search", images=None):
        for index, score in super().evaluate(designs, split, images):
            bad = designs[index].ops[0] == 3
            yield index, Score(None, score.images, "it is moody") if bad else score


def outcome(in_memory, path, monkeypatch, name, limits):
    """Return all that a search, its result and a second search from its journal have found."""
    monkeypatch.setattr(spill, "IN_MEMORY", in_memory)
    found = []
    for _ in range(2):
        problem: SplitProblem = FBNetSplit(evaluator=Moody(), limits=limits)
        journal = Journal(path / JOURNAL)
        problem.remember(journal.scores)
        computed = []

        def keep(evaluation, new, journal=journal, computed=computed):
            journal.append(evaluation)
            computed.append(new)

        problem.on_evaluation = keep
        surrogate = name == "surrogate"  # which takes its time
        options, n_eval = ({"initial": 20}, 32) if surrogate else ({"pop_size": 12}, 100)
        algorithm = create_algorithm(name, problem, options, seed=1, n_eval=n_eval)
        search = run_search(problem, algorithm, Budget(n_eval, max_failed=0.9), seed=1)
        assert len(search.evaluations) == n_eval
        result = final_result(problem, search.evaluations, rescore=5)
        journal.close()
        found += [list(search.evaluations), dict(problem.evaluations), result, computed]
    return [*found, (path / JOURNAL).read_bytes()]


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("nsga2", {}),
        ("nsga2", {"latency_ms": 0.001}),
        ("surrogate", {"latency_ms": 15}),
        ("nas_then_cut", {}),
    ],
)
def test_a_search_finds_the_same_with_most_of_it_in_the_file(tmp_path, monkeypatch, name, limits):
    folders = [tmp_path / name for name in ("small", "large")]
    for folder in folders:
        folder.mkdir()
    small = outcome(16, folders[0], monkeypatch, name, limits)
    large = outcome(4096, folders[1], monkeypatch, name, limits)
    assert small == large
    assert small[3] != small[7]  # the second search has computed failures only
