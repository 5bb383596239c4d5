"""MSuNAS, re-implemented: evolution on a predictor, as NSGANetV2 does it (Lu et al., ECCV 2020)."""

from collections.abc import Callable
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray
from pymoo.core.termination import NoTermination

from nasc_evo.search import operators
from nasc_evo.search.indicators import non_dominated, spread_subset
from nasc_evo.search.method import Genomes, Method
from nasc_evo.search.predictor import ErrorPredictor, Features

FOLDS = 3
RIDGE = 1.0
SMOOTHING = 0.1

FloatArray = NDArray[np.float64]
Predictor = Callable[[FloatArray], FloatArray]


class MSuNAS(Method):
    """Searches the predicted error and the known costs with NSGA-II, evaluates some of its front.

    Each iteration fits several predictors to all evaluations and takes the one whose ranks agree
    best with the truth in cross-validation (the paper's adaptive switching; here ridge regression,
    radial basis functions and a Gaussian process over one-hot genes; the paper has further ones).
    NSGA-II starts from the evaluated front; of what it ends with, designs spread over the
    predicted front are evaluated; random ones where all are known.

    Args:
        n_eval: The budget; a later iteration evaluates the 30th part of what the first designs
            leave if that is more than `batch`.
        initial: Random designs to begin with.
        batch: Designs an iteration evaluates.
        pop_size: Population of NSGA-II.
        generations: Its generations.
        parts: Operators.
    """

    def __init__(
        self,
        n_eval: int,
        *,
        initial: int,
        batch: int,
        pop_size: int,
        generations: int,
        **parts: Any,
    ) -> None:
        self.initial = initial
        self.batch = max(batch, (n_eval - initial) // 30)
        self.pop_size = pop_size
        self.generations = generations
        self.parts = parts
        self.begun = False

    def propose(self) -> Genomes:
        """Return random designs at first, then some of the predicted front."""
        scored = [e for e in self.evaluated() if not e.failed]
        if not self.begun or len(scored) < 2 * FOLDS:
            self.begun = True
            sampling = self.parts["sampling"]
            return sampling._do(self.problem, self.initial, random_state=self.rng)
        X = np.array([e.genome for e in scored])
        errors = np.array([e.score.error for e in scored])
        predict = self._best_predictor(self._one_hot(X), errors)
        front = non_dominated(self.problem, scored)
        X, F = self._evolve(predict, np.array([e.genome for e in front or scored]))
        unknown = np.array([self.known(x) is None for x in X], dtype=bool)
        X, F = X[unknown], F[unknown]
        if len(X):
            best = moocore.is_nondominated(F, keep_weakly=True)
            rows = np.flatnonzero(best)[spread_subset(F[best], self.batch)]
            return X[rows]
        return operators.random_genomes(self.problem.space, self.batch, self.rng)

    def _one_hot(self, X: Genomes) -> FloatArray:
        sizes = self.problem.space.sizes
        return np.concatenate(
            [X[:, gene, None] == np.arange(size) for gene, size in enumerate(sizes)], axis=1
        ).astype(float)

    def _best_predictor(self, U: FloatArray, errors: FloatArray) -> Predictor:
        from scipy.stats import kendalltau

        fold = self.rng.permutation(len(U)) % FOLDS
        best, agreement = ridge(U, errors), -np.inf
        for make in (ridge, radial_basis, gaussian_process):
            taus = []
            for k in range(FOLDS):
                train, held = fold != k, fold == k
                predicted = make(U[train], errors[train])(U[held])
                taus.append(np.nan_to_num(kendalltau(predicted, errors[held]).statistic, nan=-1.0))
            if np.mean(taus) > agreement:
                best, agreement = make(U, errors), float(np.mean(taus))
        return best

    def _evolve(self, predict: Predictor, start: Genomes) -> tuple[Genomes, FloatArray]:
        """Return the last population of NSGA-II on predictions, and its objectives."""
        from pymoo.algorithms.moo.nsga2 import NSGA2

        problem, space = self.problem, self.problem.space
        fresh = operators.random_genomes(space, self.pop_size, self.rng)
        start = np.concatenate([start[: self.pop_size // 2], fresh])[: self.pop_size]
        algorithm = NSGA2(pop_size=self.pop_size, **{**self.parts, "sampling": start})
        seed = int(self.rng.integers(2**31))
        algorithm.setup(problem, termination=NoTermination(), seed=seed)
        is_error = np.array([name == "error" for name in problem.objectives])
        for _ in range(self.generations):
            population = algorithm.ask()
            if population is None or len(population) == 0:
                break
            X = np.array([individual.X for individual in population], dtype=np.int64)
            costs, violations = problem.cut_costs(space.decode_batch(X))
            F = np.empty((len(X), problem.n_obj))
            F[:, ~is_error] = costs
            F[:, is_error] = predict(self._one_hot(X))[:, None]
            population.set("F", F / self.reference)
            G = np.zeros((len(X), problem.n_ieq_constr))
            G[:, :1] = violations[:, None]
            population.set("G", G)
            population.set("H", np.empty((len(X), 0)))
            algorithm.tell(infills=population)
        X = np.array([individual.X for individual in algorithm.pop], dtype=np.int64)
        return X, np.array([individual.F for individual in algorithm.pop])


def ridge(U: FloatArray, errors: FloatArray) -> Predictor:
    """Return ridge regression on one-hot genes `[n, d]`."""
    mean = errors.mean()
    weights = np.linalg.solve(U.T @ U + RIDGE * np.eye(U.shape[1]), U.T @ (errors - mean))
    return lambda V: mean + V @ weights


def radial_basis(U: FloatArray, errors: FloatArray) -> Predictor:
    """Return a constant and linear radial basis functions, slightly smoothed.

    The same as `scipy.interpolate.RBFInterpolator(U, errors, kernel="linear", degree=0,
    smoothing=SMOOTHING)`, whose plain loops over pairs take most of a search.
    """
    n = len(U)
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = -_distances(U, U) + SMOOTHING * np.eye(n)
    system[n, n] = 0.0
    weights = np.linalg.solve(system, np.append(errors, 0.0))
    return lambda V: weights[n] - _distances(V, U) @ weights[:n]


def _distances(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the Euclidean distance of each pair, `[len(a), len(b)]`."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0.0))


def gaussian_process(U: FloatArray, errors: FloatArray) -> Predictor:
    """Return the mean of a Gaussian process whose length scales are the prior's."""
    predictor = ErrorPredictor(fitted=False)
    nothing = np.empty((len(U), 0))
    predictor.fit(Features(nothing.astype(np.int64), U), errors)
    return lambda V: predictor.predict(Features(np.empty((len(V), 0), dtype=np.int64), V))[0]
