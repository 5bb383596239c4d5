"""Block costs of one node: a CSV file with a provenance header.

The file begins with lines `# ...` that form one YAML mapping (`format`, `name`, `space` and
`geometry` are required; source, licence, quirks and fit errors belong there too), followed by
CSV with the columns `position, op, latency_ms, energy_mj`. Costs are additive over positions. An
empty field is an unknown figure, which only `energy_mj` may have.

Tables that `python -m nasc_evo.measure` writes have more: header fields `constant_ms` and
`constant_mj`, which the machine adds to every piece of a network that it runs, and columns on how
the figures came about, of which runs use none (:data:`EXTRA_COLUMNS`).

Rows of positions that are `optional` (:class:`nasc_evo.space.architecture.Position`) are all there,
or none of them is, and then they cost nothing.

Two more header fields concern spaces whose networks have official numbers: `pruned` lists the
kinds of dead operations that the machine's compiler removes, and `did_not_compile` flags the
networks that it refused (see :func:`nasc_evo.cost.network.pack_flags`).
"""

import csv
import hashlib
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from nasc_evo.cost.network import NetworkTotals, official_totals, unpack_flags
from nasc_evo.errors import UserError, brief, one_line
from nasc_evo.files import read_bytes
from nasc_evo.space.architecture import ArchitectureSpace

FORMAT = "nasc_evo cost table 1"
TABLES = Path(__file__).parent / "tables"
COLUMNS = ["position", "op", "latency_ms", "energy_mj"]
EXTRA_COLUMNS = ["measured_ms", "spread_ms", "launch_ms"]
"""Latency of the block alone, interquartile range of its samples, and the part of it that launching
kernels takes; any of them, in this order, may follow. 0 where nothing was measured alone."""
MAX_BYTES = 16 * 2**20
MAX_HEADER_CHARACTERS = 2**16

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CostTable:
    """Costs of every operation at every position of a space, on one machine, batch 1.

    Attributes:
        name: Name of the machine.
        latency_ms: `[positions, ops]`; NaN beyond a position's own operations.
        energy_mj: Likewise, or None where the energy is unknown.
        constant_ms: Latency of every piece of a network that runs here, beyond that of its blocks.
        constant_mj: Likewise its energy.
        header: The provenance header.
        sha256: Of the file.
        pruned: Kinds of dead operations that cost nothing here.
        refused: Networks that do not run here, by official index; None if all do.
        totals: Official costs of whole networks, to which sums are scaled; None without.
    """

    name: str
    latency_ms: FloatArray
    energy_mj: FloatArray | None
    header: dict[str, Any]
    sha256: str
    constant_ms: float = 0.0
    constant_mj: float = 0.0
    pruned: tuple[str, ...] = ()
    refused: NDArray[np.bool_] | None = None
    totals: NetworkTotals | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], space: ArchitectureSpace) -> "CostTable":
        """Read and check a table file for a space.

        Raises:
            UserError: If the file is missing, damaged, for another space or geometry, or a figure
                is missing, negative or no number.
        """
        path = Path(path)
        content, lines, header = _read(path)
        for key, value in (("space", space.name), ("geometry", space.geometry)):
            if header[key] != value:
                raise UserError(
                    f"The cost table {path} is for {key} {header[key]}, this run needs {value}."
                )
        rows = [line for line in lines if line.strip() and not line.startswith("#")]
        try:
            latency, energy = _read_rows(path, rows, space)
        except csv.Error as error:
            raise UserError(f"The cost table {path} is no CSV ({one_line(error)}).") from error
        pruned = header.get("pruned", [])
        if not isinstance(pruned, list) or not set(map(str, pruned)) <= set(space.prunable):
            raise UserError(
                f"pruned in the header of the cost table {path} must be a list out of "
                f"{list(space.prunable)}, got {pruned!r}."
            )
        refused = None
        if "did_not_compile" in header:
            try:
                refused = unpack_flags(str(header["did_not_compile"]), len(space.architectures))
            except ValueError as error:
                raise UserError(
                    f"did_not_compile in the header of the cost table {path} cannot be read "
                    f"({error})."
                ) from error
        return cls(
            name=str(header["name"]),
            latency_ms=latency,
            energy_mj=None if np.isnan(energy).all() else energy,
            header=header,
            sha256=hashlib.sha256(content).hexdigest(),
            constant_ms=_constant(path, header, "constant_ms"),
            constant_mj=_constant(path, header, "constant_mj"),
            pruned=tuple(pruned),
            refused=refused,
        )

    def constant(self, metric: str) -> float:
        """Return what every piece of a network costs here beyond its blocks.

        Args:
            metric: `latency_ms` or `energy_mj`.
        """
        return self.constant_ms if metric == "latency_ms" else self.constant_mj

    def prediction_error(self, metric: str = "latency_ms") -> tuple[float, float] | None:
        """Return the error of predicted whole networks that the header of a measured table states.

        Args:
            metric: `latency_ms` or `energy_mj`.

        Returns:
            Mean absolute error in percent and Kendall's tau; None where the header has none.
        """
        found: Any = self.header
        agreement = "agreement" if metric == "latency_ms" else "energy_agreement"
        for key in (agreement, "whole", "as_corrected"):
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            return None
        figures = [found.get(key) for key in ("mape_percent", "kendall_tau")]
        if not all(isinstance(figure, int | float) for figure in figures):
            return None
        return float(figures[0]), float(figures[1])  # type: ignore[arg-type]

    @classmethod
    def shipped(cls, name: str, space: ArchitectureSpace) -> "CostTable":
        """Return the table of a machine that ships in the package.

        Raises:
            UserError: If there is none for this machine, space and geometry.
        """
        path = TABLES / f"{space.name}_{space.geometry}_{name}.csv"
        if not path.is_file():
            available = shipped_names(space)
            raise UserError(
                f"No cost table of '{name}' ships for {space.name} at {space.geometry}x"
                f"{space.geometry}; available are {', '.join(available)}, or give a table file of "
                "your own (device=table device.path=my.csv)."
            )
        table = cls.load(path, space)
        if not len(space.architectures):
            return table
        totals = official_totals(name, len(space.architectures))
        refused = table.refused
        if totals is not None and totals.refused.any():
            refused = totals.refused if refused is None else refused | totals.refused
        return replace(table, totals=totals, refused=refused)


