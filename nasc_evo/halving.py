"""Successive halving within a generation: few images first, more for those that could still win.

Costs are known without a score, so there is an error below which a design would enter the front.
A design whose errors on the first images say, with the confidence asked for, that it is above it,
is scored on no more of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from nasc_evo.errors import UserError
from nasc_evo.supernet.score import Score

ROUNDING = 1e-5
"""Shares and counts of images that differ by less are equal."""


class Halving:
    """On how many images designs are scored first, and when that is enough.

    Args:
        images: Numbers of images before all of them, rising; empty for none.
        confidence: The least probability, at each number of images, of going on with a design that
            could just enter the front.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(self, images: Sequence[int] = (), confidence: float = 0.99) -> None:
        whole = isinstance(images, Sequence) and all(type(n) is int and n > 0 for n in images)
        if not whole or list(images) != sorted(set(images)):
            raise UserError(
                "halving.images must be rising whole numbers above 0, such as [128,512], or [] for "
                f"none, got {images!r}."
            )
        number = isinstance(confidence, (int, float)) and not isinstance(confidence, bool)
        if not (number and 0.5 < confidence < 1):
            raise UserError(
                f"halving.confidence must be a number between 0.5 and 1, both excluded, got "
                f"{confidence!r}."
            )
        self.images = tuple(images)
        self.confidence = confidence

    def describe(self) -> dict[str, Any]:
        """Return the options."""
        return {"images": list(self.images), "confidence": self.confidence}

    def check(self, images: int, lossless: bool, objectives: Sequence[str]) -> None:
        """Raise a UserError unless an evaluator with so many images can do it."""
        if self.images and "error" not in objectives:
            raise UserError(
                f"halving.images needs error among the objectives, got {list(objectives)}."
            )
        if self.images and lossless:
            raise UserError(
                "halving.images needs accuracies of images; evaluator=tabular knows whole ones."
            )
        if self.images and self.images[-1] >= images:
            raise UserError(
                f"halving.images must be fewer than the {images} of evaluator.images, got "
                f"{list(self.images)}."
            )

    def stops(self, score: Score, ceiling: float, images: int) -> bool:
        """Return whether a design need not be scored on all images.

        Of those, at most `ceiling * images` may be wrong, excluded; were it as many, so many wrong
        ones among the first would be improbable (a hypergeometric test; the order of the images is
        taken for random).

        Args:
            score: On the first images.
            ceiling: Error that it has to be below.
            images: Number of all images.
        """
        if score.correct is None:
            return True
        allowed = min(math.ceil(ceiling * images - ROUNDING / 10) - 1, images)
        if allowed < 0:
            return True
        wrong = math.ceil(score.images - score.correct)
        chance = hypergeom.sf(wrong - 1, images, allowed, score.images)
        return bool(chance < 1 - self.confidence)


class Ceilings:
    """The error that a design has to be below to enter the front.

    Args:
        limit: Upper limit of the error, if there is one.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._limit = (1.0 if limit is None else limit) + ROUNDING  # the limit itself is allowed
        self._front: NDArray[np.float64] | None = None

    def add(self, errors: NDArray[np.float64], costs: NDArray[np.float64]) -> None:
        """Take note of feasible designs: errors `[n]` and the other objectives `[n, m]`."""
        points = np.column_stack([errors, costs])
        if self._front is not None:
            points = np.concatenate([self._front, points])
        if len(points):
            self._front = points[moocore.is_nondominated(points, keep_weakly=False)]

    def of(
        self, costs: NDArray[np.float64], violations: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return a ceiling for each design, `[n]`; below 0 where limits on costs are exceeded."""
        ceilings = np.full(len(costs), self._limit)
        if self._front is not None:
            no_worse = (self._front[None, :, 1:] <= costs[:, None]).all(axis=2)
            best = np.where(no_worse, self._front[None, :, 0], self._limit).min(axis=1)
            ceilings = np.minimum(ceilings, best)
        return np.where(violations > 0, -1.0, ceilings)


def make_halving(options: Mapping[str, Any] | None) -> Halving:
    """Return halving with options `{images, confidence}`.

    Raises:
        UserError: If there are others, or one is out of range.
    """
    options = {} if options is None else options
    if not isinstance(options, Mapping) or set(options) - {"images", "confidence"}:
        raise UserError(f"halving has the options images and confidence, got {options!r}.")
    return Halving(**options)
