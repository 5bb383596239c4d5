"""Many searches of one question: methods x settings x seeds, each a unit of work of its own.

A setting is a device, a link, and whether the stored input may be sent. A unit is one whole search;
what it leaves is one line of `searches.jsonl`, and how far an experiment got is what that file
holds. Where accuracies are inherited, each unit keeps its scores in a journal below `scores/`, and
units that begin later take over what they need: an accuracy belongs to the phenotype, not to the
setting or the method.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from nasc_evo import __version__
from nasc_evo.config import group_options, load_group_option
from nasc_evo.errors import UserError, one_line
from nasc_evo.files import parse_json, read_lines
from nasc_evo.parallel import WorkerDiedError, check_parallel, make_pool
from nasc_evo.problem import Evaluation
from nasc_evo.search.algorithms import ALGORITHMS, check_options, create_algorithm
from nasc_evo.search.exact import exact_front
from nasc_evo.search.folder import first_difference, read_document, write_json
from nasc_evo.search.indicators import hypervolume, non_dominated
from nasc_evo.search.journal import Journal, Records, ScoreKey
from nasc_evo.search.loop import check_whole, is_number, run_search
from nasc_evo.supernet.score import Score

FORMAT = "nasc_evo comparison 1"
MANIFEST = "manifest.json"
SEARCHES = "searches.jsonl"
SCORES = "scores"
INPUTS = {"private": False, "raw": True}
"""Whether the stored input may be sent."""
CURVE_POINTS = 40
FIRST_POINT = 10
MAX_LINE_BYTES = 16 * 2**20
HUGE = 1e15
"""More than any figure of a search."""
FRONT_COLUMNS = ("error", "latency_ms", "device_ms", "link_ms", "server_ms", "cut", "key")
"""What a unit keeps of each design of its front."""
FIELDS = {
    "name": str,
    "problem": str,
    "dataset": Mapping,
    "evaluator": Mapping,
    "server": str,
    "devices": Sequence,
    "links": Sequence,
    "inputs": Sequence,
    "n_eval": int,
    "seeds": int,
    "first_seed": int,
    "checkpoints": Sequence,
    "ours": str,
    "methods": Mapping,
    "reference_points": Mapping,
    "headline": Mapping,
}
"""Fields of an experiment and their types; `headline` may be null."""
HEADLINE = ("baselines", "against", "points")
"""Fields of a headline: methods, methods, and points of accuracy."""


@dataclass(frozen=True)
class Setting:
    """What is asked: a device, a link, and whether the stored input may be sent."""

    device: str
    link: str
    input: str

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.device}-{self.link}-{self.input}"


@dataclass(frozen=True)
class Unit:
    """One search.

    Attributes:
        experiment: The experiment, checked.
        setting: What is asked.
        method: Name of the method.
        seed: Of the search.
        folder: Of the comparison.
    """

    experiment: dict[str, Any]
    setting: Setting
    method: str
    seed: int
    folder: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What identifies the unit."""
        return self.setting.name, self.method, self.seed


def check_experiment(values: Any) -> dict[str, Any]:
    """Return an experiment after checking its fields, with the options of each method filled in.

    Raises:
        UserError: If a field is missing, unknown or wrong.
    """
    given = dict(values) if isinstance(values, Mapping) else {}
    for name in sorted(set(FIELDS) ^ set(given)):
        what = "lacks the field" if name in FIELDS else "has no field"
        raise UserError(f"The experiment {what} '{name}'; it has {', '.join(FIELDS)}.")
    for name, kind in FIELDS.items():
        value = given[name]
        text = isinstance(value, str) and kind is not str
        null = value is None and name == "headline"
        if not null and (not isinstance(value, kind) or isinstance(value, bool) or text):
            raise UserError(f"experiment.{name} has a wrong type, got {value!r}.")
    for name in ("n_eval", "seeds"):
        check_whole(f"experiment.{name}", given[name], 1)
    check_whole("experiment.first_seed", given["first_seed"], 0)
    for name, group in (("devices", "device"), ("links", "link")):
        _check_choices(f"experiment.{name}", given[name], group_options(group))
    _check_choices("experiment.inputs", given["inputs"], list(INPUTS))
    for count in given["checkpoints"]:
        check_whole("experiment.checkpoints", count, 1)
    methods = {name: _method(name, options) for name, options in given["methods"].items()}
    if given["ours"] not in methods:
        raise UserError(
            f"experiment.ours must be one of the methods {', '.join(methods)}, got "
            f"'{given['ours']}'."
        )
    for device in given["devices"]:
        reference_point(given, device)
    if given["headline"] is not None:
        _check_headline(given["headline"], methods)
    if given["problem"] not in group_options("problem"):
        raise UserError(
            f"experiment.problem must be one of {', '.join(group_options('problem'))}, got "
            f"'{given['problem']}'."
        )
    return {**given, "methods": methods}


