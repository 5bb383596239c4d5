"""Chains of three nodes: genome, costs, inherited accuracy, search, outputs."""

import csv
import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasc_evo.config import load_group_option
from nasc_evo.cost import CostTable
from nasc_evo.errors import UserError
from nasc_evo.problem import unmasked_batch
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.exact import exact_front
from nasc_evo.search.final import final_result
from nasc_evo.search.indicators import non_dominated
from nasc_evo.search.loop import run_search
from nasc_evo.search.operators import SplitMutation, random_genomes
from nasc_evo.space import Design, FBNetSpace, SplitSpace
from nasc_evo.testing import check_problem
from problems import FBNetSplit, NASBench201Split
from tests.conftest import FAST, needs_data
from tests.search.test_search import Formula

ARCHITECTURE = FBNetSpace(32, 10)
N = ARCHITECTURE.n_blocks
EDGE_CLOUD = {"nodes": ["raspi4", "edgegpu", "titan_rtx"], "links": ["wifi", "wan"]}
AND_BACK = {
    "nodes": ["edgegpu", "titan_rtx", "edgegpu"],
    "links": ["wifi", "wifi"],
    "roles": ["device", "server", "device"],
}
CHAINS = {"device_edge_cloud": EDGE_CLOUD, "device_cloud_device": AND_BACK}


@pytest.mark.parametrize("last", [0, 1, 4])
@pytest.mark.parametrize("raw", [False, True])
def test_the_cuts_of_a_chain_are_those_a_plain_loop_allows(last, raw):
    space = SplitSpace(
        ARCHITECTURE,
        n_links=2,
        allow_raw_offload=raw,
        min_device_blocks=3,
        min_last_blocks=last,
    )
    wanted = [
        (first, second)
        for first, second in product([0] * raw + list(range(3, N + 1)), repeat=2)
        if first <= second and (first == N or second <= N - last)
    ]
    assert space.cut_choices[space.cut_vectors].tolist() == [list(cuts) for cuts in wanted]


