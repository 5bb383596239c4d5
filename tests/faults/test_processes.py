"""Whole runs as processes: killed, terminated, out of disk, resumed."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.folder import RunFolder
from nasc_evo.search.loop import Budget, parse_time, run_search
from problems import FBNetSplit
from tests.conftest import FAST_OPTIONS
from tests.faults.conftest import FULL
from tests.search.test_search import Formula, problem

KILLS = {"serial": 20, "loky": 5, "dask": 5, "ray": 5} if FULL else {"serial": 3, "loky": 1}
"""How often the main process of each back end is killed."""
BACKENDS = ["serial", *(["loky", "dask", "ray"] if FULL else [])]


def start(
    folder: Path, *options: str, limit_bytes: int | None = None, group: bool = False
) -> subprocess.Popen:
    """Start a search in `folder`; files of more than `limit_bytes` cannot be written.

    With `group` it is the first of a process group of its own, as in a terminal.
    """

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.Popen(
        [sys.executable, "-m", "nasc_evo.run", *FAST_OPTIONS, *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HYDRA_FULL_ERROR": "0"},
        preexec_fn=prepare,
        start_new_session=group,
    )


def lines(folder: Path) -> list[dict]:
    content = (folder / "evaluations.jsonl").read_bytes()
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def wait_for_lines(process: subprocess.Popen, folder: Path, n: int) -> None:
    journal = folder / "evaluations.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= n):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def all_end(descendants: Callable[[], list[str]]) -> bool:
    """Wait for processes to end; return whether they do."""
    deadline = time.monotonic() + 300  # Ray's workers are nice to others
    while descendants() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not descendants()


def options_of(backend: str) -> list[str]:
    return [f"parallel={backend}", "parallel.n_jobs=2", "parallel.chunk=1"]


def same_result(folder: Path, whole: Path) -> None:
    by_key = {(line["key"], line["split"], line["images"]): line for line in lines(folder)}
    assert len(by_key) == len(lines(folder))  # nothing was evaluated twice
    assert sorted(lines(folder), key=str) == sorted(lines(whole), key=str)
    for name in ("pareto.csv", "pareto.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(3600 if FULL else 600)
@pytest.mark.parametrize("backend", KILLS)
def test_a_killed_run_resumes_to_the_same_front(
    tmp_path, finished_run, survived, backend, descendants
):
    options = options_of(backend)
    rng = np.random.default_rng(0)
    kills = KILLS[backend]
    place = ["hydra.run.dir=run"]
    for _ in range(kills):
        process = start(tmp_path, *options, *place)
        done = len(lines(tmp_path / "run")) if (tmp_path / "run/evaluations.jsonl").exists() else 0
        if FULL:  # at any moment, the start-up and the writing of results included
            time.sleep(rng.uniform(0.5, 8 if backend in ("serial", "loky") else 20))
        else:
            wait_for_lines(process, tmp_path / "run", done + 1)
        process.kill()
        assert all_end(descendants)
        process.communicate()
        if (tmp_path / "run/manifest.json").exists():
            place = ["resume=run"]
    process = start(tmp_path, *options, *place)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    same_result(tmp_path / "run", finished_run)
    times = f"{kills} times" if kills > 1 else "once"
    outcome = "resumed: same front, same journal, nothing evaluated twice"
    survived(f"kill -9 of the main process, {times}", backend, outcome)
    survived("kill -9 of the main process", backend, "all that it started ends too")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_sigterm_leaves_a_front_and_says_how_to_go_on(
    tmp_path, finished_run, survived, backend, descendants
):
    options = options_of(backend)
    process = start(tmp_path, *options, "hydra.run.dir=run")
    wait_for_lines(process, tmp_path / "run", 4)
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "terminated by SIGTERM" in out
    assert "Continue with the same command and resume=run" in out
    assert "Traceback" not in out + err
    assert all_end(descendants)
    assert (tmp_path / "run/pareto.csv").read_text().count("\n") >= 2
    process = start(tmp_path, *options, "resume=run")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    same_result(tmp_path / "run", finished_run)
    survived("SIGTERM (pre-emption)", backend, "exit code 143, front written, resumed: same front")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_ctrl_c_in_a_terminal_ends_workers_quietly(tmp_path, survived, backend, descendants):
    process = start(tmp_path, *options_of(backend), "hydra.run.dir=run", group=True)
    wait_for_lines(process, tmp_path / "run", 4)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of the group
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Continue with the same command and resume=run" in out
    assert "Traceback" not in out + err
    assert all_end(descendants)
    survived("Ctrl-C in a terminal", backend, "front written, workers end without a word")


@pytest.mark.slow
def test_a_full_disk_stops_a_run_and_keeps_what_is_written(tmp_path, finished_run, survived):
    limit_bytes = (finished_run / "manifest.json").stat().st_size + 500  # the journal is larger
    process = start(tmp_path, "hydra.run.dir=run", limit_bytes=limit_bytes)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "everything up to here is kept: make room and resume" in err
    kept = len(lines(tmp_path / "run"))
    assert kept >= 1
    process = start(tmp_path, "resume=run")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    same_result(tmp_path / "run", finished_run)
    survived("the disk is full while journalling", "serial", "stops, resumed: same front")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, survived):
    process = start(tmp_path, "hydra.run.dir=/proc/run")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.startswith("Error: ")
    assert len(err.strip().splitlines()) == 1
    survived("an output folder that cannot be written", "serial", "refused with one sentence")


@pytest.mark.slow
def test_a_second_run_in_one_folder_refuses(tmp_path, survived):
    first = start(tmp_path, "hydra.run.dir=run")
    wait_for_lines(first, tmp_path / "run", 1)
    for option in ("hydra.run.dir=run", "resume=run"):
        second = start(tmp_path, option)
        _, err = second.communicate(timeout=120)
        assert second.returncode == 2
        assert "is in use by another running search" in err
    first.kill()
    first.communicate()
    survived("two runs in one folder", "serial", "the second refuses")


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch, survived):
    clock = iter(range(2_000_000_000, 0, -1))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    folder = RunFolder(tmp_path, resume=False, identity={"seed": 1}, config={}, overrides=[])
    one = problem()
    one.on_evaluation = lambda e, computed: folder.journal.append(e)
    algorithm = create_algorithm("nsga2", one, {"pop_size": 8}, seed=1)
    run_search(one, algorithm, Budget(30, max_seconds=600), seed=1)
    folder.finish({"stop_reason": "tested"})
    folder.close()
    assert len(lines(tmp_path)) == 30
    finished = json.loads((tmp_path / "manifest.json").read_text())["finished"]
    assert finished["wall_seconds"] >= 0
    survived("the clock goes backwards", "serial", "no effect")


def test_a_search_ends_when_its_time_is_over(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("nasc_evo.search.loop.time.monotonic", lambda: clock[0])

    class Slow(Formula):
        def evaluate(self, designs, split="search", images=None):
            for item in super().evaluate(designs, split, images):
                clock[0] += 0.0625
                yield item

    one = FBNetSplit(evaluator=Slow())
    algorithm = create_algorithm("nsga2", one, {"pop_size": 8}, seed=1)
    result = run_search(one, algorithm, Budget(1000, max_seconds=0.6), seed=1)
    assert len(result.evaluations) == 10
    assert result.stop_reason == "the time of 0.6 s is over"
    assert not result.interrupted


def test_a_search_ends_when_the_hypervolume_no_longer_grows():
    class Flat(Formula):
        def evaluate(self, designs, split="search", images=None):
            for index, score in super().evaluate(designs, split, images):
                yield index, type(score)(50, score.images)

    one = FBNetSplit(evaluator=Flat())
    algorithm = create_algorithm("nsga2", one, {"pop_size": 8}, seed=1)
    result = run_search(one, algorithm, Budget(1000, patience=3), seed=1)
    # the fastest design of the space begins the search, and no other is more accurate
    assert result.generations == 4
    assert result.stop_reason.startswith("the hypervolume has not grown for 3 generations")


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("1h30m", 5400), ("90s", 90), (12, 12), (None, None)]
)
def test_times_are_read(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3s", "3 h", 0, -1, float("nan"), float("inf")])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match="max_time must be a time such as 2h, 1h30m or 90s"):
        parse_time(text)
