"""Command lines that need no composed configuration: readable errors, exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from nasc_evo.errors import UserError, one_line
from nasc_evo.hydra_app import EXIT_INTERRUPTED, EXIT_USER_ERROR


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in the options like any other mistake."""

    def error(self, message: str) -> NoReturn:
        """Raise a UserError instead of printing the usage."""
        raise UserError(f"{message} (see {self.prog} --help)")


def run_command(parser: Parser, argv: Sequence[str] | None) -> int:
    """Parse a command line, call its `run` with the options, and return the exit code.

    Args:
        parser: Sets the default `run`, a function of the options that may return an exit code.
        argv: The command line, None takes that of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        options = parser.parse_args(argv)
        code: int | None = options.run(options)
        sys.stdout.flush()
    except UserError as error:
        print(f"Error: {one_line(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # what reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code or 0
