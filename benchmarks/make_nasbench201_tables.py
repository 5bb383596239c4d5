"""Write the cost tables of the NAS-Bench-201 space that ship with the package.

HW-NAS-Bench and HELP measured whole networks of this space. An additive model is fitted to them:
one figure for every operation on every edge, and a constant for what all networks share. What
whole networks cannot tell (how a figure divides between the three stages, and the constant between
stem, reductions and head) is set by a stated rule; the header says how good the fit is.

Input: `hwnas/nb201_hw.npz` and `hwnas/nb201_servers_help.npz` in `$NASC_EVO_DATA`.

    python benchmarks/make_nasbench201_tables.py [--date 2026-11-23] [--out nasc_evo/cost/tables]
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from make_cost_tables import (
    DEFAULT_DATE,
    FIT_DECIMALS,
    FOLDS,
    HELP_PAPER,
    HWNAS_PAPER,
    SERVERS,
    FloatArray,
    FlowList,
    HeaderDumper,
    base_header,
    scores,
)
from numpy.typing import NDArray
from scipy.optimize import nnls

from nasc_evo.cost.network import DID_NOT_COMPILE, OFFICIAL_DATASET, pack_flags
from nasc_evo.space.nasbench201 import (
    EDGES,
    NONE,
    OPS,
    POOL,
    SKIP,
    STAGE_CELLS,
    STAGE_CHANNELS,
    STAGE_SIZES,
    NASBench201Space,
)

SPACE = NASBench201Space(32, 10)
SMALL_DATASET = "ImageNet16-120"
SMALL_AREA = 1 / 4
"""Pixels of a 16x16 image against those of a 32x32 one."""
FLAGGED = "did_not_compile"

DEVICES = {
    "edgegpu": "NVIDIA Jetson TX2, the edge GPU of HW-NAS-Bench",
    "raspi4": "Raspberry Pi 4",
    "edgetpu": "Google Edge TPU (Coral Dev Board)",
    "pixel3": "Google Pixel 3 phone",
    "eyeriss": "Eyeriss accelerator (ASIC), estimated",
    "fpga": "FPGA accelerator of HW-NAS-Bench",
}
SHARES_OF = {"titan_rtx": "edgegpu", "xeon_gold_6226": "raspi4"}
"""Devices whose shares a server takes over: its source has no networks of another size."""
PRUNED_CHOICES: tuple[tuple[str, ...], ...] = ((), ("unused",), ("unused", "zero_input"))

MIDDLE = [(STAGE_CHANNELS[i], STAGE_CHANNELS[i + 1], STAGE_SIZES[i + 1]) for i in range(2)]
CONSTANT_PARTS = ("stem", "reduction_1", "reduction_2", "head")
LAYERS = np.array([1, 4, 4, 3])
"""Layers of the constant parts: a reduction has three convolutions and a pooling, the head a norm,
a pooling and the classifier."""
MACS = np.array(
    [
        27 * STAGE_CHANNELS[0] * STAGE_SIZES[0] ** 2,
        *((9 * (a * b + b * b) + a * b) * size**2 for a, b, size in MIDDLE),
        STAGE_CHANNELS[-1] * 10,
    ]
)
ELEMENTS = np.array([c * s**2 for c, s in zip(STAGE_CHANNELS, STAGE_SIZES, strict=True)])


@dataclass(frozen=True)
class Fit:
    """An additive model: `constant` and figures `[6 edges, 5 operations]`."""

    constant: float
    figures: FloatArray

    def predict(self, codes: NDArray) -> FloatArray:
        """Return the figures of networks `[P, 6]`."""
        return self.constant + self.figures[np.arange(len(EDGES)), codes].sum(axis=1)


def without_dead(ops: NDArray, pruned: tuple[str, ...]) -> NDArray:
    """Return architectures in which dead operations of the kinds `pruned` are `none`."""
    first = SPACE.block_start[1]
    return SPACE.position_codes(ops, pruned)[:, first : first + len(EDGES)]


def fit_edges(codes: NDArray, y: FloatArray) -> Fit:
    """Fit one non-negative figure for each operation of each edge; `none` is 0."""
    columns = [codes[:, e] == op for e in range(len(EDGES)) for op in range(1, len(OPS))]
    solution, _ = nnls(np.column_stack([np.ones(len(y)), *columns]).astype(float), y)
    figures = np.zeros((len(EDGES), len(OPS)))
    figures[:, 1:] = np.round(solution[1:], FIT_DECIMALS).reshape(len(EDGES), -1)
    return Fit(round(float(solution[0]), FIT_DECIMALS), figures)


def fit_operations(codes: NDArray, y: FloatArray) -> FloatArray:
    """Fit a constant and one non-negative figure for each operation, `[5]`, `none` the constant."""
    columns = [(codes == op).sum(axis=1) for op in range(1, len(OPS))]
    solution, _ = nnls(np.column_stack([np.ones(len(y)), *columns]).astype(float), y)
    return solution


def cross_validate(codes: NDArray, y: FloatArray) -> FloatArray:
    """Return out-of-fold predictions."""
    fold = np.random.default_rng(0).permutation(len(y)) % FOLDS
    predicted = np.empty(len(y))
    for k in range(FOLDS):
        predicted[fold == k] = fit_edges(codes[fold != k], y[fold != k]).predict(codes[fold == k])
    return predicted


def fixed_shares(large: FloatArray, small: FloatArray) -> FloatArray:
    """Return which share of each figure does not depend on the size of the image, `[5]`.

    A figure is taken to be `fixed + work`, of which only the work shrinks with the area.
    """
    fixed = (small - SMALL_AREA * large) / (1 - SMALL_AREA)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.clip(fixed / large, 0, 1)).round(3)


def place(fit: Fit, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return figures of one cell `[3 stages, 6 edges, 5 ops]` and of the constant parts `[4]`.

    A fixed share is divided equally over cells (or layers of the constant parts), the rest as
    the multiply-accumulates of convolutions, which are equal in all stages, or as the elements
    of the tensor for skips and poolings.
    """
    stages = np.full((len(STAGE_CHANNELS), len(OPS)), 1 / len(STAGE_CHANNELS))
    for op in (SKIP, POOL):
        work = ELEMENTS / ELEMENTS.sum()
        stages[:, op] = shares[op] / len(STAGE_CHANNELS) + (1 - shares[op]) * work
    cells = fit.figures[None] * stages[:, None, :] / STAGE_CELLS
    parts = shares[0] * LAYERS / LAYERS.sum() + (1 - shares[0]) * MACS / MACS.sum()
    return cells, fit.constant * parts