@given(
    cuts=st.lists(st.integers(0, 22), min_size=3, max_size=3),
    last=st.integers(0, 20),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_repaired_cuts_are_allowed_and_allowed_ones_stay(cuts, last, seed):
    space = SplitSpace(ARCHITECTURE, n_links=3, min_last_blocks=last)
    x = random_genomes(space, 1, np.random.default_rng(seed))
    x[:, space.cut_genes] = space.repair_cuts(np.array([cuts]))
    design = space.decode(x[0])
    assert space.decode(space.encode(design)) == design
    again = x[:, space.cut_genes].copy()
    assert np.array_equal(space.repair_cuts(again.copy()), again)


def test_no_operator_leaves_the_cuts_of_a_chain():
    space = SplitSpace(ARCHITECTURE, n_links=2, min_last_blocks=5)
    rng = np.random.default_rng(0)
    X = random_genomes(space, 200, rng)
    for _ in range(5):
        X = SplitMutation(space, cut_rate=1.0)._do(None, X, random_state=rng)
        space.check(X)
    cuts = space.cut_choices[X[:, space.cut_genes]]
    assert len(np.unique(cuts[:, 0])) > 10


def test_cuts_that_leave_no_last_block_are_refused():
    space = SplitSpace(ARCHITECTURE, n_links=2, min_last_blocks=1)
    x = random_genomes(space, 1, np.random.default_rng(0))[0]
    x[space.cut_genes] = np.searchsorted(space.cut_choices, [5, N])
    with pytest.raises(UserError, match=r"At least 1 blocks must lie .* got cuts \[5, 24\]"):
        space.decode(x)
    with pytest.raises(UserError, match=r"chain.min_last_blocks\) must be in 0..22 .* got 23"):
        SplitSpace(ARCHITECTURE, n_links=2, min_last_blocks=23)


def test_a_relay_sends_what_it_got():
    space = SplitSpace(ARCHITECTURE, n_links=2)
    x = random_genomes(space, 1, np.random.default_rng(0))[0]
    x[space.cut_genes] = np.searchsorted(space.cut_choices, [10, 10])
    x[space.mask_genes] = [[1, 0, 0, 0, 0, 0, 0, 1], [1] * 8]
    x[space.bits_genes] = [0, 2]
    design = space.decode(x)
    assert design.masks == ("10000001", "10000001")
    assert design.bits == (4, 4)
    assert design.key.endswith(";10/10;10000001/10000001;4/4")


def test_a_relay_changes_nothing_of_the_accuracy():
    one, chain = FBNetSplit(evaluator=FAST), FBNetSplit(evaluator=FAST, chain=EDGE_CLOUD)
    for x in random_genomes(one.space, 3, np.random.default_rng(1)):
        (alone,) = one.assess(x[None])
        d = alone.design
        relayed = Design(d.arch, d.ops, d.cuts * 2, d.masks * 2, d.bits * 2)
        (evaluation,) = chain.assess(chain.space.encode(relayed)[None])
        assert evaluation.score == alone.score
        assert evaluation.costs["node_ms"][1] == 0


def test_a_link_without_loss_leaves_the_accuracy_to_the_other_one():
    one = FBNetSplit(evaluator=FAST, bits=[2, 32])
    chain = FBNetSplit(evaluator=FAST, bits=[2, 32], chain=AND_BACK)
    arch, ops = "|".join(["k3_e3"] * 22), (2,) * 22
    full, few = "1" * 8, "01000000"
    scores = {}
    for cuts, masks, bits in (
        ((8, 14), (few, full), (2, 32)),
        ((8, 14), (full, few), (32, 2)),
        ((8, 14), (few, few), (2, 2)),
    ):
        design = Design(arch, ops, cuts, masks, bits)
        (evaluation,) = chain.assess(chain.space.encode(design)[None])
        scores[bits] = evaluation.score
        for cut, mask, width in zip(cuts, masks, bits, strict=True):
            alone = Design(arch, ops, (cut,), (mask,), (width,))
            (evaluation,) = one.assess(one.space.encode(alone)[None])
            scores[cut, width] = evaluation.score
    assert scores[2, 32] == scores[8, 2]
    assert scores[32, 2] == scores[14, 2]
    assert scores[2, 2].error > scores[8, 32].error == scores[14, 32].error


@pytest.mark.parametrize("name", CHAINS)
def test_costs_of_a_chain_by_a_plain_loop(name):
    problem = FBNetSplit(evaluator=Formula(), chain={**CHAINS[name], "result_bytes": 12})
    space, chain = problem.space, problem.chain
    tables = {node.name: CostTable.shipped(node.name, ARCHITECTURE) for node in chain.nodes}
    rates = {"wifi": (18.88, 54.97, 2.0), "wan": (100.0, 100.0, 20.0)}
    X = random_genomes(space, 200, np.random.default_rng(2))
    costs = problem.costs(space.decode_batch(X))
    for row, x in enumerate(X):
        design = space.decode(x)
        bounds = [0, *design.cuts, N]
        node_ms = []
        for j, node in enumerate(chain.nodes):
            table = tables[node.name].latency_ms
            total = 0.0
            for block in range(bounds[j], bounds[j + 1]):
                op = design.ops[block - 1] if 0 < block < N - 1 else 0
                total += table[block, op]
                if block == N - 1:
                    total += table[N, 0] + table[N + 1, 0]
            node_ms.append(total)
        used = [cut < N for cut in design.cuts]
        last = sum(used)
        links_ms = []
        for j, link in enumerate(chain.links):
            if not used[j]:
                links_ms.append(0.0)
                continue
            shape = ARCHITECTURE.cut_shapes[design.cuts[j]]
            kept = design.masks[j].count("1") * shape[0] // 8
            payload = -(-kept * shape[1] * shape[2] * design.bits[j] // 8) + 4 * kept + 1
            up, down, rtt = rates[link.name]
            if name == "device_cloud_device":  # each link once, one way
                links_ms.append(rtt / 2 + 8e-3 * payload / (up, down)[j])
            else:
                back = 8e-3 * 12 / down if j < last else 0.0
                links_ms.append(rtt + 8e-3 * payload / up + back)
        assert costs["node_ms"][row] == pytest.approx(node_ms, abs=1e-12)
        assert costs["links_ms"][row] == pytest.approx(links_ms, abs=1e-12)
        assert costs["latency_ms"][row] == pytest.approx(sum(node_ms) + sum(links_ms))


def test_energy_of_a_chain_counts_the_device_alone():
    nodes = [{"name": "edgegpu", "path": None, "idle_mw": 1000.0}, "titan_rtx", "edgegpu"]
    with pytest.raises(UserError, match="the idle power of edgegpu"):
        FBNetSplit(chain={**AND_BACK, "nodes": nodes}, objectives=["error", "energy_mj"])
    nodes[2] = nodes[0]
    problem = FBNetSplit(evaluator=Formula(), chain={**AND_BACK, "nodes": nodes})
    space = problem.space
    x = space.xu.copy()
    x[: space.n_arch] = 0
    x[space.cut_genes] = np.searchsorted(space.cut_choices, [10, 20])
    costs = problem.costs(space.decode_batch(x[None]))
    table = CostTable.shipped("edgegpu", ARCHITECTURE)
    blocks = [*range(10), *range(20, 26)]
    energy = table.energy_mj[blocks, 0].sum()
    up_ms, down_ms = 8e-3 * (32 * 256 + 129) / 18.88, 8e-3 * (184 * 16 + 4 * 184 + 1) / 54.97
    energy += 1e-3 * (283.17 * 18.88 + 132.86) * up_ms
    energy += 1e-3 * (137.01 * 54.97 + 132.86) * down_ms
    energy += 1e-3 * 1000 * (costs["server_ms"][0] + 2.0)
    assert costs["energy_mj"][0] == pytest.approx(energy, rel=1e-12)


def test_one_chain_of_two_nodes_is_the_default_problem():
    chain = {"nodes": ["edgegpu", "h100"], "links": ["wifi"]}
    one, other = FBNetSplit(evaluator=Formula()), FBNetSplit(evaluator=Formula(), chain=chain)
    assert one.describe() == other.describe()
    X = random_genomes(one.space, 50, np.random.default_rng(0))
    for a, b in zip(one.assess(X), other.assess(X), strict=True):
        assert a == b


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_a_conforming_problem(name):
    check_problem(FBNetSplit(evaluator=Formula(), chain=CHAINS[name]), n=20)


@pytest.mark.parametrize("name", CHAINS)
def test_a_search_over_a_chain_repeats_itself_and_keeps_to_its_cuts(name):
    def search():
        problem = FBNetSplit(evaluator=Formula(), chain=CHAINS[name], limits={"latency_ms": 30})
        algorithm = create_algorithm("nsga2", problem, {"pop_size": 20}, seed=1)
        return problem, run_search(problem, algorithm, 200, seed=1).evaluations

    problem, found = search()
    assert [e.design for e in found] == [e.design for e in search()[1]]
    cuts = np.array([e.design.cuts for e in found])
    assert (np.diff(cuts, axis=1) >= 0).all()
    assert len(np.unique(cuts, axis=0)) > 20
    if name == "device_cloud_device":
        assert ((cuts[:, 0] == N) | (cuts[:, 1] < N)).all()
        assert (cuts[:, 0] >= 2).all()
    result = final_result(problem, found)
    assert result.front
    kinds = [row["kind"] for row in result.references if "accurate" in row["architecture_of"]]
    if name == "device_edge_cloud":
        assert kinds == ["all local", "raw offload to edgegpu", "raw offload to titan_rtx"]
    else:
        assert kinds == ["all local", "raw offload"]
        assert not any(row["allowed"] for row in result.references if row["kind"] != "all local")


def test_the_fastest_design_of_a_chain_is_the_fastest():
    for chain in CHAINS.values():
        problem = FBNetSplit(evaluator=Formula(), chain=chain)
        X = random_genomes(problem.space, 2000, np.random.default_rng(0))
        genomes = [problem.space.encode(problem.fastest_design()), *X]
        latency = problem.costs(problem.space.decode_batch(np.array(genomes)))["latency_ms"]
        assert latency.argmin() == 0


def test_the_reference_point_of_a_chain_is_no_better_than_any_design():
    objectives = ["error", "payload_bytes", "link_ms", "server_ms", "device_ms"]
    for chain in CHAINS.values():
        problem = FBNetSplit(evaluator=Formula(), chain=chain, objectives=objectives)
        X = random_genomes(problem.space, 500, np.random.default_rng(0))
        costs = problem.costs(problem.space.decode_batch(X))
        for name in objectives[1:]:
            assert costs[name].max() <= problem.reference_point[name] * (1 + 1e-12)


def test_the_exact_front_of_a_chain_holds_every_two_node_design():
    needs_data("hwnas/nb201_accuracy.npz")
    options = {"dataset": "cifar100", "evaluator": "tabular"}
    chain = {"nodes": ["raspi4", "edgegpu", "titan_rtx"], "links": ["wifi", "ethernet"]}
    three = NASBench201Split(chain=chain, **options)
    two = NASBench201Split(device="raspi4", server="edgegpu", **options)
    front = exact_front(three)
    assert front == non_dominated(three, front)
    for e in exact_front(two):
        assert any(
            o.score.error <= e.score.error
            and o.metric("latency_ms") <= e.metric("latency_ms") + 1e-9
            for o in front
        )


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ({**EDGE_CLOUD, "links": ["wifi"]}, "one link fewer than nodes, got 3 nodes and 1 links"),
        ({**EDGE_CLOUD, "min_last_blocks": 1}, "this one ends on titan_rtx, a server"),
        ({**AND_BACK, "min_last_blocks": -1}, "must be in 0..22 .* got -1"),
        ({**AND_BACK, "min_last_blocks": 1.5}, "got 1.5"),
        ({**AND_BACK, "result_bytes": -4}, "chain.result_bytes must be a whole number >= 0"),
        ({**AND_BACK, "cuts": 2}, "A chain has no field 'cuts'; it has name, nodes, links"),
        ({**AND_BACK, "roles": ["server", "server", "device"]}, "first node of a chain is a dev"),
    ],
)
def test_impossible_chains_are_refused(chain, message):
    with pytest.raises(UserError, match=message):
        FBNetSplit(evaluator=Formula(), chain=chain)


