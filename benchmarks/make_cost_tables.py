"""Write the cost tables of the FBNet space that ship with the package.

Two kinds of table come out of it, all with the same layout (a YAML mapping in `# ` comment lines,
then CSV rows `position,op,latency_ms,energy_mj`):

* `fbnet_<32|224>_<device>.csv`: the per-operator figures of HW-NAS-Bench, taken over unchanged.
* `fbnet_32_<server>.csv`: an additive model fitted to the whole-network latencies that HELP
  publishes for server-class machines. What such data cannot tell (how the constant part divides
  between the blocks) is set by a stated rule, and the header says how far it could be wrong.

Input: `hwnas/fbnet_layer_costs.npz` and `hwnas/fbnet_servers_help.npz` in `$NASC_EVO_DATA`.

    python benchmarks/make_cost_tables.py [--date 2026-11-23] [--out nasc_evo/cost/tables]
"""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import lsq_linear
from scipy.stats import kendalltau

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

FORMAT = "nasc_evo cost table 1"
DEFAULT_DATE = "2026-11-23"
OPS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
SKIP = OPS.index("skip")
FIXED = ("stem", "head", "avgpool", "fc")
LAYERS = 22
BLOCKS = LAYERS + 2  # stem, layers, head (with pooling and classifier)
GEOMETRIES = {32: "cifar100", 224: "ImageNet"}
CLASSES = {32: 100, 224: 1000}

DEVICES = {
    "edgegpu": "NVIDIA Jetson TX2, the edge GPU of HW-NAS-Bench, measured",
    "raspi4": "Raspberry Pi 4, measured",
    "pixel3": "Google Pixel 3 phone, measured",
    "eyeriss": "Eyeriss accelerator (ASIC), estimated",
    "fpga": "FPGA accelerator of HW-NAS-Bench",
}
ENERGY_DEVICES = ("edgegpu", "eyeriss", "fpga")
SERVERS = {
    "titan_rtx": ("titan_rtx_1", "NVIDIA Titan RTX, a desktop and server GPU"),
    "xeon_gold_6226": ("gold_6226", "Intel Xeon Gold 6226, a server CPU"),
}

HWNAS_PAPER = (
    "Li et al., HW-NAS-Bench: Hardware-Aware Neural Architecture Search Benchmark, ICLR 2021 "
    "(arXiv 2103.10584); repository GATECH-EIC/HW-NAS-Bench, version 1.0 "
    "(HW-NAS-Bench-v1_0.pickle)"
)
HELP_PAPER = (
    "Lee et al., HELP: Hardware-Adaptive Efficient Latency Prediction for NAS via Meta-Learning, "
    "NeurIPS 2021 (arXiv 2106.08630); repository HayeonLee/HELP (no version numbers)"
)

TRIM_MADS = 4.0  # a network further than this from the fit is trimmed (in robust sigmas)
TRIM_GAIN = 0.9  # trimming is used where it lowers the cross-validated MAPE below this share
FOLDS = 5
FIT_DECIMALS = 9  # a fit is rounded to this, so that the tables do not depend on the BLAS
DECIMALS = 12  # and what is placed by rule, which keeps whole-network latencies, to this


class FlowList(list[float]):
    """A list that YAML writes on one line, `[a, b]`."""


class HeaderDumper(yaml.SafeDumper):
    """Safe YAML dumper of the header: `FlowList` inline, everything else in block style."""


HeaderDumper.add_representer(
    FlowList,
    lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True),
)


@dataclass(frozen=True)
class Table:
    """Costs of one machine.

    Attributes:
        header: The YAML mapping written above the rows.
        fixed_latency: Latencies of stem, head, avgpool and fc in ms.
        layer_latency: Latencies `[22 layers, 9 operations]` in ms.
        fixed_energy: Energies of the fixed parts in mJ, or None where unknown.
        layer_energy: Energies of the layers in mJ, or None where unknown.
    """

    header: dict[str, Any]
    fixed_latency: FloatArray
    layer_latency: FloatArray
    fixed_energy: FloatArray | None = None
    layer_energy: FloatArray | None = None


