"""Hydra applications: typed frames, readable errors, exit codes.

Hydra composes the configuration; everything that goes wrong on the way - a typo, a wrong type, an
unknown option, a mistake found by the program - ends as one sentence and a non-zero exit code.
"""

import contextlib
import importlib
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nasc_evo.config import ALIASES, check_used, config_folder, group_options
from nasc_evo.errors import UserError, one_line

EXIT_USER_ERROR = 2
EXIT_INFEASIBLE = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
TERMINATED = "terminated by SIGTERM"
EXAMPLES = {"dataset.path": "photos", "run": "outputs/fbnet-edgegpu/<date_time>"}
"""What a field that must be given may be; else a table."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: a cluster takes the machine back; everything ends as after Ctrl-C, but sooner."""


def end_on_sigterm() -> None:
    """Turn the first SIGTERM into :class:`Terminated`; further ones are ignored."""

    def terminate(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated(TERMINATED)

    with contextlib.suppress(ValueError):  # a launcher runs the job outside the main thread
        signal.signal(signal.SIGTERM, terminate)


@dataclass
class Limits:
    """Upper limits of metrics; null is no limit."""

    error: float | None = None
    latency_ms: float | None = None
    device_ms: float | None = None
    link_ms: float | None = None
    server_ms: float | None = None
    payload_bytes: float | None = None
    energy_mj: float | None = None
    macs: float | None = None
    params: float | None = None
    latency_p95_ms: float | None = None


@dataclass
class HalvingOptions:
    """Options of :class:`nasc_evo.halving.Halving`."""

    images: list[int] = field(default_factory=list)
    confidence: float = 0.99


@dataclass
class RunConfig:
    """The frame of `configs/config.yaml`; groups are mappings."""

    problem: Any = MISSING
    device: Any = MISSING
    server: Any = MISSING
    link: Any = MISSING
    edge: Any = MISSING
    backhaul: Any = MISSING
    chain: Any = MISSING
    dataset: Any = MISSING
    algorithm: Any = MISSING
    evaluator: Any = MISSING
    parallel: Any = MISSING
    objectives: Any = MISSING
    limits: Limits = field(default_factory=Limits)
    allow_raw_offload: bool = MISSING
    min_device_blocks: int = MISSING
    mask_groups: Any = MISSING
    bits: Any = MISSING
    halving: HalvingOptions = field(default_factory=HalvingOptions)
    n_eval: int = MISSING
    patience: int | None = None
    max_time: Any = None
    max_failed: Any = MISSING
    seed: int = MISSING
    rescore: Any = MISSING
    resume: str | None = None
    truth: str | None = None
    warm_start: str | None = None


@dataclass
class TruthConfig:
    """The frame of `configs/truth.yaml`."""

    problem: Any = MISSING
    device: Any = MISSING
    server: Any = MISSING
    link: Any = MISSING
    edge: Any = MISSING
    backhaul: Any = MISSING
    chain: Any = MISSING
    dataset: Any = MISSING
    evaluator: Any = MISSING
    parallel: Any = MISSING
    objectives: Any = MISSING
    limits: Limits = field(default_factory=Limits)
    allow_raw_offload: bool = MISSING
    min_device_blocks: int = MISSING
    mask_groups: Any = MISSING
    bits: Any = MISSING
    halving: HalvingOptions = field(default_factory=HalvingOptions)


@dataclass
class TrainConfig:
    """The frame of `configs/train.yaml`."""

    problem: Any = MISSING
    dataset: Any = MISSING
    training: Any = MISSING
    max_minutes: float | None = None
    resume: str | None = None


@dataclass
class FinetuneConfig:
    """The frame of `configs/finetune.yaml`."""

    training: Any = MISSING
    run: str = MISSING
    design: int | None = None
    mode: str = MISSING
    onnx: bool = MISSING
    max_minutes: float | None = None
    resume: str | None = None


@dataclass
class MeasureConfig:
    """The frame of `configs/measure.yaml`."""

    problem: Any = MISSING
    geometry: int = MISSING
    backend: str = MISSING
    processor: str = MISSING
    launch: str = MISSING
    threads: int = MISSING
    rounds: int = MISSING
    repeats: int = MISSING
    networks: int = MISSING
    energy: bool = MISSING
    seed: int = MISSING
    name: str | None = None
    out: str | None = None


@dataclass
class MeasureEvaluatorConfig:
    """The frame of `configs/measure_evaluator.yaml`."""

    problem: Any = MISSING
    dataset: Any = MISSING
    evaluator: Any = MISSING
    designs: int = MISSING
    rounds: int = MISSING
    seed: int = MISSING


@dataclass
class CalibrateConfig:
    """The frame of `configs/calibrate.yaml`."""

    problem: Any = MISSING
    dataset: Any = MISSING
    evaluator: Any = MISSING
    trained: str | None = None
    networks: int | None = None
    seed: int | None = None


@dataclass
class CompareConfig:
    """The frame of `configs/compare.yaml`; what an experiment holds is checked by itself."""

    experiment: Any = MISSING
    parallel: Any = MISSING
    resume: str | None = None


def register() -> None:
    """Register schemas and the resolver of output folders with Hydra; may be called repeatedly."""
    # Hydra copies its sources at each of a hundred look-ups of --help, and with them this store of
    # all its configurations, which is one a process and hands out copies anyway: 0.8 of 1.2 s
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(name="measure_schema", node=MeasureConfig)
    store.store(name="measure_evaluator_schema", node=MeasureEvaluatorConfig)
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="finetune_schema", node=FinetuneConfig)
    store.store(name="truth_schema", node=TruthConfig)
    store.store(name="compare_schema", node=CompareConfig)
    store.store(name="calibrate_schema", node=CalibrateConfig)
    for group, source in ALIASES.items():
        for option in group_options(group):
            store.store(
                group=group, name=option, node={"defaults": [{f"/{source}@_here_": option}]}
            )
    OmegaConf.register_new_resolver(
        "nasc_folder", lambda resume, default: resume or default, replace=True
    )


