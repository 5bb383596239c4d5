"""The output folder of a run: lock, manifest, journal, and what resuming checks."""

import json
import os
import platform
import sys
import time
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from nasc_evo import __version__
from nasc_evo.errors import UserError, one_line
from nasc_evo.files import read_json
from nasc_evo.search.journal import Journal

FORMAT = "nasc_evo run 1"
JOURNAL = "evaluations.jsonl"
MANIFEST = "manifest.json"


class RunFolder:
    """An output folder held by this process.

    Args:
        path: The folder; made if missing.
        resume: Whether it holds an earlier run that goes on here.
        identity: What must be equal for a run to go on: problem, algorithm, seed.
        config: The resolved configuration, for the manifest and `.hydra/config.yaml`.
        overrides: The command line's overrides, for `.hydra/overrides.yaml`.

    Raises:
        UserError: If the folder is in use, holds a run although `resume` is False, holds none
            although it is True, or holds a different run.
    """

    def __init__(
        self,
        path: Path,
        *,
        resume: bool,
        identity: dict[str, Any],
        config: dict[str, Any],
        overrides: list[str],
    ) -> None:
        self.path = path
        self._started = time.monotonic()
        if resume and not (path / MANIFEST).is_file():
            raise UserError(f"resume={path} is no folder of an earlier run: it has no {MANIFEST}.")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / ".lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"The folder {path} is in use by another running search; wait for it to end or "
                "choose another hydra.run.dir."
            ) from error
        except OSError as error:
            raise UserError(f"The folder {path} cannot be written ({one_line(error)}).") from error
        try:
            if not resume and (path / JOURNAL).exists():
                raise UserError(
                    f"The folder {path} holds a run already; continue it with resume={path} or "
                    "choose another hydra.run.dir."
                )
            identity = json.loads(json.dumps(identity))
            if resume:
                self.manifest = read_document(path / MANIFEST, "manifest", FORMAT)
                _check_identity(self.manifest.get("identity"), identity, path)
            else:
                self.manifest = {
                    "format": FORMAT,
                    "created": datetime.now().astimezone().isoformat(timespec="seconds"),
                    "versions": _versions(),
                    "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                    "identity": identity,
                    "config": config,
                    "finished": None,
                }
                self._write_hydra(config, overrides)
                self._write_manifest()
            self.journal = Journal(path / JOURNAL)
        except OSError as error:
            self._lock.release()
            raise UserError(f"The folder {path} cannot be written ({one_line(error)}).") from error
        except BaseException:
            self._lock.release()
            raise

    def _write_manifest(self) -> None:
        write_json(self.path / MANIFEST, self.manifest)

    def _write_hydra(self, config: dict[str, Any], overrides: list[str]) -> None:
        folder = self.path / ".hydra"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (folder / "overrides.yaml").write_text(yaml.safe_dump(overrides))

    def finish(self, details: dict[str, Any]) -> None:
        """Record how the run ended and what it took, in the manifest."""
        self.manifest["finished"] = {
            "at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "wall_seconds": round(time.monotonic() - self._started, 3),
            **details,
        }
        self._write_manifest()

    def close(self) -> None:
        """Close the journal and release the folder."""
        self.journal.close()
        self._lock.release()


def read_document(path: Path, kind: str, expected: str) -> dict[str, Any]:
    """Read a JSON file that names its format.

    Args:
        path: The file.
        kind: What it is, for messages.
        expected: Its format.

    Raises:
        UserError: If it is missing or damaged, or of another format.
    """
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"The {kind} {path} is damaged ({one_line(error)}).") from error
    if not isinstance(document, dict) or document.get("format") != expected:
        raise UserError(f"{path} is no {kind} of format '{expected}'.")
    return document


def write_json(path: Path, document: Any) -> None:
    """Write JSON so that a crash leaves either the old file or the new one."""
    text = json.dumps(document, indent=2, allow_nan=False)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _versions() -> dict[str, str]:
    versions = {"nasc_evo": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "pymoo", "moocore", "hydra-core"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def _check_identity(old: Any, new: dict[str, Any], path: Path) -> None:
    """Raise a UserError that names the first difference."""
    if not isinstance(old, dict):
        raise UserError(f"The manifest {path / MANIFEST} is damaged (no identity).")
    difference = first_difference(old, new)
    if difference is not None:
        key, before, now = difference
        raise UserError(
            f"The run in {path} cannot be resumed with another {key}: it had {before!r}, this "
            f"command has {now!r}; give the options that the run was begun with."
        )


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first field, as `a.b.c`, in which two documents differ, with both values."""
    flat_old, flat_new = _flatten(old), _flatten(new)
    for key in sorted(flat_old.keys() | flat_new.keys()):
        before, now = flat_old.get(key, "absent"), flat_new.get(key, "absent")
        if before != now:
            return key, before, now
    return None


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = ((str(i), item) for i, item in enumerate(value))  # type: ignore[assignment]
    else:
        return {prefix: value}
    result = {}
    for key, item in items:
        result.update(_flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return result
