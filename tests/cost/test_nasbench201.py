"""Costs of NAS-Bench-201: fitted tables, official totals, networks that do not compile."""

import shutil

import numpy as np
import pytest

from nasc_evo.cost import Chain, CostTable, Link, Node
from nasc_evo.cost.chain import DEVICE, SERVER
from nasc_evo.cost.network import DID_NOT_COMPILE, pack_flags, unpack_flags
from nasc_evo.cost.table import TABLES
from nasc_evo.errors import UserError
from nasc_evo.space import NASBench201Space, SplitSpace
from nasc_evo.space.nasbench201 import CONV_3X3, NONE, POOL, SKIP
from tests.conftest import needs_data

SPACE = NASBench201Space(32, 10)
DEVICES = ("edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga")
GENES = SplitSpace(SPACE, bits=(8,), mask_groups=1, merge_equal_networks=False)


@pytest.fixture
def without_official(monkeypatch):
    monkeypatch.delenv("NASC_EVO_DATA", raising=False)


def chain(device, server="titan_rtx"):
    nodes = [
        Node(device, CostTable.shipped(device, SPACE), DEVICE),
        Node(server, CostTable.shipped(server, SPACE), SERVER),
    ]
    return Chain(SPACE, nodes, [Link("test", 8.0, 16.0, rtt_ms=3.0)], image_bytes=3072)


def batch(indices, cut):
    X = np.zeros((len(indices), GENES.n_var), dtype=int)
    X[:, :6] = SPACE.architectures[indices]
    X[:, GENES.cut_genes] = np.searchsorted(GENES.cut_choices, cut)
    return GENES.decode_batch(X)