def instantiate(config: Any, **objects: Any) -> Any:
    """Return the problem that a configuration describes.

    Args:
        config: Its class as `_target_`, and its options.
        objects: Options that are objects.

    Its class is the only thing that a configuration can name to be called; Hydra's own
    instantiation would call anything, at any depth.

    Raises:
        UserError: If `_target_` names no class of problems, or an option is unknown or wrong.
    """
    from nasc_evo.problem import SplitProblem

    options: Any = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_dict(config) else {}
    target = str(options.pop("_target_", None))
    options.pop("_convert_", None)
    options |= objects
    try:
        module, _, name = target.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        if not issubclass(kind, SplitProblem):
            raise TypeError("it is no subclass of nasc_evo.problem.SplitProblem")
    except Exception as error:  # whatever importing the module raises
        raise UserError(
            "problem._target_ must name a class of problems, such as problems.FBNetSplit, got "
            f"'{target}' ({one_line(error)})."
        ) from error
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise UserError(f"problem has wrong options: {one_line(error)}.") from error
    return kind(**options)


def is_sweep() -> bool:
    """Return whether the current job is one of a sweep (`--multirun`)."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def check_effect(config: Any) -> None:
    """Raise a UserError where a machine or link was given that the chain of a run does not have.

    A sweep may have chains with and without it.
    """
    if not is_sweep():
        keys = (word.lstrip("+~").split("=")[0] for word in HydraConfig.get().overrides.task)
        check_used(keys, OmegaConf.to_container(config.chain, resolve=False))


def check_filled(config: Any) -> None:
    """Raise a UserError where a configuration leaves a field open that the user must give."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        example = EXAMPLES.get(missing[0], "my.csv")
        raise UserError(f"{missing[0]} must be given, such as {missing[0]}={example}.")


class JobEnded(Exception):  # noqa: N818 - not always an error
    """Carries an exit code other than 0 out of a job that a launcher runs in another process.

    Args:
        code: The exit code.
        sentence: What to tell the user, empty if the job has said everything.
    """

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence


