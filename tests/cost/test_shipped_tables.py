"""The cost tables of the FBNet space that ship with the package, read as plain files."""

from __future__ import annotations

import csv
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import kendalltau

from nasc_evo.cost.plausible import MAX_MAPE_PERCENT, MIN_TAU
from tests.conftest import needs_data

TABLES = Path(__file__).resolve().parents[2] / "nasc_evo" / "cost" / "tables"
OPS = ["k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip"]
FIXED = ["stem", "head", "avgpool", "fc"]
LAYERS = [f"layer_{i}" for i in range(1, 23)]
RESHAPING = {"layer_2", "layer_6", "layer_10", "layer_14", "layer_18", "layer_22"}
IDENTITY = [name for name in LAYERS if name not in RESHAPING]
KEYS = ["format", "name", "description", "space", "geometry", "batch", "units", "source"]
KEYS += ["licence", "date", "method", "quirks"]

DEVICES = ["edgegpu", "raspi4", "pixel3", "eyeriss", "fpga"]
WITH_ENERGY = {"edgegpu", "eyeriss", "fpga"}
OFFICIAL = [(geometry, device) for geometry in (32, 224) for device in DEVICES]
SERVERS = {"titan_rtx": "titan_rtx_1", "xeon_gold_6226": "gold_6226"}
NAMES = [f"fbnet_{g}_{d}" for g, d in OFFICIAL] + [f"fbnet_32_{s}" for s in SERVERS]

# Totals of two architectures, computed from the HW-NAS-Bench look-up table with math.fsum.
ARCHS = [[i % 9 for i in range(22)], [(4 * i + 3) % 9 for i in range(22)]]
LATENCY_MS = {
    "fbnet_32_edgegpu": (18.944320678710938, 18.118295192718506),
    "fbnet_32_raspi4": (36.366110963135725, 38.3373264100519),
    "fbnet_32_pixel3": (18.89390038, 19.61838718),
    "fbnet_32_eyeriss": (5.504864, 5.807136),
    "fbnet_32_fpga": (27.99648, 26.43744),
    "fbnet_224_edgegpu": (18.603988647460938, 19.68626856803894),
    "fbnet_224_raspi4": (117.22300803905819, 143.4489664180437),
    "fbnet_224_pixel3": (62.592926059999996, 82.46264506),
    "fbnet_224_eyeriss": (21.521644000000002, 23.740372),
    "fbnet_224_fpga": (71.21436, 79.57548),
}
ENERGY_MJ = {
    "fbnet_32_edgegpu": (110.83072248212548, 107.97993456571722),
    "fbnet_32_eyeriss": (4.416768, 4.476838),
    "fbnet_32_fpga": (195.97536, 185.06208),
    "fbnet_224_edgegpu": (134.17047244108585, 149.60601450401106),
    "fbnet_224_eyeriss": (19.291742, 21.111942),
    "fbnet_224_fpga": (498.50052, 557.02836),
}


