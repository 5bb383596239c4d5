"""Conformance checks that users can run on a problem of their own."""

import pickle

import numpy as np

from nasc_evo.problem import METRICS, VARYING, SplitProblem
from nasc_evo.search.operators import for_space, random_genomes


def check_problem(problem: SplitProblem, *, n: int = 4, seed: int = 0) -> None:
    """Check that a problem keeps the promises that searches rely on.

    Genomes round-trip through phenotypes; costs of head and tail add up at every cut, do not
    depend on the population around a design, and are finite; accuracies are a function of the
    design; the operators stay within the space; pymoo sees finite objectives and constraints of
    the right shape; the space survives pickling.

    Args:
        problem: The problem; a few of its designs are evaluated.
        n: Number of designs to evaluate.
        seed: Of the designs.

    Raises:
        AssertionError: With a sentence that says which promise is broken.
    """
    rng = np.random.default_rng(seed)
    space = problem.space
    X = random_genomes(space, 64, rng)
    _check_genomes(problem, X)
    _check_costs(problem, X)
    _check_operators(problem, X, seed)
    _check_evaluation(problem, X[:n])
    sent = pickle.loads(pickle.dumps(space))  # as worker processes get it; our own bytes
    assert sent.decode(X[0]) == space.decode(X[0]), "the space does not survive pickling"


def _check_genomes(problem: SplitProblem, X: np.ndarray) -> None:
    space = problem.space
    assert np.array_equal(problem.xl, space.xl), "the lower bounds of the problem are the space's"
    assert np.array_equal(problem.xu, space.xu), "the upper bounds of the problem are the space's"
    for x in X:
        design = space.decode(x)
        again = space.decode(space.encode(design))
        assert again == design, f"{design.key} does not survive encoding and decoding"
        parsed = space.architecture.parse(design.arch)
        assert tuple(parsed) == design.ops, f"{design.arch} does not survive its text form"


def _check_costs(problem: SplitProblem, X: np.ndarray) -> None:
    space, n = problem.space, problem.space.architecture.n_blocks
    together = problem.costs(space.decode_batch(X))
    able = [not reason for reason in problem.chain.refusals(space.decode_batch(X))]
    for name, values in together.items():
        alone = np.concatenate([problem.costs(space.decode_batch(x[None]))[name] for x in X])
        assert np.array_equal(alone, values, equal_nan=True), f"{name} depends on the population"
        assert np.isfinite(values[able]).all() or name == "energy_mj", f"{name} is not finite"
        assert (np.nan_to_num(values) >= 0).all(), f"{name} is negative"
    parts = together["device_ms"] + together["link_ms"] + together["server_ms"]
    assert np.allclose(parts[able], together["latency_ms"][able]), (
        "latency is not the sum of its parts"
    )
    same = [node.table for node in problem.chain.nodes]
    x = X[:1].copy()
    x[:, space.cut_genes] = space.cut_vectors[-1]
    whole = problem.costs(space.decode_batch(x))["node_ms"].sum()
    for vector in space.cut_vectors:
        x[:, space.cut_genes] = vector
        cuts = space.cut_choices[vector].tolist()
        node_ms = problem.costs(space.decode_batch(x))["node_ms"]
        if all(table is same[0] for table in same):
            assert np.isclose(node_ms.sum(), whole), f"the parts do not add up at cuts {cuts}"
        if cuts[0] == n:
            assert (node_ms[:, 1:] == 0).all(), "all local still computes on another node"


def _check_operators(problem: SplitProblem, X: np.ndarray, seed: int) -> None:
    from pymoo.core.population import Population

    space, rng = problem.space, np.random.default_rng(seed)
    parts = for_space(space)
    parents = Population.new("X", X)
    pairs = np.arange(len(X)).reshape(-1, 2)
    children = parts["crossover"].do(problem, parents, pairs, random_state=rng)
    before = children.get("X").copy()
    mutated = parts["mutation"].do(problem, children, random_state=rng).get("X")
    space.check(mutated)
    assert (mutated != before).any(axis=1).all(), "a mutation left its genome as it was"


def _check_evaluation(problem: SplitProblem, X: np.ndarray) -> None:
    out = problem.evaluate(X, return_as_dictionary=True)
    assert out["F"].shape == (len(X), len(problem.objectives)), "F has a wrong shape"
    assert np.isfinite(out["F"]).all(), "an objective is not finite"
    if problem.n_ieq_constr:
        assert out["G"].shape == (len(X), problem.n_ieq_constr), "G has a wrong shape"
    designs = [problem.space.decode(x) for x in X]
    scores = dict(problem.evaluator.evaluate(designs))
    backwards = dict(problem.evaluator.evaluate(designs[::-1]))
    assert sorted(scores) == list(range(len(X))), "the evaluator does not yield each design once"
    for i in range(len(X)):
        assert scores[i] == backwards[len(X) - 1 - i], "a score depends on the order of designs"
    for row, x in enumerate(X):
        values = problem.decode(x)
        if scores[row].correct is None or values["correct"] is None:
            assert problem.chain.may_refuse, f"the evaluation of {values['arch']} failed"
            continue  # a node refuses it, and pymoo sees the reference point
        for column, name in enumerate(problem.objectives):
            assert values[name] == out["F"][row, column], f"decode and evaluate differ in {name}"
        promised = [name for name in METRICS if problem.chain.varies or name not in VARYING]
        absent = [name for name in promised if name not in values]
        assert not absent, f"decode lacks {absent}"
    worst = problem.reference_point
    assert set(worst) == set(problem.objectives), "the reference point names other objectives"