def machine_table(
    name: str,
    description: str,
    latency: FloatArray,
    energy: FloatArray | None,
    shares: dict[str, FloatArray],
    *,
    source: str,
    licence: str,
    quirks: list[str],
    date: str,
) -> str:
    """Return the text of a table fitted to whole networks, `[15625]`, NaN where unknown."""
    measured = latency > 0
    all_pruned = without_dead(SPACE.architectures, SPACE.prunable)
    connected = (all_pruned != NONE).any(axis=1)
    runs = {
        pruned: cross_validate(
            without_dead(SPACE.architectures[measured & connected], pruned),
            latency[measured & connected],
        )
        for pruned in PRUNED_CHOICES
    }
    y = latency[measured & connected]
    mape = {pruned: scores(y, predicted)["mape_percent"] for pruned, predicted in runs.items()}
    pruned = min(PRUNED_CHOICES, key=lambda choice: mape[choice])
    codes = without_dead(SPACE.architectures[measured & connected], pruned)
    header = base_header(name, description, 32, date, SPACE.name)
    columns = [place(fit_edges(codes, y), shares["latency"])]
    if energy is not None:
        columns.append(place(fit_edges(codes, energy[measured & connected]), shares["energy"]))
    header["source"], header["licence"] = source, licence
    header["method"] = (
        "Non-negative least squares: latency of a network = constant + one figure for each "
        "(edge, operation), none is 0; networks whose output does not depend on the input are left "
        "out. Dead operations of the kinds in 'pruned' cost nothing: of none, unused, and unused "
        "and zero_input, the choice with the smallest cross-validated MAPE. A figure divides "
        "between the stages, and the constant between stem, reductions and head, by a rule: its "
        "fixed share (fit, fixed_share) equally over cells or layers, the rest as the "
        "multiply-accumulates of convolutions or the elements of skips and poolings. Where the "
        "official figures are at hand, the figures of a network are scaled to its official total."
    )
    header["pruned"] = FlowList(pruned)
    header["quirks"] = quirks
    header["fit"] = {
        "networks": int((measured & connected).sum()),
        "cross_validated": scores(y, runs[pruned]),
        "mape_percent_by_pruned": {"+".join(k) or "none": v for k, v in mape.items()},
        "fixed_share": dict(
            zip(("constant", *OPS[1:]), map(float, shares["latency"]), strict=True)
        ),
        "median_latency_ms": round(float(np.median(latency[measured])), 4),
    }
    if energy is not None:
        predicted = cross_validate(codes, energy[measured & connected])
        header["fit"]["energy_cross_validated"] = scores(energy[measured & connected], predicted)
    refused = latency == DID_NOT_COMPILE
    if refused.any():
        header[FLAGGED] = pack_flags(refused)
    text = yaml.dump(header, Dumper=HeaderDumper, sort_keys=False, width=96, allow_unicode=True)
    lines = [f"# {line}" for line in text.splitlines()]
    return "\n".join([*lines, "position,op,latency_ms,energy_mj", *table_rows(columns)]) + "\n"


