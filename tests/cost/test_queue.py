"""Shared servers: the wait against a simulation, and designs that overload a server."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nasc_evo.cost import Chain, CostTable, Link, Node, Queue
from nasc_evo.cost.chain import DEVICE, SERVER
from nasc_evo.errors import UserError
from nasc_evo.search.algorithms import create_algorithm
from nasc_evo.search.final import final_result
from nasc_evo.search.journal import to_record
from nasc_evo.search.loop import run_search
from nasc_evo.search.operators import random_genomes
from nasc_evo.space import FBNetSpace
from nasc_evo.testing import check_problem
from problems import FBNetSplit
from tests.search.test_search import Formula

IDLE = {"name": "titan_rtx", "path": None, "idle_mw": None}


def problem(evaluator=None, **queue):
    options = {key: queue.pop(key) for key in ("objectives", "limits", "chain") if key in queue}
    return FBNetSplit(server={**IDLE, **queue}, evaluator=evaluator or Formula(), **options)


@pytest.mark.parametrize("used", [0.1, 0.5, 0.8])
def test_the_wait_is_that_of_a_simulated_queue(used):
    service_ms = 4.0
    queue = Queue(arrival_per_s=1e3 * used / service_ms)
    rng = np.random.default_rng(0)
    gaps = rng.exponential(service_ms / used, 400_000)
    wait, total = 0.0, 0.0
    for gap in gaps:  # Lindley: what is left of the work before when the next request arrives
        wait = max(0.0, wait + service_ms - gap)
        total += wait
    assert float(queue.waiting_ms(service_ms)) == pytest.approx(total / len(gaps), rel=0.05)


def test_costs_with_a_queue_by_a_plain_loop():
    own, other, idle = (
        problem(arrival_per_s=160.0),
        problem(arrival_per_s=80.0, service_ms=5.0),
        problem(),
    )
    X = random_genomes(idle.space, 300, np.random.default_rng(0))
    batch = idle.space.decode_batch(X)
    free, mine, theirs = (p.costs(batch) for p in (idle, own, other))
    reasons = own.chain.refusals(batch)
    assert other.chain.may_refuse is False
    seen = set()
    for row in range(len(X)):
        service = free["server_ms"][row]
        used = 0.16 * service
        seen.add((service == 0, used >= 1))
        if used >= 1:
            assert np.isinf(mine["latency_ms"][row])
            assert f"overloaded: utilisation {used:.3g}" in reasons[row]
        else:
            wait = used * service / (2 * (1 - used))
            assert mine["server_ms"][row] == pytest.approx(service + wait, rel=1e-12)
            assert reasons[row] == ""
        wait = 0.4 * 5.0 / 1.2 if service > 0 else 0.0
        assert theirs["server_ms"][row] == pytest.approx(service + wait, rel=1e-12)
        assert theirs["link_ms"][row] == free["link_ms"][row]
    assert seen == {(True, False), (False, False), (False, True)}


def test_a_search_keeps_off_what_overloads_the_server():
    def search():
        p = problem(arrival_per_s=200.0, objectives=["error", "latency_ms", "server_ms"])
        return p, run_search(p, create_algorithm("nsga2", p, {"pop_size": 20}, seed=1), 200, seed=1)

    p, found = search()
    assert [e.design for e in found.evaluations] == [e.design for e in search()[1].evaluations]
    refused = [e for e in found.evaluations if e.refused]
    assert refused
    for e in refused:
        record = json.loads(json.dumps(to_record(e), allow_nan=False))
        assert record["latency_ms"] is None
        assert record["status"] == "failed"
        assert "overloaded" in record["message"]
    result = final_result(p, found.evaluations)
    assert result.front
    genomes = np.array([design.evaluation.genome for design in result.front])
    free = p.chain.without_queues().evaluate(p.space.decode_batch(genomes))
    assert (0.2 * free.server_ms < 1).all()
    assert any("200 requests a second of the same design" in note for note in p.notes())


def test_best_cuts_do_not_overload_the_server():
    p = problem(arrival_per_s=200.0)
    algorithm = create_algorithm("nsga2", p, {"pop_size": 20, "best_cut_rate": 1.0}, seed=1)
    found = run_search(p, algorithm, 60, seed=1).evaluations
    assert not any(e.refused for e in found)


def test_a_problem_with_a_queue_conforms():
    check_problem(problem(arrival_per_s=100.0), n=10)


def test_the_edge_of_a_chain_may_have_a_queue():
    edge = {"name": "edgegpu", "path": None, "idle_mw": None, "arrival_per_s": 40.0}
    chain = {"nodes": ["raspi4", edge, "titan_rtx"], "links": ["wifi", "wan"]}
    loaded = FBNetSplit(chain=chain, evaluator=Formula())
    free = FBNetSplit(
        chain={**chain, "nodes": ["raspi4", "edgegpu", "titan_rtx"]}, evaluator=Formula()
    )
    X = random_genomes(free.space, 100, np.random.default_rng(1))
    batch = free.space.decode_batch(X)
    a, b = loaded.costs(batch)["node_ms"], free.costs(batch)["node_ms"]
    busy = b[:, 1] > 0
    assert (a[busy, 1] > b[busy, 1]).all()
    assert np.array_equal(a[~busy], b[~busy])
    assert np.array_equal(a[:, [0, 2]], b[:, [0, 2]])


@pytest.mark.parametrize(
    ("queue", "message"),
    [
        ({"arrival_per_s": 0}, "server.arrival_per_s must be a finite number above 0, got 0"),
        ({"arrival_per_s": float("inf")}, "got inf"),
        ({"arrival_per_s": "many"}, "got 'many'"),
        ({"arrival_per_s": 10, "service_ms": -1}, "server.service_ms must be a finite number"),
        ({"service_ms": 3.0}, "server.service_ms=3.0 needs server.arrival_per_s too"),
        (
            {"arrival_per_s": 200, "service_ms": 6.0},
            "=200 requests of 6 ms each would keep the server busy for 1.2 of its time, which must "
            "be below 1: give fewer than 166.7 a second",
        ),
        ({"arrival_per_s": 1e5}, "requests to titan_rtx of at least .* below 1: give fewer than"),
    ],
)
def test_impossible_loads_are_one_sentence(queue, message):
    with pytest.raises(UserError, match=message):
        problem(**queue)


def test_a_device_has_no_queue():
    device = {"name": "edgegpu", "path": None, "idle_mw": None, "arrival_per_s": 5.0}
    with pytest.raises(UserError, match="arrival_per_s and service_ms are for servers"):
        FBNetSplit(device=device, evaluator=Formula())


def test_what_a_machine_pays_for_every_piece_counts_as_load():
    space = FBNetSpace(32, 10)
    device, server = (CostTable.shipped(name, space) for name in ("edgegpu", "titan_rtx"))
    nodes = [
        Node("edgegpu", device, DEVICE),
        Node("slow", replace(server, constant_ms=20.0), SERVER, queue=Queue(50.0)),
    ]
    with pytest.raises(UserError, match=r"50 requests to slow of at least 20\..* below 1"):
        Chain(space, nodes, [Link.create("wifi")], image_bytes=784)


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ({"arrival_per_s": 0}, "Node 2 of the chain: server.arrival_per_s must be a finite number"),
        ({"path": "no.csv"}, "Node 2 of the chain: There is no cost table file no.csv"),
    ],
)
def test_a_mistake_in_a_long_chain_says_in_which_node(edge, message):
    nodes = ["raspi4", {**IDLE, **edge}, "titan_rtx"]
    with pytest.raises(UserError, match=message):
        FBNetSplit(chain={"nodes": nodes, "links": ["wifi", "wan"]}, evaluator=Formula())