def _check_choices(name: str, values: Sequence[Any], allowed: Sequence[str]) -> None:
    wrong = [value for value in values if value not in allowed]
    if wrong or not values or len(set(values)) != len(values):
        raise UserError(
            f"{name} must be different ones of {', '.join(allowed)}, got {list(values)}."
        )


def _check_headline(headline: Any, methods: Mapping[str, Any]) -> None:
    given = dict(headline) if isinstance(headline, Mapping) else {}
    if set(given) != set(HEADLINE):
        raise UserError(
            f"experiment.headline must be null or have the fields {', '.join(HEADLINE)}, got "
            f"{headline!r}."
        )
    for name in HEADLINE[:2]:
        listed = isinstance(given[name], Sequence) and not isinstance(given[name], str)
        _check_choices(
            f"experiment.headline.{name}", given[name] if listed else [given[name]], list(methods)
        )
    if not is_number(given["points"]) or not 0 <= given["points"] <= 100:
        raise UserError(
            "experiment.headline.points must be a number of points of accuracy in 0..100, got "
            f"{given['points']!r}."
        )


def _method(name: str, options: Any) -> dict[str, Any]:
    """Return the options of a method: those of its algorithm's configuration, and changes."""
    changes = dict(options) if isinstance(options, Mapping) else {}
    algorithm = changes.pop("algorithm", name)
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"experiment.methods.{name} must be fields, got {options!r}.")
    if algorithm not in ALGORITHMS:
        raise UserError(
            f"experiment.methods.{name}.algorithm must be one of {', '.join(ALGORITHMS)}, got "
            f"'{algorithm}'."
        )
    method = {**load_group_option("algorithm", str(algorithm)), **changes}
    try:
        check_options(method["name"], {k: v for k, v in method.items() if k != "name"})
    except UserError as error:
        raise UserError(f"experiment.methods.{name}: {error}") from error
    return method


def reference_point(experiment: Mapping[str, Any], device: str) -> NDArray[np.float64]:
    """Return `(error, latency_ms)`, the reference point of the settings of a device.

    Hypervolumes are shares of the box between 0 and it.
    """
    point = experiment["reference_points"].get(device)
    numbers = isinstance(point, Sequence) and not isinstance(point, str)
    if (
        not numbers
        or len(point) != 2
        or not all(
            isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e9 for v in point
        )
    ):
        raise UserError(
            f"experiment.reference_points.{device} must be an error and a latency_ms above 0, got "
            f"{point!r}."
        )
    return np.array(point, dtype=float)


def settings(experiment: Mapping[str, Any]) -> list[Setting]:
    """Return all settings in the order of the configuration."""
    names = ("devices", "links", "inputs")
    return [Setting(*values) for values in product(*(experiment[name] for name in names))]


def units(experiment: dict[str, Any], folder: Path) -> list[Unit]:
    """Return all searches: seed after seed, so that what is stopped early has whole seeds."""
    seeds = range(experiment["first_seed"], experiment["first_seed"] + experiment["seeds"])
    return [
        Unit(experiment, setting, method, seed, os.fspath(folder))
        for seed in seeds
        for setting in settings(experiment)
        for method in experiment["methods"]
        if method_applies(experiment, method, setting)
    ]


def method_applies(experiment: Mapping[str, Any], method: str, setting: Setting) -> bool:
    """Return whether a method can be used in a setting: raw offload only where that is allowed."""
    raw = experiment["methods"][method]["name"] == "raw_offload"
    return INPUTS[setting.input] or not raw


