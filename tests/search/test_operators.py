import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymoo.core.population import Population

from nasc_evo.errors import UserError
from nasc_evo.problem import SplitProblem
from nasc_evo.search.algorithms import algorithm_options, create_algorithm
from nasc_evo.search.operators import (
    BestCuts,
    PhenotypeDuplicates,
    SplitCrossover,
    SplitMutation,
    SplitSampling,
    keep_valid,
    random_genomes,
)
from nasc_evo.space import FBNetSpace, NASBench201Space, SplitSpace
from problems import FBNetSplit
from tests.conftest import FAST

ARCHITECTURE = FBNetSpace(32, 10)
SPACES = {
    "default": SplitSpace(ARCHITECTURE),
    "raw": SplitSpace(ARCHITECTURE, allow_raw_offload=True, bits=(8,)),
    "channels": SplitSpace(ARCHITECTURE, mask_groups="channels"),
    "chain": SplitSpace(ARCHITECTURE, n_links=2),
    "nasbench201": SplitSpace(NASBench201Space(32, 10)),
    "no mask": SplitSpace(NASBench201Space(32, 10), mask_groups=1, bits=(8,), n_links=2),
}


def problem_of(space):
    """A stand-in with the one attribute that pymoo's operators read."""
    return type("Sized", (), {"n_var": space.n_var})()


@given(
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(sorted(SPACES)),
    kind=st.sampled_from(["uniform", "two_point"]),
)
@settings(max_examples=40, deadline=None)
def test_children_are_genomes_with_a_channel_to_send(seed, name, kind):
    space, rng = SPACES[name], np.random.default_rng(seed)
    parents = Population.new("X", random_genomes(space, 8, rng))
    pairs = np.arange(8).reshape(4, 2)
    problem = problem_of(space)
    children = SplitCrossover(space, kind).do(problem, parents, pairs, random_state=rng)
    before = children.get("X").copy()
    X = SplitMutation(space).do(problem, children, random_state=rng).get("X")
    batch = space.decode_batch(X)
    assert X.dtype == np.int64
    assert (before != X).any(axis=1).all()
    sent = batch.n_groups > 0
    assert (batch.kept_channels > 0)[sent].all()
    if space.n_mask:  # and not only because decoding repairs it
        used = np.arange(space.n_mask) < batch.n_groups[..., None]
        masks = X[:, space.mask_genes].astype(bool) & used
        assert masks.any(axis=-1)[sent].all()


def test_crossover_keeps_a_cut_with_its_mask():
    space = SPACES["default"]
    a, b = random_genomes(space, 2, np.random.default_rng(1))
    parents = Population.new("X", np.stack([a, b]))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        children = SplitCrossover(space, rate=1.0).do(
            problem_of(space), parents, np.array([[0, 1]]), random_state=rng
        )
        for x in children.get("X"):
            unit = np.r_[space.cut_genes, space.mask_genes[0]]
            assert any(np.array_equal(x[unit], parent[unit]) for parent in (a, b))
            assert ((x == a) | (x == b)).all()


def test_a_cut_moves_by_one_step():
    space = SPACES["default"]
    X = random_genomes(space, 200, np.random.default_rng(0))
    mutated = SplitMutation(space, cut_rate=1.0)._do(None, X, random_state=np.random.default_rng(1))
    step = (mutated - X)[:, space.cut_genes[0]]
    assert set(step) == {-1, 0, 1}
    assert (step != 0).mean() > 0.9


def test_samples_spread_over_sizes_and_masks():
    space = SPACES["default"]
    X = SplitSampling(space)._do(None, 300, random_state=np.random.default_rng(0))
    batch = space.decode_batch(X)
    uniform = np.random.default_rng(0).integers(0, 9, (300, 22))
    assert ARCHITECTURE.macs(batch.ops).std() > 1.3 * ARCHITECTURE.macs(uniform).std()
    kept = batch.masks.sum(axis=-1)[batch.n_groups > 0]
    assert set(kept) == set(range(1, 9))


def test_duplicates_are_those_of_the_phenotype():
    space = SPACES["default"]
    x = space.xu.copy()
    y = x.copy()
    y[space.mask_genes[0]] = 0  # the cut is after the last block: masks have no effect
    z = x.copy()
    z[0] = 0
    population = Population.new("X", np.stack([x, y, z]))
    kept = PhenotypeDuplicates(space).do(population)
    assert len(kept) == 2
    assert len(PhenotypeDuplicates(space).do(population, kept)) == 0


def test_the_fastest_design_begins_the_population():
    problem = FBNetSplit(evaluator=FAST)
    fastest = problem.fastest_design()
    sampling = SplitSampling(problem.space, [fastest])
    X = sampling._do(None, 5, random_state=np.random.default_rng(0))
    assert problem.space.decode(X[0]) == fastest


