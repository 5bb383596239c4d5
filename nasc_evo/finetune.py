"""`python -m nasc_evo.finetune`: weights of its own for a design that a search has found."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from nasc_evo.errors import UserError, one_line
from nasc_evo.hydra_app import EXIT_INTERRUPTED, check_filled, launch

MODES = ("inherit", "finetune", "scratch")


def main() -> None:
    """Run the application."""
    launch("finetune", run)


class Chosen(NamedTuple):
    """A design of a run, and what it was scored with.

    Attributes:
        design: The design.
        mask_groups: Channel groups at a cut, or `"channels"`.
        space: Space of architectures.
        dataset: Its images.
        evaluator: Options of the run's evaluator.
        details: What the run says about it.
    """

    design: Any
    mask_groups: int | str
    space: Any
    dataset: Any
    evaluator: dict[str, Any]
    details: dict[str, Any]


def run(config: Any) -> int:
    """Write the network that a composed configuration asks for; return the exit code."""
    from importlib.util import find_spec

    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from nasc_evo.report.display import short_path

    check_filled(config)
    if config.mode not in MODES:
        raise UserError(f"mode must be one of {', '.join(MODES)}, got '{config.mode}'.")
    if config.max_minutes is not None and not config.max_minutes > 0:
        raise UserError(f"max_minutes must be above 0, got {config.max_minutes}.")
    if config.mode == "inherit" and config.resume is not None:
        raise UserError("mode=inherit trains nothing, so that there is nothing to resume.")
    if config.onnx and find_spec("onnx") is None:
        raise UserError("onnx=true needs onnx; install it with `pip install 'nasc-evo[onnx]'`.")
    chosen = choose(Path(config.run), config.design)
    folder = Path(HydraConfig.get().runtime.output_dir)
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    weights = None if config.mode == "scratch" else inherited_weights(Path(config.run), chosen)
    if config.mode == "inherit":
        assert weights is not None
        say(f"Writing design {chosen.details['run']['design_id']} to {short_path(folder)}")
        manifest = inherit(chosen, weights, folder)
    else:
        done = train(config, chosen, weights, folder, console)
        if done is None:
            return EXIT_INTERRUPTED
        manifest = done
    report(say, manifest, config.onnx)
    return 0


def choose(path: Path, design_id: int | None) -> Chosen:
    """Return a design of the front of a run.

    Args:
        path: Folder of the run.
        design_id: In its `pareto.csv`; None is the recommended design.

    Raises:
        UserError: If there is no such run or design, or a file is damaged.
    """
    from nasc_evo.assembly import build_architecture, build_dataset
    from nasc_evo.report.files import read_front
    from nasc_evo.search.folder import FORMAT, MANIFEST, read_document
    from nasc_evo.space import Design, SplitSpace
    from nasc_evo.supernet.evaluation import MOST_THREADS

    if not (path / MANIFEST).is_file() or not (path / "pareto.csv").is_file():
        raise UserError(f"run={path} is no folder of a run: it has no {MANIFEST} or pareto.csv.")
    manifest = read_document(path / MANIFEST, "manifest", FORMAT)
    try:
        rows, _ = read_front(path / "pareto.csv", ())
        by_id = {int(row["design_id"]): row for row in rows}
        if design_id is None:
            design_id = recommended(path)
        if design_id not in by_id:
            raise UserError(
                f"design={design_id} is not on the front of {path}; its designs are "
                f"{', '.join(map(str, by_id)) or 'none'}."
            )
        row = by_id[design_id]
        described, config = manifest["identity"]["problem"], manifest["config"]
        genes, scored = described["space"], dict(described["evaluator"])
        dataset = build_dataset(config["dataset"])
        space = build_architecture(genes["architecture"], dataset)
        ops = tuple(space.parse(row["arch"]).tolist())
        cuts, masks, bits = (row[name].split("/") for name in ("cut", "mask", "bits"))
        design = Design(
            row["arch"], ops, tuple(map(int, cuts)), tuple(masks), tuple(map(int, bits))
        )
        SplitSpace(space, mask_groups=genes["mask_groups"], n_links=len(cuts)).batch([design])
        evaluator = dict(config["evaluator"])
        for name, most in (("calibration_images", math.inf), ("threads", MOST_THREADS)):
            n = evaluator.setdefault(name)
            if n is not None and (type(n) is not int or not 1 <= n <= most):
                raise TypeError(f"evaluator.{name} is no whole number in 1..{most}")
        details = {
            "design_id": design_id,
            "error": float(row["error"]),
            "error_test": float(row["error_test"]) if row["error_test"] else None,
            "evaluator": scored,
        }
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"The run {path} cannot be read ({type(error).__name__}: {one_line(error)})."
        ) from error
    if scored.get("search_sha256", "") not in ("", dataset.digest(dataset.split("search"))):
        raise UserError(
            f"The search images of {dataset.name} are not those of the run {path}; give the images "
            "that it used."
        )
    return Chosen(design, genes["mask_groups"], space, dataset, evaluator, {"run": details})


def recommended(path: Path) -> int:
    """Return the design that a run recommends."""
    from nasc_evo.files import read_json

    document = read_json(path / "pareto.json")["recommended"]
    if document is None:
        raise UserError(f"The front of {path} is empty; there is no design to give weights to.")
    return int(document["design_id"])


def inherited_weights(path: Path, chosen: Chosen) -> Path:
    """Return the weight file of the run's supernet.

    Raises:
        UserError: If the run had none, or the file is missing or another one.
    """
    from nasc_evo.supernet.weights import file_sha256, find_weights

    scored = chosen.details["run"]["evaluator"]
    if "weights_sha256" not in scored:
        raise UserError(
            f"The run {path} inherited no weights, its accuracies came from elsewhere; train with "
            "mode=scratch."
        )
    weights = find_weights(chosen.space, chosen.dataset, chosen.evaluator.get("weights"))
    if file_sha256(weights) != scored["weights_sha256"]:
        raise UserError(f"The weight file {weights} is not the one of the run {path} any more.")
    return weights


def inherit(chosen: Chosen, weights: Path, folder: Path) -> Path:
    """Write a design with inherited weights, calibrated as in the run; return the manifest.

    With as many threads too: they sum the statistics of batch norm in parts, and what differs in
    their last digits may move a value at the cut to another step of the quantiser.
    """
    import torch

    from nasc_evo.supernet.deploy import deploy
    from nasc_evo.supernet.finetuning import save_scored
    from nasc_evo.supernet.weights import load_supernet

    if chosen.evaluator["threads"] is not None:
        torch.set_num_threads(chosen.evaluator["threads"])
    supernet = load_supernet(chosen.space, chosen.dataset, weights)
    images = chosen.evaluator["calibration_images"]
    network = deploy(supernet, chosen.design, chosen.dataset, images)
    details = {"mode": "inherit", **chosen.details}
    return save_scored(network, chosen.dataset, folder, chosen.mask_groups, details)


def train(
    config: Any, chosen: Chosen, weights: Path | None, folder: Path, console: Any
) -> Path | None:
    """Train a design; return the manifest, None if the time given ran out first."""
    from omegaconf import OmegaConf

    from nasc_evo.config import load_group_option
    from nasc_evo.report.display import run_training, short_path
    from nasc_evo.supernet.finetuning import NetworkTrainer
    from nasc_evo.supernet.training import TrainingConfig

    if config.resume is not None and not (folder / "checkpoint.pt").is_file():
        raise UserError(f"resume={config.resume} holds no checkpoint.pt to continue from.")
    recipe: Any = OmegaConf.to_container(config.training, resolve=True)
    unknown = sorted(set(recipe) - set(load_group_option("training", "network")))
    if unknown:
        raise UserError(f"Training one network has no option training.{unknown[0]}; see --help.")
    trainer = NetworkTrainer(
        chosen.space,
        chosen.dataset,
        TrainingConfig(**recipe, init=None if weights is None else str(weights), cuda_graphs=False),
        folder,
        chosen.design,
        mask_groups=chosen.mask_groups,
        details={"mode": config.mode, **chosen.details},
    )
    shown = short_path(folder)
    console.print(
        f"Training design {chosen.details['run']['design_id']} on {chosen.dataset.name} "
        f"({len(trainer.y)} images) on {trainer.device.type}, step {trainer.step} of "
        f"{trainer.steps}, in {shown}",
        highlight=False,
        soft_wrap=True,
    )
    return run_training(trainer, console, shown, config.max_minutes)


def report(say: Any, manifest: Path, onnx: bool) -> None:
    """Print what was written, and write ONNX files beside it if asked."""
    from nasc_evo.report.display import short_path
    from nasc_evo.supernet.deploy import DeployedNetwork

    network = DeployedNetwork.load(manifest.parent)
    written = network.manifest
    for split in ("search", "test"):
        figures = written["accuracy"][split]
        say(
            f"Accuracy on {figures['images']} {split} images: {100 * figures['accuracy']:.2f} "
            f"± {100 * figures['standard_error']:.2f} %"
        )
    found = written["run"]
    before = f"The run found {100 * (1 - found['error']):.2f} % on search images"
    if found["error_test"] is not None:
        before += f", {100 * (1 - found['error_test']):.2f} % on test images"
    say(f"{before}, {found['evaluator'].get('numerics', {}).get('dtype', 'from a table')}.")
    files = [part["file"] for part in written["parts"]]
    if onnx:
        files += write_onnx(network, manifest.parent)
    say(f"Written to {short_path(manifest.parent)}: {manifest.name}, {', '.join(files)}")


def write_onnx(network: Any, folder: Path) -> list[str]:
    """Write the parts that compute something as ONNX files for batch 1; return their names."""
    import onnx
    import torch

    from nasc_evo.measurement.onnx_graph import onnx_model
    from nasc_evo.measurement.pieces import Deployed

    bounds = [0, *network.design.cuts]
    written = []
    for name, start, part in zip(network.names, bounds, network.parts, strict=True):
        if not part.blocks:
            continue
        x = torch.zeros(1, *network.space.cut_shapes[start])
        with torch.no_grad():
            piece = Deployed(part.blocks, part.folded, x, part(x))
        onnx.save(onnx_model(piece), folder / f"{name}.onnx")
        written.append(f"{name}.onnx")
    return written


if __name__ == "__main__":
    main()
