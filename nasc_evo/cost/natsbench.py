"""The official files of NATS-Bench's topology space (Dong et al., TPAMI 2021, MIT).

`NATS-tss-v1_0-3ffb9-simple` is a folder with `meta.pickle.pbz2` and one file an architecture,
`000000.pickle.pbz2` and so on. Their content was read off D-X-Y/NATS-Bench (`nats_bench/
api_topology.py`, and `ArchResults` and `ResultsCount` in `api_utils.py`, commit 00201cc) and off
the script that wrote them, `exps/NATS-Bench/tss-collect.py` of D-X-Y/AutoDL-Projects (commit
06d5c54): a mapping from `"12"` and `"200"` epochs to a state with `arch_index`, `arch_str`,
`dataset_seed[dataset]` (a list of seeds) and `all_results[(dataset, seed)]`; there
`eval_acc1es["ori-test@199"]` is a test accuracy in percent after the 200th epoch.

What the data sets mean: `cifar10-valid` is trained on half of the training images and has
`x-valid` (the other half) and `ori-test`; `cifar10` is trained on all of them and has `ori-test`;
`cifar100` and `ImageNet16-120` have `ori-test`, the union of two halves of equal size, `x-valid`
and `x-test`. The arrays named `derived` are therefore 2 x ori-test - x-test; notebook issue-30 of
the repository prints three figures that bear this out. After 200 epochs there are one to three
seeds out of 777, 888, 999, and means are taken over those that exist; `1seed` is seed 777 (issue
54 there prints its accuracy for one architecture), or the only seed there is. Training times are
those of `cifar10`, all epochs; the files hold times estimated from 12 epochs of `cifar10-valid`.

This reader was tested on files built to that description, not on the official ones.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nasc_evo.cost.official import check_strings, official_strings, write_npz
from nasc_evo.cost.restricted import read_pickle
from nasc_evo.errors import UserError, brief
from nasc_evo.space.nasbench201 import OPS, NASBench201Space

FILE_NAME = "nb201_accuracy.npz"
META_NAME = "meta.pickle.pbz2"
CLASSES = {"cifar10": 10, "cifar100": 100, "ImageNet16-120": 120}
"""Data sets whose networks' sizes are read, with their numbers of classes."""
SEED = 777
LONG, SHORT = 200, 12
MAX_BYTES = 64 * 2**20
"""Largest size of one file after decompression; about a hundred times what an official one has."""

FloatArray = NDArray[np.float64]
Progress = Callable[[Iterable[int]], Iterable[int]]


class Reading(NamedTuple):
    """Where an accuracy stands in a file.

    Attributes:
        dataset: Data set trained on.
        evaluation: Images evaluated.
        epochs: Length of the training.
        one_seed: Whether one run is read instead of the mean over all.
    """

    dataset: str
    evaluation: str
    epochs: int = LONG
    one_seed: bool = False


ACCURACIES = {
    "cifar10_valid_xvalid_200": Reading("cifar10-valid", "x-valid"),
    "cifar10_valid_oritest_200": Reading("cifar10-valid", "ori-test"),
    "cifar10_oritest_200": Reading("cifar10", "ori-test"),
    "cifar100_xtest_200": Reading("cifar100", "x-test"),
    "cifar100_oritest_200": Reading("cifar100", "ori-test"),
    "in16_xtest_200": Reading("ImageNet16-120", "x-test"),
    "in16_oritest_200": Reading("ImageNet16-120", "ori-test"),
    "cifar10_oritest_12_1seed": Reading("cifar10", "ori-test", SHORT, True),
    "cifar100_xtest_12_1seed": Reading("cifar100", "x-test", SHORT, True),
    "in16_xtest_12_1seed": Reading("ImageNet16-120", "x-test", SHORT, True),
    "cifar10_oritest_200_1seed": Reading("cifar10", "ori-test", LONG, True),
    "cifar100_xtest_200_1seed": Reading("cifar100", "x-test", LONG, True),
    "in16_xtest_200_1seed": Reading("ImageNet16-120", "x-test", LONG, True),
}
DERIVED = {
    "cifar100_xvalid_200_derived": ("cifar100_oritest_200", "cifar100_xtest_200"),
    "in16_xvalid_200_derived": ("in16_oritest_200", "in16_xtest_200"),
}
TRAIN_TIME = "train_time_s_200"


