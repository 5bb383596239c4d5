"""The folder of configuration files, in a wheel or in a checkout."""

from pathlib import Path
from typing import Any

import yaml

from nasc_evo.errors import UserError

ALIASES = {"edge": "server", "backhaul": "link"}
"""Groups whose options are those of another group."""


def config_folder() -> Path:
    """Return the folder `configs`: inside the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def group_options(group: str) -> list[str]:
    """Return the names of the options of a configuration group."""
    return sorted(path.stem for path in _folder(group).glob("*.yaml"))


def _folder(group: str) -> Path:
    return config_folder() / ALIASES.get(group, group)


def load_group_option(group: str, name: str) -> dict[str, Any]:
    """Return one option of a configuration group as a mapping.

    Raises:
        UserError: If the group has no option of this name.
    """
    options = group_options(group)
    if name not in options:
        raise UserError(f"There is no {group} '{name}'; available are {', '.join(options)}.")
    text = (_folder(group) / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)
