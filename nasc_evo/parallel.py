"""Scoring a population on many workers: processes of this machine, a Dask or a Ray cluster.

A population is cut into chunks; each worker loads weights and images once and keeps them. Scores
are handed on as chunks end, and do not depend on which worker computed what. A chunk whose worker
dies is computed again on another one; a design that kills its worker each time is recorded as
failed. Costs are computed by the caller, not by workers. Workers may each have GPUs of their own,
or several of them a share of one: what they see of them is CUDA_VISIBLE_DEVICES.
"""

import contextlib
import logging
import math
import os
import platform
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from nasc_evo.errors import UserError, one_line
from nasc_evo.space import Design
from nasc_evo.supernet.score import Evaluator, Score, score_each

BACKENDS = ("serial", "loky", "dask", "ray")
RETRIES = 2
"""How often a chunk whose worker died is tried again before its designs are tried one by one."""
WATCH_SECONDS = 1.0
CONNECT_SECONDS = 30
PATIENCE = "1h"
"""How long Dask waits for the next process of a worker of this machine."""
LOOPBACK = "127.0.0.1"

VISIBLE = "CUDA_VISIBLE_DEVICES"

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """What a worker gets: designs, and how to make the evaluator that scores them.

    Attributes:
        make: Makes the evaluator, once a worker process.
        description: What the caller's evaluator says of itself; a worker's must say the same.
        designs: Candidates.
        split: Images that score them.
        images: How many.
    """

    make: Callable[[], Evaluator]
    description: Mapping[str, Any]
    designs: tuple[Design, ...]
    split: str
    images: int


_evaluators: dict[str, Evaluator] = {}
"""The evaluator of this worker process, by its description; only the last one is kept."""


def score_task(task: Task) -> list[Score]:
    """Score the designs of a task; runs in a worker.

    Raises:
        UserError: If this worker's weights, images or numerics are not those of the caller.
    """
    key = repr(task.description)
    if key not in _evaluators:
        ignore_interrupts()
        evaluator = task.make()
        if repr(evaluator.describe()) != key:
            ours, theirs = task.description, evaluator.describe()
            name = next(name for name in ours if ours[name] != theirs.get(name))
            raise UserError(
                f"The worker on {platform.node()} has other {name} ({theirs.get(name)}) than "
                f"the search ({ours[name]}): give all workers the same files, and set "
                "evaluator.dtype where processors differ."
            )
        _evaluators.clear()
        _evaluators[key] = evaluator
    scores = dict(score_each(_evaluators[key], task.designs, task.split, task.images))
    return [scores[index] for index in range(len(task.designs))]


def ignore_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to workers too, to the caller."""
    with contextlib.suppress(ValueError):  # not in the main thread of a worker
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def inherit_ignored_interrupts() -> Iterator[None]:
    """Let processes that are started meanwhile leave Ctrl-C to the caller from their beginning."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Sigterm:
    """Lets SIGTERM do what it did although Ray is in use.

    Ray makes it end the process at once, and puts a plain KeyboardInterrupt in the place of any
    that a handler raises while Ray waits.

    Attributes:
        raised: What the handler has raised, None if it has not.
    """

    def __init__(self) -> None:
        self.raised: KeyboardInterrupt | None = None
        self._before: Any = signal.getsignal(signal.SIGTERM)
        self._ours = threading.current_thread() is threading.main_thread()

    def restore(self) -> None:
        """Have SIGTERM do again what it did when this was made, and take note of it."""
        if self._ours:
            handler = self._handle if callable(self._before) else self._before
            signal.signal(signal.SIGTERM, handler)

    def _handle(self, number: int, frame: Any) -> None:
        try:
            self._before(number, frame)
        except KeyboardInterrupt as error:
            self.raised = error
            raise


_turn = threading.Lock()
"""Held by the task that runs in this process."""


def one_at_a_time(function: Callable[[Any], Any], task: Any) -> Any:
    """Run a task when no other runs in this process: workers of Dask may have many threads."""
    with _turn:
        return function(task)


