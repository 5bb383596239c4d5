"""A predictor of errors that is fitted to what a search has evaluated, and knows how sure it is.

A Gaussian process (Rasmussen and Williams 2006, chapter 2 and equation 5.9) over a mixed kernel:
operations are categories, compared gene by gene, and what is known of a design without a score
(arithmetic, parameters, descriptors of the network, cut, channels and bits that are sent) are
numbers. Every gene and number has a length scale of its own, fitted by marginal likelihood.
The standard deviation is that of an observed error, noise included: two networks that compute the
same but were trained apart differ by it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtr

from nasc_evo.space import DesignBatch, SplitSpace
from nasc_evo.space.architecture import ArchitectureSpace

FloatArray = NDArray[np.float64]

MAX_FITTED = 200
"""Designs whose marginal likelihood is maximised; more do not change the length scales much."""
MAX_REMEMBERED = 500
"""Designs that predict; beyond that the best and newest ones are kept."""
REFIT_GROWTH = 1.4
"""Length scales are fitted anew when there are this many times as many designs."""
OUTLIER_SPANS = 4.0
"""Errors further above the median than this many times the best ones lie below it are drawn in."""
COMPRESSION = 4.0
"""By how much errors are drawn in above that."""
NO_BETTER_THAN_GUESSING = 1.2
"""A network is no better than guessing up to this many times the accuracy of a guess."""
FITTING_STEPS = 20
PRIOR_DISTANCE = 6.0
"""Of two designs that differ in everything, before anything is learnt."""
JITTER = 1e-6


class Features(NamedTuple):
    """What the predictor sees of P designs.

    Attributes:
        ops: Categories, from 0, `[P, genes]`.
        numbers: `[P, F]`, each about 0..1.
    """

    ops: NDArray[np.integer]
    numbers: FloatArray

    def take(self, rows: NDArray) -> "Features":
        """Return some of the designs."""
        return Features(self.ops[rows], self.numbers[rows])


def network_numbers(architecture: ArchitectureSpace, ops: NDArray[np.integer]) -> list[FloatArray]:
    """Return numbers about 0..1 that say what networks `[P, genes]` are like, `[P]` each.

    Arithmetic, parameters, how often each operation occurs, and the space's descriptors.
    """
    size = [np.log(architecture.macs(ops)), np.log(1.0 + architecture.params(ops))]
    columns = [(values - 15) / 5 for values in size]
    kinds = max(len(choices) for choices in architecture.gene_ops)
    columns += [(ops == kind).mean(axis=1) for kind in range(kinds)]
    return [*columns, *architecture.descriptors(ops).T]


def features(space: SplitSpace, batch: DesignBatch) -> Features:
    """Return the features of a decoded population.

    Networks are seen as the one that stands for all that train alike. Cut, channels and bits are
    left out where they are no genes with an effect (one channel group and one width).
    """
    architecture = space.architecture
    ops = architecture.alike(np.asarray(batch.ops, dtype=np.int64))
    columns = network_numbers(architecture, ops)
    if space.n_mask or len(space.bits_genes):
        n = architecture.n_blocks
        for link in range(space.n_links):
            cuts, groups = batch.cuts[:, link], batch.n_groups[:, link]
            active = groups > 0
            channels = np.maximum(space.channels_at[cuts], 1)
            kept = np.where(active, batch.kept_channels[:, link] / channels, 1.0)
            important = np.take_along_axis(
                batch.masks[:, link], space.importance[cuts], axis=1
            ) * np.linspace(1, 0, space.max_groups, endpoint=False)
            weight = np.cumsum(np.linspace(1, 0, space.max_groups, endpoint=False))
            share = important.sum(axis=1) / weight[np.maximum(groups, 1) - 1]
            columns += [
                cuts / n,
                kept,
                np.log(np.maximum(kept, 1e-3)) / 3,
                np.where(active, share, 1.0),
                np.where(active, 2.0 / np.maximum(batch.bits[:, link], 1), 0.0),
            ]
    return Features(ops, np.column_stack(columns).astype(float))


class ErrorPredictor:
    """Predicts the errors of designs, with a standard deviation each.

    Args:
        fitted: Whether scales are fitted; else they stay those expected before anything is learnt.
        searches: Whether small errors matter more than large ones: those above the `knee` are
            drawn in, and of many designs only the best and newest ones are learnt from.
        guessing: The error of a guess. With it a search's errors are :func:`drawn_in`, and designs
            no better than a guess are set apart from all others; without it, errors above the knee
            count as equal.

    Attributes:
        knee: Up to which errors are what they are, since the last fit.
    """

    def __init__(
        self, fitted: bool = True, searches: bool = True, guessing: float | None = None
    ) -> None:
        self.fitted, self.searches, self.guessing = fitted, searches, guessing
        self.knee = np.inf
        self._log_scales: FloatArray | None = None
        self._fitted_at = 0

    def fit(self, known: Features, errors: FloatArray) -> None:
        """Learn from evaluated designs.

        Args:
            known: Of at least two designs, oldest first.
            errors: Their errors, `[P]`.
        """
        if self.searches and len(errors) > MAX_REMEMBERED:
            best = np.argsort(errors, kind="stable")[: MAX_REMEMBERED * 2 // 3]
            newest = np.arange(len(errors))[-(MAX_REMEMBERED - len(best)) :]
            rows = np.union1d(best, newest)
            known, errors = known.take(rows), errors[rows]
        if self.searches:
            middle = float(np.median(errors))
            span = max(middle - errors.min(), 1e-3)
            self.knee = middle + OUTLIER_SPANS * span
            if self.guessing is None:
                errors = np.minimum(errors, self.knee)
            else:
                useless = 1 - errors <= NO_BETTER_THAN_GUESSING * (1 - self.guessing)
                useless &= errors > self.knee  # below it errors are what they are
                errors = drawn_in(errors, self.knee) + span * useless
        self._mean = float(errors.mean())
        self._scale = float(errors.std()) or 1.0
        y = (errors - self._mean) / self._scale
        used = np.ptp(known.numbers, axis=0) > 0
        self._used = used
        known = Features(known.ops, known.numbers[:, used])
        n_scales = known.ops.shape[1] + len(used)
        if self._log_scales is None:
            self._log_scales = _prior_means(n_scales)
        active = np.concatenate([np.ones(known.ops.shape[1], bool), used, [True, True]])
        if self.fitted and len(y) >= REFIT_GROWTH * self._fitted_at:
            self._fitted_at = len(y)
            best = np.argsort(y, kind="stable")[: MAX_FITTED if self.searches else None]
            self._log_scales[active] = _fit_scales(
                known.take(best), y[best], self._log_scales[active]
            )
        self._known = known
        scales = np.exp(self._log_scales[active])
        self._scales = scales
        K = _kernel(known, known, scales) + (scales[-1] + JITTER) * np.eye(len(y))
        self._cholesky = np.linalg.cholesky(K)
        self._weights = cho_solve((self._cholesky, True), y)

    def predict(self, asked: Features) -> tuple[FloatArray, FloatArray]:
        """Return mean and standard deviation of the (drawn in) error of designs, `[P]` each."""
        asked = Features(asked.ops, asked.numbers[:, self._used])
        K = _kernel(asked, self._known, self._scales)
        mean = K @ self._weights
        inner = solve_triangular(self._cholesky, K.T, lower=True)
        latent = np.maximum(self._scales[-2] - np.einsum("ij,ij->j", inner, inner), 0.0)
        variance = latent + self._scales[-1]
        return self._mean + self._scale * mean, self._scale * np.sqrt(variance)


def drawn_in(errors: FloatArray, knee: float) -> FloatArray:
    """Return errors as a search's predictor sees them, `[P]`.

    What lies above the knee comes nearer, so that a few bad designs do not hide the differences of
    good ones. It is not cut off: designs predicted there would look better than they are, and would
    be evaluated again and again since the predictor could not learn it.
    """
    return np.minimum(errors, knee) + np.maximum(errors - knee, 0) / COMPRESSION


def drawn_out(errors: FloatArray, knee: float) -> FloatArray:
    """Return the errors that :func:`drawn_in` ones stand for, `[P]`."""
    return np.minimum(errors, knee) + np.maximum(errors - knee, 0) * COMPRESSION


def _distances(a: Features, b: Features, scales: FloatArray) -> FloatArray:
    """Return the scaled distance of each pair, `[len(a), len(b)]`."""
    genes = a.ops.shape[1]
    total = np.zeros((len(a.ops), len(b.ops)))
    kinds = np.arange(a.ops.max(initial=0) + 1)[:, None]
    for gene in range(genes):  # the distances of each operation, a row each
        total += (scales[gene] * (kinds != b.ops[:, gene]))[a.ops[:, gene]]
    weights = np.sqrt(scales[genes:-2])
    u, v = a.numbers * weights, b.numbers * weights
    squared = (u**2).sum(axis=1)[:, None] + (v**2).sum(axis=1) - 2 * u @ v.T
    return total + np.maximum(squared, 0)


def _kernel(a: Features, b: Features, scales: FloatArray) -> FloatArray:
    return scales[-2] * np.exp(-_distances(a, b, scales))


def _prior_means(n_scales: int) -> FloatArray:
    """Return logarithms: of each length scale, of the variance, and of the noise."""
    length = np.log(PRIOR_DISTANCE / max(n_scales, 1))
    return np.concatenate([np.full(n_scales, length), [0.0, np.log(0.05)]])


def _fit_scales(known: Features, y: FloatArray, start: FloatArray) -> FloatArray:
    """Return logarithms of the scales of the largest marginal likelihood, with a weak prior."""
    parts = [known.ops[:, g, None] != known.ops[:, g] for g in range(known.ops.shape[1])]
    parts += [(column[:, None] - column) ** 2 for column in known.numbers.T]
    D = np.array(parts, dtype=float).reshape(len(parts), -1)
    n = len(y)
    prior = _prior_means(len(parts))
    width = np.concatenate([np.full(len(parts), 1.5), [1.0, 1.5]])

    def objective(log_scales: FloatArray) -> tuple[float, FloatArray]:
        scales = np.exp(log_scales)
        base = scales[-2] * np.exp(-(scales[:-2] @ D).reshape(n, n))
        try:
            L = np.linalg.cholesky(base + (scales[-1] + JITTER) * np.eye(n))
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(log_scales)
        inverse = cho_solve((L, True), np.eye(n))
        alpha = inverse @ y
        outer = np.outer(alpha, alpha) - inverse
        weighted = (outer * base).ravel()
        gradient = np.empty_like(log_scales)
        gradient[:-2] = 0.5 * scales[:-2] * (D @ weighted)
        gradient[-2] = -0.5 * weighted.sum()
        gradient[-1] = -0.5 * scales[-1] * np.trace(outer)
        value = 0.5 * y @ alpha + np.log(np.diag(L)).sum()
        away = (log_scales - prior) / width
        return value + 0.5 * away @ away, gradient + away / width

    bounds = [(np.log(1e-3), np.log(1e2))] * len(parts) + [(np.log(0.05), np.log(50.0))]
    bounds += [(np.log(1e-4), np.log(1.0))]
    found = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": FITTING_STEPS},
    )
    return found.x


def expected_hypervolume_gain(
    mean: FloatArray,
    deviation: FloatArray,
    cost: FloatArray,
    front: FloatArray,
    knee: float = np.inf,
) -> FloatArray:
    """Return the expected gain in hypervolume of designs whose cost is known and error is not.

    The error is normal once drawn in; for the cost `c` the gain is the integral over the levels
    below the front of the probability to lie below them times how far the front is beyond `c`.

    Args:
        mean: Of the drawn in error of each design, `[P]`, in units of the reference point, as all
            here.
        deviation: Standard deviations, `[P]`.
        cost: The other objective, `[P]`.
        front: Non-dominated `(error, cost)`, `[n, 2]`, inside the box of the reference point.
        knee: Above which errors are drawn in.

    Returns:
        `[P]`, shares of the box.
    """
    order = np.argsort(front[:, 0], kind="stable")
    # a design of error e gains the costs between its own and that of the best front design that
    # is no worse than e; levels from below the best error up to the reference point
    upper = np.concatenate([front[order, 0], [1.0]])
    reach = np.concatenate([[1.0], front[order, 1]])
    below = _shortfall(np.concatenate([[0.0], upper]), mean[:, None], deviation[:, None], knee)
    levels = np.diff(below, axis=1)
    return (levels * np.maximum(reach - cost[:, None], 0)).sum(axis=1)


def expected_scalar_gain(
    mean: FloatArray,
    deviation: FloatArray,
    costs: FloatArray,
    front: FloatArray,
    weights: FloatArray,
    knee: float = np.inf,
) -> FloatArray:
    """Return the expected gain of a weighted Chebyshev distance to zero, for any objectives.

    Args:
        mean: Of the drawn in error of each design, `[P]`, in units of the reference point, as all
            here.
        deviation: Standard deviations, `[P]`.
        costs: The other objectives, `[P, m - 1]`.
        front: Objectives of the front, error first, `[n, m]`, inside the box.
        weights: Of the objectives, error first, `[m]`.
        knee: Above which errors are drawn in.

    Returns:
        `[P]`.
    """
    best = float((front * weights).max(axis=1).min(initial=weights.max()))
    fixed = (costs * weights[1:]).max(axis=1)
    level = np.minimum(fixed, best) / weights[0]
    gain = _shortfall(best / weights[0], mean, deviation, knee)
    return weights[0] * (gain - _shortfall(level, mean, deviation, knee))


def _shortfall(level: Any, mean: FloatArray, deviation: FloatArray, knee: float) -> FloatArray:
    """Return the expectation of how far an error lies below a level, 0 where above.

    Mean and deviation are of the drawn in error, which is normal.
    """
    below = _partial(np.minimum(level, knee), mean, deviation)
    if np.isinf(knee):
        return below
    high = drawn_in(np.maximum(level, knee), knee)
    return below + COMPRESSION * (_partial(high, mean, deviation) - _partial(knee, mean, deviation))


def _partial(level: Any, mean: FloatArray, deviation: FloatArray) -> FloatArray:
    """Return the expectation of how far a normal value lies below a level, 0 where above."""
    z = (level - mean) / deviation
    return deviation * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
