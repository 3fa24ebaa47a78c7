"""``farrier``: one command, its subcommands found in a table."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from farrier._src.errors import Error

# Name, module, one line of help. The module has add_arguments(parser) and
# run(args, console) -> exit code, and is imported only when its command is used.
COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("bench", "farrier._src.cli.bench", "measure a suite of programs, show their history"),
    (
        "check-collectives",
        "farrier._src.cli.check_collectives",
        "tell whether processes' programs would wait for each other for ever",
    ),
    ("gate", "farrier._src.cli.gate", "compare a suite with its baseline and fail on a regression"),
    ("report", "farrier._src.cli.report", "show memory, schedule and kernels of a compiled step"),
    ("targets", "farrier._src.cli.targets", "list the GPUs that a program can be compiled for"),
)


def _version() -> str:
    try:
        return importlib.metadata.version("farrier")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class _Parser(argparse.ArgumentParser):
    """argparse ends a wrong command line with 2, which is `farrier gate`'s exit code for a regression."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Builds the argument parser; only the module of ``command`` is imported."""
    top = _Parser(prog="farrier", description="Compiler passes for JAX programs on GPUs.")
    top.add_argument("--version", action="version", version=f"farrier {_version()}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module, text in COMMANDS:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == command:
            loaded = importlib.import_module(module)
            loaded.add_arguments(sub)
            sub.set_defaults(run=loaded.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0 for success, 1 for an error; a command may define others."""
    argv = list(sys.argv[1:] if argv is None else argv)
    names = {name for name, _, _ in COMMANDS}
    args = parser(next((a for a in argv if a in names), None)).parse_args(argv)
    # Into a file or a log rich assumes 80 columns, which cuts tables to pieces.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    errors = Console(stderr=True, soft_wrap=True)
    try:
        return args.run(args, console)
    except Error as e:
        errors.print(Text(f"farrier {args.command}: {e}", style="red"))
        return 1
    except ModuleNotFoundError as e:
        if e.name is None or e.name.startswith("farrier"):
            raise
        errors.print(
            Text(
                f"farrier {args.command}: {e}. Install what it needs: pip install 'farrier[bench]'",
                style="red",
            )
        )
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