def test_the_fastest_design_is_the_fastest():
    for options in ({}, {"device": "raspi4", "link": "lte"}, {"allow_raw_offload": True}):
        problem = FBNetSplit(evaluator=FAST, **options)
        space = problem.space
        genome = space.encode(problem.fastest_design())
        lowest = problem.costs(space.decode_batch(genome[None]))["latency_ms"][0]
        X = random_genomes(space, 20000, np.random.default_rng(0))
        assert lowest <= problem.costs(space.decode_batch(X))["latency_ms"].min()
        rng = np.random.default_rng(1)
        for _ in range(300):  # no single mutation of it is faster
            neighbour = SplitMutation(space)._do(None, genome[None], random_state=rng)
            assert lowest <= problem.costs(space.decode_batch(neighbour))["latency_ms"][0]


@pytest.mark.parametrize("n_nodes", [2, 3])
def test_genomes_move_to_the_cuts_of_the_lowest_latency(n_nodes):
    nodes = ["raspi4", "edgegpu", "titan_rtx"][-n_nodes:]
    chain = {"nodes": nodes, "links": ["wifi", "5g"][: n_nodes - 1], "roles": None}
    problem = FBNetSplit(evaluator=FAST, chain=chain)
    space, rng = problem.space, np.random.default_rng(0)
    X = random_genomes(space, 6, rng)
    moved = BestCuts(space, problem.cut_costs, 1.0)(X.copy(), rng)
    others = np.setdiff1d(np.arange(space.n_var), [*space.cut_genes, *space.mask_genes.ravel()])
    assert np.array_equal(moved[:, others], X[:, others])
    lowest = problem.costs(space.decode_batch(moved))["latency_ms"]
    n = len(space.cut_choices)
    for cuts in np.ndindex(*(n,) * space.n_links):
        if list(cuts) == sorted(cuts):
            tried = X.copy()
            tried[:, space.cut_genes] = cuts
            latency_ms = problem.costs(space.decode_batch(tried))["latency_ms"]
            assert (lowest <= latency_ms + 1e-9).all()


def test_genomes_move_to_undominated_cuts_within_the_limits():
    problem = FBNetSplit(
        "raspi4",
        evaluator=FAST,
        objectives=["error", "latency_ms", "payload_bytes"],
        limits={"payload_bytes": 4000},
    )
    space, rng = problem.space, np.random.default_rng(0)
    (x,) = random_genomes(space, 1, rng)
    tried = np.tile(x, (len(space.cut_choices), 1))
    tried[:, space.cut_genes[0]] = np.arange(len(space.cut_choices))
    F, violations = problem.cut_costs(space.decode_batch(keep_valid(space, tried)))
    assert 0 < (violations == 0).sum() < len(violations)
    allowed = {
        cut
        for cut in range(len(F))
        if violations[cut] == 0
        and not any(
            violations[i] == 0 and (F[i] <= F[cut]).all() and (F[i] < F[cut]).any()
            for i in range(len(F))
        )
    }
    move = BestCuts(space, problem.cut_costs, 1.0)
    drawn = {int(move(x[None].copy(), rng)[0, space.cut_genes[0]]) for _ in range(60)}
    assert drawn == allowed
    assert len(allowed) > 1


def test_nothing_moves_and_nothing_is_drawn_without_a_rate():
    space = SPACES["default"]
    rng = np.random.default_rng(0)
    X = random_genomes(space, 6, rng)
    state = rng.bit_generator.state
    assert BestCuts(space, None, 0.0)(X, rng) is X
    assert rng.bit_generator.state == state


def test_defaults_depend_on_whether_the_error_depends_on_the_cut():
    def rates(problem, options=None):
        algorithm = create_algorithm("nsga2", problem, options)
        mating = algorithm.mating
        return algorithm.pop_size, mating.crossover.prob.get(), mating.mutation.best_cuts.rate

    problem = FBNetSplit(evaluator=FAST)
    assert rates(problem) == (40, 0.9, 0)
    quantised = FBNetSplit(evaluator=FAST, mask_groups=1, bits=[8])
    assert rates(quantised) == (40, 0.9, 0)
    lossless = SplitProblem(problem.space, problem.chain, problem.evaluator, lossless=True)
    assert rates(lossless) == (20, 0.15, 0.9)
    assert algorithm_options(lossless, "random") == {"pop_size": 40}
    assert algorithm_options(problem, "surrogate")["best_cut_rate"] == 0.5
    assert algorithm_options(lossless, "surrogate")["best_cut_rate"] == 1
    assert algorithm_options(problem, "surrogate")["exploration"] == 0.5
    assert algorithm_options(lossless, "surrogate")["exploration"] == 0.7
    given = {"pop_size": 8, "crossover_rate": 0.5, "best_cut_rate": 0.2}
    assert rates(problem, given) == rates(lossless, given) == (8, 0.5, 0.2)


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match="best_cut_rate must be a number in 0..1"):
        BestCuts(SPACES["default"], None, 1.5)
    with pytest.raises(UserError, match="needs the costs"):
        BestCuts(SPACES["default"], None, 0.5)
    with pytest.raises(UserError, match="crossover must be one of uniform, two_point"):
        SplitCrossover(SPACES["default"], "sbx")
    with pytest.raises(UserError, match="crossover_rate must be a number in 0..1"):
        SplitCrossover(SPACES["default"], rate=-0.1)
    with pytest.raises(UserError, match="cut_rate must be a number in 0..1"):
        SplitMutation(SPACES["default"], cut_rate=2)