@dataclass(frozen=True)
class LayerCosts:
    """The HW-NAS-Bench look-up table of the FBNet space.

    Attributes:
        cost: Costs `[dataset, metric, layer, operation]`.
        fixed: Costs `[dataset, metric, fixed part]`.
        geometry: `[dataset, layer, (H_in, C_in, C_out, stride, H_out)]`.
        datasets: Names of the first axis.
        metrics: Names of the metrics, such as `raspi4_latency`.
    """

    cost: FloatArray
    fixed: FloatArray
    geometry: IntArray
    datasets: list[str]
    metrics: list[str]

    def get(self, geometry: int, metric: str) -> tuple[FloatArray, FloatArray]:
        """Return the fixed costs and the layer costs of one metric.

        Args:
            geometry: Input size, 32 or 224.
            metric: Name of the metric.

        Returns:
            `[4]` costs of stem, head, avgpool, fc and `[22, 9]` costs of the layers.
        """
        i, j = self.datasets.index(GEOMETRIES[geometry]), self.metrics.index(metric)
        return self.fixed[i, j], self.cost[i, j]

    def identity(self, geometry: int) -> BoolArray:
        """Return which layers keep their shape, so that their skip is the identity.

        Args:
            geometry: Input size, 32 or 224.

        Returns:
            `[22]` booleans.
        """
        g = self.geometry[self.datasets.index(GEOMETRIES[geometry])]
        return (g[:, 1] == g[:, 2]) & (g[:, 3] == 1)


@dataclass(frozen=True)
class Fit:
    """An additive model, before its free offsets are set.

    Attributes:
        floating: Latency that the data cannot place: constant part plus the smallest operation of
            each layer that has no identity skip.
        layers: Latencies `[22, 9]` with the identity skips at 0 and, in each of the other layers,
            the smallest operation at 0.
        kept: Networks the fit was made with.
        standard_error: Standard errors `[22, 9]` of the figures against the skip of their layer.
    """

    floating: float
    layers: FloatArray
    kept: BoolArray
    standard_error: FloatArray

    def predict(self, archs: IntArray) -> FloatArray:
        """Return the whole-network latencies of `archs` (`[n, 22]` operation indices)."""
        return network_costs(np.array([self.floating, 0.0, 0.0, 0.0]), self.layers, archs)


def network_costs(fixed: FloatArray, layers: FloatArray, archs: IntArray) -> FloatArray:
    """Add up the costs of networks.

    Args:
        fixed: `[4]` costs of the fixed parts.
        layers: `[22, 9]` costs of the layers.
        archs: `[n, 22]` operation indices.

    Returns:
        `[n]` costs.
    """
    return fixed.sum() + layers[np.arange(LAYERS), archs].sum(axis=1)


def claim(holds: bool | np.bool_, sentence: str) -> str:
    """Return a sentence of a header after a check that the figures bear it out.

    Args:
        holds: Whether the figures do.
        sentence: The sentence.

    Returns:
        The sentence.

    Raises:
        ValueError: If they do not.
    """
    if not holds:
        raise ValueError(f"the figures contradict the header sentence: {sentence}")
    return sentence


def load_layer_costs(folder: Path) -> LayerCosts:
    """Read and check `fbnet_layer_costs.npz`.

    Args:
        folder: Folder `hwnas` of the data folder.

    Returns:
        The look-up table.

    Raises:
        ValueError: If the axes of the file are not the expected ones.
    """
    with np.load(folder / "fbnet_layer_costs.npz", allow_pickle=False) as z:
        if tuple(z["ops"]) != OPS or tuple(z["fixed_names"]) != FIXED:
            raise ValueError("fbnet_layer_costs.npz names other operations or parts than expected")
        return LayerCosts(
            cost=z["cost"],
            fixed=z["fixed"],
            geometry=z["geometry"],
            datasets=[str(s) for s in z["datasets"]],
            metrics=[str(s) for s in z["metrics"]],
        )


def base_header(
    name: str, description: str, geometry: int, date: str, space: str = "fbnet"
) -> dict[str, Any]:
    """Return the header keys common to all tables, in order, `source` to `method` still empty.

    Args:
        name: Name of the machine.
        description: One line on the machine.
        geometry: Input size, 32 or 224.
        date: Day the table was made.
        space: Space of architectures.

    Returns:
        The mapping.
    """
    return {
        "format": FORMAT,
        "name": name,
        "description": description,
        "space": space,
        "geometry": geometry,
        "batch": 1,
        "units": {"latency_ms": "ms", "energy_mj": "mJ"},
        "source": "",
        "licence": "",
        "date": f"figures published in 2021, table made on {date}",
        "method": "",
    }