class SweepNotes(Callback):
    """Says where a sweep writes, and how its runs are put together."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Print the folder before the first job."""
        print(f"Sweep in {config.hydra.sweep.dir}", flush=True)

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Print the next command after the last job."""
        print(f"Collect its runs: python -m nasc_evo.collect {config.hydra.sweep.dir}", flush=True)


def own_images(word: str) -> list[str]:
    """Return the overrides that a word stands for: `dataset=<folder>` is one of two fields."""
    key, _, value = word.partition("=")
    named = key != "dataset" or value in group_options("dataset")
    if named or not value or not Path(value).expanduser().is_dir():
        return [word]
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return ["dataset=folder", f"dataset.path='{quoted}'"]


def launch(config_name: str, task: Callable[[Any], int]) -> None:
    """Run a Hydra application and exit the process.

    The exit code is that of the task. Jobs of a sweep that run in this process end it with the
    largest of their codes, jobs in processes of their own with the first that is not 0.

    Args:
        config_name: Primary configuration in the folder of configurations.
        task: Gets the composed configuration, returns an exit code.
    """
    register()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.argv[1:] = [override for word in sys.argv[1:] for override in own_images(word)]
    debug = os.environ.get("HYDRA_FULL_ERROR") == "1"
    parent = os.getpid()
    codes = []  # of the jobs in this process
    started = False

    def remote() -> bool:
        return os.getpid() != parent

    def run(config: Any) -> None:
        """Run one job; a user's mistake ends this job, not the others of a sweep."""
        nonlocal started
        started = True
        if not remote():  # a launcher has its own way with signals
            end_on_sigterm()
        sentence = ""
        try:
            code = task(config)
        except (UserError, OmegaConfBaseException, OSError) as error:  # also a disk that is full
            if debug:
                raise
            sentence = _sentence(error)
            print(sentence, file=sys.stderr)
            code = EXIT_USER_ERROR
            _remove_empty(Path(HydraConfig.get().runtime.output_dir))
        except Exception as error:
            if not remote():
                raise
            traceback.print_exc()
            raise JobEnded(1, f"A job failed, its log says where: {one_line(error)}") from error
        codes.append(code)
        if code and remote():
            raise JobEnded(code, sentence)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    try:
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=config_name)(
            run
        )()
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        print("Terminated." if terminated else "Interrupted.", file=sys.stderr)
        sys.exit(EXIT_TERMINATED if terminated else EXIT_INTERRUPTED)
    except JobEnded as ended:
        print(ended.sentence, end="\n" * bool(ended.sentence), file=sys.stderr)
        sys.exit(ended.code)
    except Exception as error:
        # before a job starts, whatever goes wrong lies in the options; Hydra raises many types
        if debug or (started and not isinstance(error, OSError)):
            raise
        print(_sentence(error), file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    sys.exit(max(codes, default=0))


def _sentence(error: BaseException) -> str:
    """Return what is printed of an error: one line of limited length."""
    sentence = error if isinstance(error, UserError) else UserError(_readable(error))
    return f"Error: {one_line(sentence)}"


def _remove_empty(folder: Path) -> None:
    """Remove the output folder that Hydra made, and parents below here, where they are empty."""
    here = Path.cwd()
    with contextlib.suppress(OSError):
        for path in (folder, *folder.parents):
            if path == here or not path.is_relative_to(here):
                break
            path.rmdir()


def _readable(error: BaseException) -> str:
    """Return one line for an error of Hydra or OmegaConf, with the allowed options of a group."""
    text = one_line(error)
    if text.startswith("In '") and "Could not find '" in text:
        missing = text.split("Could not find '", 1)[1].split("'", 1)[0]
        group, _, option = missing.rpartition("/")
        if group and group_options(group):
            hint = " or the folder of your own images" if group == "dataset" else ""
            options = ", ".join(group_options(group))
            return f"There is no {group} '{option}'; available are {options}{hint}."
        if group == "hydra/launcher":
            return (
                f"There is no launcher '{option}' here; submitit_slurm, submitit_local and joblib "
                "come with `pip install 'nasc-evo[cluster]'`."
            )
    if error.__cause__ is not None:
        text = f"{text}: {one_line(error.__cause__)}"
    text = text.split(" full_key:")[0].split(" object_type=")[0]
    hint = "" if isinstance(error, OSError) else " (see --help for all options)"
    return text + hint