def import_folder(source: Path, folder: Path, progress: Progress) -> list[str]:
    """Write `nb201_accuracy.npz` from the official files.

    Args:
        source: Folder of the official files.
        folder: Where to write; it exists.
        progress: Passes the indices of the architectures on while it shows how far it is.

    Returns:
        Sentences for the user.

    Raises:
        UserError: If a file is missing, damaged or holds anything else than expected; nothing is
            written then.
    """
    if not source.is_dir():
        raise UserError(
            f"{source} is no folder; unpack NATS-tss-v1_0-3ffb9-simple.tar and give its folder."
        )
    space = NASBench201Space()
    architectures, strings = space.architectures, official_strings(space)
    meta = source / META_NAME
    listed = _field(read_pickle(meta, MAX_BYTES), "meta_archs", list, str(meta))
    check_strings(listed, strings, str(meta))
    figures: dict[str, FloatArray] = {}
    params_m = {
        dataset: NASBench201Space(n_classes=classes).params(architectures) / 1e6
        for dataset, classes in CLASSES.items()
    }
    for index in progress(range(len(strings))):
        path = source / f"{index:06d}.pickle.pbz2"
        for name, value in read_architecture(path, index, strings[index]).items():
            figures.setdefault(name, np.full(len(strings), np.nan))[index] = value
    for dataset, expected in params_m.items():
        _check_params(figures[f"params_M_{dataset}"], expected, dataset, source)
    target = folder / FILE_NAME
    arrays, missing = _accuracies(figures, len(strings), source)
    arrays |= {
        f"{size}_M": np.array([figures[f"{size}_M_{dataset}"] for dataset in CLASSES])
        for size in ("flops", "params")
    }
    arrays |= {
        "ops": architectures.astype(np.int8),
        "arch_str": np.array(strings),
        "op_names": np.array(OPS),
    }
    write_npz(target, arrays)
    return [f"{target}: {len(arrays)} arrays of {len(strings)} architectures.", *missing]


def read_architecture(path: Path, index: int, string: str) -> dict[str, float]:
    """Read the figures of one architecture.

    Args:
        path: Its file.
        index: Its official index.
        string: Its official string.

    Returns:
        Accuracies in percent by the names of :data:`ACCURACIES`, without those that the file does
        not have; `train_time_s_200` in seconds likewise; `flops_M_*` and `params_M_*` of each data
        set in millions.

    Raises:
        UserError: If the file is damaged, belongs to another architecture, or a figure in it is
            not plausible.
    """
    content = read_pickle(path, MAX_BYTES)
    runs: dict[int, dict[str, list[tuple[int, Any]]]] = {}
    for epochs in (SHORT, LONG):
        where = f"the {epochs} epochs of {path}"
        state = _field(content, str(epochs), Mapping, str(path))
        got = _field(state, "arch_index", int, where), _field(state, "arch_str", str, where)
        if got != (index, string):
            raise UserError(
                f"{where} are of architecture {brief(got[0])} {brief(got[1])}, but the file should "
                f"be that of {index} '{string}'."
            )
        runs[epochs] = _runs(state, where)
    figures = {}
    for name, reading in ACCURACIES.items():
        chosen = runs[reading.epochs].get(reading.dataset, [])
        if reading.one_seed and len(chosen) > 1:
            chosen = [run for run in chosen if run[0] == SEED]
        key = f"{reading.evaluation}@{reading.epochs - 1}"
        where = f"{key} of {reading.dataset} in {path}"
        values = [_field(run, "eval_acc1es", Mapping, where).get(key) for _, run in chosen]
        if values and None not in values:
            figures[name] = float(np.mean([_number(value, 0.0, 100.0, where) for value in values]))
    for dataset in CLASSES:
        where = f"{dataset} in {path}"
        results = [run for _, run in runs[LONG].get(dataset, [])]
        if not results:
            raise UserError(f"There are no results after {LONG} epochs of {where}.")
        for size, key in (("flops_M", "flop"), ("params_M", "params")):
            values = [_number(_field(run, key, object, where), 0.0, 1e4, where) for run in results]
            figures[f"{size}_{dataset}"] = float(np.mean(values))
    times = [run.get("train_times") for _, run in runs[LONG]["cifar10"]]
    if all(isinstance(time, Mapping) and len(time) == LONG for time in times):
        where = f"train_times of cifar10 in {path}"
        totals = [sum(_number(t, 0.0, 1e6, where) for t in time.values()) for time in times]
        figures[TRAIN_TIME] = float(np.mean(totals))
    return figures


