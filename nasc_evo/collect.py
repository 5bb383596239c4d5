"""`python -m nasc_evo.collect`: the fronts of many runs in one table, one picture, one union."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nasc_evo.argparse_app import Parser, run_command
from nasc_evo.errors import UserError, one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(_parser(), argv)


def _parser() -> Parser:
    parser = Parser(prog="python -m nasc_evo.collect", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="+",
        type=Path,
        help="a run's folder or one above runs, such as multirun/<date>",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="default: the first folder")
    parser.set_defaults(run=collect)
    return parser


def collect(options: argparse.Namespace) -> None:
    """Read all finished runs below the folders, write their collection and print it."""
    from nasc_evo.report.collection import group_runs, read_runs, write_collection
    from nasc_evo.report.display import create_console, short_path
    from nasc_evo.report.pictures import MAX_PANELS, draw_fronts
    from nasc_evo.report.table import print_collection

    console = create_console()
    runs, skipped = read_runs(options.folders)
    for sentence in skipped:
        console.print(f"Note: {sentence}", highlight=False, markup=False, soft_wrap=True)
    if not runs:
        raise UserError(f"No run below the folders has finished, unfinished: {len(skipped)}.")
    groups = group_runs(runs)
    out = options.out or options.folders[0]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_collection(out, groups)
        draw_fronts(out, groups)
    except OSError as error:
        raise UserError(f"The folder {out} cannot be written ({one_line(error)}).") from error
    print_collection(console, groups)
    if len(groups) > MAX_PANELS:
        console.print(
            f"Note: fronts.png shows the first {MAX_PANELS} of {len(groups)} groups.",
            highlight=False,
        )
    console.print(
        f"Runs: {len(runs)}, groups: {len(groups)}. Written: collected.csv, union.csv, summary.csv "
        f"and fronts.png in {short_path(out)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
