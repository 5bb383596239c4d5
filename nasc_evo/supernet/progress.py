"""What a trainer tells whoever watches it; needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingProgress:
    """State of a training after a step.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        loss: Of the largest, or the one, network, at the last step that looked.
        images_per_second: Images through one path forward and backward, since this start.
        validation: Accuracies by name, None if this step had none.
    """

    step: int
    steps: int
    loss: float | None
    images_per_second: float
    validation: dict[str, float] | None