def shipped_names(space: ArchitectureSpace) -> list[str]:
    """Return the machines whose tables ship for a space at its geometry."""
    prefix = f"{space.name}_{space.geometry}_"
    return sorted(path.stem.removeprefix(prefix) for path in TABLES.glob(f"{prefix}*.csv"))


Row = Mapping[str, float | None]
"""Figures by column; None where unknown."""


def write_table(
    path: Path,
    space: ArchitectureSpace,
    header: Mapping[str, Any],
    rows: Mapping[tuple[str, str], Row],
) -> None:
    """Write a table file, which appears complete or not at all.

    Args:
        path: The file.
        space: Its space.
        header: What the header says beyond format, space and geometry; `name` is first.
        rows: Figures by position and operation, of :data:`COLUMNS` and :data:`EXTRA_COLUMNS`.

    Raises:
        UserError: If the file cannot be written.
    """
    given = {column for row in rows.values() for column in row}
    columns = COLUMNS + [column for column in EXTRA_COLUMNS if column in given]
    whole = {"format": FORMAT, **header, "space": space.name, "geometry": space.geometry}
    text = yaml.safe_dump(whole, sort_keys=False, width=96, allow_unicode=True)
    file = io.StringIO()
    file.writelines(f"# {line}\n" for line in text.splitlines())
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for (position, op), row in rows.items():
        figures = [row.get(column) for column in columns[2:]]
        writer.writerow([position, op, *("" if f is None else repr(float(f)) for f in figures)])
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(file.getvalue(), encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"The cost table {path} cannot be written ({one_line(error)}).") from error
    finally:
        temporary.unlink(missing_ok=True)


class _HeaderLoader(yaml.SafeLoader):
    """Knows no aliases, by which a short text can stand for an endless one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node."""
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases are not read")
        return super().compose_node(parent, index)


def table_space(path: Path) -> tuple[str, int]:
    """Return the space and geometry that a table file says it is for.

    Raises:
        UserError: If the file cannot be read or has no header of a table.
    """
    header = _read(path)[2]
    name, geometry = header["space"], header["geometry"]
    if not isinstance(name, str) or not isinstance(geometry, int):
        raise UserError(
            f"space and geometry in the header of the cost table {path} must be a name and a whole "
            f"number, got {brief(name)} and {brief(geometry)}."
        )
    return name, geometry