def official_quirks(costs: LayerCosts, geometry: int, device: str) -> list[str]:
    """State what a user of an official table should know, each sentence checked.

    Args:
        costs: The look-up table.
        geometry: Input size, 32 or 224.
        device: Name of the device.

    Returns:
        Sentences.
    """
    fixed, layers = costs.get(geometry, f"{device}_latency")
    identity = costs.identity(geometry)
    skip_id, skip_other = layers[identity, SKIP], layers[~identity, SKIP]
    lowest, highest = (fixed.sum() + f(layers, axis=1).sum() for f in (np.min, np.max))
    spread = f"{lowest:.3f} and {highest:.3f} ms"
    quirks = [f"The latency of a whole network lies between {spread} over the space."]
    if device in ("raspi4", "pixel3"):
        quirks.append(
            claim(
                skip_id.min() > 0,
                "A skip that is the identity is not free here: it costs "
                f"{skip_id.min():.4f} to {skip_id.max():.4f} ms.",
            )
        )
        quirks.append("The benchmark has no energy for this device.")
    elif device == "edgegpu":
        quirks.append(
            claim(
                (skip_id == 0).all() and (skip_other > 0).all(),
                "A skip that is the identity costs exactly 0, in latency and in energy.",
            )
        )
        slower = int((layers[:, OPS.index("k3_e1_g2")] > layers[:, OPS.index("k3_e1")]).sum())
        quirks.append(
            f"k3_e1_g2 is slower than k3_e1 at {slower} of 22 layers although it has fewer "
            "multiply-accumulates: arithmetic is not what takes the time there."
        )
    elif device == "eyeriss":
        energy, layer_energy = costs.get(geometry, "eyeriss_energy")
        quirks += [
            claim(
                (skip_id == 0).all() and (layer_energy[identity, SKIP] == 0).all(),
                "A skip that is the identity costs exactly 0, in latency and in energy.",
            ),
            claim(
                (energy == fixed).all(),
                "The energies of stem, head, avgpool and fc repeat the number of their latency "
                f"({', '.join(repr(float(v)) for v in energy)}): they are no energies, and the "
                "energy of a cut that leaves the head on the device is not to be trusted.",
            ),
            claim(
                fixed[2] == fixed.max() and fixed[2] > layers.max(),
                f"Average pooling costs {float(fixed[2])!r} ms, more than any layer, and is "
                f"{100 * fixed[2] / highest:.0f} to {100 * fixed[2] / lowest:.0f} percent of the "
                "latency of a network.",
            ),
        ]
    elif device == "fpga":
        energy, layer_energy = costs.get(geometry, "fpga_energy")
        quirks += [
            claim(
                not fixed.any() and not layers[:, SKIP].any() and not energy.any(),
                "Stem, head, avgpool, fc and every skip, also the one that changes the shape, are "
                "0: their cost is left out by the benchmark, not measured as nothing.",
            ),
            claim(
                (layer_energy == 7.0 * layers).all(),
                "The energy is 7.0 times the latency, exactly: minimising both is minimising one.",
            ),
        ]
    return quirks


def official_table(costs: LayerCosts, geometry: int, device: str, date: str) -> Table:
    """Build the table of one HW-NAS-Bench device.

    Args:
        costs: The look-up table.
        geometry: Input size, 32 or 224.
        device: Name of the device.
        date: Day the table was made.

    Returns:
        The table, its figures unchanged.
    """
    dataset = GEOMETRIES[geometry]
    header = base_header(device, DEVICES[device], geometry, date)
    header["source"] = f"{HWNAS_PAPER}, FBNet look-up table, data set {dataset}"
    header["licence"] = "MIT (HW-NAS-Bench)"
    header["method"] = (
        "Official figures of the look-up table, unchanged; the cost of a network is the plain sum "
        "of stem, 22 layers, head, avgpool and fc, so that both sides of a cut are exact partial "
        f"sums. fc is the classifier of {CLASSES[geometry]} classes."
    )
    header["quirks"] = official_quirks(costs, geometry, device)
    fixed, layers = costs.get(geometry, f"{device}_latency")
    if device not in ENERGY_DEVICES:
        return Table(header, fixed, layers)
    return Table(header, fixed, layers, *costs.get(geometry, f"{device}_energy"))