def _runs(state: Any, where: str) -> dict[str, list[tuple[int, Any]]]:
    """Return seed and result of each run, by data set."""
    results = _field(state, "all_results", Mapping, where)
    runs = {}
    for dataset, seeds in _field(state, "dataset_seed", Mapping, where).items():
        if not isinstance(seeds, list) or not all(
            isinstance(seed, int) and (dataset, seed) in results for seed in seeds
        ):
            shown = ", ".join(map(brief, seeds)) if isinstance(seeds, list) else brief(seeds)
            raise UserError(f"{where} lack results of {dataset} for one of the seeds [{shown}].")
        runs[dataset] = [(seed, results[dataset, seed]) for seed in seeds]
    return runs


def _field(content: Any, key: str, kind: type, where: str) -> Any:
    """Return a part of a mapping, a UserError if it is missing or of another type."""
    part = content.get(key) if isinstance(content, Mapping) else None
    if part is None or not isinstance(part, kind):
        raise UserError(
            f"'{key}' is missing or not of the official type in {where}; give the folder "
            "NATS-tss-v1_0-3ffb9-simple as it was published."
        )
    return part


def _number(value: Any, low: float, high: float, where: str) -> float:
    if not isinstance(value, int | float | np.number) or not low <= value <= high:
        raise UserError(f"{where} must be a number from {low:g} to {high:g}, got {brief(value)}.")
    return float(value)


def _check_params(got: FloatArray, expected: FloatArray, dataset: str, source: Path) -> None:
    wrong = ~np.isclose(got, expected, rtol=1e-6, atol=0)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise UserError(
            f"Architecture {first} of {dataset} in {source} has {got[first]} million parameters, "
            f"but this network has {expected[first]}; the file is of another network."
        )


def _accuracies(
    figures: Mapping[str, FloatArray], n: int, source: Path
) -> tuple[dict[str, NDArray], list[str]]:
    """Return the complete arrays of accuracies and times, and a sentence on each other one."""
    arrays: dict[str, NDArray] = {}
    sentences = []
    for name in (*ACCURACIES, TRAIN_TIME):
        values = figures.get(name, np.full(n, np.nan))
        absent = np.isnan(values)
        if absent.any():
            sentences.append(
                f"Warning: {name} could not be produced: {source} lacks it for {absent.sum()} of "
                f"{n} architectures, the first is {int(np.argmax(absent))}."
            )
            continue
        if name in ACCURACIES and values.max() <= 1:
            raise UserError(
                f"The largest accuracy of {name} in {source} is {values.max():g}; accuracies must "
                "be in percent."
            )
        arrays[name] = values
    for name, (both, half) in DERIVED.items():
        if both in arrays and half in arrays:
            arrays[name] = 2 * arrays[both] - arrays[half]
        else:
            sentences.append(f"Warning: {name} could not be produced without {both} and {half}.")
    if not arrays:
        raise UserError(f"{source} holds none of the accuracies that are imported.")
    return arrays, sentences
