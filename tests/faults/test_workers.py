"""Workers: the same results on every back end, and what happens when one fails or dies."""

import subprocess
import sys
import time

import numpy as np
import pytest

from nasc_evo.errors import UserError
from nasc_evo.parallel import (
    DaskPool,
    LokyPool,
    ParallelEvaluator,
    RayPool,
    check_parallel,
    parallel_evaluator,
)
from nasc_evo.problem import SplitProblem
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.loop import Budget, run_search
from nasc_evo.search.operators import random_genomes
from nasc_evo.supernet.score import Score
from problems import FBNetSplit

POOLS = {
    "loky": lambda n: LokyPool(n),
    "dask": lambda n: DaskPool(n, None),
    "ray": lambda n: RayPool(n, None, 1),
}
OPTIONS = {"images": 32, "calibration_images": 16, "dtype": "float32", "threads": 1}


@pytest.fixture(scope="module", params=list(POOLS))
def pool(request):
    """Two workers of each back end in turn."""
    opened = POOLS[request.param](2)
    opened.name = request.param
    yield opened
    opened.close()


def make_fake(behaviour, folder):
    """Return a function that makes an evaluator of cheap scores which misbehaves as told.

    It is made of local objects, so that workers get it by value and need no module of the tests.
    """

    class Fake:
        images = 10
        threads = 1

        def evaluate(self, designs, split="search", images=None):
            for index, design in enumerate(designs):
                correct = sum(design.ops) % 11
                if design.ops[0] == 3:
                    correct = behaviour(design, folder)
                yield index, Score(correct, 10)

        def split_size(self, split):
            return 10

        def describe(self):
            return {"behaviour": behaviour.__qualname__, "folder": folder}

    return Fake


