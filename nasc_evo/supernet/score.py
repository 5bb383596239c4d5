"""What scoring a candidate yields, and what a problem asks of an evaluator; needs no torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nasc_evo.errors import UserError, one_line
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

    An evaluator is a pure function of the design, the split and the number of images. One that
    raises for a bad candidate is asked for the others one by one, see :func:`score_each`.

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


def score_each(
    evaluator: Evaluator, designs: Sequence[Design], split: str, images: int
) -> Iterator[tuple[int, Score]]:
    """Yield `(index, score)` of each design; one that cannot be scored fails alone.

    Where the evaluator raises, the designs that have no score yet are scored one by one, so that
    only the guilty one fails. A score that is none (not finite, out of range) is a failure too.

    Raises:
        UserError: If the evaluator says that a user's mistake keeps it from scoring anything.
    """
    open_designs = dict(enumerate(designs))
    try:
        for index, score in evaluator.evaluate(designs, split, images):
            del open_designs[index]
            yield index, checked(score, images)
    except UserError:
        raise
    except Exception as error:
        if len(designs) == 1:
            yield 0, Score(None, images, f"{type(error).__name__}: {one_line(error)}")
            return
        for index, design in list(open_designs.items()):
            ((_, score),) = score_each(evaluator, [design], split, images)
            yield index, score


def checked(score: Score, images: int) -> Score:
    """Return a score, or a failure in its place if it is not one of `images` images."""
    correct = score.correct
    if correct is None or (score.images == images and 0 <= correct <= images):
        return score
    return Score(None, images, f"the evaluator returned {correct} correct of {score.images} images")
