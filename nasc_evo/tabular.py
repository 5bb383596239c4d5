"""Official figures of NAS-Bench-201: accuracies as an evaluator, and everything by index or string.

Accuracies are those of NATS-Bench (Dong et al. 2021, MIT; networks trained for 200 epochs, mean
over the official seeds), read from `$NASC_EVO_DATA/hwnas/nb201_accuracy.npz`, which `python -m
nasc_evo.costs import-natsbench` writes; they are the reference that inheritance is held to. A
search sees the validation accuracy, the test accuracy is for the end.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nasc_evo.cost.network import MAX_OFFICIAL_BYTES, OFFICIAL_FILE, official_costs
from nasc_evo.data.images import ImageDataset, data_folder
from nasc_evo.errors import UserError
from nasc_evo.files import read_arrays
from nasc_evo.space import ArchitectureSpace, Design, NASBench201Space
from nasc_evo.supernet.score import Score

ACCURACY_FILE = Path("hwnas") / "nb201_accuracy.npz"


class Column(NamedTuple):
    """Name of an array of percentages, and how many images stand behind each."""

    name: str
    images: int


TABLES = {
    "cifar100": {
        "search": Column("cifar100_xvalid_200_derived", 5000),
        "test": Column("cifar100_xtest_200", 5000),
    }
}
"""The official validation and test accuracies of each data set."""


def read_accuracies() -> tuple[Path, dict[str, NDArray] | None]:
    """Return the official accuracies by the names of their file, None where it is not at hand.

    Raises:
        UserError: If the file is damaged.
    """
    folder = data_folder()
    path = (folder or Path()) / ACCURACY_FILE
    if folder is None or not path.is_file():
        return path, None
    advice = "write it anew with `python -m nasc_evo.costs import-natsbench FOLDER`."
    return path, read_arrays(path, advice, MAX_OFFICIAL_BYTES)


def query(arch: int | str, dataset: str = "cifar10") -> dict[str, Any]:
    """Return everything the official files say of one architecture.

    For users who come from HW-NAS-Bench (`query_by_index`) or NATS-Bench: the same numbers.

    Args:
        arch: Official index, 0..15624, or official string.
        dataset: `cifar10`, `cifar100` or `ImageNet16-120`, for the costs.

    Returns:
        `index`, `arch`, `macs`, `params`; every cost by its official name, such as
        `edgegpu_latency` (ms) and `edgegpu_energy` (mJ), None where there is none; and every
        accuracy in percent by its name in the data file, such as `cifar100_xtest_200`.

    Raises:
        UserError: If there is no such architecture or data set, or neither file is at hand.
    """
    classes = {"cifar10": 10, "cifar100": 100, "ImageNet16-120": 120}
    if dataset not in classes:
        raise UserError(f"dataset must be one of {', '.join(classes)}, got '{dataset}'.")
    space = NASBench201Space(32, classes[dataset])
    n = len(space.architectures)
    if isinstance(arch, str):
        index = int(space.index(space.parse(arch)[None])[0])
    elif not isinstance(arch, int | np.integer) or isinstance(arch, bool) or not 0 <= arch < n:
        raise UserError(f"An index of NAS-Bench-201 is in 0..{n - 1}, got {arch!r}.")
    else:
        index = int(arch)
    ops = space.architectures[index][None]
    costs, (_, accuracies) = official_costs(n), read_accuracies()
    if costs is None and accuracies is None:
        raise UserError(
            f"The official figures are not at hand: $NASC_EVO_DATA must hold {OFFICIAL_FILE} or "
            f"{ACCURACY_FILE}, see `python -m nasc_evo.costs --help`."
        )
    result: dict[str, Any] = {"index": index, "arch": space.format(ops[0])}
    if dataset != "ImageNet16-120":  # whose networks see smaller images
        result |= {"macs": int(space.macs(ops)[0]), "params": int(space.params(ops)[0])}
    if costs is not None:
        values = costs.values[costs.datasets.index(dataset), :, index].tolist()
        result |= {
            name: value if value >= 0 else None
            for name, value in zip(costs.metrics, values, strict=True)
        }
    for name, array in (accuracies or {}).items():
        if array.shape == (n,) and array.dtype.kind == "f":
            result[name] = float(array[index])
    return result


class TabularEvaluator:
    """Scores whole networks by their official accuracies; what is sent counts as lossless.

    Args:
        space: The NAS-Bench-201 space.
        dataset: `cifar100`; its images are not read.

    Raises:
        UserError: If there are no figures for the space or the data set, or they are missing or
            damaged.
    """

    knows_whole_networks_only = True

    def __init__(self, space: ArchitectureSpace, dataset: ImageDataset) -> None:
        if space.name != "nasbench201":
            raise UserError(
                f"There are no official accuracies for {space.name}; use evaluator=supernet, or "
                "problem=nasbench201."
            )
        if dataset.name not in TABLES:
            raise UserError(
                f"There are official accuracies for {', '.join(TABLES)}, not for {dataset.name}; "
                "use dataset=cifar100 or evaluator=supernet."
            )
        self.space = space
        self.columns = TABLES[dataset.name]
        self.dataset = dataset.name
        self.accuracies = self._read()
        """Fractions of correct images, `[15625]` by the name of the split."""
        self.images = self.columns["search"].images

    def _read(self) -> dict[str, NDArray[np.float64]]:
        path, arrays = read_accuracies()
        if arrays is None:
            raise UserError(
                f"evaluator=tabular needs the official accuracies, {ACCURACY_FILE} in the folder "
                "$NASC_EVO_DATA: get NATS-tss-v1_0-3ffb9-simple of NATS-Bench and write it with "
                "`python -m nasc_evo.costs import-natsbench FOLDER`; evaluator=supernet needs none."
            )
        missing = [c.name for c in self.columns.values() if c.name not in arrays]
        if missing:
            raise UserError(f"The data file {path} lacks '{missing[0]}'; write it anew.")
        arrays = {split: arrays[column.name] for split, column in self.columns.items()}
        for array in arrays.values():
            if array.shape != (len(self.space.architectures),) or not (
                array.dtype.kind == "f" and np.all((array >= 0) & (array <= 100))
            ):
                raise UserError(
                    f"The data file {path} must hold a percentage for each of the "
                    f"{len(self.space.architectures)} architectures; write it anew."
                )
        return {split: array / 100 for split, array in arrays.items()}

    def evaluate(
        self, designs: Sequence[Design], split: str = "search", images: int | None = None
    ) -> Iterator[tuple[int, Score]]:
        """Yield `(index, score)` of each design, as :class:`Evaluator` says."""
        count = self.split_size(split)
        if images not in (None, count):
            raise UserError(f"The official accuracies stand for {count} images, not {images}.")
        if not designs:
            return
        index = self.space.index(np.array([design.ops for design in designs]))
        for row, accuracy in enumerate(self.accuracies[split][index].tolist()):
            yield row, Score(accuracy * count, count)

    def split_size(self, split: str) -> int:
        """Return how many images an accuracy stands for."""
        return self.columns[split].images

    def describe(self) -> dict[str, Any]:
        """Return what fixes the numbers."""
        return {"accuracies": self._source, "dataset": self.dataset, "images": self.images}

    @cached_property
    def _source(self) -> str:
        digest = hashlib.sha256()
        for array in self.accuracies.values():
            digest.update(array.tobytes())
        return f"official, sha256 {digest.hexdigest()}"
