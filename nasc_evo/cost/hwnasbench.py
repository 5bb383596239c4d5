"""The official file of HW-NAS-Bench (Li et al., ICLR 2021, MIT): `HW-NAS-Bench-v1_0.pickle`.

The file is a mapping: `nasbench201[dataset][metric][i]` is a figure of the i-th architecture in
the official order (ms or mJ, batch 1) and `nasbench201[dataset]["config"][i]["arch_str"]` its
string; `fbnet[metric][key]` is a figure of one operator. Metrics and keys are those that
`hw_nas_bench_api/hw_nas_bench_api.py` of GATECH-EIC/HW-NAS-Bench looks up (commit 6c67e04); that
`config` is a list of mappings was read off public code that uses the file. The README there prints
the figures of architecture 0 on CIFAR-10. -1 in `edgetpu_latency` marks networks that did not
compile. This reader was tested on files built to that description, not on the official file.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasc_evo.cost.network import DID_NOT_COMPILE, OFFICIAL_FILE
from nasc_evo.cost.network import OFFICIAL_DATASETS as DATASETS
from nasc_evo.cost.official import check_strings, official_strings, write_npz
from nasc_evo.cost.restricted import read_pickle
from nasc_evo.cost.table import CostTable, write_table
from nasc_evo.errors import UserError, brief, one_line
from nasc_evo.space.architecture import REFERENCE_CLASSES
from nasc_evo.space.fbnet import FBNetSpace, LayerGeometry, conv_op
from nasc_evo.space.nasbench201 import NASBench201Space

METRICS = (
    "edgegpu_latency",
    "edgegpu_energy",
    "raspi4_latency",
    "edgetpu_latency",
    "pixel3_latency",
    "eyeriss_latency",
    "eyeriss_energy",
    "fpga_latency",
    "fpga_energy",
)
NOT_COMPILING_METRIC = "edgetpu_latency"
INTENSITY = "eyeriss_arithmetic_intensity"
"""Not a cost; older versions of the file may lack it."""
PROVENANCE = ("0 missing", "1 original table value (float64)")
MAX_BYTES = 256 * 2**20
MAX_FIGURE = 1e4
"""Largest plausible figure in ms or mJ, a hundred times the largest one known."""

FloatArray = NDArray[np.float64]


def import_file(path: Path, folder: Path) -> list[str]:
    """Write `nb201_hw.npz` and FBNet tables from the official file; compare those with ours.

    Args:
        path: The official file.
        folder: Where to write; it exists.

    Returns:
        Sentences for the user.

    Raises:
        UserError: If the file is damaged or holds anything else than expected; nothing is
            written then.
    """
    content = read_pickle(path, MAX_BYTES)
    arrays = network_arrays(content, path)
    difference = first_difference(content, path)
    tables = fbnet_rows(content, path)
    target = folder / OFFICIAL_FILE.name
    write_npz(target, arrays)
    refused = int((arrays["values"] == DID_NOT_COMPILE).sum())
    sentences = [
        f"{target}: {arrays['values'].size} figures of {arrays['values'].shape[-1]} NAS-Bench-201 "
        f"networks, {refused} of them marking networks that did not compile."
    ]
    for (machine, space), rows in tables.items():
        header = dict(CostTable.shipped(machine, space).header)
        header["date"] = f"figures published in 2021, imported on {date.today().isoformat()}"
        write_table(folder / f"{space.name}_{space.geometry}_{machine}.csv", space, header, rows)
    sentences.append(
        f"{folder / 'fbnet_*.csv'}: {len(tables)} FBNet tables, for device=table device.path=FILE."
    )
    if difference is None:
        sentences.append("The FBNet figures agree with the tables that ship, every one of them.")
    else:
        sentences.append(
            f"Warning: the FBNet figures differ from the tables that ship: {difference}"
        )
    return sentences


def network_arrays(content: Any, path: Path) -> dict[str, NDArray]:
    """Return the content of `nb201_hw.npz`.

    Args:
        content: What the official file holds.
        path: Where it came from, for messages.

    Returns:
        `values` `[datasets, metrics, networks]` in ms and mJ, `provenance` likewise (all 1), the
        names of their axes, and the arithmetic intensity on Eyeriss (NaN where not in the file).

    Raises:
        UserError: If a part is missing or a figure or an architecture is not the expected one.
    """
    strings = official_strings(NASBench201Space())
    part = _part(content, "nasbench201", str(path))
    values = np.empty((len(DATASETS), len(METRICS), len(strings)))
    for i, dataset in enumerate(DATASETS):
        figures = _part(part, dataset, f"nasbench201 in {path}")
        where = f"config of {dataset} in {path}"
        configs = _part(figures, "config", f"{dataset} in {path}")
        check_strings(_strings(configs, where), strings, where)
        for j, metric in enumerate(METRICS):
            where = f"{metric} of {dataset} in {path}"
            figure = _part(figures, metric, f"{dataset} in {path}")
            values[i, j] = _in_order(figure, len(strings), where)
            _check_figures(values[i, j], metric, where)
    intensity = np.full(len(strings), np.nan)
    if INTENSITY in part[DATASETS[0]]:
        where = f"{INTENSITY} of {DATASETS[0]} in {path}"
        intensity[:] = _in_order(part[DATASETS[0]][INTENSITY], len(strings), where)
    return {
        "values": values,
        "provenance": np.ones(values.shape, dtype=np.uint8),
        "datasets": np.array(DATASETS),
        "metrics": np.array(METRICS),
        "provenance_code": np.array(PROVENANCE),
        f"{INTENSITY}_{DATASETS[0]}": intensity,
    }


def _part(content: Any, key: str, where: str) -> Any:
    if not isinstance(content, Mapping) or key not in content:
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else "no mapping"
        raise UserError(
            f"'{key}' is missing in {where} (found: {found}); give the official "
            "HW-NAS-Bench-v1_0.pickle."
        )
    return content[key]


def _in_order(figures: Any, n: int, where: str) -> FloatArray:
    try:
        if isinstance(figures, list | tuple) and not all(
            isinstance(figure, int | float | np.number) for figure in figures
        ):
            raise ValueError("something in it is no number")
        array = np.asarray(figures, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where} must hold {n} numbers ({one_line(error)}).") from error
    if array.shape != (n,):
        raise UserError(f"{where} must hold {n} numbers, got an array of shape {array.shape}.")
    return array


def _check_figures(figures: FloatArray, metric: str, where: str) -> None:
    good = (figures > 0) & (figures <= MAX_FIGURE)
    allowed = f"a number above 0 and up to {MAX_FIGURE:g}"
    if metric == NOT_COMPILING_METRIC:
        good |= figures == DID_NOT_COMPILE
        allowed += f", or {DID_NOT_COMPILE:g} where the network did not compile"
    if not good.all():
        first = int(np.argmin(good))
        raise UserError(
            f"{where} is {figures[first]} for architecture {first}; it must be {allowed}."
        )


def _strings(configs: Any, where: str) -> list[Any]:
    if isinstance(configs, np.ndarray) and configs.ndim == 1:
        configs = list(configs)
    if not isinstance(configs, list | tuple):
        raise UserError(f"{where} must be a list of architectures.")
    return [config.get("arch_str") if isinstance(config, Mapping) else None for config in configs]


def _fbnet_columns(
    content: Any, path: Path
) -> Iterator[tuple[str, FBNetSpace, str, dict[tuple[int, int], tuple[str, Any]]]]:
    """Yield machine, space, column, and by position and operation the official key and figure."""
    part = _part(content, "fbnet", str(path))
    for geometry, classes in REFERENCE_CLASSES.items():
        space = FBNetSpace(geometry, classes)
        keys = lookup_keys(space)
        for metric in METRICS:
            if metric == NOT_COMPILING_METRIC:  # has no FBNet part
                continue
            figures = _part(part, metric, f"fbnet in {path}")
            machine, _, kind = metric.partition("_")
            column = "latency_ms" if kind == "latency" else "energy_mj"
            known = figures if isinstance(figures, Mapping) else {}
            yield machine, space, column, {at: (key, known.get(key)) for at, key in keys.items()}


def first_difference(content: Any, path: Path) -> str | None:
    """Compare the FBNet part with every official table that ships.

    Args:
        content: What the official file holds.
        path: Where it came from, for messages.

    Returns:
        A sentence on the first difference, None if all figures are equal.

    Raises:
        UserError: If there is no FBNet part.
    """
    for machine, space, column, figures in _fbnet_columns(content, path):
        ours = getattr(CostTable.shipped(machine, space), column)
        for at, (key, got) in figures.items():
            if not isinstance(got, int | float) or got != float(ours[at]):  # an int of any size
                return (
                    f"{column} of {machine} for {key} is {brief(got)} in {path} and {ours[at]} in "
                    "the table."
                )
    return None


def fbnet_rows(
    content: Any, path: Path
) -> dict[tuple[str, FBNetSpace], dict[tuple[str, str], dict[str, float | None]]]:
    """Return the rows of an FBNet table for each machine and geometry.

    Args:
        content: What the official file holds.
        path: Where it came from, for messages.

    Raises:
        UserError: If a figure is missing or no number of at least 0.
    """
    tables: dict[tuple[str, int], tuple[FBNetSpace, dict[Any, dict[str, float | None]]]] = {}
    for machine, space, column, figures in _fbnet_columns(content, path):
        _, rows = tables.setdefault((machine, space.geometry), (space, {}))
        for (i, j), (key, got) in figures.items():
            number = isinstance(got, int | float) and not isinstance(got, bool)
            if not (number and 0 <= got <= MAX_FIGURE):
                raise UserError(
                    f"{column} of {machine} for {key} in {path} must be a number of at least 0 and "
                    f"up to {MAX_FIGURE:g}, got {brief(got)}."
                )
            position = space.positions[i]
            rows.setdefault((position.name, position.ops[j]), {})[column] = float(got)
    return {(machine, space): rows for (machine, _), (space, rows) in tables.items()}


def lookup_keys(space: FBNetSpace) -> dict[tuple[int, int], str]:
    """Return the official key of each figure of a cost table, by position and operation."""
    last, head = space.layers[-1], space.head_channels
    size = last.size_out
    fixed = {
        "stem": f"ConvNorm_H{space.geometry}_W{space.geometry}_Cin3_Cout"
        f"{space.layers[0].channels_in}_kernel3_stride{space.stem_stride}_group1",
        "head": f"ConvNorm_H{size}_W{size}_Cin{last.channels_out}_Cout{head}"
        "_kernel1_stride1_group1",
        "avgpool": f"AvgP_H{size}_W{size}_Cin{head}_Cout{head}_kernel{size}_stride1",
        "fc": f"FC_Cin{head}_Cout{space.n_classes}",
    }
    layers = {f"layer_{i + 1}": layer for i, layer in enumerate(space.layers)}
    return {
        (i, j): fixed.get(position.name) or _layer_key(layers[position.name], op)
        for i, position in enumerate(space.positions)
        for j, op in enumerate(position.ops)
    }


def _layer_key(layer: LayerGeometry, name: str) -> str:
    shape = f"H{layer.size_in}_W{layer.size_in}_Cin{layer.channels_in}_Cout{layer.channels_out}"
    if name == "skip":
        return f"Skip_{shape}_stride{layer.stride}"
    op = conv_op(name)
    return (
        f"ConvBlock_{shape}_exp{op.expansion}_kernel{op.kernel}_stride{layer.stride}"
        f"_group{op.groups}"
    )
