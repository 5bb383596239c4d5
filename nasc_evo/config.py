"""The folder of configuration files, in a wheel or in a checkout."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from nasc_evo.errors import UserError

ALIASES = {"edge": "server", "backhaul": "link"}
"""Groups whose options are those of another group."""
CHAIN_PARTS = ("device", "edge", "server", "link", "backhaul")
"""Groups of the machines and links that a chain may be made of."""
FILES = ("path", "trace", "weights")
"""Fields of groups that name a file."""


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


def absolute_files(config: Any) -> Any:
    """Return a resolved configuration whose files are found from any folder."""
    if isinstance(config, list):
        return [absolute_files(part) for part in config]
    if not isinstance(config, dict):
        return config
    return {
        key: str(Path(value).expanduser().absolute())
        if key in FILES and isinstance(value, str)
        else absolute_files(value)
        for key, value in config.items()
    }


def check_used(keys: Iterable[str], chain: Any) -> None:
    """Check that what is set of machines and links is part of the chain.

    Args:
        keys: What is set, such as `backhaul.rtt_ms`.
        chain: The chain with its references to groups, unresolved.

    Raises:
        UserError: If a chain has no such part.
    """
    used = set(re.findall(r"\$\{(\w+)", str(chain)))
    name = chain.get("name") if isinstance(chain, dict) else chain
    for key in keys:
        group = key.split(".")[0]
        if group not in CHAIN_PARTS or group in used:
            continue
        has = ", ".join(part for part in CHAIN_PARTS if part in used)
        why = f"chain={name} is of {has}" if has else "the chain was given as a whole"
        raise UserError(
            f"{key} has no effect: {why}; change the chain, or its chain.nodes and chain.links."
        )