def begin_process(parent: int, gpus: Any = None) -> None:
    """Prepare a worker process of this machine: it ends when its parent does, however that ends.

    Args:
        parent: Its process id; it may have ended before this process began.
        gpus: A queue of what each worker sees of the GPUs.
    """
    from joblib.externals.loky import process_executor

    # an evaluator keeps freed memory on purpose; loky would take it for a leak and end the worker
    process_executor._USE_PSUTIL = False
    ignore_interrupts()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if gpus is not None:
        os.environ[VISIBLE] = gpus.get()


class WorkerDiedError(Exception):
    """The worker of a task ended before the task did."""


class Pool(Protocol):
    """Runs tasks on workers.

    Attributes:
        n_workers: How many tasks run at a time.
        where: What the user is told of it.
    """

    n_workers: int
    where: str

    def run(
        self, tasks: Sequence[Any], function: Callable[[Any], Any] = score_task
    ) -> Iterator[tuple[int, Any]]:
        """Yield `(index, result of function or what went wrong)` as tasks end; each index once."""

    def close(self) -> None:
        """End what this pool started."""


class LokyPool:
    """Processes of this machine.

    Args:
        n_workers: How many.
        gpus: What each sees of the GPUs, see :func:`assign_gpus`; None for what this process sees.
    """

    def __init__(self, n_workers: int, gpus: Sequence[str] | None = None) -> None:
        self.n_workers = n_workers
        self.where = f"{n_workers} worker processes"
        self._gpus = gpus
        self._executor: Any = None

    def run(
        self, tasks: Sequence[Any], function: Callable[[Any], Any] = score_task
    ) -> Iterator[tuple[int, Any]]:
        """Yield outcomes as tasks end; a dead worker takes all begun tasks with it.

        Few tasks are handed out ahead, so that none is left queued when the pool is closed.
        """
        from joblib.externals.loky.process_executor import BrokenProcessPool

        waiting = iter(enumerate(tasks))
        futures: dict[Any, tuple[int, Any]] = {}
        try:
            while True:
                for number, task in islice(waiting, 2 * self.n_workers - len(futures)):
                    try:
                        future = self._processes().submit(function, task)
                    except BrokenProcessPool:  # since the last future that said so
                        self._executor = None
                        future = self._processes().submit(function, task)
                    futures[future] = number, self._executor
                if not futures:
                    return
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    (number, executor), error = futures.pop(future), future.exception()
                    if isinstance(error, BrokenProcessPool):
                        if executor is self._executor:
                            self._executor = None  # a new one is made for the next tasks
                        yield number, WorkerDiedError(one_line(error))
                    else:
                        yield number, error or future.result()
        finally:
            for future in futures:
                future.cancel()

    def _processes(self) -> Any:
        from joblib.externals.loky import ProcessPoolExecutor
        from joblib.externals.loky.backend import get_context

        if self._executor is None:
            context = get_context("loky")
            queue: Any = None if self._gpus is None else context.SimpleQueue()
            for visible in self._gpus or ():
                queue.put(visible)
            self._executor = ProcessPoolExecutor(
                self.n_workers,
                context=context,
                initializer=begin_process,
                initargs=(os.getpid(), queue),
            )
        return self._executor

    def close(self) -> None:
        """Stop the processes."""
        if self._executor is not None:
            self._executor.shutdown(kill_workers=True)
            self._executor = None


