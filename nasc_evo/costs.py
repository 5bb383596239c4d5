"""`python -m nasc_evo.costs`: cost tables listed, shown and checked; official files imported."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from nasc_evo.argparse_app import Parser, run_command
from nasc_evo.cost.hwnasbench import import_file
from nasc_evo.cost.natsbench import import_folder
from nasc_evo.cost.official import output_folder
from nasc_evo.cost.plausible import average_network, implausible
from nasc_evo.cost.table import TABLES, CostTable, table_space
from nasc_evo.errors import UserError
from nasc_evo.space import SPACES, ArchitectureSpace

PACKED = "did_not_compile"
"""Header field that is no text for people."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(_parser(), argv)


def _parser() -> Parser:
    parser = Parser(prog="python -m nasc_evo.costs", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("list", help="machines whose tables ship")
    command.set_defaults(run=list_machines)

    command = commands.add_parser("show", help="what is known of a machine's tables")
    command.add_argument("name", metavar="NAME", help="machine, as in `list`")
    command.set_defaults(run=show)

    command = commands.add_parser("check", help="check a cost table of your own")
    command.add_argument("file", metavar="FILE", type=Path)
    command.add_argument("--space", choices=SPACES, help="default: what the file says")
    command.add_argument("--geometry", type=int, help="input size in pixels, likewise")
    command.set_defaults(run=check)

    out = "folder to write to (default: $NASC_EVO_DATA/hwnas)"
    command = commands.add_parser(
        "import-hwnasbench", help="import HW-NAS-Bench-v1_0.pickle (whole-network costs)"
    )
    command.add_argument("file", metavar="FILE", type=Path)
    command.add_argument("--out", metavar="FOLDER", type=Path, help=out)
    command.set_defaults(run=import_hwnasbench)

    command = commands.add_parser(
        "import-natsbench", help="import NATS-tss-v1_0-3ffb9-simple (accuracies)"
    )
    command.add_argument("folder", metavar="FOLDER", type=Path)
    command.add_argument("--out", metavar="FOLDER", type=Path, help=out)
    command.set_defaults(run=import_natsbench)
    return parser


def shipped_tables() -> list[tuple[CostTable, ArchitectureSpace]]:
    """Return every table that ships and its space, ordered by machine, space and geometry."""
    found = []
    for path in TABLES.glob("*.csv"):
        name, geometry, machine = path.stem.split("_", 2)
        found.append((machine, name, int(geometry), path))
    spaces = {key: SPACES[key[0]](key[1]) for key in {(name, size) for _, name, size, _ in found}}
    return [
        (CostTable.load(path, spaces[name, geometry]), spaces[name, geometry])
        for _, name, geometry, path in sorted(found)
    ]


def list_machines(_: argparse.Namespace) -> None:
    """Print one line a machine and space, and one more if only some geometries have energies."""
    lines: dict[tuple[str, str, bool], list[CostTable]] = {}
    for table, space in shipped_tables():
        has_energy = table.energy_mj is not None
        lines.setdefault((table.name, space.name, has_energy), []).append(table)
    rows = [("machine", "space", "geometry", "latency", "energy", "description")]
    for (machine, name, has_energy), tables in lines.items():
        header = tables[0].header
        units = header["units"]
        rows.append(
            (
                machine,
                name,
                ", ".join(str(table.header["geometry"]) for table in tables),
                units["latency_ms"],
                units["energy_mj"] if has_energy else "-",
                header["description"],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def show(options: argparse.Namespace) -> None:
    """Print the headers of a machine's tables."""
    tables = shipped_tables()
    chosen = [(table, space) for table, space in tables if table.name == options.name]
    if not chosen:
        names = sorted({table.name for table, _ in tables})
        raise UserError(
            f"No cost table of '{options.name}' ships; available are {', '.join(names)}."
        )
    for table, space in chosen:
        print(f"# {table.name}: {space.name} at {space.geometry}x{space.geometry}")
        header = {key: value for key, value in table.header.items() if key != PACKED}
        if table.refused is not None:
            header[PACKED] = f"{table.refused.sum()} of {len(table.refused)} networks"
        print(yaml.safe_dump(header, sort_keys=False, width=96, allow_unicode=True))


def check(options: argparse.Namespace) -> None:
    """Check a table file: what a run would refuse is an error, what is unlikely a warning."""
    name, geometry = table_space(options.file)
    name, geometry = options.space or name, options.geometry or geometry
    if name not in SPACES:
        raise UserError(
            f"The cost table {options.file} is for space '{name}'; there are {', '.join(SPACES)}."
        )
    space = SPACES[name](geometry)
    table = CostTable.load(options.file, space)
    energy = "without energy" if table.energy_mj is None else "with energy"
    print(
        f"{options.file} is a cost table of '{table.name}' for {space.name} at "
        f"{space.geometry}x{space.geometry}, {energy}; a network of average operations takes "
        f"{average_network(table.latency_ms, space):.3g} ms."
    )
    for metric in ("latency_ms", "energy_mj"):
        error = table.prediction_error(metric)
        if error is not None:
            mape, tau = error
            print(
                f"Its predictions of {metric} of measured whole networks are off by {mape:g} % in "
                f"the mean; Kendall's tau is {tau:g}."
            )
    for sentence in implausible(table, space):
        print(f"Warning: {sentence}")


def import_hwnasbench(options: argparse.Namespace) -> None:
    """Import the official file of HW-NAS-Bench."""
    print("\n".join(import_file(options.file, output_folder(options.out))))


def import_natsbench(options: argparse.Namespace) -> None:
    """Import the official files of NATS-Bench's topology space."""
    print("\n".join(import_folder(options.folder, output_folder(options.out), _progress)))


def _progress(indices: Iterable[int]) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(indices, description="Reading", console=console, disable=not console.is_terminal)


if __name__ == "__main__":
    sys.exit(main())