@cache
def read(name: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return the header and the rows of a shipped table."""
    lines = (TABLES / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if not line.startswith("# "))
    header = yaml.safe_load("\n".join(line[2:] for line in lines[:start]))
    return header, list(csv.DictReader(lines[start:], strict=True))


def column(name: str, key: str) -> dict[tuple[str, str], float]:
    """Return one column of a table by (position, op); an empty field is NaN."""
    return {(r["position"], r["op"]): float(r[key] or "nan") for r in read(name)[1]}


def total(name: str, key: str, arch: list[int]) -> float:
    """Return the correctly rounded cost of a whole network."""
    costs = column(name, key)
    parts = [costs[part, "-"] for part in FIXED]
    return math.fsum(parts + [costs[p, OPS[op]] for p, op in zip(LAYERS, arch, strict=True)])


def arrays(name: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return one column as costs of the fixed parts and `[22, 9]` costs of the layers."""
    costs = column(name, key)
    layers = [[costs[position, op] for op in OPS] for position in LAYERS]
    return np.array([costs[part, "-"] for part in FIXED]), np.array(layers)


def floating(name: str) -> np.ndarray:
    """Return how much latency of each of the 24 blocks the fitted data cannot place."""
    fixed, layers = arrays(name, "latency_ms")
    free = [row.min() if p in RESHAPING else 0.0 for p, row in zip(LAYERS, layers, strict=True)]
    return np.array([fixed[0], *free, fixed[1:].sum()])


@pytest.mark.parametrize("name", NAMES)
def test_header_is_complete(name: str) -> None:
    header = read(name)[0]
    assert [key for key in header if key != "fit"] == KEYS
    assert header["format"] == "nasc_evo cost table 1"
    assert header["name"] == name.split("_", 2)[2]
    assert header["space"] == "fbnet"
    assert header["geometry"] == int(name.split("_")[1])
    assert header["batch"] == 1
    assert header["units"] == {"latency_ms": "ms", "energy_mj": "mJ"}
    assert header["licence"].startswith("MIT")
    assert re.search(r"published in 2021.*made on \d{4}-\d\d-\d\d$", header["date"])
    assert header["quirks"]
    assert all(isinstance(quirk, str) for quirk in header["quirks"])
    assert all(isinstance(header[key], str) for key in ("description", "source", "method"))
    assert "\n" not in header["description"]
    assert ("fit" in header) == (name.removeprefix("fbnet_32_") in SERVERS)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_complete_and_in_order(name: str) -> None:
    layers = [(position, op) for position in LAYERS for op in OPS]
    expected = [("stem", "-"), *layers, ("head", "-"), ("avgpool", "-"), ("fc", "-")]
    rows = read(name)[1]
    assert [(row["position"], row["op"]) for row in rows] == expected
    assert list(rows[0]) == ["position", "op", "latency_ms", "energy_mj"]
    energies = {bool(row["energy_mj"]) for row in rows}
    assert energies == {name.split("_", 2)[2] in WITH_ENERGY}
    for row in rows:
        for text in (row["latency_ms"], row["energy_mj"]):
            if text:
                assert repr(float(text)) == text
                assert math.isfinite(float(text))
                assert not text.startswith("-")
        assert row["latency_ms"]


def measured() -> list[str]:
    """Return the tables that were measured by this package, in the order of the documents."""
    machines = ["h100", "h100_eager", "h200"]
    machines += [f"xeon_{b}_t{n}" for b in ("onnxruntime", "torch") for n in (1, 2)]
    spaces = ["fbnet_32", "fbnet_224", "nasbench201_32"]
    names = [f"{space}_{machine}" for machine in machines for space in spaces]
    return [name for name in names if (TABLES / f"{name}.csv").exists()]


def documented(name: str, agreement: str, unit: str) -> str:
    """Return what docs/measure.md says of a measured table."""
    header = read(name)[0]
    about = header[agreement]
    whole, sides = (about[part]["as_corrected"] for part in ("whole", "sides"))
    geometry = header["geometry"]
    cells = [
        f"`{header['name']}`",
        f"{header['space']} at {geometry}x{geometry}",
        " to ".join(f"{figure:.3g}" for figure in about[f"range_{unit}"]),
        str(about["networks"]),
    ]
    for part in (whole, sides):
        cells += [f"{part['mape_percent']:.1f}", f"{part['kendall_tau']:.3f}"]
    return f"| {' | '.join(cells)} |"


def test_every_fbnet_table_is_checked() -> None:
    fbnet = [name for name in measured() if name.startswith("fbnet")]
    assert sorted(p.stem for p in TABLES.glob("fbnet_*.csv")) == sorted([*NAMES, *fbnet])


def test_documents_have_the_error_of_measured_tables() -> None:
    """Each network was predicted by a correction that does not know it."""
    lines = (TABLES.parents[2] / "docs" / "measure.md").read_text(encoding="utf-8").splitlines()
    expected = [documented(name, "agreement", "ms") for name in measured()]
    with_energy = [name for name in measured() if "energy_agreement" in read(name)[0]]
    expected += [documented(name, "energy_agreement", "mj") for name in with_energy]
    assert [line for line in lines if re.match(r"\| `\w+` \| \w+ at \d+x\d+ ", line)] == expected


@pytest.mark.parametrize("name", measured())
def test_measured_tables_say_where_they_come_from(name: str) -> None:
    header = read(name)[0]
    space, geometry, machine = name.split("_", 2)
    assert (header["name"], header["space"], header["geometry"]) == (machine, space, int(geometry))
    assert header["licence"].startswith("MIT")
    assert header["source"].startswith("python -m nasc_evo.measure")
    assert header["agreement"]["networks"] >= 50
    scores = header["agreement"]["whole"]["as_corrected"]
    assert scores["mape_percent"] <= MAX_MAPE_PERCENT
    assert scores["kendall_tau"] >= MIN_TAU
    has_energy = "energy_agreement" in header
    if has_energy:
        scores = header["energy_agreement"]["whole"]["as_corrected"]
        assert scores["mape_percent"] <= MAX_MAPE_PERCENT
    assert has_energy == (header["measurement"].get("energy") is not None)
    energies = column(name, "energy_mj").values()
    assert all((value >= 0) == has_energy for value in energies)


@pytest.mark.parametrize("name", LATENCY_MS)
def test_known_totals(name: str) -> None:
    assert tuple(total(name, "latency_ms", arch) for arch in ARCHS) == LATENCY_MS[name]
    if name in ENERGY_MJ:
        assert tuple(total(name, "energy_mj", arch) for arch in ARCHS) == ENERGY_MJ[name]


@pytest.mark.parametrize("geometry", [32, 224])
def test_quirks_of_the_benchmark_are_kept(geometry: int) -> None:
    latency = column(f"fbnet_{geometry}_fpga", "latency_ms")
    energy = column(f"fbnet_{geometry}_fpga", "energy_mj")
    assert energy == {key: 7.0 * value for key, value in latency.items()}
    assert {key for key, value in latency.items() if value == 0} == {
        *((part, "-") for part in FIXED),
        *((position, "skip") for position in LAYERS),
    }
    latency = column(f"fbnet_{geometry}_eyeriss", "latency_ms")
    energy = column(f"fbnet_{geometry}_eyeriss", "energy_mj")
    assert all(latency[part, "-"] == energy[part, "-"] for part in FIXED)
    assert max(latency, key=latency.__getitem__) == ("avgpool", "-")


@pytest.mark.parametrize("server", SERVERS)
def test_fitted_identity_skips_are_free(server: str) -> None:
    costs = column(f"fbnet_32_{server}", "latency_ms")
    assert all(costs[position, "skip"] == 0 for position in IDENTITY)
    assert all(costs[position, op] > 0 for position in IDENTITY for op in OPS[:-1])


@pytest.mark.parametrize("server", SERVERS)
def test_floating_latency_is_in_proportion_to_the_edge_gpu(server: str) -> None:
    fixed, layers = arrays(f"fbnet_32_{server}", "latency_ms")
    like_fixed, like_layers = arrays("fbnet_32_edgegpu", "latency_ms")
    free = [i for i, position in enumerate(LAYERS) if position in RESHAPING]
    ratio = fixed / like_fixed
    assert ratio == pytest.approx(np.full(4, ratio[0]), abs=1e-9)
    for i in free:
        own = layers[i].mean() / like_layers[i].mean()
        assert own == pytest.approx(ratio[0], abs=1e-9) or (layers[i].min() == 0 and own > ratio[0])


@pytest.mark.parametrize("server", SERVERS)
def test_ambiguity_follows_from_the_table(server: str) -> None:
    fit = read(f"fbnet_32_{server}")[0]["fit"]
    blocks = floating(f"fbnet_32_{server}")
    assert fit["floating_ms"] == pytest.approx(blocks.sum(), abs=6e-4)
    moves = fit["server_ms_can_move_ms"]
    assert list(moves) == list(range(25))
    assert moves[0] == [0, 0]
    assert moves[24] == [0, 0]
    for cut in range(1, 24):
        behind = blocks[cut:].sum()
        assert moves[cut] == pytest.approx([-behind, blocks.sum() - behind], abs=6e-4)


@pytest.mark.parametrize("server", SERVERS)
def test_fit_figures_are_plausible(server: str) -> None:
    fit = read(f"fbnet_32_{server}")[0]["fit"]
    for part in ("cross_validated", "in_sample"):
        assert set(fit[part]) == {"r2", "mape_percent", "kendall_tau"}
    assert fit["networks"] == 5000
    assert fit["networks_used"] <= 5000
    assert fit["cross_validated"]["r2"] <= fit["in_sample"]["r2"] < 1
    assert fit["median_latency_ms"] > 0


def test_the_slow_xeon_is_said_to_be_slow() -> None:
    header = read("fbnet_32_xeon_gold_6226")[0]
    assert header["fit"]["median_latency_ms"] > header["fit"]["raspi4_median_latency_ms"]
    assert "Raspberry Pi 4" in header["description"]
    assert any("Raspberry Pi 4" in quirk for quirk in header["quirks"])


@pytest.mark.parametrize(("geometry", "device"), OFFICIAL)
def test_official_figures_bit_for_bit(geometry: int, device: str) -> None:
    with np.load(needs_data("hwnas/fbnet_layer_costs.npz"), allow_pickle=False) as z:
        dataset = z["datasets"].tolist().index({32: "cifar100", 224: "ImageNet"}[geometry])
        metrics = z["metrics"].tolist()
        assert z["ops"].tolist() == OPS
        assert z["fixed_names"].tolist() == FIXED
        assert ((f"{device}_energy") in metrics) == (device in WITH_ENERGY)
        for key in ("latency_ms", "energy_mj"):
            metric = f"{device}_{key[:-3]}"
            if metric not in metrics:
                continue
            fixed, layers = arrays(f"fbnet_{geometry}_{device}", key)
            j = metrics.index(metric)
            assert fixed.tobytes() == z["fixed"][dataset, j].tobytes()
            assert layers.tobytes() == z["cost"][dataset, j].tobytes()


@pytest.mark.parametrize("server", SERVERS)
def test_fitted_tables_score_as_they_say(server: str) -> None:
    with np.load(needs_data("hwnas/fbnet_servers_help.npz"), allow_pickle=False) as z:
        archs, y = z["archs"].astype(int), z[SERVERS[server]].astype(float)
    fixed, layers = arrays(f"fbnet_32_{server}", "latency_ms")
    predicted = fixed.sum() + layers[np.arange(22), archs].sum(axis=1)
    fit = read(f"fbnet_32_{server}")[0]["fit"]
    said = fit["in_sample"]
    r2 = 1 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert said["r2"] == pytest.approx(r2, abs=6e-5)
    assert said["mape_percent"] == pytest.approx(100 * np.mean(np.abs(y - predicted) / y), abs=6e-4)
    assert said["kendall_tau"] == pytest.approx(kendalltau(y, predicted)[0], abs=6e-5)
    assert fit["median_latency_ms"] == pytest.approx(np.median(y), abs=6e-4)