class DaskPool:
    """Workers of a Dask cluster.

    Args:
        n_workers: Workers of the local cluster that is started if there is no address.
        address: A scheduler's address or the path of its scheduler file (.json).
        gpus: What each worker of the local cluster sees of the GPUs, see :func:`assign_gpus`; None
            for what this process sees.
        share: GPUs that a task takes of what the workers at the address declare as resource `GPU`.

    Raises:
        UserError: If Dask is not installed or the scheduler does not answer, or no worker has
            such a share.
    """

    def __init__(
        self,
        n_workers: int,
        address: str | None,
        gpus: Sequence[str] | None = None,
        share: float | None = None,
    ) -> None:
        try:
            import distributed
        except ImportError as error:
            raise _not_installed("dask", "distributed", error) from error
        self._cluster: Any = None
        try:
            if address is None:
                with inherit_ignored_interrupts():
                    self._cluster = _local_dask(n_workers, gpus)
                    self._client = distributed.Client(self._cluster)
                    self._client.wait_for_workers(n_workers, timeout=10 * CONNECT_SECONDS)
            elif address.endswith(".json"):
                if not Path(address).is_file():
                    raise UserError(f"There is no Dask scheduler file {address}.")
                self._client = distributed.Client(scheduler_file=address, timeout=CONNECT_SECONDS)
            else:
                self._client = distributed.Client(address, timeout=CONNECT_SECONDS)
        except (OSError, ValueError, TimeoutError) as error:
            raise UserError(
                f"parallel.address={address}: the Dask scheduler does not answer "
                f"({one_line(error)}); give its tcp://host:port or scheduler file."
            ) from error
        self._resources = {} if share is None or address is None else {"GPU": share}
        try:
            self.n_workers = self._count(address)
        except UserError:
            self.close()
            raise
        self.where = f"{self.n_workers} Dask workers"
        if find_spec("bokeh") is not None:  # without it the dashboard's page is empty
            self.where += f", dashboard {self._client.dashboard_link}"

    def _count(self, address: str | None) -> int:
        """Return how many tasks run at a time, one a worker process."""
        declared = self._client.run_on_scheduler(
            lambda dask_scheduler: [dict(w.resources) for w in dask_scheduler.workers.values()]
        )
        if not declared:
            raise UserError(f"The Dask scheduler at {address} has no workers; start some first.")
        share = self._resources.get("GPU")
        if share is None:
            return len(declared)
        able = sum(worker.get("GPU", 0) >= share for worker in declared)
        if not able:
            raise UserError(
                f"None of the {len(declared)} workers of the Dask scheduler at {address} declares "
                f"{share:g} GPUs; start them with --resources GPU=1 or ask for a smaller "
                "parallel.gpus_per_worker."
            )
        return able

    def run(
        self, tasks: Sequence[Any], function: Callable[[Any], Any] = score_task
    ) -> Iterator[tuple[int, Any]]:
        """Yield outcomes as tasks end; Dask moves the tasks of a dead worker by itself."""
        import distributed

        submit = partial(self._client.submit, one_at_a_time, function)
        futures = [submit(task, pure=False, resources=self._resources) for task in tasks]
        index = {future.key: i for i, future in enumerate(futures)}
        try:
            for future in distributed.as_completed(futures):
                if future.status == "finished":
                    yield index[future.key], future.result()
                    continue
                error = future.exception()
                died = isinstance(error, distributed.scheduler.KilledWorker)
                yield index[future.key], WorkerDiedError(one_line(error)) if died else error
        finally:
            self._client.cancel(futures)

    def close(self) -> None:
        """Leave the cluster, and end it if this pool started it."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def _local_dask(n_workers: int, gpus: Sequence[str] | None) -> Any:
    """Return a Dask cluster of this machine; each of its workers is a process with one thread.

    A worker whose process dies gets another one. Dask gives it up where that takes 15 s, as it may
    on a busy machine, so that a cluster could be left without any; here it waits.
    """
    import dask
    import distributed

    dask.config.set({"distributed.deploy.lost-worker-timeout": PATIENCE})

    class Cluster(distributed.LocalCluster):
        def new_worker_spec(self) -> dict[Any, Any]:
            """Return the next worker, named 0, 1, ..., with its GPUs."""
            ((name, spec),) = super().new_worker_spec().items()
            if gpus is not None:
                options = spec["options"]
                env = {**options.get("env", {}), VISIBLE: gpus[name]}
                spec = {**spec, "options": {**options, "env": env}}
            return {name: spec}

    cluster = Cluster(
        n_workers=0,
        threads_per_worker=1,
        host=LOOPBACK,
        dashboard_address=f"{LOOPBACK}:0",
        silence_logs=logging.CRITICAL,
    )
    cluster.scale(n_workers)
    return cluster


class RayPool:
    """Workers of a Ray cluster.

    Args:
        n_workers: Workers of the local cluster that is started if there is no address.
        address: An existing cluster's address, or `auto`.
        threads: Threads that a worker uses, its claim on a node's processors.
        share: GPUs that a worker has, None for none.
        n_gpus: GPUs of the local cluster.

    Raises:
        UserError: If Ray is not installed or the cluster does not answer, or has not such a share.
    """

    def __init__(
        self,
        n_workers: int,
        address: str | None,
        threads: int,
        share: float | None = None,
        n_gpus: int = 0,
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise _not_installed("ray", "ray", error) from error
        self._sigterm = Sigterm()
        quiet = {"logging_level": "ERROR", "log_to_driver": False}
        try:
            if address is None:
                ray.init(
                    num_cpus=n_workers * threads,
                    num_gpus=n_gpus,
                    include_dashboard=False,
                    object_store_memory=100 * 2**20,
                    _node_ip_address=LOOPBACK,
                    _system_config={"worker_niceness": 0},  # the priority of the caller
                    **quiet,
                )
            else:
                _check_answers(address)
                ray.init(address=address, **quiet)
            self._sigterm.restore()
        except (OSError, ValueError, RuntimeError, OverflowError) as error:
            raise UserError(
                f"parallel.address={address}: the Ray cluster does not answer "
                f"({one_line(error)}); give its host:port or auto."
            ) from error
        resources = ray.cluster_resources()
        self.n_workers = max(1, int(resources.get("CPU", 1)) // threads)
        self._claim: dict[str, Any] = {"num_cpus": threads}
        self._share = share
        if share is not None:
            try:
                fit = gpu_workers(int(resources.get("GPU", 0)), share)
            except UserError:
                self.close()
                raise
            self.n_workers = min(fit, self.n_workers)
        self.where = f"{self.n_workers} Ray workers"
        self._actors: dict[Any, tuple[int | None, Any]] = {}
        """By what is awaited of each: the number of its task, None if nobody waits for it."""
        self._idle: list[Any] = []

    def run(
        self, tasks: Sequence[Any], function: Callable[[Any], Any] = score_task
    ) -> Iterator[tuple[int, Any]]:
        """Yield outcomes as tasks end.

        Tasks that are left when a caller stops early end with this pool: cancelling one that has
        just ended can crash Ray.
        """
        runs = self._run_tasks if self._share is None else self._run_on_actors
        try:
            yield from runs(tasks, function)
        except KeyboardInterrupt as error:
            raise (self._sigterm.raised or error) from None

    def _run_tasks(
        self, tasks: Sequence[Any], function: Callable[[Any], Any]
    ) -> Iterator[tuple[int, Any]]:
        import ray

        remote = ray.remote(**self._claim, max_retries=0)(function)
        index = {remote.remote(task): i for i, task in enumerate(tasks)}
        waiting = list(index)
        while waiting:
            (ended, *_), waiting = ray.wait(waiting)
            try:
                yield index[ended], ray.get(ended)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
                yield index[ended], WorkerDiedError(one_line(error))
            except ray.exceptions.RayTaskError as error:
                yield index[ended], error.cause

    def _run_on_actors(
        self, tasks: Sequence[Any], function: Callable[[Any], Any]
    ) -> Iterator[tuple[int, Any]]:
        """Yield outcomes of tasks on processes that keep their GPUs from task to task.

        Ray gives a task any free GPU, but a process stays on the one that it has used first.
        """
        import ray

        worker = ray.remote(num_gpus=self._share, **self._claim)(_Actor)
        waiting = deque(enumerate(tasks))
        try:
            while waiting or any(number is not None for number, _ in self._actors.values()):
                while self._idle and waiting:
                    number, task = waiting.popleft()
                    actor = self._idle.pop()
                    self._actors[actor.run.remote(function, task)] = number, actor
                for _ in range(min(len(waiting), self.n_workers - len(self._actors))):
                    actor = worker.remote()
                    self._actors[actor.run.remote(bool, None)] = None, actor  # once it began
                (ended,), _ = ray.wait(list(self._actors))
                asked, actor = self._actors.pop(ended)
                outcome: Any
                try:
                    outcome = ray.get(ended)
                    self._idle.append(actor)
                except ray.exceptions.RayTaskError as error:
                    outcome = error.cause
                    self._idle.append(actor)
                except ray.exceptions.RayActorError as error:
                    if asked is None:
                        raise UserError(
                            f"A worker does not start on the Ray cluster ({one_line(error)})."
                        ) from error
                    outcome = WorkerDiedError(one_line(error))
                if asked is not None:
                    yield asked, outcome
        finally:
            for ended, (_, actor) in self._actors.items():
                self._actors[ended] = None, actor

    def close(self) -> None:
        """Leave the cluster, and end it if this pool started it."""
        import ray

        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise an OSError if nobody listens at `host:port`; Ray takes minutes to say so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


class _Actor:
    """A process of a Ray cluster that runs one task after the other."""

    def run(self, function: Callable[..., Any], task: Any) -> Any:
        """Return what a function makes of a task."""
        return function(task)


def _not_installed(backend: str, package: str, error: ImportError) -> UserError:
    return UserError(
        f"parallel={backend} needs the package {package} (pip install 'nasc-evo[{backend}]'): "
        f"{one_line(error)}."
    )


class ParallelEvaluator:
    """An evaluator that has its designs scored by workers, see :class:`Evaluator`.

    Args:
        evaluator: The evaluator to copy to the workers; it says what the results are.
        make: Makes it anew in a worker; pickled.
        pool: The workers.
        chunk: Designs a task.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        make: Callable[[], Evaluator],
        pool: Pool,
        chunk: int = 1,
    ) -> None:
        self.local = evaluator
        self.make = make
        self.pool = pool
        self.chunk = chunk
        self.images = evaluator.images

    def split_size(self, split: str) -> int:
        """Return the number of images of a split."""
        return self.local.split_size(split)

    def describe(self) -> dict[str, Any]:
        """Return what fixes the numbers; the workers do not."""
        return self.local.describe()

    def evaluate(
        self, designs: Sequence[Design], split: str = "search", images: int | None = None
    ) -> Iterator[tuple[int, Score]]:
        """Yield `(index, score)` of each design as its chunk ends.

        Raises:
            UserError: If a worker cannot make the evaluator, or makes another one.
        """
        if images is None:
            images = self.images if split == "search" else self.split_size(split)
        wave: list[Indices] = [
            tuple(range(start, min(start + self.chunk, len(designs))))
            for start in range(0, len(designs), self.chunk)
        ]
        for _ in range(1 + RETRIES):
            lost: list[Indices] = []
            for indices, scores in self._run(wave, designs, split, images):
                if isinstance(scores, WorkerDiedError):
                    lost.append(indices)
                else:
                    yield from zip(indices, scores, strict=True)
            wave = lost
        for index in (index for indices in wave for index in indices):
            ((_, scores),) = self._run([(index,)], designs, split, images)  # alone: who is to blame
            if isinstance(scores, WorkerDiedError):
                yield index, Score(None, images, f"its worker died ({one_line(scores)})")
            else:
                yield index, scores[0]

    def _run(
        self, wave: Sequence[Indices], designs: Sequence[Design], split: str, images: int
    ) -> Iterator[tuple[Indices, list[Score] | WorkerDiedError]]:
        tasks = [
            Task(self.make, self.describe(), tuple(designs[i] for i in indices), split, images)
            for indices in wave
        ]
        for number, outcome in self.pool.run(tasks):
            if isinstance(outcome, UserError):
                raise outcome
            if isinstance(outcome, Exception) and not isinstance(outcome, WorkerDiedError):
                raise UserError(
                    f"The workers cannot score designs ({type(outcome).__name__}: "
                    f"{one_line(outcome)}); they need nasc_evo, its files, and an evaluator that "
                    "can be pickled."
                ) from outcome
            yield wave[number], outcome

    def close(self) -> None:
        """End the workers that were started for this evaluator."""
        self.pool.close()


