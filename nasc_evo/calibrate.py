"""`python -m nasc_evo.calibrate`: what training would give, learnt from some trained networks."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from nasc_evo.errors import UserError, one_line
from nasc_evo.hydra_app import check_filled, launch

OFFICIAL = "official"
OFFICIAL_NETWORKS = 50
OFFICIAL_SOURCE = (
    "NAS-Bench-201 (Dong and Yang, ICLR 2020; MIT): CIFAR-100 test errors after 200 epochs, mean "
    "over the seeds that there are"
)
MAX_CSV_BYTES = 2**20


def main() -> None:
    """Run the application."""
    launch("calibrate", run)


def run(config: Any) -> int:
    """Fit and write the calibration that a composed configuration describes; return the code."""
    import numpy as np
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from nasc_evo.assembly import build_architecture, build_dataset, supernet_evaluator
    from nasc_evo.report.display import ProgressDisplay, create_console, short_path
    from nasc_evo.search.calibration import (
        INTERVAL,
        calibration_file,
        check_trained,
        fit_calibration,
        write_calibration,
    )
    from nasc_evo.space import Design

    parts: Any = {key: config.get(key) for key in ("dataset", "evaluator")}
    check_filled(OmegaConf.create(parts))
    options: Any = OmegaConf.to_container(OmegaConf.create(parts["evaluator"] or {}), resolve=True)
    if options.pop("name", None) != "supernet":
        raise UserError("Only what evaluator=supernet says of networks can be calibrated.")
    dataset = build_dataset(OmegaConf.to_container(parts["dataset"], resolve=True))  # type: ignore[arg-type]
    space = build_architecture(HydraConfig.get().runtime.choices["problem"], dataset)
    archs, trained, source = trained_networks(config, space, dataset.name)
    ops = check_trained(space, archs, trained)
    evaluator: Any = supernet_evaluator(space, dataset, options)
    out = calibration_file(evaluator.weights)
    if out.exists() or not os.access(out.parent, os.W_OK):
        raise UserError(
            f"{out} exists or cannot be written; delete it, or copy the weights and their manifest "
            "to a folder of your own and give them with evaluator.weights."
        )
    designs = [
        Design(arch, tuple(map(int, genes)), (space.n_blocks,), ("",), (0,))
        for arch, genes in zip(archs, ops, strict=True)
    ]
    inherited = np.full(len(designs), np.nan)
    console = create_console()
    with ProgressDisplay("Scoring", len(designs), 0, console) as display:
        for done, (i, score) in enumerate(evaluator.evaluate(designs), start=1):
            inherited[i] = score.error
            display.show(done, "", f"{done} of {len(designs)} scored", now=done == len(designs))
    calibration = fit_calibration(space, archs, inherited.tolist(), trained)
    described = evaluator.describe()
    details = {
        "source": source,
        "dataset": dataset.name,
        "images": evaluator.images,
        "numerics": described["numerics"],
    }
    write_calibration(out, calibration, described["weights_sha256"], details)
    figures = calibration.cross_validated
    tau = figures["kendall_tau"]
    console.print(
        f"{short_path(out)}: over {len(archs)} networks, each estimated without it, Kendall's tau "
        f"to the trained errors is {'unknown' if tau is None else format(tau, '.3f')} "
        f"({figures['kendall_tau_inherited']:.3f} by inherited errors alone), the mean error of "
        f"the estimates {100 * figures['mean_absolute_error']:.2f} points, and "
        f"{figures['share_in_interval']:.0%} lie in their {INTERVAL:.0%} interval.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def trained_networks(config: Any, space: Any, dataset: str) -> tuple[list[str], list[float], str]:
    """Return the networks of `trained`, their errors after training, and where these come from.

    Raises:
        UserError: If they cannot be had, or an option has no effect.
    """
    from nasc_evo.search.loop import check_whole

    if config.trained is None:
        raise UserError("trained must be given: a CSV file with arch and error, or official.")
    if config.trained == OFFICIAL:
        count = OFFICIAL_NETWORKS if config.networks is None else config.networks
        seed = 0 if config.seed is None else config.seed
        check_whole("networks", count, 1)
        check_whole("seed", seed, 0)
        return *official_networks(space, dataset, count, seed), OFFICIAL_SOURCE
    for name in ("networks", "seed"):
        if config[name] is not None:
            raise UserError(f"{name} has no effect: it is for trained=official; leave it out.")
    return *read_trained(Path(config.trained)), str(config.trained)


def read_trained(path: Path) -> tuple[list[str], list[float]]:
    """Return the networks of a CSV file with the columns arch and error, and their errors.

    Raises:
        UserError: If it cannot be read, a column is missing, or an error is no number in 0..1.
    """
    from nasc_evo.files import read_bytes

    archs, errors = [], []
    try:
        text = read_bytes(path, MAX_CSV_BYTES).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        missing = {"arch", "error"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"it has no column {sorted(missing)[0]}")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"line {reader.line_num} has another number of fields")
            error = float(row["error"])
            if not 0 <= error <= 1:
                raise ValueError(f"error {error} in line {reader.line_num} is not in 0..1")
            archs.append(row["arch"])
            errors.append(error)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"The trained networks {path} cannot be read ({one_line(error)}); give a CSV file with "
            "the columns arch and error."
        ) from error
    return archs, errors


def official_networks(
    space: Any, dataset: str, count: int, seed: int
) -> tuple[list[str], list[float]]:
    """Return random different networks and their test errors after the official training.

    Raises:
        UserError: If there are no official figures for them, or fewer networks than asked for.
    """
    import numpy as np

    from nasc_evo.tabular import read_accuracies

    if space.name != "nasbench201" or dataset != "cifar100":
        raise UserError(
            f"trained=official is for problem=nasbench201 dataset=cifar100, not for {space.name} "
            f"on {dataset}; give a CSV file."
        )
    path, official = read_accuracies()
    if official is None:
        raise UserError(
            f"The official figures {path} are missing: NASC_EVO_DATA must name their folder, see "
            "`python -m nasc_evo.costs --help`."
        )
    different = np.unique(space.index(space.canonical(space.architectures)))
    if count > len(different):
        raise UserError(f"networks must be at most {len(different)}, got {count}.")
    chosen = np.sort(np.random.default_rng(seed).choice(different, count, replace=False))
    errors = 1 - official["cifar100_xtest_200"][chosen] / 100
    return [space.format(ops) for ops in space.architectures[chosen]], errors.tolist()


if __name__ == "__main__":
    main()