@pytest.mark.parametrize("device", DEVICES)
def test_totals_equal_the_official_figures_at_every_cut(device):
    path = needs_data("hwnas/nb201_hw.npz")
    with np.load(path, allow_pickle=False) as file:
        column = file["metrics"].tolist().index(f"{device}_latency")
        official = file["values"][file["datasets"].tolist().index("cifar10"), column]
    known = np.flatnonzero(official > 0)
    indices = known[:: max(1, len(known) // 300)]
    same = chain(device, device)
    for cut in GENES.cut_choices:
        node_ms = same.evaluate(batch(indices, cut)).node_ms
        assert np.allclose(node_ms.sum(axis=1), official[indices], rtol=1e-12)
        assert (node_ms >= 0).all()
    unknown = np.flatnonzero(np.isnan(official))
    if len(unknown):
        fitted = same.evaluate(batch(unknown[:50], 5)).node_ms.sum(axis=1)
        assert np.isfinite(fitted).all()
        assert (fitted > 0).all()


def test_fitted_tables_are_near_the_official_figures(without_official):
    # as the headers say: cross-validated over all networks that depend on their input
    wanted = {"edgegpu": 4.77, "raspi4": 11.58, "edgetpu": 3.47, "pixel3": 9.82}
    for device in DEVICES:
        table = CostTable.shipped(device, SPACE)
        assert table.totals is None
        mape = table.header["fit"]["cross_validated"]["mape_percent"]
        assert mape == pytest.approx(wanted.get(device, 0), abs=0.01)


def test_costs_by_hand_without_official_figures(without_official):
    table = CostTable.shipped("raspi4", SPACE)
    ops = [CONV_3X3, NONE, NONE, SKIP, POOL, CONV_3X3]  # node 2 gets nothing, and is used
    rows = {}
    for line in (TABLES / "nasbench201_32_raspi4.csv").read_text().splitlines():
        if not line.startswith("#"):
            position, op, latency, _ = line.split(",")
            rows[position, op] = latency
    names = {CONV_3X3: "nor_conv_3x3", NONE: "none", SKIP: "skip_connect", POOL: "avg_pool_3x3"}
    edges = ("0_1", "0_2", "1_2", "0_3", "1_3", "2_3")

    def cell(stage):
        return sum(
            float(rows[f"stage_{stage}_edge_{edge}", names[op]])
            for edge, op in zip(edges, ops, strict=True)
        )

    head = float(rows["stem", "-"]) + 5 * cell(1) + float(rows["reduction_1", "-"]) + 2 * cell(2)
    tail = 3 * cell(2) + float(rows["reduction_2", "-"]) + 5 * cell(3) + float(rows["head", "-"])
    index = SPACE.index(np.array([ops]))
    node_ms = chain("raspi4", "raspi4").evaluate(batch(index, 9)).node_ms[0]
    assert node_ms == pytest.approx([head, tail], rel=1e-9)
    assert table.pruned == ("unused",)
    # node 1 leads nowhere, so that the compiler drops the convolution into it
    dead = SPACE.index(np.array([[CONV_3X3, SKIP, NONE, SKIP, NONE, CONV_3X3]]))
    same = SPACE.index(np.array([[NONE, SKIP, NONE, SKIP, NONE, CONV_3X3]]))
    both = batch(np.array([dead[0], same[0]]), 9)
    costs = chain("raspi4", "raspi4").evaluate(both).latency_ms
    assert costs[0] == costs[1]


def test_what_an_imported_file_says_did_not_compile_is_refused_too(tmp_path, monkeypatch):
    with np.load(needs_data("hwnas/nb201_hw.npz")) as file:
        arrays = dict(file)
    metrics, datasets = arrays["metrics"].tolist(), arrays["datasets"].tolist()
    values = arrays["values"][datasets.index("cifar10"), metrics.index("edgetpu_latency")]
    unknown = np.flatnonzero(np.isnan(values))[:3]
    values[unknown] = DID_NOT_COMPILE
    other = arrays["values"][datasets.index("cifar10"), metrics.index("pixel3_latency")]
    other[7] = DID_NOT_COMPILE
    (tmp_path / "hwnas").mkdir()
    np.savez(tmp_path / "hwnas" / "nb201_hw.npz", **arrays)
    monkeypatch.setenv("NASC_EVO_DATA", str(tmp_path))
    refused = CostTable.shipped("edgetpu", SPACE).refused
    assert refused[unknown].all()
    assert refused.sum() == 3768 + 3
    assert np.flatnonzero(CostTable.shipped("pixel3", SPACE).refused).tolist() == [7]


def test_networks_that_did_not_compile_are_refused_with_the_reason(without_official):
    refused = CostTable.shipped("edgetpu", SPACE).refused
    assert refused.sum() == 3768
    index = np.array([np.flatnonzero(refused)[0], np.flatnonzero(~refused)[0]])
    both = chain("edgetpu")
    assert both.may_refuse
    assert not chain("raspi4").may_refuse
    first, second = both.refusals(batch(index, 5))
    assert first == "the network did not compile for edgetpu"
    assert second == ""
    # a server that refuses counts as well, unless it has nothing to do
    turned = chain("raspi4", "edgetpu")
    assert turned.refusals(batch(index, 5))[0]
    assert not turned.refusals(batch(index, 19))[0]


def test_did_not_compile_equals_the_official_file():
    with np.load(needs_data("hwnas/nb201_hw.npz"), allow_pickle=False) as file:
        column = file["metrics"].tolist().index("edgetpu_latency")
        official = file["values"][0, column]
    refused = CostTable.shipped("edgetpu", SPACE).refused
    assert np.array_equal(refused, official == DID_NOT_COMPILE)


def test_flags_round_trip_and_damage_is_found():
    flags = np.random.default_rng(0).random(15625) < 0.3
    assert np.array_equal(unpack_flags(pack_flags(flags), 15625), flags)
    for text in ("", "####", pack_flags(flags[:100]), pack_flags(np.ones(10**6, dtype=bool))):
        with pytest.raises(ValueError, match=".+"):
            unpack_flags(text, 15625)


def test_a_damaged_official_file_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "hwnas").mkdir()
    (tmp_path / "hwnas" / "nb201_hw.npz").write_bytes(b"PK not really")
    monkeypatch.setenv("NASC_EVO_DATA", str(tmp_path))
    with pytest.raises(UserError, match="import-hwnasbench"):
        CostTable.shipped("raspi4", SPACE)
    np.savez(
        tmp_path / "hwnas" / "nb201_hw.npz",
        values=np.zeros((1, 1, 7)),
        datasets=["cifar10"],
        metrics=["raspi4_latency"],
    )
    with pytest.raises(UserError, match="shape"):
        CostTable.shipped("raspi4", SPACE)


@pytest.mark.parametrize(
    ("line", "says"),
    [("# pruned: [everything]", "pruned"), ("# did_not_compile: AAAA", "did_not_compile")],
)
def test_wrong_header_fields_are_refused(tmp_path, line, says):
    path = tmp_path / "my.csv"
    shutil.copy(TABLES / "nasbench201_32_eyeriss.csv", path)
    text = path.read_text().replace("# pruned: []", line)
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        CostTable.load(path, SPACE)
