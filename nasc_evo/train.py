"""`python -m nasc_evo.train`: train the supernet of a problem on a data set."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from nasc_evo.errors import UserError
from nasc_evo.hydra_app import EXIT_INTERRUPTED, check_filled, launch


def main() -> None:
    """Run the application."""
    launch("train", run)


def run(config: Any) -> int:
    """Train with a composed configuration; return the exit code."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from rich.console import Console

    from nasc_evo.assembly import build_architecture, build_dataset
    from nasc_evo.report.display import run_training, short_path
    from nasc_evo.supernet.training import Trainer, TrainingConfig

    check_filled(OmegaConf.create({"dataset": config.dataset}))  # the problem is a name here
    max_minutes = config.max_minutes
    if max_minutes is not None and not max_minutes > 0:
        raise UserError(f"max_minutes must be above 0, got {max_minutes}.")
    console = Console()
    images: Any = OmegaConf.to_container(config.dataset, resolve=True)
    dataset = build_dataset(images)
    space = build_architecture(HydraConfig.get().runtime.choices["problem"], dataset)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.resume is not None and not (folder / "checkpoint.pt").is_file():
        raise UserError(f"resume={config.resume} holds no checkpoint.pt to continue from.")
    recipe: Any = OmegaConf.to_container(config.training, resolve=True)
    unknown = sorted(set(recipe) - {field.name for field in fields(TrainingConfig)})
    if unknown:
        raise UserError(f"training has no option '{unknown[0]}'; see --help for those it has.")
    trainer = Trainer(space, dataset, TrainingConfig(**recipe), folder)
    console.quiet = not trainer.processes.first
    shown = short_path(folder)
    count, kind = trainer.processes.count, trainer.device.type
    machines = kind if count == 1 else f"{count} x {kind}"
    console.print(
        f"Training {space.name} at {space.geometry}x{space.geometry} on {dataset.name} "
        f"({len(trainer.y)} images) on {machines}, step {trainer.step} of "
        f"{trainer.steps}, in {shown}",
        highlight=False,
        soft_wrap=True,
    )
    path = run_training(trainer, console, shown, max_minutes)
    if path is None:
        return EXIT_INTERRUPTED
    weights = short_path(path)
    console.print(
        f"Weights: {weights} (use them with evaluator.weights={weights})",
        highlight=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    main()