def test_the_device_may_let_outputs_out_where_it_is_asked_to():
    space = FBNetSplit(evaluator=Formula(), chain={**AND_BACK, "min_last_blocks": 0}).space
    assert [3, N] in space.cut_choices[space.cut_vectors].tolist()


def test_all_local_of_a_chain_costs_what_it_costs_alone():
    ops = np.zeros((1, 22), dtype=int)
    local = []
    for chain in (None, *CHAINS.values()):
        problem = FBNetSplit("edgegpu", evaluator=Formula(), chain=chain)
        if problem.chain.nodes[0].name == "edgegpu":
            local.append(problem.costs(unmasked_batch(problem.space, ops, N))["latency_ms"][0])
    assert len(local) == 2
    assert local[0] == local[1]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"nodes": ["edgegpu", "titan_rtx", "raspi4"]},
            "Nodes of role device are one machine that .* got edgegpu and raspi4 with",
        ),
        (
            {"roles": ["device", "device", "server"]},
            "Neighbouring nodes of a chain cannot both be the device, got edgegpu and titan_rtx",
        ),
        (
            {"links": ["wifi", {"name": "w", "uplink_mbps": 0, "downlink_mbps": 1}]},
            "Link 2 of the chain: link.uplink_mbps must be a finite number above 0, got 0",
        ),
    ],
)
def test_an_impossible_chain_is_one_sentence(parts, message):
    with pytest.raises(UserError, match=message):
        FBNetSplit(chain={**AND_BACK, **parts}, evaluator=Formula())


