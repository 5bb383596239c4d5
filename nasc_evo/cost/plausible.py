"""Whether the figures of a user's cost table look like what they should be."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nasc_evo.cost.table import TABLES, CostTable
from nasc_evo.space.architecture import ArchitectureSpace

FAR = 3.0
"""How far beyond the shipped tables a figure counts as one in another unit, if in a unit 1000 times
larger or smaller it is within them."""
VERY_FAR = 30.0
"""How far beyond them it does in any case: about the square root of 1000."""
OTHER_UNITS = {
    "latency_ms": ("ms", "seconds", "microseconds"),
    "energy_mj": ("mJ", "joules", "microjoules"),
}
MAX_MAPE_PERCENT = 5.0
MIN_TAU = 0.9
SKIPS = ("skip", "skip_connect")
NOTHING = "none"
"""The operation that may be faster than a skip."""
POOLING = "avg_pool_3x3"
"""The operation that has most of its cost in a row `pools` where a table has one."""


def figures_of(table: CostTable) -> dict[str, NDArray[np.float64]]:
    """Return the columns that a table has."""
    columns = {"latency_ms": table.latency_ms, "energy_mj": table.energy_mj}
    return {name: figures for name, figures in columns.items() if figures is not None}


def average_network(figures: NDArray[np.float64], space: ArchitectureSpace) -> float:
    """Return the cost of a network in which every operation is the average of its position.

    Optional rows count as often as they occur in networks.
    """
    averages = np.nanmean(figures, axis=1)
    optional = [i for i, position in enumerate(space.positions) if position.optional]
    if optional:
        codes = space.position_codes(space.architectures, space.prunable)[:, optional]
        averages[optional] = figures[optional, codes].mean(axis=0)
    return float(averages.sum())


def shipped_range(space: ArchitectureSpace, column: str) -> tuple[float, float] | None:
    """Return the smallest and largest average network of the tables that ship; None without any."""
    averages = [
        average_network(figures[column], space)
        for path in TABLES.glob(f"{space.name}_{space.geometry}_*.csv")
        if column in (figures := figures_of(CostTable.load(path, space)))
    ]
    return (min(averages), max(averages)) if averages else None


def implausible(table: CostTable, space: ArchitectureSpace) -> list[str]:
    """Return one sentence for each kind of figure that is probably a mistake."""
    return [
        sentence
        for column, figures in figures_of(table).items()
        for sentence in (
            *_other_unit(figures, column, space),
            *_faster_than_skip(figures, column, space),
            *_all_equal(figures, column, space),
        )
    ] + list(_bad_prediction(table))


def _bad_prediction(table: CostTable) -> Iterator[str]:
    error = table.prediction_error()
    if error is not None and (error[0] > MAX_MAPE_PERCENT or error[1] < MIN_TAU):
        yield (
            f"measured whole networks are predicted with an error of {error[0]:g} % and Kendall's "
            f"tau {error[1]:g}; {MAX_MAPE_PERCENT:g} % and {MIN_TAU:g} are usual on a quiet "
            "machine: delete the table and measure it with more rounds, to which earlier ones "
            "count."
        )
    error = table.prediction_error("energy_mj")
    if error is not None and error[0] > MAX_MAPE_PERCENT:
        yield (
            f"energies of measured whole networks are predicted with an error of {error[0]:g} %; "
            f"up to {MAX_MAPE_PERCENT:g} % is usual. Delete the table and, of its samples, the "
            "lines with energy_mj, and give the same command."
        )


def _other_unit(
    figures: NDArray[np.float64], column: str, space: ArchitectureSpace
) -> Iterator[str]:
    known = shipped_range(space, column)
    if known is None:
        return
    average = average_network(figures, space)
    unit, larger, smaller = OTHER_UNITS[column]
    low, high = known
    if average < low / VERY_FAR or (average < low / FAR and low <= 1000 * average <= high):
        looks_like, factor = larger, "multiply by 1000"
    elif average > high * VERY_FAR or (average > high * FAR and low <= average / 1000 <= high):
        looks_like, factor = smaller, "divide by 1000"
    else:
        return
    yield (
        f"{column} looks like {looks_like}: an average network costs {average:.3g}, where the "
        f"tables that ship have {low:.3g} to {high:.3g} {unit}; {factor} if so."
    )


def _faster_than_skip(
    figures: NDArray[np.float64], column: str, space: ArchitectureSpace
) -> Iterator[str]:
    found = {}
    for block, shape in enumerate(space.cut_shapes[:-1]):
        if shape != space.cut_shapes[block + 1]:
            continue  # a skip here is no identity and takes time of its own
        rows = range(space.block_start[block], space.block_start[block + 1])
        pooled = sum(
            figures[i, space.positions[i].ops.index("1")]
            for i in rows
            if space.positions[i].name.endswith("_pools")
        )
        for i in rows:
            position = space.positions[i]
            for skip in set(position.ops) & set(SKIPS):
                least = figures[i, position.ops.index(skip)]
                for op, figure in zip(position.ops, figures[i], strict=False):
                    if op != NOTHING and figure + pooled * (op == POOLING) < least:
                        found[f"{position.name} {op}"] = f"{figure:g} against {least:g}"
    if found:
        first = next(iter(found))
        yield (
            f"{column} is below that of the skip at the same position, which does nothing, for "
            f"{len(found)} of the operations, the first is '{first}': {found[first]}."
        )


def _all_equal(
    figures: NDArray[np.float64], column: str, space: ArchitectureSpace
) -> Iterator[str]:
    names = dict.fromkeys(
        position.name
        for position, row in zip(space.positions, figures, strict=True)
        if len(position.ops) > 1 and not position.optional and np.ptp(row[: len(position.ops)]) == 0
    )
    if names:
        yield (
            f"Positions where {column} is the same for every operation: {len(names)}, the first is "
            f"'{next(iter(names))}'."
        )
