"""Costs against figures computed by hand, and against a plain loop."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from nasc_evo.cost import Chain, CostTable, Link, Node, Radio
from nasc_evo.cost.chain import CACHED_DESIGNS, DEVICE, SERVER
from nasc_evo.errors import UserError
from nasc_evo.space import FBNetSpace, SplitSpace
from tests.conftest import needs_data

SPACE = FBNetSpace(32, 10)
RADIO = Radio(alpha_up_mw_per_mbps=100, alpha_down_mw_per_mbps=50, beta_mw=10)
LINK = Link("test", 8.0, 16.0, rtt_ms=3.0, efficiency=0.5, overhead_bytes=40, radio=RADIO)


def chain(device="edgegpu", server="titan_rtx", link=LINK, idle_mw=None, image_bytes=3072):
    nodes = [
        Node(device, CostTable.shipped(device, SPACE), DEVICE, idle_mw),
        Node(server, CostTable.shipped(server, SPACE), SERVER),
    ]
    return Chain(SPACE, nodes, [link], image_bytes=image_bytes)


def designs(space, ops, cut, mask="11111111", bits=8):
    x = np.zeros(space.n_var, dtype=int)
    x[:22] = ops
    x[space.cut_genes] = np.searchsorted(space.cut_choices, cut)
    x[space.mask_genes[0]] = [int(bit) for bit in mask]
    x[space.bits_genes] = space.bits.index(bits)
    return space.decode_batch(x[None])


RAW = SplitSpace(SPACE, bits=(4, 6, 8, 16, 32), allow_raw_offload=True, min_device_blocks=1)


@pytest.mark.parametrize(
    ("cut", "mask", "bits", "payload"),
    [
        (0, "11111111", 8, 3072 + 40),
        # 32 channels of 16x16 at cut 10 (64 of 8x8 from cut 11); 8 groups of 4 channels
        (10, "11111111", 8, 32 * 256 + 4 * 32 + 1 + 40),
        (10, "10000001", 6, 8 * 256 * 6 // 8 + 4 * 8 + 1 + 40),
        (10, "10000000", 16, 4 * 256 * 2 + 1 + 40),
        (10, "11110000", 32, 16 * 256 * 4 + 1 + 40),
        # 352 channels of 4x4 at cut 23, 44 a group
        (23, "01000000", 4, 44 * 16 // 2 + 4 * 44 + 1 + 40),
        (24, "11111111", 8, 0),
    ],
)
def test_payload_by_hand(cut, mask, bits, payload):
    costs = chain().evaluate(designs(RAW, np.zeros(22, int), cut, mask, bits))
    assert costs.payload_bytes[0] == payload


@pytest.mark.parametrize("ops", [[0] * 22, [8] * 22, list(np.arange(22) % 9)])
def test_costs_at_every_cut_by_a_plain_loop(ops):
    device, server = (CostTable.shipped(name, SPACE) for name in ("edgegpu", "titan_rtx"))

    def block(table, index, what):
        figures = getattr(table, what)
        if index == 0:
            return figures[0, 0]
        if index == 23:
            return figures[23, 0] + figures[24, 0] + figures[25, 0]
        return figures[index, ops[index - 1]]

    model = chain(idle_mw=500.0)
    for cut in range(25):
        batch = designs(RAW, ops, cut, "11000000", 4)
        costs = model.evaluate(batch)
        device_ms = sum(block(device, i, "latency_ms") for i in range(cut))
        server_ms = sum(block(server, i, "latency_ms") for i in range(cut, 24))
        payload = float(costs.payload_bytes[0])
        up_ms = 8e-3 * payload / (8.0 * 0.5)
        down_ms = 8e-3 * 40 / (16.0 * 0.5)
        link_ms = 3.0 + up_ms + down_ms if cut < 24 else 0.0
        assert costs.device_ms[0] == pytest.approx(device_ms, rel=1e-12)
        assert costs.server_ms[0] == pytest.approx(server_ms, rel=1e-12, abs=1e-12)
        assert costs.link_ms[0] == pytest.approx(link_ms, rel=1e-12)
        assert costs.latency_ms[0] == pytest.approx(device_ms + server_ms + link_ms, rel=1e-12)
        energy = sum(block(device, i, "energy_mj") for i in range(cut))
        if cut < 24:
            energy += 1e-3 * ((100 * 8 + 10) * up_ms + (50 * 16 + 10) * down_ms)
            energy += 1e-3 * 500 * (3.0 + server_ms)
        assert costs.energy_mj[0] == pytest.approx(energy, rel=1e-12)


def test_a_piece_pays_the_constants_of_its_machine_once():
    plain = chain(idle_mw=500.0)
    device = replace(plain.nodes[0].table, constant_ms=0.5, constant_mj=7.0)
    nodes = [replace(plain.nodes[0], table=device), plain.nodes[1]]
    dearer = Chain(SPACE, nodes, plain.links, image_bytes=3072)
    for cut, pieces in ((0, 0), (1, 1), (10, 1), (24, 1)):
        batch = designs(RAW, [3] * 22, cut, "11000000", 4)
        before, after = plain.evaluate(batch), dearer.evaluate(batch)
        assert after.device_ms[0] - before.device_ms[0] == pytest.approx(0.5 * pieces)
        assert after.energy_mj[0] - before.energy_mj[0] == pytest.approx(7.0 * pieces)


def test_totals_equal_the_sums_of_hw_nas_bench():
    path = needs_data("hwnas/fbnet_layer_costs.npz")
    table = np.load(path, allow_pickle=False)
    metrics = table["metrics"].tolist()
    space = SplitSpace(SPACE)
    X = np.random.default_rng(0).integers(0, space.sizes, (50, space.n_var))
    X[:, space.cut_genes] = len(space.cut_choices) - 1
    batch = space.decode_batch(X)
    for device in ("edgegpu", "raspi4", "pixel3", "eyeriss", "fpga"):
        metric = metrics.index(f"{device}_latency")
        layers = table["cost"][0, metric][np.arange(22), batch.ops].sum(axis=1)
        want = layers + table["fixed"][0, metric].sum()
        assert np.allclose(chain(device).evaluate(batch).latency_ms, want, rtol=1e-12)


def test_head_and_tail_on_one_machine_add_up_at_every_cut():
    model = chain("edgegpu", "edgegpu")
    ops = np.random.default_rng(1).integers(0, 9, 22)
    totals = [model.evaluate(designs(RAW, ops, c)).node_ms.sum() for c in range(25)]
    assert np.allclose(totals, totals[0], rtol=1e-12)


def test_energy_needs_every_constant():
    assert chain().missing_for_energy() == ["the idle power of edgegpu (device.idle_mw)"]
    wired = Link("wire", 1.0, 1.0)
    missing = chain("raspi4", link=wired).missing_for_energy()
    assert missing == [
        "energy_mj in the cost table of raspi4",
        "the idle power of raspi4 (device.idle_mw)",
        "the radio constants of wire (link.radio)",
    ]
    assert np.isnan(chain().evaluate(designs(RAW, [0] * 22, 5)).energy_mj[0])


def test_a_relay_in_a_chain_pays_both_links():
    table = CostTable.shipped("edgegpu", SPACE)
    nodes = [Node("d", table, DEVICE), Node("e", table, SERVER), Node("c", table, SERVER)]
    links = [Link("one", 8.0, 8.0, rtt_ms=1.0), Link("two", 80.0, 80.0, rtt_ms=2.0)]
    model = Chain(SPACE, nodes, links, image_bytes=3072)
    space = SplitSpace(SPACE, n_links=2)
    x = np.zeros((3, space.n_var), dtype=int)
    x[:, space.cut_genes] = np.searchsorted(space.cut_choices, [[10, 10], [10, 24], [24, 24]])
    x[:, space.mask_genes.ravel()] = 1
    x[:, space.bits_genes] = 2
    costs = model.evaluate(space.decode_batch(x))
    payload = 32 * 256 + 4 * 32 + 1
    sent = np.array([8e-3 * (payload + 40) / 8 + 1, 8e-3 * (payload + 40) / 80 + 2])
    assert np.allclose(costs.links_ms[0], sent)
    assert costs.node_ms[0, 1] == 0
    assert np.allclose(costs.links_ms[1], [sent[0], 0])
    assert np.array_equal(costs.links_ms[2], [0, 0])
    assert costs.payload_bytes.tolist() == [2 * payload, payload, 0]


def test_device_cloud_device_returns_nothing_from_the_last_node():
    table = CostTable.shipped("edgegpu", SPACE)
    nodes = [Node("d", table, DEVICE), Node("c", table, SERVER), Node("d", table, DEVICE)]
    links = [Link("up", 8.0, 16.0), Link("down", 8.0, 16.0)]
    model = Chain(SPACE, nodes, links, image_bytes=3072)
    space = SplitSpace(SPACE, n_links=2)
    x = np.zeros((1, space.n_var), dtype=int)
    x[:, space.cut_genes] = np.searchsorted(space.cut_choices, [10, 20])
    x[:, space.mask_genes.ravel()] = 1
    x[:, space.bits_genes] = 2
    costs = model.evaluate(space.decode_batch(x))
    up = 32 * 256 + 4 * 32 + 1
    down = 184 * 16 + 4 * 184 + 1
    assert np.allclose(costs.links_ms[0], [8e-3 * up / 8, 8e-3 * down / 16])
    assert costs.device_ms[0] == pytest.approx(costs.node_ms[0, [0, 2]].sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uplink_mbps": 0}, "link.uplink_mbps must be a finite number above 0, got 0"),
        ({"uplink_mbps": -1}, "above 0, got -1"),
        ({"downlink_mbps": float("nan")}, "link.downlink_mbps must be a finite number"),
        ({"rtt_ms": float("inf")}, "link.rtt_ms must be a finite number >= 0, got inf"),
        ({"efficiency": 0}, r"link.efficiency must be in \(0, 1\]"),
        ({"efficiency": 1.5}, "got 1.5"),
        ({"overhead_bytes": -1}, "got -1"),
        ({"uplink_mbps": "fast"}, "link.uplink_mbps must be a number, got 'fast'"),
        ({"uplink_mbps": True}, "must be a number, got True"),
        ({"uplink": 1}, "A link has no field 'uplink'"),
        ({"downlink_mbps": None}, "A link needs 'downlink_mbps'"),
        ({"radio": {"alpha": 1}}, "link.radio needs exactly"),
        (
            {"radio": dict.fromkeys(asdict(RADIO), "a")},
            "link.radio.alpha_up_mw_per_mbps must be a finite number >= 0, got 'a'",
        ),
        (
            {"radio": dict.fromkeys(asdict(RADIO), 10**400)},
            "link.radio.alpha_up_mw_per_mbps must be a finite number",
        ),
        ({"rtt_ms": 10**400}, "link.rtt_ms must be a number"),
        (
            {"radio": {name: {"a": 1} for name in asdict(RADIO)}},
            "link.radio.alpha_up_mw_per_mbps must be a finite number",
        ),
        (
            {
                "radio": {
                    "alpha_up_mw_per_mbps": -1.0,
                    "alpha_down_mw_per_mbps": 0.0,
                    "beta_mw": 0.0,
                }
            },
            "alpha_up_mw_per_mbps must be",
        ),
    ],
)
def test_impossible_links_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Link.create({"name": "x", "uplink_mbps": 1, "downlink_mbps": 1, **change})


def test_unknown_link_lists_those_there_are():
    with pytest.raises(
        UserError, match="available are 3g, 5g, ble, ethernet, lte, trace, uav, wan, wifi"
    ):
        Link.create("fibre")


def test_a_large_population_costs_what_its_parts_do():
    model, space = chain(idle_mw=500.0), RAW
    X = np.random.default_rng(2).integers(0, space.sizes, (2 * CACHED_DESIGNS + 5, space.n_var))
    together = model.evaluate(space.decode_batch(X))
    for rows in (slice(0, 7), slice(CACHED_DESIGNS - 3, CACHED_DESIGNS + 4), slice(-5, None)):
        apart = model.evaluate(space.decode_batch(X[rows]))
        for name in ("latency_ms", "energy_mj", "node_ms", "links_ms", "payload_bytes"):
            assert np.array_equal(getattr(together, name)[rows], getattr(apart, name))
    assert together.latency_p95_ms is None
