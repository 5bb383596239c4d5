"""What the importers of official benchmark files share."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasc_evo.data.images import data_folder
from nasc_evo.errors import UserError, brief, one_line
from nasc_evo.space.nasbench201 import NASBench201Space


def output_folder(option: Path | None) -> Path:
    """Return the folder to write to, made if need be: `option`, else `$NASC_EVO_DATA/hwnas`.

    Raises:
        UserError: If neither is given, or the folder cannot be written to.
    """
    if option is None:
        data = data_folder()
        if data is None:
            raise UserError(
                "NASC_EVO_DATA is not set, so there is no folder to write to; set it to your data "
                "folder or give --out FOLDER."
            )
        option = data / "hwnas"
    try:
        option.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {option} cannot be made ({one_line(error)}).") from error
    if not os.access(option, os.W_OK):
        raise UserError(f"The folder {option} cannot be written to; give another by --out FOLDER.")
    return option


def write_npz(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """Write arrays to an .npz file, which appears complete or not at all.

    Raises:
        UserError: If the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"The file {path} cannot be written ({one_line(error)}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def official_strings(space: NASBench201Space) -> list[str]:
    """Return the strings of all architectures in the official order."""
    return [space.format(ops) for ops in space.architectures]


def check_strings(got: Sequence[Any], expected: Sequence[str], where: str) -> None:
    """Check that a file holds the architectures in the official order.

    Raises:
        UserError: If it holds another number of them or another one somewhere.
    """
    if len(got) != len(expected):
        raise UserError(f"{where} must list {len(expected)} architectures, got {len(got)}.")
    for index, (one, other) in enumerate(zip(got, expected, strict=True)):
        if not isinstance(one, str) or one != other:
            raise UserError(
                f"Architecture {index} of {where} is {brief(one)}, but the official one is "
                f"'{other}'."
            )
