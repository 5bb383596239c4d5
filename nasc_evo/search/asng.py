"""Adaptive stochastic natural gradient over categorical distributions, and NASC built on it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nasc_evo.problem import Evaluation
from nasc_evo.search.method import Genomes, Method

CONVERGED = 0.99
"""Share of what the margins allow that the likeliest categories have after convergence."""
MAX_KNOWN = 200
"""Samples in a row that are known already, after which a threshold is left."""


class CategoricalASNG:
    """Maximises the expectation of an objective over independent categorical variables.

    The adaptive stochastic natural gradient method (Akimoto et al., ICML 2019): samples are
    ranked, the parameters move along the natural gradient of their expected rank by a step of
    trust region length `delta` in the Fisher metric, and `delta` grows while the accumulated
    gradient stands out from its noise and shrinks otherwise. Every probability stays above the
    paper's margin, 1 / (variables (categories - 1)).

    Args:
        categories: Number of categories of each variable.
        alpha: How far the accumulated gradient must stand out; the paper's value is 1.5.
        delta: First trust region length.

    Attributes:
        theta: Probabilities, `[variables, most categories]`; 0 where there is no category.
    """

    def __init__(
        self, categories: Sequence[int], *, alpha: float = 1.5, delta: float = 1.0
    ) -> None:
        self.categories = np.asarray(categories)
        self.alpha = alpha
        self.valid = np.arange(self.categories.max()) < self.categories[:, None]
        self.theta = self.valid / self.categories[:, None]
        self.freedom = int((self.categories - 1).sum())
        self.delta = delta
        self.accumulated = np.zeros(self.freedom)
        self.gamma = 0.0
        variables = int((self.categories > 1).sum())
        margin = 1 / (variables * np.maximum(self.categories - 1, 1)) if variables > 1 else 0.0
        self.margin = np.where(self.categories > 1, margin, 0.0)[:, None] * self.valid

    def sample(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return one category a variable, `[variables]`."""
        bounds = self.theta.cumsum(axis=1)
        drawn = rng.random((len(bounds), 1)) * bounds[:, -1:]
        return np.minimum((drawn >= bounds).sum(axis=1), self.categories - 1)

    def mode(self) -> NDArray[np.int64]:
        """Return the likeliest category of each variable, `[variables]`."""
        return np.argmax(self.theta, axis=1)

    @property
    def converged(self) -> bool:
        """Whether the margins leave nothing more to gain for the likeliest categories."""
        most = 1 - self.margin[:, 0] * (self.categories - 1)
        return bool((self.theta.max(axis=1) >= CONVERGED * most).all())

    def update(self, samples: NDArray[np.int64], losses: NDArray[np.float64]) -> None:
        """Move the distribution towards the better samples.

        Args:
            samples: `[n, variables]`, at least two.
            losses: Smaller is better, `[n]`.
        """
        n = len(losses)
        quarter = -(-n // 4)
        order = np.argsort(losses, kind="stable")
        utility = np.zeros(n)
        utility[order[:quarter]] = 1.0
        utility[order[n - quarter :]] -= 1.0
        ties = losses == losses[order[0]]
        if ties.all():
            return
        one_hot = (samples[:, :, None] == np.arange(self.theta.shape[1])) & self.valid
        centred = utility - utility.mean()
        gradient = (centred[:, None, None] * (one_hot - self.theta)).mean(axis=0)
        whitened = self._whiten(gradient)
        norm = float(np.linalg.norm(whitened))
        if norm < 1e-12:
            return
        beta = self.delta / np.sqrt(self.freedom)  # at most 1
        self.theta += self.delta * gradient / norm
        self.accumulated *= 1 - beta
        self.accumulated += np.sqrt(beta * (2 - beta)) * whitened / norm
        self.gamma = (1 - beta) ** 2 * self.gamma + beta * (2 - beta)
        excess = self.gamma - self.accumulated @ self.accumulated / self.alpha
        self.delta = min(self.delta * np.exp(-beta * excess), np.sqrt(self.freedom))
        self._keep_margin()

    def _whiten(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the gradient times the square root of the Fisher information, `[freedom]`."""
        parts = []
        for theta, change, k in zip(self.theta, gradient, self.categories, strict=True):
            last = theta[k - 1]
            shared = change[: k - 1].sum() / (last + np.sqrt(last))
            parts.append(
                change[: k - 1] / np.sqrt(theta[: k - 1]) + np.sqrt(theta[: k - 1]) * shared
            )
        return np.concatenate(parts)

    def _keep_margin(self) -> None:
        """Lift probabilities to the margin and take what that needs from those above it."""
        lifted = np.maximum(self.theta, self.margin) * self.valid
        above = lifted - self.margin
        total = above.sum(axis=1, keepdims=True)
        free = 1 - self.margin.sum(axis=1, keepdims=True)
        scale = np.divide(free, total, out=np.zeros_like(total), where=total > 0)
        self.theta = self.margin + above * scale


class NASC(Method):
    """NASC (Shimizu et al. 2022), re-implemented: one-shot search under a latency threshold.

    Operations and the cut are categorical variables; their distributions follow the adaptive
    stochastic natural gradient of the loss `error + penalty * max(latency / threshold - 1, 0)`.
    The paper trains weights and distributions together; here weights are those of the trained
    supernet (or accuracies tabular), as for every other method. All channels are sent at the most
    bits. The budget is divided evenly between thresholds, spread geometrically from the fastest
    design that many random ones contain to the reference latency; each ends with its mode. What
    thresholds that converge early leave is spent on further thresholds in between.

    Args:
        n_eval: The budget.
        thresholds: How many.
        penalty: Weight of the relative excess over the threshold.
        samples: Designs an update, two in the paper.
    """

    ended = "the distributions converged for every threshold"

    def __init__(
        self, n_eval: int, *, thresholds: int = 8, penalty: float = 1.0, samples: int = 2
    ) -> None:
        self.n_eval = n_eval
        self.thresholds = thresholds
        self.penalty = penalty
        self.samples = samples
        self.sweep = self.before_sweep = 0
        self.open: list[float] = []
        self.asng: CategoricalASNG | None = None
        self.drawn: NDArray[np.int64] | None = None

    def _sweep_thresholds(self) -> list[float]:
        """Return the thresholds of the next sweep, those of later ones between the first."""
        problem, space = self.problem, self.problem.space
        slowest = problem.reference_point.get("latency_ms", 0.0) or 1.0
        first = problem.fastest_design()
        lowest = slowest / 20
        if first is not None:
            batch = space.decode_batch(space.encode(first)[None])
            lowest = float(problem.costs(batch)["latency_ms"][0])
        offset = (0.5 + 0.618034 * self.sweep) % 1.0
        places = (np.arange(self.thresholds) + offset) / self.thresholds
        self.sweep += 1
        return (lowest * (slowest / lowest) ** places).tolist()

    def propose(self) -> Genomes:
        """Return samples of the current distribution, at least one of them unknown."""
        space = self.problem.space
        nothing = np.empty((0, space.n_var), dtype=np.int64)
        idle = 0
        while True:
            if self.asng is None:
                if not self.open:
                    if self.sweep > 0 and len(self.evaluated()) == self.before_sweep:
                        return nothing
                    self.before_sweep = len(self.evaluated())
                    self.open = self._sweep_thresholds()
                self.threshold = self.open.pop(0)
                self.spent, idle = len(self.evaluated()), 0
                self.asng = CategoricalASNG(
                    [*space.sizes[: space.n_arch], *space.sizes[space.cut_genes]]
                )
            over = len(self.evaluated()) - self.spent >= self.n_eval / self.thresholds
            if over or idle >= MAX_KNOWN or self.asng.converged:
                x = self._genome(self.asng.mode())
                self.asng = None
                if self.known(x) is None:
                    self.drawn = None
                    return x[None]
                continue
            self.drawn = np.array([self.asng.sample(self.rng) for _ in range(self.samples)])
            X = np.array([self._genome(categories) for categories in self.drawn])
            if any(self.known(x) is None for x in X):
                return X
            idle += 1
            self._update(X)

    def _genome(self, categories: NDArray[np.int64]) -> Genomes:
        space = self.problem.space
        x = space.xu.copy()
        x[: space.n_arch] = categories[: space.n_arch]
        x[space.cut_genes] = np.sort(categories[space.n_arch :])
        return x

    def learn(self, evaluated: object) -> None:
        """Update the distribution by what was drawn."""
        if self.asng is not None and self.drawn is not None:
            self._update(np.array([self._genome(categories) for categories in self.drawn]))

    def _update(self, X: Genomes) -> None:
        assert self.asng is not None
        assert self.drawn is not None
        losses = np.array([self._loss(self.known(x)) for x in X])
        self.asng.update(self.drawn, losses)

    def _loss(self, evaluation: Evaluation | None) -> float:
        if evaluation is None or evaluation.failed:
            return np.inf
        excess = max(evaluation.metric("latency_ms") / self.threshold - 1, 0.0)
        return evaluation.score.error + self.penalty * excess