def curve_counts(n_eval: int, checkpoints: Sequence[int]) -> list[int]:
    """Return numbers of evaluations at which the hypervolume is kept."""
    spread = np.geomspace(min(FIRST_POINT, n_eval), n_eval, CURVE_POINTS).round().astype(int)
    inside = [count for count in checkpoints if count <= n_eval]
    return sorted({*spread.tolist(), *inside, n_eval})


_problems: dict[str, Any] = {}
"""Problems of this process by what they are made of; they share one evaluator."""


def problem_of(experiment: Mapping[str, Any], setting: Setting) -> Any:
    """Return the problem of a setting, with no evaluations; made once a process."""
    from omegaconf import OmegaConf

    from nasc_evo.hydra_app import instantiate

    shared = {name: experiment[name] for name in ("problem", "dataset", "evaluator", "server")}
    key = json.dumps([shared, setting.name], sort_keys=True, default=dict)
    if key not in _problems:
        options = {
            "_target_": load_group_option("problem", experiment["problem"])["_target_"],
            "device": setting.device,
            "link": setting.link,
            "server": experiment["server"],
            "dataset": dict(experiment["dataset"]),
            "evaluator": dict(experiment["evaluator"]),
            "allow_raw_offload": INPUTS[setting.input],
        }
        problem = instantiate(OmegaConf.create(options))
        others = [p for k, p in _problems.items() if json.loads(k)[0] == json.loads(key)[0]]
        if others:
            problem.evaluator = others[0].evaluator
        _problems[key] = problem
    problem = _problems[key]
    problem.forget()
    problem.on_evaluation = None
    return problem


def fingerprint(experiment: Mapping[str, Any], setting: Setting) -> str:
    """Return the SHA-256 of what defines a setting's problem, its tables and accuracies included.

    Results of two searches belong together only where it is equal.
    """
    described = json.dumps(problem_of(experiment, setting).describe(), sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()


def run_unit(unit: Unit) -> dict[str, Any]:
    """Run one search; return what is kept of it. Runs in a worker.

    Raises:
        UserError: If the method cannot solve the problem.
    """
    experiment, setting = unit.experiment, unit.setting
    problem = problem_of(experiment, setting)
    options = dict(experiment["methods"][unit.method])
    journal = None
    if not problem.lossless:
        folder = Path(unit.folder) / SCORES
        problem.remember(shared_scores(folder))
        path = folder / f"{setting.name}-{unit.method}-{unit.seed}.jsonl"
        journal = Journal(path)
    computed, waited = [0], [0.0]

    def on_evaluation(evaluation: Any, new: bool) -> None:
        computed[0] += new
        if journal is not None and new:
            journal.append(evaluation)

    problem.on_evaluation = on_evaluation
    n_eval = experiment["n_eval"]
    problem.fastest_design()
    problem.reference_point  # noqa: B018 - both are known before the clock starts
    evaluator = problem.evaluator
    problem.evaluator = _Timed(evaluator, waited)
    start = time.perf_counter()
    try:
        algorithm = create_algorithm(
            options.pop("name"), problem, options, seed=unit.seed, n_eval=n_eval
        )
        result = run_search(problem, algorithm, n_eval, seed=unit.seed)
        seconds = time.perf_counter() - start
        if result.interrupted:
            raise KeyboardInterrupt
    finally:
        problem.evaluator = evaluator
        problem.on_evaluation = None
        if journal is not None:
            journal.close()
    reference = reference_point(experiment, setting.device)
    scored = [not e.failed for e in result.evaluations]
    F = problem.objective_values(result.evaluations)
    counts = curve_counts(n_eval, experiment["checkpoints"])
    curve = [hypervolume(F[:n][scored[:n]], reference) for n in counts]
    front = non_dominated(problem, result.evaluations)
    return {
        "setting": setting.name,
        "method": unit.method,
        "seed": unit.seed,
        "evaluations": len(result.evaluations),
        "computed": computed[0],
        "seconds": round(seconds, 4),
        "evaluator_seconds": round(waited[0], 4),
        "stop_reason": result.stop_reason,
        "curve": curve,
        "front": front_rows(front),
    }


def front_rows(front: Sequence[Evaluation]) -> list[list[Any]]:
    """Return the :data:`FRONT_COLUMNS` of evaluations."""
    return [
        [
            *(e.metric(name) for name in FRONT_COLUMNS[:5]),
            "/".join(map(str, e.design.cuts)),
            e.design.key,
        ]
        for e in front
    ]


class _Timed:
    """An evaluator that says how long it took.

    Args:
        evaluator: Scores designs.
        waited: Its first entry grows by the seconds.
    """

    def __init__(self, evaluator: Any, waited: list[float]) -> None:
        self._evaluator = evaluator
        self._waited = waited

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluator, name)

    def evaluate(self, *args: Any, **kwargs: Any) -> Iterator[tuple[int, Score]]:
        """Yield what the evaluator does."""
        start = time.perf_counter()
        for item in self._evaluator.evaluate(*args, **kwargs):
            self._waited[0] += time.perf_counter() - start
            yield item
            start = time.perf_counter()
        self._waited[0] += time.perf_counter() - start