def check_parallel(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `parallel=` after checking them.

    Raises:
        UserError: If an option is unknown or out of range.
    """
    known: dict[str, Any] = {
        "name": "serial",
        "n_jobs": None,
        "chunk": 1,
        "address": None,
        "gpus_per_worker": None,
    }
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"parallel has no option '{unknown[0]}'; it has {', '.join(known)}.")
    values = {**known, **options}
    if values["name"] not in BACKENDS:
        raise UserError(f"parallel must be one of {', '.join(BACKENDS)}, got '{values['name']}'.")
    for name in ("n_jobs", "chunk"):
        value = values[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and value >= 1) and not (name == "n_jobs" and value is None):
            raise UserError(f"parallel.{name} must be a positive whole number, got {value!r}.")
    if values["address"] is not None and values["name"] not in ("dask", "ray"):
        raise UserError(
            f"parallel.address is for dask and ray; parallel={values['name']} has no cluster."
        )
    share = values["gpus_per_worker"]
    if share is not None:
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not (0 < share < 1 or (1 <= share < math.inf and share == int(share))):
            raise UserError(
                "parallel.gpus_per_worker must be a share between 0 and 1 or a whole number of "
                f"GPUs, got {share!r}."
            )
        if values["name"] == "serial":
            raise UserError("parallel.gpus_per_worker is for loky, dask and ray, not for serial.")
    return values


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get(VISIBLE)
    names = map(str, range(count)) if given is None else given.split(",")
    return [name.strip() for name in islice(names, count)]


def gpu_workers(n_gpus: int, share: float, n_jobs: int | None = None) -> int:
    """Return how many workers have a place on GPUs.

    Args:
        n_gpus: How many GPUs there are.
        share: GPUs a worker, or the part of one.
        n_jobs: How many workers are wanted, None for one at least.

    Raises:
        UserError: If they are fewer than are wanted.
    """
    places = n_gpus // int(share) if share >= 1 else n_gpus * int(1 / share + 1e-6)
    wanted = n_jobs or 1
    if places < wanted:
        raise UserError(
            f"parallel.gpus_per_worker={share:g} leaves {n_gpus} GPUs room for {places} workers, "
            f"not for {wanted}; ask for fewer workers (parallel.n_jobs) or a smaller share."
        )
    return places


def assign_gpus(gpus: Sequence[str], share: float, n_workers: int) -> list[str]:
    """Return CUDA_VISIBLE_DEVICES of each worker: GPUs of its own, or one in turn where shared."""
    if share >= 1:
        whole = int(share)
        return [",".join(gpus[i * whole : (i + 1) * whole]) for i in range(n_workers)]
    return [gpus[i % len(gpus)] for i in range(n_workers)]


def usable_cores() -> int:
    """Return how many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def parallel_evaluator(make: Callable[[], Evaluator], options: Mapping[str, Any]) -> Evaluator:
    """Return an evaluator whose designs are scored by workers, or by this process if `serial`.

    Args:
        make: Makes the evaluator.
        options: Of :func:`check_parallel`. Without `n_jobs` there are as many workers as the
            processors of this machine allow for the evaluator's threads.
    """
    evaluator = make()
    if options["name"] == "serial":
        return evaluator
    processor = getattr(evaluator, "device", None)
    if options["gpus_per_worker"] is not None and getattr(processor, "type", "cuda") != "cuda":
        raise UserError(
            "parallel.gpus_per_worker is for evaluator.processor=cuda; this evaluator computes on "
            f"{processor}."
        )
    pool = make_pool(options, getattr(evaluator, "threads", 1))
    return ParallelEvaluator(evaluator, make, pool, options["chunk"])


def make_pool(options: Mapping[str, Any], threads: int) -> Pool:
    """Return the workers of a back end other than `serial`.

    Args:
        options: Of :func:`check_parallel`.
        threads: Threads that a worker uses.

    Raises:
        UserError: If a cluster does not answer or there are too few GPUs.
    """
    n_workers = options["n_jobs"] or max(1, usable_cores() // threads)
    share, address, gpus, assigned = options["gpus_per_worker"], options["address"], [], None
    if share is not None and address is None:
        gpus = visible_gpus()
        n_workers = min(n_workers, gpu_workers(len(gpus), share, options["n_jobs"]))
        assigned = assign_gpus(gpus, share, n_workers)
    if options["name"] == "loky":
        return LokyPool(n_workers, assigned)
    if options["name"] == "dask":
        return DaskPool(n_workers, address, assigned, share)
    return RayPool(n_workers, address, threads, share, len(gpus))
