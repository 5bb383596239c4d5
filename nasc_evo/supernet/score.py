"""What scoring a candidate yields, and what a problem asks of an evaluator; needs no torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nasc_evo.space.genome import Design


@dataclass(frozen=True)
class Score:
    """How many of the images were classified correctly; `message` says why there is no score.

    Attributes:
        correct: Number of correct images (a mean where several trainings were scored), None if the
            evaluation failed.
        images: Number of images scored.
        message: Empty, or the reason of the failure.
    """

    correct: float | None
    images: int
    message: str = ""

    @property
    def error(self) -> float:
        """Fraction of images classified wrongly; NaN if the evaluation failed."""
        return math.nan if self.correct is None else 1 - self.correct / self.images

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`error` as the mean of independent images."""
        return math.sqrt(self.error * (1 - self.error) / self.images)


class Evaluator(Protocol):
    """What scores candidates for a problem.

    An evaluator is a pure function of the design, the split and the number of images; it never
    raises for a single bad candidate but yields a :class:`Score` with a message.

    Attributes:
        images: How many of the search split's first images a search uses.
    """

    images: int

    def evaluate(
        self, designs: Sequence[Design], split: str = "search", images: int | None = None
    ) -> Iterator[tuple[int, Score]]:
        """Yield `(index into designs, score)` as scores become known, each index once.

        Args:
            designs: Candidates.
            split: `"search"` or `"test"`.
            images: How many of the split's first images; None takes the evaluator's default for
                `"search"` and all for `"test"`.
        """

    def split_size(self, split: str) -> int:
        """Return the number of images of a split."""

    def describe(self) -> dict[str, Any]:
        """Return what fixes the numbers: weights, images and numerics."""
