"""Training of one chosen design, from inherited weights or from scratch, as it will run.

The network has its cut, mask and quantiser in every step, so that its weights fit what is sent.
Schedule, augmentation, averaged weights, checkpoints and log are those of supernet training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nasc_evo.data.images import ImageDataset
from nasc_evo.errors import UserError
from nasc_evo.space.architecture import ArchitectureSpace
from nasc_evo.space.genome import Design
from nasc_evo.supernet.deploy import DeployedNetwork, deploy
from nasc_evo.supernet.evaluation import transmissions
from nasc_evo.supernet.model import Supernet
from nasc_evo.supernet.score import Score
from nasc_evo.supernet.training import Trainer, TrainingConfig
from nasc_evo.supernet.transmission import channel_mask


class NetworkTrainer(Trainer):
    """Trains one design; the other weights of its supernet stay as they are.

    Args:
        space: Space of architectures.
        dataset: Training images.
        config: The recipe; what concerns the random networks of a supernet has no effect.
        folder: Where checkpoint, log and network go; training goes on from a checkpoint there.
        design: What to train.
        mask_groups: Channel groups at a cut, or `"channels"`.
        details: What else the manifest states.

    Raises:
        UserError: If the checkpoint belongs to another design or recipe or is damaged.
    """

    criterion = "search"
    networks_a_step = 1.0

    def __init__(
        self,
        space: ArchitectureSpace,
        dataset: ImageDataset,
        config: TrainingConfig,
        folder: Path,
        design: Design,
        *,
        mask_groups: int | str = 8,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.design, self.mask_groups, self.details = design, mask_groups, dict(details or {})
        super().__init__(space, dataset, config, folder)
        if self.processes.count > 1:
            raise UserError(
                f"One network is trained by one process, not by {self.processes.count}; start "
                "nasc_evo.finetune without torchrun."
            )
        self.transmissions = [
            (cut, channel_mask(mask, space.cut_shapes[cut][0]).to(self.device), bits)
            for cut, (mask, bits) in transmissions(design).items()
        ]

    def _check_recipe(self) -> None:
        """Accept any recipe: what concerns random networks has no effect."""

    def add_gradients(self, x: Tensor, target: Tensor) -> Tensor:
        """Add the gradients of a step; return its loss."""
        loss = F.cross_entropy(self.logits(x, self.design.ops, self.transmissions), target)
        loss.backward()
        return loss

    def validate(self, supernet: Supernet) -> dict[str, float]:
        """Return the accuracy on search images of the network as it would be deployed."""
        images = self.dataset.split("search").first(self.config.validation_images)
        score = deploy(supernet, self.design, self.dataset).score(images)
        return {"search": 1 - score.error}

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a checkpoint to go on here."""
        return {**super().identity(), "design": self.design.key}

    def finish(self) -> Path:
        """Write the network with the best averaged weights; return its manifest."""
        weights = [p.to(self.device) for p in self.best["weights"]]
        network = deploy(self.averaged_supernet(weights), self.design, self.dataset)
        details = {
            **self.details,
            "recipe": self.recipe(),
            "steps": self.step,
            "best_step": self.best["step"],
            "seconds": round(self.seconds, 1),
            "train_sha256": self.train_sha256,
        }
        return save_scored(network, self.dataset, self.folder, self.mask_groups, details)


def save_scored(
    network: DeployedNetwork,
    dataset: ImageDataset,
    folder: Path,
    mask_groups: int | str,
    details: Mapping[str, Any],
) -> Path:
    """Write a network with its accuracy on the search and the test split; return the manifest."""
    accuracy = {
        split: _figures(network.score(dataset.split(split))) for split in ("search", "test")
    }
    return network.save(
        folder, mask_groups, {"dataset": dataset.describe(), "accuracy": accuracy, **details}
    )


def _figures(score: Score) -> dict[str, Any]:
    return {
        "accuracy": 1 - score.error,
        "standard_error": score.standard_error,
        "images": score.images,
    }