def _read(path: Path) -> tuple[bytes, list[str], dict[str, Any]]:
    """Return the content of a file, its lines and its header."""
    try:
        content = read_bytes(path, MAX_BYTES)
        text = content.decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"There is no cost table file {path}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The cost table {path} cannot be read ({one_line(error)}).") from error
    lines = text.splitlines()
    return content, lines, _read_header(path, [line for line in lines if line.startswith("#")])


def _read_header(path: Path, lines: list[str]) -> dict[str, Any]:
    text = "\n".join(line[1:].removeprefix(" ") for line in lines)
    try:
        if len(text) > MAX_HEADER_CHARACTERS:
            raise ValueError(f"more than {MAX_HEADER_CHARACTERS} characters")
        header = yaml.load(text, _HeaderLoader)
    except Exception as error:  # values such as dates raise anything
        raise UserError(
            f"The header of the cost table {path} is no YAML mapping ({one_line(error)})."
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(
            f"The cost table {path} must begin with '# format: {FORMAT}', got "
            f"{lines[0][:80] if lines else 'no header'!r}."
        )
    missing = [key for key in ("name", "space", "geometry") if key not in header]
    if missing:
        raise UserError(f"The header of the cost table {path} lacks {', '.join(missing)}.")
    return header


def _constant(path: Path, header: Mapping[str, Any], key: str) -> float:
    value = header.get(key, 0.0)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value < math.inf):
        raise UserError(
            f"{key} in the header of the cost table {path} must be a number >= 0, got "
            f"{brief(value)}."
        )
    return float(value)


def _read_rows(
    path: Path, rows: list[str], space: ArchitectureSpace
) -> tuple[FloatArray, FloatArray]:
    reader = csv.DictReader(rows)
    columns = list(reader.fieldnames or [])
    extra = [column for column in EXTRA_COLUMNS if column in columns]
    if columns != COLUMNS + extra:
        raise UserError(
            f"The cost table {path} must have the columns {','.join(COLUMNS)}, "
            f"got {','.join(columns)}."
        )
    places: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for i, position in enumerate(space.positions):
        for j, op in enumerate(position.ops):
            places.setdefault((position.name, op), []).append((i, j))
    shape = (len(space.positions), max(len(position.ops) for position in space.positions))
    latency, energy = np.full(shape, np.nan), np.full(shape, np.nan)
    seen: set[tuple[str, str]] = set()
    for row in reader:
        where = f"position '{row['position']}', op '{row['op']}' of the cost table {path}"
        key = (row["position"], row["op"])
        if None in row or None in row.values():
            raise UserError(
                f"The {where} must have the {len(columns)} fields {','.join(columns)}; write "
                "decimals with a point."
            )
        if key not in places:
            raise UserError(f"There is no {where} in the space {space.name}.")
        if key in seen:
            raise UserError(f"The {where} is given twice.")
        seen.add(key)
        at = tuple(np.transpose(places[key]))
        latency[at] = _figure(row["latency_ms"], "latency_ms", where)
        if row["energy_mj"]:
            energy[at] = _figure(row["energy_mj"], "energy_mj", where)
        for column in extra:
            _figure(row[column], column, where)
    has_energy = not np.isnan(energy).all()
    optional = {(p.name, op) for p in space.positions if p.optional for op in p.ops}
    if not optional & seen:
        for key in optional:
            for place in places.pop(key):
                latency[place] = 0
                energy[place] = 0 if has_energy else math.nan
    absent = [key for key in places if key not in seen]
    if absent:
        hint = "; give all rows like this one or none" if optional & set(absent) else ""
        raise UserError(
            f"The cost table {path} lacks {len(absent)} of {len(places)} rows, the first is "
            f"'{' '.join(absent[0])}'{hint}."
        )
    known = [not math.isnan(energy[at[0]]) for at in places.values()]
    if any(known) and not all(known):
        raise UserError(
            f"The cost table {path} has energy_mj for {sum(known)} of {len(places)} rows; give it "
            "for all or for none."
        )
    return latency, energy


def _figure(text: str | None, column: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{column} at {where} must be a number >= 0, got '{text}'.")
    return value
