"""Calibrated errors: what training would give, estimated from what a supernet says.

Inherited accuracy tells good networks from bad ones, but is a poor guide among the good ones. A
small model maps it, together with what is known of a network without any training (operations,
arithmetic, parameters, descriptors), to the error of networks that were truly trained: the Gaussian
process of the surrogate search, fitted to some dozens of them. What it says is a metric of its own
beside the inherited error, with an interval, and comes from `<weights>.calibration.json` beside a
weight file, which `python -m nasc_evo.calibrate` writes.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri

from nasc_evo.errors import UserError, one_line
from nasc_evo.files import read_json
from nasc_evo.search.predictor import (
    NO_BETTER_THAN_GUESSING,
    ErrorPredictor,
    Features,
    network_numbers,
)
from nasc_evo.space.architecture import ArchitectureSpace
from nasc_evo.supernet.weights import file_sha256

FloatArray = NDArray[np.float64]

FORMAT = "nasc_evo calibration 1"
SUFFIX = ".calibration.json"
INTERVAL = 0.9
"""Share of the networks whose trained error the interval is to hold."""
MIN_NETWORKS = 20
MAX_NETWORKS = 500
FOLDS = 10


class Calibration:
    """A map from inherited to trained errors, fitted to trained networks.

    Args:
        architecture: Space of the networks.
        ops: The networks, `[n, genes]`.
        inherited: Errors by inherited weights, whole and undivided, `[n]`.
        trained: Errors after training, `[n]`.
    """

    def __init__(
        self,
        architecture: ArchitectureSpace,
        ops: NDArray[np.integer],
        inherited: FloatArray,
        trained: FloatArray,
    ) -> None:
        self.architecture, self.ops = architecture, ops
        self.inherited, self.trained = inherited, trained
        self._model = self._fitted(np.arange(len(ops)))

    def estimate(self, ops: NDArray[np.integer], inherited: FloatArray) -> FloatArray:
        """Return the trained error of networks and the ends of its interval, `[P, 3]`.

        NaN for those that inherit nothing: trained networks that do are too few to learn from.

        Args:
            ops: The networks, `[P, genes]`.
            inherited: Their errors by inherited weights, whole and undivided, `[P]`.
        """
        estimates = _estimates(self._model, self._features(ops, inherited))
        guessing = 1 - inherited <= NO_BETTER_THAN_GUESSING / self.architecture.n_classes
        return np.where(guessing[:, None], np.nan, estimates)

    @cached_property
    def cross_validated(self) -> dict[str, Any]:
        """How good estimates are of networks that the model was not fitted to.

        Over all networks, each estimated by a model of the others in as many turns as
        :data:`FOLDS`: Kendall's tau to the trained errors, of the estimates and of the inherited
        errors (None where all estimates are equal); the mean absolute error of the estimates; and
        the share of networks whose trained error lies in the interval.
        """
        from scipy.stats import kendalltau  # takes a third of a second to import

        order = np.random.default_rng(0).permutation(len(self.ops))
        estimates = np.empty((len(order), 3))
        for part in np.array_split(order, FOLDS):
            model = self._fitted(np.setdiff1d(order, part))
            asked = self._features(self.ops[part], self.inherited[part])
            estimates[part] = _estimates(model, asked)
        error, low, high = estimates.T
        taus = [float(kendalltau(e, self.trained).statistic) for e in (error, self.inherited)]
        return {
            "kendall_tau": taus[0] if math.isfinite(taus[0]) else None,
            "kendall_tau_inherited": taus[1],
            "mean_absolute_error": float(np.abs(error - self.trained).mean()),
            "share_in_interval": float(((low <= self.trained) & (self.trained <= high)).mean()),
        }

    def describe(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {
            "networks": len(self.ops),
            "interval": INTERVAL,
            "cross_validated": self.cross_validated,
        }

    def _fitted(self, rows: NDArray[np.integer]) -> ErrorPredictor:
        model = ErrorPredictor(searches=False)
        model.fit(self._features(self.ops[rows], self.inherited[rows]), _logit(self.trained[rows]))
        return model

    def _features(self, ops: NDArray[np.integer], inherited: FloatArray) -> Features:
        columns = [*network_numbers(self.architecture, ops), _logit(inherited) / 2]
        return Features(self.architecture.canonical(ops), np.column_stack(columns).astype(float))


def _logit(error: FloatArray) -> FloatArray:
    """Return the logarithm of the odds of an error, finite also for 0 and 1."""
    inside = np.clip(error, 0.002, 0.998)
    return np.log(inside / (1 - inside))


def _estimates(model: ErrorPredictor, asked: Features) -> FloatArray:
    """Return what a model of logarithmic odds says as errors: `[P, 3]`, middle, low and high."""
    mean, deviation = model.predict(asked)
    half = ndtri(0.5 + INTERVAL / 2) * deviation
    return expit(np.column_stack([mean, mean - half, mean + half]))


def calibration_file(weights: Path) -> Path:
    """Return where the calibration of a weight file lies: beside it."""
    return weights.with_suffix(SUFFIX)


def find_calibration(architecture: ArchitectureSpace, weights: Path) -> Calibration | None:
    """Return the calibration beside a weight file, None if there is none.

    Args:
        architecture: Space of the weights.
        weights: The weight file.

    Raises:
        UserError: If it is damaged, or of other weights.
    """
    path = calibration_file(weights)
    return read_calibration(path, architecture, file_sha256(weights)) if path.is_file() else None


def write_calibration(
    path: Path, calibration: Calibration, weights_sha256: str, details: Mapping[str, Any]
) -> None:
    """Write a calibration with what it is worth.

    Args:
        path: Where to.
        calibration: The fitted networks.
        weights_sha256: Of the weight file.
        details: Where the figures come from.
    """
    architecture = calibration.architecture
    document = {
        "format": FORMAT,
        "space": architecture.name,
        "geometry": architecture.geometry,
        "weights_sha256": weights_sha256,
        **details,
        "cross_validated": calibration.cross_validated,
        "networks": [
            {"arch": architecture.format(ops), "inherited_error": old, "trained_error": new}
            for ops, old, new in zip(
                calibration.ops,
                calibration.inherited.tolist(),
                calibration.trained.tolist(),
                strict=True,
            )
        ],
    }
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_calibration(
    path: Path, architecture: ArchitectureSpace, weights_sha256: str
) -> Calibration:
    """Return the calibration in a file.

    Raises:
        UserError: If it is damaged, or of another space or other weights.
    """
    try:
        document = read_json(path)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"it is not of format '{FORMAT}'")
        wanted = {"space": architecture.name, "geometry": architecture.geometry}
        for key, value in (wanted | {"weights_sha256": weights_sha256}).items():
            if document.get(key) != value:
                raise ValueError(f"it is for {key} {str(document.get(key))[:80]!r}, not {value!r}")
        networks = document.get("networks")
        if not isinstance(networks, list) or not all(isinstance(n, dict) for n in networks):
            raise ValueError("it has no list of networks")
        errors = [[_error(n.get(name)) for n in networks] for name in ERRORS]
        archs = [n.get("arch") for n in networks]
        if not all(isinstance(arch, str) for arch in archs):
            raise ValueError("a network has no arch")
        return fit_calibration(architecture, archs, *errors)
    except (OSError, ValueError, UserError) as error:
        raise UserError(
            f"The calibration {path} cannot be used ({one_line(error)}); write it anew with "
            "`python -m nasc_evo.calibrate`, or delete it."
        ) from error


ERRORS = ("inherited_error", "trained_error")


def _error(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value <= 1):
        raise ValueError(f"an error is {str(value)[:80]}, not a number in 0..1")
    return float(value)


def fit_calibration(
    architecture: ArchitectureSpace,
    archs: Sequence[str],
    inherited: Sequence[float],
    trained: Sequence[float],
) -> Calibration:
    """Return the calibration that is fitted to trained networks.

    Args:
        architecture: Their space.
        archs: Their texts.
        inherited: Errors by inherited weights, whole and undivided.
        trained: Errors after training.

    Raises:
        UserError: As of :func:`check_trained`, or if all inherited errors are equal.
    """
    ops = check_trained(architecture, archs, trained)
    if np.ptp(inherited) == 0:
        raise UserError(
            f"All networks inherit the same error, {inherited[0]:g}: these weights tell nothing."
        )
    return Calibration(architecture, ops, np.array(inherited), np.array(trained))


def check_trained(
    architecture: ArchitectureSpace, archs: Sequence[str], trained: Sequence[float]
) -> NDArray[np.integer]:
    """Return the genes of trained networks, `[n, genes]`.

    Raises:
        UserError: If there are too few or too many, one is no network of the space or is there
            twice, or all trained errors are equal.
    """
    if not MIN_NETWORKS <= len(archs) <= MAX_NETWORKS:
        raise UserError(
            f"A calibration takes {MIN_NETWORKS} to {MAX_NETWORKS} trained networks, got "
            f"{len(archs)}."
        )
    ops = np.array([architecture.parse(arch) for arch in archs])
    known: dict[tuple[int, ...], str] = {}
    for genes, arch in zip(map(tuple, architecture.canonical(ops).tolist()), archs, strict=True):
        if genes in known:
            raise UserError(
                f"The trained networks {known[genes]} and {arch} compute the same; give one."
            )
        known[genes] = arch
    if np.ptp(trained) == 0:
        raise UserError(
            f"All trained networks have the error {trained[0]:g}; nothing can be learnt."
        )
    return ops