def shared_scores(folder: Path) -> dict[ScoreKey, Score]:
    """Return all scores that units have kept so far."""
    folder.mkdir(parents=True, exist_ok=True)
    scores: dict[ScoreKey, Score] = {}
    for path in sorted(folder.glob("*.jsonl")):
        scores.update(Records(path).scores)
    return scores


class ComparisonFolder:
    """The folder of a comparison, held by this process.

    Args:
        path: The folder; made if missing.
        resume: Whether it holds an earlier run that goes on here.
        experiment: What is compared; a resumed run may have other seeds, and methods more or less.

    Attributes:
        results: What :func:`run_unit` returned, by the key of the unit.

    Raises:
        UserError: If the folder is in use, holds a comparison although `resume` is False, or
            another one, or is damaged.
    """

    def __init__(self, path: Path, *, resume: bool, experiment: dict[str, Any]) -> None:
        self.path = path
        manifest = path / MANIFEST
        if resume and not manifest.is_file():
            raise UserError(f"resume={path} is no folder of an earlier comparison.")
        if not resume and manifest.exists():
            raise UserError(
                f"The folder {path} holds a comparison already; continue it with resume={path} or "
                "choose another hydra.run.dir."
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / ".lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise UserError(f"The folder {path} is in use by another comparison.") from error
        except OSError as error:
            raise UserError(f"The folder {path} cannot be written ({one_line(error)}).") from error
        self._file: Any = None
        self.results: dict[tuple[str, str, int], dict[str, Any]] = {}
        try:
            document = {
                "format": FORMAT,
                "version": __version__,
                "experiment": json.loads(json.dumps(experiment)),
                "problems": {s.name: fingerprint(experiment, s) for s in settings(experiment)},
            }
            if resume:
                old = read_document(manifest, "manifest", FORMAT)
                _check_same(old.get("experiment"), document["experiment"], path)
                for name in ("version", "problems"):
                    _check_equal(path, name, old.get(name), document[name])
            write_json(manifest, document)
            self.results, end = read_searches(path / SEARCHES, experiment)
            self._file = open(path / SEARCHES, "ab")  # noqa: SIM115 - open for the whole run
            self._file.truncate(end)
        except BaseException:
            self.close()
            raise

    def append(self, result: dict[str, Any]) -> None:
        """Keep what a unit has left, flushed."""
        line = json.dumps(result, allow_nan=False, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self.results[(result["setting"], result["method"], result["seed"])] = result

    def close(self) -> None:
        """Release the folder."""
        if self._file is not None:
            self._file.close()
        self._lock.release()


def _check_same(old: Any, new: dict[str, Any], path: Path) -> None:
    """Raise a UserError where experiments differ in what one search leaves.

    Seeds may differ, and which methods there are, and what is only said of them.
    """
    if not isinstance(old, dict) or not isinstance(old.get("methods"), dict):
        raise UserError(f"The manifest {path / MANIFEST} is damaged (no experiment).")
    both = set(old["methods"]) & set(new["methods"])
    before, now = (
        {
            **asked,
            **dict.fromkeys(("seeds", "first_seed", "headline", "ours")),
            "methods": {name: asked["methods"][name] for name in sorted(both)},
        }
        for asked in (old, new)
    )
    _check_equal(path, "", before, now)


def _check_equal(path: Path, name: str, old: Any, new: Any) -> None:
    difference = first_difference({name: old} if name else old, {name: new} if name else new)
    if difference is not None:
        key, before, now = difference
        raise UserError(
            f"The comparison in {path} cannot be resumed with another {key}: it had {before!r}, "
            f"this command has {now!r}."
        )


def read_searches(
    path: Path, experiment: Mapping[str, Any]
) -> tuple[dict[tuple[str, str, int], dict[str, Any]], int]:
    """Return the lines of a `searches.jsonl` by unit; a torn last line is dropped.

    Args:
        path: The file; need not exist.
        experiment: What was compared.

    Returns:
        The lines, and the size of the file up to the end of the last whole one.

    Raises:
        UserError: If the file cannot be read, or a line before the last is damaged.
    """
    results: dict[tuple[str, str, int], dict[str, Any]] = {}
    end = 0
    if not path.exists():
        return results, end
    points = len(curve_counts(experiment["n_eval"], experiment["checkpoints"]))
    try:
        for number, line, size in read_lines(path, MAX_LINE_BYTES):
            record, end = _search(path, line, number, points), size
            results[(record["setting"], record["method"], record["seed"])] = record
    except OSError as error:
        raise UserError(f"The searches {path} cannot be read ({one_line(error)}).") from error
    return results, end


def _search(path: Path, line: bytes, number: int, points: int) -> dict[str, Any]:
    """Return what a line says, after checking what is used of it."""
    try:
        record = parse_json(line)
        if not (type(record["setting"]) is type(record["method"]) is str):
            raise ValueError("its setting or method is no text")
        if type(record["seed"]) is not int or not _numbers([record["evaluations"]], 1):
            raise ValueError("its seed or number of evaluations is none")
        if not _numbers([record["seconds"]], 1) or not _numbers(record["curve"], points):
            raise ValueError(f"its seconds or its curve are not 1 and {points} numbers")
        n = len(FRONT_COLUMNS) - 2
        if type(record["front"]) is not list or not all(
            type(row) is list
            and _numbers(row[:n], n)
            and [type(text) for text in row[n:]] == [str, str]
            for row in record["front"]
        ):
            raise ValueError("its front has other columns")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Line {number} of {path} is damaged ({one_line(error)}); delete that line, "
            "its search will be run again, and resume."
        ) from error
    return record


def _numbers(values: Any, count: int) -> bool:
    """Return whether a list holds so many finite numbers, none of them negative or huge."""
    return (
        type(values) is list
        and len(values) == count
        and all(type(value) in (int, float) and 0 <= value < HUGE for value in values)
    )


def run_units(
    open_units: Sequence[Unit],
    parallel: Mapping[str, Any],
    on_result: Callable[[dict[str, Any]], None],
) -> None:
    """Run searches on a back end of :mod:`nasc_evo.parallel`, handing on each as it ends.

    Searches whose worker died are run again, twice.

    Raises:
        UserError: If a method cannot solve a problem, or workers die time and again.
    """
    options = check_parallel(parallel)
    if options["name"] == "serial":
        for unit in open_units:
            on_result(run_unit(unit))
        return
    threads = next((u.experiment["evaluator"].get("threads", 1) for u in open_units), 1)
    pool = make_pool(options, threads)
    waiting = list(open_units)
    try:
        for _ in range(3):
            lost = []
            for number, outcome in pool.run(waiting, run_unit):
                if isinstance(outcome, WorkerDiedError):
                    lost.append(waiting[number])
                elif isinstance(outcome, UserError):
                    raise outcome
                elif isinstance(outcome, BaseException):
                    unit = waiting[number]
                    raise UserError(
                        f"The search {unit.key} failed ({type(outcome).__name__}: "
                        f"{one_line(outcome)})."
                    ) from outcome
                else:
                    on_result(outcome)
            waiting = lost
            if not waiting:
                return
        raise UserError(f"Workers died three times in the search {waiting[0].key}.")
    finally:
        pool.close()


def exact_values(
    experiment: dict[str, Any], setting: Setting
) -> tuple[float, list[list[Any]]] | None:
    """Return hypervolume and front of all designs, None where accuracies are not tabular."""
    problem = problem_of(experiment, setting)
    if not problem.lossless:
        return None
    front = exact_front(problem)
    F = problem.objective_values(front)
    rows = front_rows(front)
    problem.forget()
    return hypervolume(F, reference_point(experiment, setting.device)), rows