def solve(archs: IntArray, y: FloatArray, identity: BoolArray) -> Fit:
    """Fit the additive model by least squares with non-negative figures.

    Against the skip of their layer the figures are unique. Where skip is the identity it is 0 and
    the others must not be negative; elsewhere only differences count, and a negative one moves
    into the floating latency, which must not be negative in the end.

    Args:
        archs: `[n, 22]` operation indices.
        y: `[n]` latencies.
        identity: `[22]`, whether skip is the identity.

    Returns:
        The fit.

    Raises:
        ValueError: If the floating latency is negative.
    """
    one_hot = archs[:, :, None] == np.arange(SKIP)
    design = np.hstack([np.ones((len(y), 1)), one_hot.reshape(len(y), LAYERS * SKIP)])
    lower = np.where(identity, 0.0, -np.inf).repeat(SKIP)
    lower = np.concatenate([[-np.inf], lower])
    result = lsq_linear(design, y, bounds=(lower, np.inf), method="bvls", tol=1e-14)
    layers = np.zeros((LAYERS, len(OPS)))
    layers[:, :SKIP] = result.x[1:].reshape(LAYERS, SKIP)
    smallest = np.where(identity, 0.0, layers.min(axis=1))
    floating = float(result.x[0] + smallest.sum())
    if floating < 0:
        raise ValueError("the constant part of the fit is negative")
    variance = float(((y - design @ result.x) ** 2).sum() / (len(y) - design.shape[1]))
    error = np.zeros((LAYERS, len(OPS)))
    covariance = variance * np.linalg.inv(design.T @ design)
    error[:, :SKIP] = np.sqrt(np.diag(covariance))[1:].reshape(LAYERS, SKIP)
    return Fit(
        floating=round(floating, FIT_DECIMALS),
        layers=(layers - smallest[:, None]).round(FIT_DECIMALS),
        kept=np.ones(len(y), dtype=bool),
        standard_error=error,
    )


def solve_trimmed(archs: IntArray, y: FloatArray, identity: BoolArray) -> Fit:
    """Fit again and again without the networks that lie far from the fit, until they settle.

    Far is more than `TRIM_MADS` robust sigmas (1.4826 times the median absolute deviation of the
    networks kept) from the median residual.

    Args:
        archs: `[n, 22]` operation indices.
        y: `[n]` latencies.
        identity: `[22]`, whether skip is the identity.

    Returns:
        The fit, `kept` being the networks used.

    Raises:
        ValueError: If the networks kept do not settle.
    """
    kept = np.ones(len(y), dtype=bool)
    for _ in range(50):
        fit = solve(archs[kept], y[kept], identity)
        residual = y - fit.predict(archs)
        middle = np.median(residual[kept])
        sigma = 1.4826 * np.median(np.abs(residual[kept] - middle))
        new = np.abs(residual - middle) <= TRIM_MADS * sigma
        if (new == kept).all():
            return Fit(fit.floating, fit.layers, kept, fit.standard_error)
        kept = new
    raise ValueError("the trimming does not settle")


def scores(y: FloatArray, predicted: FloatArray) -> dict[str, float]:
    """Return R2, MAPE in percent and Kendall's tau of a prediction, rounded.

    Args:
        y: Measured latencies.
        predicted: Predicted latencies.

    Returns:
        The three figures.
    """
    residual = y - predicted
    return {
        "r2": round(float(1 - (residual**2).sum() / ((y - y.mean()) ** 2).sum()), 4),
        "mape_percent": round(float(100 * np.mean(np.abs(residual) / y)), 3),
        "kendall_tau": round(float(kendalltau(y, predicted)[0]), 4),
    }


