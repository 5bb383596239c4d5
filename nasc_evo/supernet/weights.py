"""Stored supernets: a safetensors file and, beside it, a manifest in JSON.

Files are named `<space>_<geometry>_<dataset>`; those that ship in the package lie in
`pretrained/`. Nothing is ever unpickled, and a file that does not have the sha256 of its
manifest is refused.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from nasc_evo.data.images import ImageDataset
from nasc_evo.errors import UserError, one_line
from nasc_evo.files import check_regular, read_json
from nasc_evo.space.architecture import ArchitectureSpace

FORMAT = "nasc_evo supernet 1"
PRETRAINED = Path(__file__).parent / "pretrained"
IMPORTANCE_PREFIX = "channel_importance."
MAX_BYTES = 512 * 2**20
MAX_HEADER_BYTES = 2**20


def weights_name(space: ArchitectureSpace, dataset: ImageDataset) -> str:
    """Return the file name, without ending, of a supernet of this space on this data set."""
    return f"{space.name}_{dataset.geometry}_{dataset.name}"


def find_weights(
    space: ArchitectureSpace, dataset: ImageDataset, path: str | os.PathLike[str] | None = None
) -> Path:
    """Return the file that holds the supernet: the given one, else the one that ships.

    Raises:
        UserError: If there is none.
    """
    if path is not None:
        file = Path(path if isinstance(path, os.PathLike) else str(path))
        if not file.is_file():
            raise UserError(
                f"There is no weight file {file}; give evaluator.weights the .safetensors file "
                "that nasc_evo.train wrote."
            )
        return file
    file = PRETRAINED / f"{weights_name(space, dataset)}.safetensors"
    if not file.is_file():
        raise UserError(
            f"No weights ship for {space.name} on {dataset.name} at {dataset.geometry}x"
            f"{dataset.geometry}: train them with `python -m nasc_evo.train problem={space.name} "
            f"{dataset.arguments}` and pass evaluator.weights=<file>.safetensors."
        )
    return file


def read_manifest(path: Path, space: ArchitectureSpace, dataset: ImageDataset) -> dict[str, Any]:
    """Read and check the manifest beside a weight file, and the file's hash.

    Raises:
        UserError: If it is missing, damaged, of another space or data set, or the hash differs.
    """
    manifest_path = path.with_suffix(".json")
    try:
        manifest = read_json(manifest_path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The manifest {manifest_path} of the weight file cannot be read ({one_line(error)})."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{manifest_path} is no manifest of format '{FORMAT}'.")
    wanted = {"space": space.name, **dataset.describe()}
    for key, value in wanted.items():
        if manifest.get(key) != value:
            raise UserError(
                f"The weight file {path} is for {key} {manifest.get(key)!r}, this run needs "
                f"{value!r}; choose other weights or train them with nasc_evo.train."
            )
    if not path.is_file():
        raise UserError(f"The weight file {path} does not exist or is no file.")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"The weight file {path} is larger than {MAX_BYTES} bytes.")
    if manifest.get("sha256") != file_sha256(path):
        raise UserError(
            f"The weight file {path} does not have the sha256 of its manifest; it is damaged or "
            "was changed: replace both by an intact copy."
        )
    return manifest


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_state(path: Path) -> dict[str, Any]:
    """Return the tensors of a weight file by name, as stored, without the importance scores.

    Raises:
        UserError: If the file is damaged.
    """
    return read_tensors(path, "pt", lambda name: not name.startswith(IMPORTANCE_PREFIX))


def read_tensors(path: Path, framework: str, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Return the tensors whose names are wanted, a UserError if the file is damaged."""
    try:
        check_regular(path)
        with open(path, "rb") as content:
            header_bytes = int.from_bytes(content.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {header_bytes} bytes")
        with safe_open(path, framework=framework) as file:
            return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
    except Exception as error:  # shapes and types that torch does not know raise anything
        raise UserError(f"The weight file {path} is damaged ({one_line(error)}).") from error


def load_supernet(space: ArchitectureSpace, dataset: ImageDataset, path: Path) -> Any:
    """Return the supernet (`nasc_evo.supernet.model.Supernet`) of a weight file, in float32.

    Raises:
        UserError: If file or manifest do not fit the space and the data set.
    """
    from nasc_evo.supernet.model import build_supernet

    read_manifest(path, space, dataset)
    state = load_state(path)
    supernet = build_supernet(space)
    expected = {name: tuple(value.shape) for name, value in supernet.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected != found:
        differing = sorted(set(expected.items()) ^ set(found.items()))[0]
        raise UserError(
            f"The weight file {path} does not hold a {space.name} supernet: tensor "
            f"'{differing[0]}' is missing, unknown or of another shape."
        )
    supernet.load_state_dict({name: value.float() for name, value in state.items()})
    return supernet.eval().requires_grad_(False)


def load_importance(path: Path) -> dict[int, NDArray[np.float64]]:
    """Return, for each inner cut, the importance of its channels; larger means more important.

    Raises:
        UserError: If the file is damaged.
    """
    tensors = read_tensors(path, "numpy", lambda name: name.startswith(IMPORTANCE_PREFIX))
    try:
        if any(scores.dtype.kind != "f" for scores in tensors.values()):
            raise ValueError("an importance of channels is no float")
        with np.errstate(invalid="ignore"):  # what is not finite, the space refuses
            return {
                int(name.removeprefix(IMPORTANCE_PREFIX)): scores.astype(np.float64)
                for name, scores in tensors.items()
            }
    except ValueError as error:
        raise UserError(f"The weight file {path} is damaged ({one_line(error)}).") from error


def save_supernet(
    supernet: Any,
    dataset: ImageDataset,
    folder: Path,
    importance: Mapping[int, NDArray[np.floating]],
    details: Mapping[str, Any],
) -> Path:
    """Write a supernet in half precision with its manifest; return the weight file.

    Args:
        supernet: The network (`nasc_evo.supernet.model.Supernet`).
        dataset: What it was trained on.
        folder: Where both files go.
        importance: For each inner cut a score a channel, larger means more important.
        details: What else the manifest states: recipe, accuracy, hashes, licence, versions.
    """
    import torch
    from safetensors.torch import save_file

    space = supernet.space
    tensors = {
        name: value.detach().half().cpu().contiguous()
        for name, value in supernet.state_dict().items()
    }
    for cut, scores in importance.items():
        tensors[f"{IMPORTANCE_PREFIX}{cut}"] = torch.tensor(scores, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{weights_name(space, dataset)}.safetensors"
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    os.replace(temporary, path)
    manifest = {
        "format": FORMAT,
        "space": space.name,
        **dataset.describe(),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "precision": "float16",
        "parameters": sum(value.numel() for value in supernet.state_dict().values()),
        "sha256": file_sha256(path),
        **details,
    }
    path.with_suffix(".json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return path