def table_rows(columns: list[tuple[FloatArray, FloatArray]]) -> list[str]:
    """Return the CSV rows of `(cells, constant parts)` of latency and, if there, energy."""
    rows = []
    seen: dict[str, int] = {}
    for position in SPACE.positions:
        if position.name in seen or position.optional:
            continue
        seen[position.name] = 1
        for op, op_name in enumerate(position.ops):
            values = []
            for cells, parts in columns:
                if position.name in CONSTANT_PARTS:
                    value = parts[CONSTANT_PARTS.index(position.name)]
                else:
                    _, stage, _, source, target = position.name.split("_")
                    value = cells[int(stage) - 1, EDGES.index((int(source), int(target))), op]
                values.append(repr(round(float(value), 12)))
            values += [""] * (2 - len(values))
            rows.append(",".join([position.name, op_name, *values]))
    return rows


def shares_of(large: FloatArray, small: FloatArray) -> FloatArray:
    """Return the fixed shares of a metric from all networks at two image sizes."""
    both = []
    for y in (large, small):
        known = y > 0
        codes = without_dead(SPACE.architectures[known], ("unused",))
        keep = codes.any(axis=1)
        both.append(fit_operations(codes[keep], y[known][keep]))
    return fixed_shares(*both)


def main() -> None:
    """Write all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[1] / "nasc_evo" / "cost" / "tables"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--date", default=DEFAULT_DATE)
    args = parser.parse_args()
    if not os.environ.get("NASC_EVO_DATA"):
        raise SystemExit("set NASC_EVO_DATA to the folder that holds hwnas/nb201_hw.npz")
    folder = Path(os.environ["NASC_EVO_DATA"]) / "hwnas"
    with np.load(folder / "nb201_hw.npz", allow_pickle=False) as file:
        values, metrics = file["values"], file["metrics"].tolist()
        datasets = file["datasets"].tolist()

    def figures(device: str, metric: str, dataset: str) -> FloatArray | None:
        column = f"{device}_{metric}"
        if column not in metrics:
            return None
        return values[datasets.index(dataset), metrics.index(column)]

    shares: dict[str, dict[str, FloatArray]] = {}
    tables = {}
    for device, description in DEVICES.items():
        shares[device] = {}
        columns: dict[str, Any] = {}
        for metric in ("latency", "energy"):
            columns[metric] = figures(device, metric, OFFICIAL_DATASET)
            small = figures(device, metric, SMALL_DATASET)
            if columns[metric] is not None and small is not None:
                shares[device][metric] = shares_of(columns[metric], small)
        known = int((columns["latency"] > 0).sum())
        quirks = [
            f"The source measured whole networks on {OFFICIAL_DATASET}, not blocks; the "
            f"constant parts and the stages are placed by rule. {known} of 15625 networks have a "
            "figure here."
        ]
        if device == "fpga":
            quirks.append("Energy of this source is 7.0 times its latency; a skip costs nothing.")
        if device == "edgetpu":
            failed = int((columns["latency"] == DID_NOT_COMPILE).sum())
            quirks.append(
                f"{failed} networks did not compile (did_not_compile); of "
                f"{int(np.isnan(columns['latency']).sum())} others it is not known here."
            )
        tables[device] = machine_table(
            device,
            f"{description}, fitted to whole networks",
            columns["latency"],
            columns["energy"],
            shares[device],
            source=HWNAS_PAPER,
            licence="MIT (HW-NAS-Bench; the fit is part of this package)",
            quirks=quirks,
            date=args.date,
        )
    with np.load(folder / "nb201_servers_help.npz", allow_pickle=False) as file:
        for server, (column, description) in SERVERS.items():
            tables[server] = machine_table(
                server,
                f"{description}, fitted to whole networks",
                file[column].astype(np.float64),
                None,
                shares[SHARES_OF[server]],
                source=f"{HELP_PAPER}, data/nasbench201/latency; fixed shares of "
                f"{SHARES_OF[server]}: {HWNAS_PAPER}",
                licence="MIT (HELP and HW-NAS-Bench; the fit is part of this package)",
                quirks=[
                    "The source does not state the unit of its figures; they are consistent with "
                    "ms. Energy is not known for this machine."
                ],
                date=args.date,
            )
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        path = args.out / f"{SPACE.name}_32_{name}.csv"
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path)


if __name__ == "__main__":
    main()