def cross_validate(
    solver: Callable[[IntArray, FloatArray, BoolArray], Fit],
    archs: IntArray,
    y: FloatArray,
    identity: BoolArray,
) -> FloatArray:
    """Predict every network by a fit that has not seen it.

    Args:
        solver: `solve` or `solve_trimmed`; trimming then happens in the training part only.
        archs: `[n, 22]` operation indices.
        y: `[n]` latencies.
        identity: `[22]`, whether skip is the identity.

    Returns:
        `[n]` predictions.
    """
    order = np.random.default_rng(0).permutation(len(y))
    predicted = np.empty(len(y))
    for fold in np.array_split(order, FOLDS):
        train = np.ones(len(y), dtype=bool)
        train[fold] = False
        predicted[fold] = solver(archs[train], y[train], identity).predict(archs[fold])
    return predicted


def spread_floating(
    fit: Fit, identity: BoolArray, like_fixed: FloatArray, like_layers: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Divide the floating latency between the blocks in proportion to another machine.

    The mean over the operations of each layer without an identity skip, and the fixed parts, come
    to be in proportion to the figures of the other machine. A layer that would need a negative
    offset gets none (its smallest operation stays 0), and the rest is rescaled.

    Args:
        fit: The fit.
        identity: `[22]`, whether skip is the identity.
        like_fixed: `[4]` fixed costs of the other machine.
        like_layers: `[22, 9]` layer costs of the other machine.

    Returns:
        Fixed costs and layer costs; every whole-network latency is that of the fit.
    """
    free = np.flatnonzero(~identity)
    weight = np.concatenate([like_fixed, like_layers[free].mean(axis=1)])
    present = np.concatenate([np.zeros(len(FIXED)), fit.layers[free].mean(axis=1)])
    active = np.ones(len(weight), dtype=bool)
    while True:
        mass = fit.floating + present[active].sum()
        offset = np.where(active, mass * weight / weight[active].sum() - present, 0.0)
        if (offset >= 0).all():
            break
        active &= offset >= 0
    layers = fit.layers.copy()
    layers[free] += offset[len(FIXED) :, None]
    return offset[: len(FIXED)].round(DECIMALS), layers.round(DECIMALS)


def movable(
    fixed: FloatArray, layers: FloatArray, identity: BoolArray
) -> dict[int, tuple[float, float]]:
    """Say how far the server side of each cut could move with every prediction unchanged.

    Args:
        fixed: `[4]` fixed costs of the table.
        layers: `[22, 9]` layer costs of the table.
        identity: `[22]`, whether skip is the identity.

    Returns:
        For each cut, the largest decrease and the largest increase of the latency of the blocks
        behind it, for any architecture.
    """
    floating = np.zeros(BLOCKS)
    floating[0] = fixed[0]
    floating[1:-1] = np.where(identity, 0.0, layers.min(axis=1))
    floating[-1] = fixed[1:].sum()
    total = float(floating.sum())
    result = {}
    for cut in range(BLOCKS + 1):
        behind = float(floating[cut:].sum())
        inner = 0 < cut < BLOCKS
        result[cut] = (behind, total - behind) if inner else (0.0, 0.0)
    return result


def server_table(
    costs: LayerCosts, archs: IntArray, y: FloatArray, server: str, date: str
) -> Table:
    """Fit and build the table of one server.

    Args:
        costs: The HW-NAS-Bench look-up table (geometry, edge GPU, Raspberry Pi 4).
        archs: `[n, 22]` operation indices of the networks of HELP.
        y: `[n]` latencies of this server.
        server: Name of the server.
        date: Day the table was made.

    Returns:
        The table.
    """
    identity = costs.identity(32)
    plain_cv = cross_validate(solve, archs, y, identity)
    trim_cv = cross_validate(solve_trimmed, archs, y, identity)
    plain_mape, trim_mape = (scores(y, p)["mape_percent"] for p in (plain_cv, trim_cv))
    trimmed = trim_mape < TRIM_GAIN * plain_mape
    fit = (solve_trimmed if trimmed else solve)(archs, y, identity)
    predicted_cv = trim_cv if trimmed else plain_cv

    fixed, layers = spread_floating(fit, identity, *costs.get(32, "edgegpu_latency"))
    predicted = network_costs(fixed, layers, archs)
    if np.abs(predicted - fit.predict(archs)).max() > 1e-9:
        raise ValueError("the placing of the floating latency has changed predictions")
    if min(fixed.min(), layers.min()) < 0 or layers[identity, SKIP].any():
        raise ValueError("a figure is negative or an identity skip is not 0")

    column, machine = SERVERS[server]
    counts = np.array([(archs == op).sum(axis=0) for op in range(len(OPS))])
    residual = y - fit.predict(archs)
    start, end = (float(np.median(part)) for part in (residual[:500], residual[-500:]))
    median = float(np.median(y))
    on_raspi4 = network_costs(*costs.get(32, "raspi4_latency"), archs)
    raspi4 = float(np.median(on_raspi4))

    slow = f"; its networks take {median:.1f} ms in the median, longer than on a Raspberry Pi 4"
    description = f"{machine}, fitted to whole-network latencies"
    header = base_header(server, description + (slow if median > raspi4 else ""), 32, date)
    header["source"] = (
        f"{HELP_PAPER}, data/fbnet/latency/{column}.pt; identity of the skips and proportions of "
        f"the free part: {HWNAS_PAPER}"
    )
    header["licence"] = "MIT (HELP and HW-NAS-Bench; the fit is part of this package)"
    rule = (
        f"networks further than {TRIM_MADS:g} robust sigmas (1.4826 x median absolute deviation) "
        "from the median residual left out, iterated until they settle"
    )
    choice = (
        f"Trimmed: {rule}; this lowers the cross-validated MAPE over all networks, the left-out "
        f"ones included, from {plain_mape} to {trim_mape} percent."
        if trimmed
        else f"Plain: with {rule}, the cross-validated MAPE over all networks would go from "
        f"{plain_mape} to {trim_mape} percent only."
    )
    free = ", ".join(str(i + 1) for i in np.flatnonzero(~identity))
    header["method"] = (
        "Least squares with non-negative figures: latency of a network = constant + sum of one "
        "figure for each (layer, operation); a skip that is the identity is 0. "
        f"{choice} The data cannot place the constant, nor an offset common to all operations of "
        f"a layer without identity skip (layers {free}). This floating latency "
        f"({fit.floating:.3f} ms in all, once the cheapest operation of each such layer is 0) is "
        "placed so that the means over the operations of these layers and the costs of stem, "
        "head, avgpool and fc are in proportion to those of fbnet_32_edgegpu; a layer that would "
        "need a negative offset gets none and the rest is rescaled. No whole-network latency "
        "depends on this."
    )
    quirks = [
        "The source does not state the unit of its figures; they are consistent with ms.",
        "Per-block figures are fitted, not measured; the part placed by rule is the least certain "
        "(see fit, server_ms_can_move_ms).",
        "The latencies drift in the order of the source: the median residual goes from "
        f"{start:+.3f} ms in the first 500 networks to {end:+.3f} ms in the last 500; this is not "
        "corrected.",
        "Energy is not known for this machine.",
    ]
    if server == "xeon_gold_6226":
        quirks.insert(1, "The source does not state the batch size of this machine; 1 is assumed.")
    if trimmed:
        far = ~fit.kept
        beside = np.convolve(far, [1, 0, 1], mode="same")[far] > 0
        quirks.append(
            claim(
                (residual[far] > 0).all() and beside.mean() > 0.5,
                f"{far.sum()} of {len(y)} networks were left out, all of them slower than the fit, "
                f"by up to {residual[far].max():.0f} ms, {100 * beside.mean():.0f} percent of them "
                "beside another one in the order of the source: it looks like bursts of other "
                "load on the machine rather than a property of the networks.",
            )
        )
    if median > raspi4:
        slower = int((y > on_raspi4).sum())
        quirks.append(
            f"The median latency of its networks is {median:.1f} ms, that of the same {len(y)} "
            f"networks on the Raspberry Pi 4 of HW-NAS-Bench (fbnet_32_raspi4) {raspi4:.1f} ms, "
            f"and {'all' if slower == len(y) else slower} of them are slower on this server than "
            "on that device: offloading to it from a Raspberry Pi 4 seldom pays."
        )
    header["quirks"] = quirks
    error = fit.standard_error[identity, :SKIP]
    header["fit"] = {
        "networks": len(y),
        "networks_used": int(fit.kept.sum()),
        "samples_of_a_layer_op": FlowList([int(counts.min()), int(counts.max())]),
        "standard_error_ms": round(float(np.median(error)), 4),
        "cross_validated": scores(y, predicted_cv),
        "in_sample": scores(y, predicted),
    }
    if trimmed:
        header["fit"]["cross_validated_networks_used"] = scores(y[fit.kept], predicted_cv[fit.kept])
    header["fit"] |= {
        "scores_are": f"{FOLDS}-fold cross validation and in-sample, over all networks unless "
        "named otherwise; standard_error_ms is the median one of a figure against its skip",
        "median_latency_ms": round(median, 3),
        "raspi4_median_latency_ms": round(raspi4, 3),
        "floating_ms": round(fit.floating, 3),
        "server_ms_can_move_ms": {
            cut: FlowList([round(-down, 3) + 0.0, round(up, 3)])
            for cut, (down, up) in movable(fixed, layers, identity).items()
        },
        "server_ms_can_move_means": "for each cut c, by how much the latency of the blocks from c "
        "on could be lower or higher, for any architecture, with every whole-network latency, and "
        "so the agreement with the data, unchanged",
    }
    return Table(header, fixed, layers)


def render(table: Table) -> str:
    """Return the text of a table file.

    Args:
        table: The table.

    Returns:
        Header lines and CSV rows.
    """
    text = yaml.dump(
        table.header, Dumper=HeaderDumper, sort_keys=False, width=96, allow_unicode=True
    )
    lines = [f"# {line}" for line in text.splitlines()]
    lines.append("position,op,latency_ms,energy_mj")

    def row(position: str, op: str, latency: float, energy: float | None) -> str:
        return f"{position},{op},{float(latency)!r},{'' if energy is None else repr(float(energy))}"

    def fixed_row(i: int) -> str:
        energy = None if table.fixed_energy is None else table.fixed_energy[i]
        return row(FIXED[i], "-", table.fixed_latency[i], energy)

    lines.append(fixed_row(0))
    for layer in range(LAYERS):
        for i, op in enumerate(OPS):
            energy = None if table.layer_energy is None else table.layer_energy[layer, i]
            lines.append(row(f"layer_{layer + 1}", op, table.layer_latency[layer, i], energy))
    lines += [fixed_row(i) for i in range(1, len(FIXED))]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Write all tables.

    Args:
        argv: Arguments of the command line.
    """
    parser = argparse.ArgumentParser(description="Write the shipped cost tables of FBNet.")
    default = Path(__file__).resolve().parents[1] / "nasc_evo" / "cost" / "tables"
    parser.add_argument("--out", type=Path, default=default, help="folder of the tables")
    parser.add_argument("--date", default=DEFAULT_DATE, help="day the tables are made, ISO")
    args = parser.parse_args(argv)
    try:
        datetime.date.fromisoformat(args.date)
    except ValueError:
        parser.error(f"--date {args.date} is not a day of the form 2026-11-23")
    if not os.environ.get("NASC_EVO_DATA"):
        raise SystemExit("set NASC_EVO_DATA to the folder that holds hwnas/fbnet_layer_costs.npz")
    folder = Path(os.environ["NASC_EVO_DATA"]) / "hwnas"
    for name in ("fbnet_layer_costs.npz", "fbnet_servers_help.npz"):
        if not (folder / name).is_file():
            raise SystemExit(f"{folder / name} is missing: NASC_EVO_DATA must hold hwnas/{name}")

    costs = load_layer_costs(folder)
    tables = [official_table(costs, g, d, args.date) for g in GEOMETRIES for d in DEVICES]
    with np.load(folder / "fbnet_servers_help.npz", allow_pickle=False) as z:
        archs = z["archs"].astype(np.int64)
        for server, (column, _) in SERVERS.items():
            y = z[column].astype(np.float64)
            tables.append(server_table(costs, archs, y, server, args.date))
    args.out.mkdir(parents=True, exist_ok=True)
    for table in tables:
        path = args.out / f"fbnet_{table.header['geometry']}_{table.header['name']}.csv"
        path.write_text(render(table), encoding="utf-8", newline="\n")
        print(path)


if __name__ == "__main__":
    main()
