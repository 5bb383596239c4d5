"""Varying rates: quantiles against sampling, lost packets against a simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasc_evo.cost import Chain, CostTable, Link, Node
from nasc_evo.cost.chain import DEVICE, SERVER
from nasc_evo.cost.link import further_rounds
from nasc_evo.cost.rate import WEIGHTS, LogNormal, Relay, Trace, joint_slowdown, slowdown
from nasc_evo.errors import UserError
from nasc_evo.search.operators import random_genomes
from nasc_evo.space import FBNetSpace, SplitSpace
from problems import FBNetSplit
from tests.search.test_search import Formula

SPACE = FBNetSpace(32, 10)
UAV = {
    "altitude_m": 80.0,
    "nearest_m": 0.0,
    "farthest_m": 900.0,
    "bandwidth_mhz": 5.0,
    "snr_db": 66.0,
}
SAMPLES = 400_000


def trace_of(rates, tmp_path) -> Trace:
    path = tmp_path / "rates.csv"
    path.write_text("time_s,uplink_mbps\n" + "".join(f"{i},{r}\n" for i, r in enumerate(rates)))
    return Trace.load(path)


def sampled(variation, rng, n=SAMPLES):
    """Return factors drawn from what a variation says of itself, without its quantiles."""
    if isinstance(variation, LogNormal):
        return np.exp(variation.sigma * rng.standard_normal(n))
    if isinstance(variation, Trace):
        return rng.choice(variation.rates_mbps, n) / variation.median_mbps
    x = rng.uniform(variation.nearest_m, variation.farthest_m, n)
    loss = 10 * variation.path_loss_exponent * np.log10(np.hypot(variation.altitude_m, x))
    snr = variation.snr_db - loss + variation.shadowing_db * rng.standard_normal(n)
    rate = variation.bandwidth_mhz * np.log2(1 + 10 ** (snr / 10))
    return np.minimum(rate, variation.max_mbps or math.inf) / variation.median_mbps


def every_kind(tmp_path):
    rng = np.random.default_rng(5)
    return {
        "narrow": LogNormal(0.2),
        "wide": LogNormal(1.1),
        "trace": trace_of(np.round(rng.gamma(2.0, 8.0, 997) + 0.5, 3), tmp_path),
        "uav": Relay(**UAV),
        "shadowed": Relay(**UAV, shadowing_db=6.0),
        "capped": Relay(**UAV, shadowing_db=3.0, path_loss_exponent=2.6, max_mbps=11.0),
    }


def test_quantiles_of_every_variation_agree_with_sampling(tmp_path):
    rng = np.random.default_rng(0)
    for name, variation in every_kind(tmp_path).items():
        factors = sampled(variation, rng)
        assert np.median(factors) == pytest.approx(1, rel=0.01), name
        for probability in (0.05, 0.5, 0.9, 0.95, 0.99):
            slower = slowdown(variation, probability)
            # a trace and a capped rate have values of their own with a probability
            assert np.mean(1 / factors <= slower * (1 + 1e-9)) > probability - 0.004, name
            assert np.mean(1 / factors < slower * (1 - 1e-9)) < probability + 0.004, name


@pytest.mark.parametrize(
    "pair", [("narrow", "wide"), ("trace", "wide"), ("uav", "trace"), ("shadowed", "capped")]
)
def test_quantiles_of_two_independent_links_agree_with_sampling(pair, tmp_path):
    kinds = every_kind(tmp_path)
    first, second = (kinds[name] for name in pair)
    table = joint_slowdown(first, second, 0.95)
    rng = np.random.default_rng(1)
    one, two = sampled(first, rng), sampled(second, rng)
    for share in (0.0, 0.013, 0.25, 0.5, 0.77, 0.99, 1.0):
        slower = np.interp(share, WEIGHTS, table)
        got = np.mean(share / one + (1 - share) / two <= slower * (1 + 1e-9))
        assert 0.947 < got < 0.953, share


@given(sigma=st.floats(0.05, 2.0), share=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_two_links_are_never_slower_together_than_apart(sigma, share):
    first, second = LogNormal(sigma), LogNormal(2.0 - sigma * 0.9)
    slower = np.interp(share, WEIGHTS, joint_slowdown(first, second, 0.95))
    apart = share * slowdown(first, 0.95) + (1 - share) * slowdown(second, 0.95)
    # the worst 5 % of both at once is rarer; log-normal tails of one may carry the sum
    assert slower <= apart * 1.02
    assert slower >= max(share * slowdown(first, 0.95), (1 - share) * slowdown(second, 0.95)) * 0.98


@given(rates=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60), p=st.floats(0.001, 0.999))
@settings(max_examples=100, deadline=None)
def test_a_trace_reaches_what_it_says(rates, p, tmp_path_factory):
    trace = trace_of(rates, tmp_path_factory.mktemp("trace"))
    rate = float(trace.exceeded(p)) * trace.median_mbps
    tolerance = rate * 1e-9
    assert np.mean(trace.rates_mbps >= rate - tolerance) >= p - 1e-9
    above = trace.rates_mbps[trace.rates_mbps > rate + tolerance]
    assert len(above) / len(rates) < p or len(above) == 0
    assert trace.exceeded(0.5) == 1


@pytest.mark.parametrize("loss", [0.01, 0.2, 0.7])
def test_lost_packets_agree_with_a_simulation(loss):
    rng = np.random.default_rng(2)
    counts = np.array([1, 3, 17, 200])
    rounds, sent = np.zeros(4), np.zeros(4)
    runs = 20_000
    for i, n in enumerate(counts):
        left = np.full(runs, n)
        while left.any():
            rounds[i] += (left > 0).mean()
            sent[i] += left.mean()
            left = rng.binomial(left, loss)
    assert further_rounds(counts.astype(float), loss) == pytest.approx(
        rounds - 1, rel=0.04, abs=0.01
    )
    assert counts / (1 - loss) == pytest.approx(sent, rel=0.02)


def chain(links, roles=(DEVICE, SERVER), names=("edgegpu", "titan_rtx")):
    tables = {name: CostTable.shipped(name, SPACE) for name in names}
    nodes = [Node(name, tables[name], role) for name, role in zip(names, roles, strict=True)]
    return Chain(SPACE, nodes, links, image_bytes=3072)


def batch(n_links=1, n=200):
    space = SplitSpace(SPACE, n_links=n_links, min_last_blocks=int(n_links == 2))
    return space.decode_batch(random_genomes(space, n, np.random.default_rng(3)))


def link(**values) -> Link:
    return Link.create({"name": "x", "uplink_mbps": 8.0, "downlink_mbps": 16.0, **values})


def test_messages_and_losses_by_a_plain_loop():
    designs = batch()
    model = chain([link(rtt_ms=5.0, message_ms=0.7, loss=0.1, packet_bytes=500)])
    plain = chain([link(rtt_ms=5.0)])
    got, without = model.evaluate(designs), plain.evaluate(designs)
    for row in range(len(designs)):
        payload = without.payload_bytes[row]
        if payload == 0:
            assert got.link_ms[row] == 0
            continue
        wanted = 5.0 + 2 * 0.7
        for size, rate in ((payload, 8.0), (40, 16.0)):
            wanted += 8e-3 * size / rate / 0.9
            packets = math.ceil(size / 500)
            wanted += 5.0 * sum(1 - (1 - 0.1**k) ** packets for k in range(1, 60))
        assert got.link_ms[row] == pytest.approx(wanted, rel=1e-9)


def test_the_percentile_is_that_of_sampled_latencies():
    designs = batch(n=20)
    variation = LogNormal(0.6)
    model = chain([link(rtt_ms=3.0, rate_sigma=0.6, message_ms=0.2)])
    costs = model.evaluate(designs)
    constant = chain([link(rtt_ms=3.0, message_ms=0.2)]).evaluate(designs)
    assert np.array_equal(costs.latency_ms, constant.latency_ms)
    factors = sampled(variation, np.random.default_rng(4), 100_000)
    for row in range(len(designs)):
        used = costs.payload_bytes[row] > 0
        fixed = costs.latency_ms[row] - costs.link_ms[row] + 3.4 * used
        moving = costs.link_ms[row] - 3.4 * used
        latencies = fixed + moving / factors
        assert np.quantile(latencies, 0.95) == pytest.approx(costs.latency_p95_ms[row], rel=0.01)
        assert np.median(latencies) == pytest.approx(costs.latency_ms[row], rel=0.01)


def test_one_link_there_and_back_varies_as_one():
    names, roles = ("edgegpu", "titan_rtx", "edgegpu"), (DEVICE, SERVER, DEVICE)
    links = [link(rate_sigma=0.5), link(rate_sigma=0.5)]
    there_and_back = chain(links, roles, names).evaluate(batch(2))
    slower = slowdown(LogNormal(0.5), 0.95)
    wanted = there_and_back.latency_ms + there_and_back.link_ms * (slower - 1)
    assert there_and_back.latency_p95_ms == pytest.approx(wanted)
    names, roles = ("edgegpu", "raspi4", "titan_rtx"), (DEVICE, SERVER, SERVER)
    apart = chain(links, roles, names).evaluate(batch(2))
    together = apart.latency_ms + apart.link_ms * (slower - 1)
    both = (apart.links_ms > 0).all(axis=1)
    assert (apart.latency_p95_ms[both] < together[both]).all()
    space = SplitSpace(SPACE, n_links=2)
    designs = random_genomes(space, 200, np.random.default_rng(3))
    designs[:, space.cut_genes[1]] = len(space.cut_choices) - 1
    apart = chain(links, roles, names).evaluate(space.decode_batch(designs))
    together = apart.latency_ms + apart.link_ms * (slower - 1)
    one = (apart.links_ms > 0).sum(axis=1) == 1
    assert one.any()
    assert apart.latency_p95_ms[one] == pytest.approx(together[one])


def test_two_ways_to_vary_between_the_same_machines_are_refused():
    names, roles = ("edgegpu", "titan_rtx", "edgegpu"), (DEVICE, SERVER, DEVICE)
    with pytest.raises(UserError, match="Links 1 and 2 of the chain join the same two machines"):
        chain([link(rate_sigma=0.5), link(rate_sigma=2.0)], roles, names)
    one = chain([link(rate_sigma=0.5), link()], roles, names).evaluate(batch(2))
    both = chain([link(rate_sigma=0.5), link(rate_sigma=0.5)], roles, names).evaluate(batch(2))
    used = one.links_ms.sum(axis=1) > 0
    assert (one.latency_p95_ms[used] < both.latency_p95_ms[used]).all()


def test_more_than_two_varying_links_are_refused():
    names, roles = ("edgegpu", "raspi4", "pixel3", "titan_rtx"), (DEVICE, *[SERVER] * 3)
    with pytest.raises(UserError, match="at most 2 links of a chain may vary, got 3"):
        chain([link(rate_sigma=0.5)] * 3, roles, names)


def test_a_percentile_is_an_objective_and_a_limit():
    options = {"link": {**UAV_LINK, "rtt_ms": 1.0}, "evaluator": Formula()}
    problem = FBNetSplit(
        objectives=["error", "latency_p95_ms"], limits={"latency_p95_ms": 12.0}, **options
    )
    X = random_genomes(problem.space, 40, np.random.default_rng(0))
    out = problem.evaluate(X, return_as_dictionary=True)
    costs = problem.costs(problem.space.decode_batch(X))
    assert np.array_equal(out["F"][:, 1], costs["latency_p95_ms"])
    assert np.array_equal(out["G"][:, 0], costs["latency_p95_ms"] / 12 - 1)
    assert (costs["latency_p95_ms"] >= costs["latency_ms"]).all()
    out_of_reach = FBNetSplit(limits={"latency_p95_ms": 1.0}, **options).out_of_reach()
    assert "even the fastest design of the space takes" in out_of_reach
    with pytest.raises(UserError, match="latency_p95_ms is of links whose rates vary, and none"):
        FBNetSplit(objectives=["error", "latency_p95_ms"], evaluator=Formula())


UAV_LINK = {"name": "uav", "uplink_mbps": None, "downlink_mbps": None, "relay": UAV}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": 1.0}, r"link.loss must be in 0..0.99, got 1.0"),
        ({"loss": -0.1}, "got -0.1"),
        ({"packet_bytes": 0}, "link.packet_bytes must be a finite number >= 1, got 0"),
        ({"message_ms": -1}, "link.message_ms must be a finite number >= 0, got -1"),
        ({"rate_sigma": -0.5}, r"link.rate_sigma must be a number in 0..5, got -0.5"),
        ({"rate_sigma": float("nan")}, "link.rate_sigma must be a number in 0..5, got nan"),
        ({"rate_sigma": "high"}, "link.rate_sigma must be a number, got 'high'"),
        ({"rate_sigma": 0.5, "relay": UAV}, "varies in one way only, got link.rate_sigma and"),
        ({"relay": UAV}, "link.relay gives the rates, so that link.uplink_mbps must be null"),
        ({"relay": {"altitude_m": 3}}, "link.relay needs the fields altitude_m, nearest_m"),
        ({"relay": {**UAV, "speed": 3}}, "link.relay needs the fields"),
        ({"relay": {**UAV, "snr_db": "x"}}, "link.relay.snr_db must be a finite number, got 'x'"),
        ({"relay": {**UAV, "snr_db": -150.0}}, "link.relay reaches no rate"),
        ({"relay": {**UAV, "farthest_m": 0.0}}, "farthest_m must be above nearest_m"),
        ({"relay": {**UAV, "max_mbps": 0.0}}, "max_mbps must be above 0 or null, got 0.0"),
        ({"trace": "nowhere.csv"}, r"There is no file nowhere.csv of rates \(link.trace\)"),
    ],
)
def test_impossible_variations_are_one_sentence(values, message):
    with pytest.raises(UserError, match=message):
        link(**values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must be a CSV file whose first line names a column uplink_mbps, got 'nothing'"),
        ("uplink_mbps\n", "are empty: there is no line below the first"),
        ("time,rate\n1,2\n", "names a column uplink_mbps, got 'time,rate'"),
        ("uplink_mbps\n3\n0\n", "Line 3 of the rates .* above 0, got '0'; leave out times"),
        ("uplink_mbps\n-3\n", "Line 2 .* got '-3'"),
        ("uplink_mbps\nnan\n", "Line 2 .* got 'nan'"),
        ("time,uplink_mbps\n5\n", "Line 2 .* got '5'"),
        ("uplink_mbps\n1e-320\n1e300\n", "span from"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_damaged_trace_is_one_sentence(content, message, tmp_path):
    path = tmp_path / "rates.csv"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        Link.create({"name": "t", "trace": str(path)})


def test_a_trace_gives_the_rates_of_its_link(tmp_path):
    trace_of([4, 1, 9, 2, 30], tmp_path)
    made = Link.create({"name": "t", "trace": str(tmp_path / "rates.csv")})
    assert made.uplink_mbps == made.downlink_mbps == 4
    again = Link.create({"name": "t", "trace": str(tmp_path / "rates.csv")})
    assert made.describe() == again.describe()
    assert made.describe()["variation"]["rates"] == 5