def test_the_shipped_chains_have_their_roles():
    for name, chain in CHAINS.items():
        shipped = load_group_option("chain", name)
        assert shipped["roles"] == chain.get("roles", ["device", "server", "server"])
        assert len(shipped["links"]) == 2


@pytest.mark.parametrize("name", CHAINS)
def test_the_command_line_searches_a_chain_and_resumes(cli, tmp_path, name):
    needs_data("hwnas/nb201_accuracy.npz")
    space = ("problem=nasbench201", "dataset=cifar100", "evaluator=tabular", "n_eval=30")
    options = (*space, "algorithm.initial=15", f"chain={name}", "device=raspi4", "link.rtt_ms=1")
    result = cli(*options, "hydra.run.dir=out")
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "out" / "pareto.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert len(row["cut"].split("/")) == len(row["links_ms"].split("/")) == 2
        parts = [float(part) for name in ("node_ms", "links_ms") for part in row[name].split("/")]
        assert sum(parts) == pytest.approx(float(row["latency_ms"]))
    lines = (tmp_path / "out" / "evaluations.jsonl").read_text().splitlines()
    assert all(len(json.loads(line)["node_ms"]) == 3 for line in lines)
    before = (tmp_path / "out" / "pareto.csv").read_bytes()
    again = cli(*options, "resume=out")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out" / "pareto.csv").read_bytes() == before
    assert (tmp_path / "out" / "front.png").stat().st_size > 10_000
    collected = cli("out", module="collect")
    assert collected.returncode == 0, collected.stderr
