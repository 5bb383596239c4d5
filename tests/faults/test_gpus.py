"""Which GPUs each worker sees; the GPUs are declared, none is used."""

import os
import time

import pytest
import torch

from nasc_evo.errors import UserError
from nasc_evo.parallel import (
    DaskPool,
    LokyPool,
    RayPool,
    WorkerDiedError,
    assign_gpus,
    check_parallel,
    gpu_workers,
    make_pool,
    visible_gpus,
)
from problems import FBNetSplit
from tests.conftest import FAST
from tests.faults.tasks import die_once, repeat, see


@pytest.fixture
def two_gpus(monkeypatch):
    """GPUs that are named 1 and 3."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")


def seen(pool):
    """Return what each worker sees, after checking that it always sees the same."""
    found: dict[int, str] = {}
    deadline = time.monotonic() + 120
    while len(found) < pool.n_workers and time.monotonic() < deadline:  # some begin late
        for _, (process, gpus) in pool.run([0.1] * 2 * pool.n_workers, see):
            assert found.setdefault(process, gpus) == gpus
    return sorted(found.values())


@pytest.mark.parametrize(
    ("name", "n_jobs", "share", "expected"),
    [("loky", 3, 0.5, ["1", "1", "3"]), ("dask", 2, 1, ["1", "3"])],
)
def test_workers_have_their_gpus(two_gpus, tmp_path, survived, name, n_jobs, share, expected):
    options = check_parallel({"name": name, "n_jobs": n_jobs, "gpus_per_worker": share})
    pool = make_pool(options, threads=1)
    try:
        assert seen(pool) == expected
        (_, outcome), *_ = pool.run([str(tmp_path / "died")], die_once)
        assert isinstance(outcome, WorkerDiedError) == (name == "loky")  # Dask tries again itself
        assert seen(pool) == expected
    finally:
        pool.close()
    survived("kill -9 of a worker with a GPU", name, "the next one has its GPU (declared ones)")


def test_ray_workers_keep_their_share_of_a_gpu(tmp_path, survived):
    pool = RayPool(3, None, 1, 0.5, 2)
    try:
        assert pool.n_workers == 3
        assert seen(pool) == ["0", "0", "1"]
        (_, outcome), *_ = pool.run([str(tmp_path / "died")], die_once)
        assert isinstance(outcome, WorkerDiedError)
        assert seen(pool) == ["0", "0", "1"]
        unfinished = pool.run([0.2] * 9, see)
        next(unfinished)
        unfinished.close()  # what is in work ends, and is nobody's result
        outcomes = dict(pool.run(["a", "b", "bad"], repeat))
        assert [outcomes[0], outcomes[1], repr(outcomes[2])] == ["a", "b", "ValueError('bad')"]
    finally:
        pool.close()
    survived("kill -9 of a worker with a GPU", "ray", "the next one has its GPU (declared ones)")


def test_a_ray_cluster_with_too_few_gpus_is_refused(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    with pytest.raises(UserError, match="leaves 1 GPUs room for 0 workers, not for 1"):
        RayPool(1, "auto", 1, 2)


def test_workers_of_a_dask_cluster_must_declare_their_gpus():
    import distributed

    options = {"threads_per_worker": 2, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(n_workers=1, resources={"GPU": 1}, **options) as cluster:
        pool = DaskPool(1, cluster.scheduler_address, share=0.5)
        assert len(seen(pool)) == 1
        pool.close()
        with pytest.raises(UserError, match="None of the 1 workers .* declares 2 GPUs"):
            DaskPool(1, cluster.scheduler_address, share=2)


def test_visible_gpus_are_those_that_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5, GPU-7")
    assert visible_gpus() == ["GPU-5", "GPU-7"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert visible_gpus() == []


@pytest.mark.parametrize(
    ("n_gpus", "share", "places"),
    [(1, 1, 1), (4, 2, 2), (5, 2, 2), (2, 0.5, 4), (1, 1 / 3, 3), (1, 0.3333, 3), (2, 0.4, 4)],
)
def test_places_on_gpus(n_gpus, share, places):
    assert gpu_workers(n_gpus, share) == places
    gpus = [str(i) for i in range(n_gpus)]
    assigned = assign_gpus(gpus, share, places)
    taken = [gpu for worker in assigned for gpu in worker.split(",")]
    assert len(taken) == places * max(1, share)
    assert all(taken.count(gpu) * min(share, 1) <= 1 + 1e-3 for gpu in gpus)


@pytest.mark.parametrize("name", ["loky", "dask", "ray"])
def test_too_few_gpus_are_one_sentence(two_gpus, monkeypatch, name):
    options = check_parallel({"name": name, "n_jobs": 5, "gpus_per_worker": 0.5})
    message = "parallel.gpus_per_worker=0.5 leaves 2 GPUs room for 4 workers, not for 5; ask"
    with pytest.raises(UserError, match=message):
        make_pool(options, threads=1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    options = check_parallel({"name": name, "gpus_per_worker": 1})
    with pytest.raises(UserError, match="leaves 0 GPUs room for 0 workers, not for 1; ask"):
        make_pool(options, threads=1)


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan"), float("inf"), True, "1"])
def test_other_shares_are_refused(share):
    with pytest.raises(UserError, match="must be a share between 0 and 1 or a whole number"):
        check_parallel({"name": "loky", "gpus_per_worker": share})


def test_gpus_are_for_workers_that_compute_on_them():
    with pytest.raises(UserError, match="is for loky, dask and ray, not for serial"):
        check_parallel({"gpus_per_worker": 1})
    problem = FBNetSplit(evaluator=FAST, parallel={"name": "loky", "gpus_per_worker": 1})
    with pytest.raises(UserError, match="is for evaluator.processor=cuda; this evaluator computes"):
        problem.evaluator.describe()


def test_without_a_share_nothing_is_assigned():
    pool = LokyPool(1)
    try:
        assert seen(pool) == [os.environ.get("CUDA_VISIBLE_DEVICES")]
    finally:
        pool.close()