def die_once(design, folder):
    """Kill the worker at the first design that is asked for, behave afterwards."""
    import os
    import signal

    flag = os.path.join(folder, "died")
    if not os.path.exists(flag):
        with open(flag, "w") as file:
            file.write(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return sum(design.ops) % 11


def die_always(design, folder):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def misbehave(design, folder):
    if sum(design.ops) % 2:
        raise ValueError("two\nlines")
    return float("nan")


def by_value(function):
    """Return a copy of a function that is pickled by value, whatever its module."""
    import types

    copy = types.FunctionType(function.__code__, {"__builtins__": __builtins__})
    copy.__module__ = "__main__"
    copy.__qualname__ = "<local>." + function.__name__
    return copy


def problem_with(pool, behaviour, folder):
    make = make_fake(by_value(behaviour), str(folder))
    base = FBNetSplit(evaluator=OPTIONS)
    evaluator = ParallelEvaluator(make(), make, pool, chunk=4)
    return SplitProblem(base.space, base.chain, evaluator)


def genomes(problem, n=24):
    X = random_genomes(problem.space, n, np.random.default_rng(0))
    X[:, 0] = np.arange(n) % 9  # so that one in nine misbehaves
    return X


def expected(problem, X):
    return [int(sum(problem.space.decode(x).ops) % 11) for x in X]


def test_a_chunk_whose_worker_is_killed_is_computed_by_another(pool, tmp_path, survived):
    problem = problem_with(pool, die_once, tmp_path)
    X = genomes(problem)
    results = problem.assess(X)
    assert (tmp_path / "died").exists()
    assert [e.score.correct for e in results] == expected(problem, X)
    survived("kill -9 of a worker within a chunk", pool.name, "chunk computed again, same scores")


def test_a_design_that_kills_every_worker_fails_alone(pool, tmp_path, survived):
    problem = problem_with(pool, die_always, tmp_path)
    X = genomes(problem, 10)
    results = problem.assess(X)
    guilty = X[:, 0] == 3
    assert [e.failed for e in results] == guilty.tolist()
    assert all("its worker died" in e.score.message for e in results if e.failed)
    good = [e.score.correct for e in results if not e.failed]
    assert good == expected(problem, X[~guilty])
    survived("a design that kills its worker each time", pool.name, "recorded as failed, alone")


def test_designs_that_raise_or_score_nan_fail_alone(pool, tmp_path, survived):
    problem = problem_with(pool, misbehave, tmp_path)
    X = genomes(problem)
    results = problem.assess(X)
    assert [e.failed for e in results] == (X[:, 0] == 3).tolist()
    messages = {e.score.message for e in results if e.failed}
    assert messages <= {
        "ValueError: two lines",
        "the evaluator returned nan correct of 10 images",
    }
    survived("an evaluation that raises or returns NaN", pool.name, "recorded as failed, alone")


def test_too_many_failures_end_a_search(pool, tmp_path, survived):
    problem = problem_with(pool, misbehave, tmp_path)
    algorithm = create_algorithm("nsga2", problem, {"pop_size": 8}, seed=1)
    with pytest.raises(UserError, match=r"more than the share max_failed=0; the last one said: "):
        run_search(problem, algorithm, Budget(400, max_failed=0), seed=1)
    survived("more failures than max_failed allows", pool.name, "ends with the last reason")


def test_results_do_not_depend_on_the_workers(pool, survived):
    def searched(parallel):
        problem = FBNetSplit(evaluator=OPTIONS)
        if parallel is not None:
            make = problem._evaluator
            problem._evaluator = lambda: ParallelEvaluator(make(), make, parallel, chunk=3)
        algorithm = create_algorithm("nsga2", problem, {"pop_size": 8}, seed=1)
        run_search(problem, algorithm, 20, seed=1)
        return [(e.index, e.genome, e.score, e.costs) for e in problem.evaluations.values()]

    alone = searched(None)
    assert searched(pool) == alone
    if pool.name == "loky":
        for n in (1, 4):
            other = LokyPool(n)
            assert searched(other) == alone
            other.close()
    workers = "1, 2 and 4 workers" if pool.name == "loky" else "2 workers"
    survived("none", f"{pool.name}, {workers}", "scores and costs equal `serial` to the last bit")


@pytest.mark.parametrize("backend", list(POOLS))
def test_workers_end_with_their_parent(survived, descendants, backend):
    script = (
        "from nasc_evo.parallel import check_parallel, make_pool\n"
        "from tests.faults.tasks import see\n"
        "import time\n"
        "if __name__ == '__main__':\n"
        f"    pool = make_pool(check_parallel({{'name': '{backend}', 'n_jobs': 2}}), threads=1)\n"
        "    print(len(list(pool.run([0.1] * 4, see))), flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "4\n"
    assert len(descendants()) >= 2  # one of its workers may begin only now
    process.kill()
    deadline = time.monotonic() + 300  # Ray's workers are nice to others
    while descendants() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert descendants() == []
    process.communicate()
    survived("kill -9 of the main process", backend, "all that it started ends too")


def test_a_worker_with_other_weights_is_refused(pool):
    def make(description):
        class Described:
            images = 10

            def describe(self):
                return description

            def split_size(self, split):
                return 10

        return Described

    ours = make({"weights_sha256": "ours"})()
    evaluator = ParallelEvaluator(ours, make({"weights_sha256": "theirs"}), pool)
    problem = FBNetSplit(evaluator=OPTIONS)
    problem._evaluator = evaluator
    with pytest.raises(UserError, match=r"has other weights_sha256 \(theirs\) than the search"):
        problem.assess(problem.space.xl[None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "spark"}, "parallel must be one of serial, loky, dask, ray, got 'spark'"),
        ({"n_jobs": 0}, "parallel.n_jobs must be a positive whole number, got 0"),
        ({"chunk": 1.5}, "parallel.chunk must be a positive whole number, got 1.5"),
        ({"address": "tcp://x:1"}, "parallel.address is for dask and ray"),
        ({"jobs": 3}, "parallel has no option 'jobs'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        check_parallel(options)


@pytest.mark.parametrize(
    ("name", "address", "message"),
    [
        ("dask", "nowhere.json", "There is no Dask scheduler file nowhere.json"),
        ("dask", "127.0.0.1", "the Dask scheduler does not answer"),
        ("ray", "127.0.0.1:1", "the Ray cluster does not answer"),
    ],
)
def test_a_cluster_that_does_not_answer_is_one_sentence(name, address, message, monkeypatch):
    monkeypatch.setattr("nasc_evo.parallel.CONNECT_SECONDS", 2)
    options = check_parallel({"name": name, "address": address})
    with pytest.raises(UserError, match=message):
        parallel_evaluator(lambda: None, options)


def test_an_existing_dask_cluster_is_used_and_left_alone(tmp_path):
    import distributed

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        file = tmp_path / "scheduler.json"
        with distributed.Client(cluster) as client:
            client.write_scheduler_file(str(file))
            for address in (cluster.scheduler_address, str(file)):
                problem = problem_with(DaskPool(1, address), die_once, tmp_path)
                (tmp_path / "died").touch()
                X = genomes(problem, 6)
                assert [e.score.correct for e in problem.assess(X)] == expected(problem, X)
                problem.close()
            assert len(client.nthreads()) == 1
