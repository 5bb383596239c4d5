"""How well sums of block costs predict whole networks, and the correction that makes them agree.

Costs are latencies or energies. The prediction of a run of blocks is `constant + sum of figures`.
Kinds are the blocks that were measured alone, and what networks compute beside them, which the
figures of blocks contain in part and only the freest form tells apart. Corrections, from plain to
free:

- *plain*: no constant, each figure is the cost of the block measured alone;
- *scaled*: a constant a run, and `scale x cost + constant a block` for every block, by least
  squares;
- *blocks*: beyond that every kind of block has a deviation of its own, by ridge regression, so that
  a kind that the networks say little about stays near its measured cost; what is computed beside
  blocks stays near nothing.

All errors are relative. Runs are whole networks and both sides of a cut: a constant is what a
machine pays once for every piece that it runs, however short the piece is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear
from scipy.stats import kendalltau

from nasc_evo.space.architecture import IntArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

FOLDS = 5
"""In so many parts networks are divided to choose a form."""
HELD_OUT_FOLDS = 10
"""In so many to say how good a chosen one predicts networks that it does not know."""
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Of a relative deviation of 1 against relative errors of 1, for the free form."""
WORTH = 0.95
"""A freer form must lower the cross-validated error to this share of the simpler one's."""
NEGLIGIBLE = 1e-4
"""Relative errors that nobody measures."""


@dataclass(frozen=True, eq=False)
class Correction:
    """What predicts the cost of runs.

    Attributes:
        form: `plain`, `scaled` or `blocks`.
        constant: Of every run.
        figures: Of each kind, `[kinds]`.
        parameters: What was fitted, for the header of a table.
    """

    form: str
    constant: float
    figures: FloatArray
    parameters: dict[str, float]

    def predict(self, counts: FloatArray) -> FloatArray:
        """Return the cost of runs, `[runs]`, that have each kind so often `[runs, kinds]`."""
        return self.constant + counts @ self.figures


def scores(measured: FloatArray, predicted: FloatArray) -> dict[str, float]:
    """Return R2, mean absolute and mean signed error in percent, and Kendall's tau."""
    residual = measured - predicted
    total = float(((measured - measured.mean()) ** 2).sum())
    relative = (predicted - measured) / measured
    tau = kendalltau(measured, predicted)[0]
    return {
        "r2": round(1 - float((residual**2).sum()) / total, 4),
        "mape_percent": round(100 * float(np.abs(relative).mean()), 3),
        "bias_percent": round(100 * float(relative.mean()), 3),
        "kendall_tau": round(float(np.nan_to_num(tau)), 4),
    }


def plain(alone: FloatArray, beside: BoolArray) -> Correction:
    """Return plain addition of the costs of blocks alone.

    Args:
        alone: Cost of each kind alone, `[kinds]`.
        beside: Which kinds are computed beside blocks, `[kinds]`.
    """
    return Correction("plain", 0.0, np.where(beside, 0, alone), {})


def scaled(
    alone: FloatArray, beside: BoolArray, counts: FloatArray, measured: FloatArray
) -> Correction:
    """Fit constant, scale and constant a block; none is negative."""
    blocks = counts[:, ~beside]
    columns = np.column_stack([np.ones(len(counts)), blocks @ alone[~beside], blocks.sum(axis=1)])
    relative = columns / measured[:, None]
    constant, scale, a_block = lsq_linear(relative, np.ones(len(counts)), (0, np.inf), "bvls").x
    parameters = {"constant": constant, "scale": scale, "constant_a_block": a_block}
    figures = np.where(beside, 0, scale * alone + a_block)
    return Correction("scaled", float(constant), figures, parameters)


def free(
    alone: FloatArray,
    beside: BoolArray,
    counts: FloatArray,
    measured: FloatArray,
    penalty: float,
) -> Correction:
    """Fit a deviation of every kind from :func:`scaled`; no figure is negative."""
    start = scaled(alone, beside, counts, measured)
    kinds = len(alone)
    units = np.where(beside, alone, start.figures)
    columns = np.column_stack([np.ones(len(counts)), counts * units])
    missing = 1 - counts @ start.figures / measured
    pull = np.column_stack([np.zeros(kinds), np.sqrt(penalty) * np.eye(kinds)])
    lower = np.concatenate([[0.0], np.where(beside, 0.0, -1.0)])
    constant, *deviations = lsq_linear(
        np.vstack([columns / measured[:, None], pull]),
        np.concatenate([missing, np.zeros(kinds)]),
        (lower, np.inf),
        "bvls",
    ).x
    figures = start.figures + units * np.array(deviations)
    parameters = {**start.parameters, "constant": constant, "penalty": penalty}
    return Correction("blocks", float(constant), figures, parameters)


def choose(
    alone: FloatArray,
    beside: BoolArray,
    counts: FloatArray,
    measured: FloatArray,
    networks: IntArray,
) -> Correction:
    """Return the correction with the smallest cross-validated error, the simpler if near.

    Args:
        alone: Cost of each kind alone, `[kinds]`.
        beside: Which kinds are computed beside blocks, `[kinds]`.
        counts: How often each kind is in each run, `[runs, kinds]`.
        measured: Cost of each run, `[runs]`.
        networks: Which network each run is of; the runs of one are left out together.
    """
    fits: list[Callable[[FloatArray, FloatArray], Correction]] = [
        lambda counts, measured: plain(alone, beside),
        partial(scaled, alone, beside),
        *(partial(free, alone, beside, penalty=penalty) for penalty in PENALTIES),
    ]
    folds = _folds(networks, FOLDS)
    errors = []
    for fit in fits:
        predicted = np.empty_like(measured)
        for fold in range(FOLDS):
            out = folds == fold
            predicted[out] = fit(counts[~out], measured[~out]).predict(counts[out])
        errors.append(float(np.abs(predicted / measured - 1).mean()))
    best = 0
    for candidate in (1, 2 + int(np.argmin(errors[2:]))):
        if errors[candidate] < WORTH * errors[best] - NEGLIGIBLE:
            best = candidate
    return fits[best](counts, measured)


def held_out(
    alone: FloatArray,
    beside: BoolArray,
    counts: FloatArray,
    measured: FloatArray,
    networks: IntArray,
) -> FloatArray:
    """Return what a correction that does not know its network predicts of each run, `[runs]`.

    In every fold form and figures are chosen anew; the arguments are those of :func:`choose`.
    """
    predicted = np.empty_like(measured)
    folds = _folds(networks, HELD_OUT_FOLDS)
    for fold in range(HELD_OUT_FOLDS):
        out = folds == fold
        correction = choose(alone, beside, counts[~out], measured[~out], networks[~out])
        predicted[out] = correction.predict(counts[out])
    return predicted


def _folds(networks: IntArray, n: int) -> IntArray:
    """Return the fold of each run; all runs of a network are in one."""
    return np.unique(networks, return_inverse=True)[1] % n
