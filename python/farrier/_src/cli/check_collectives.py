"""``farrier check-collectives``: would these processes' programs wait for each other for ever?"""

from __future__ import annotations

import argparse
import json
import pathlib

from rich.console import Console
from rich.text import Text

from farrier._src import errors
from farrier._src.collectives import check, program
from farrier._src.hlo import Module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command line."""
    parser.epilog = (
        "Exit codes: 0 the processes issue the same collectives, 3 they differ and still run to the end, "
        "2 they would wait for each other for ever, 1 no verdict."
    )
    parser.add_argument(
        "dumps",
        nargs="+",
        type=pathlib.Path,
        metavar="DUMP",
        help="one per process, in the order of their ranks: optimized HLO as text or as a serialized "
        "HloModuleProto or HloProto, or the folder that --xla_dump_to wrote",
    )
    parser.add_argument(
        "--module", help="with folders: the name of the module to compare (default: the largest)"
    )
    parser.add_argument("--devices", type=int, help="devices of the job (default: what the modules say)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the verdict as JSON")


def read_module(path: pathlib.Path, name: str | None = None) -> Module:
    """The optimized module of a dump.

    Raises:
      farrier.Error: nothing readable there.
    """
    if path.is_dir():
        found = [
            f
            for f in path.iterdir()
            if "after_optimizations" in f.name and f.suffix in (".txt", ".pb") and "buffer" not in f.name
            and "memory" not in f.name and (name is None or name in f.name)
        ]  # fmt: skip
        if not found:
            raise errors.InputError(
                f"{path}: no module after optimizations" + (f" whose name has {name!r}" if name else ""),
                hint="dump with XLA_FLAGS=--xla_dump_to=DIR (and --xla_dump_hlo_as_text)",
            )
        path = max(found, key=lambda f: (f.stat().st_size, f.name))
    try:
        data = path.read_bytes()
    except OSError as e:
        raise errors.InputError(f"cannot read {path}: {e}") from e
    if data.lstrip().startswith(b"HloModule"):
        from jaxlib import _hlo

        try:
            data = _hlo.hlo_module_from_text(data.decode()).as_serialized_hlo_module_proto()
        except (RuntimeError, ValueError) as e:
            raise errors.InputError(f"{path}: not HLO text: {e}") from e
    return _parse(path, data)


def _parse(path: pathlib.Path, data: bytes) -> Module:
    from google.protobuf.message import DecodeError

    from farrier._src.hlo import proto

    # An HloProto wraps the module; each parses as the other where it happens to have no known field.
    for unwrap in (lambda d: proto.parse_hlo(d).hlo_module, lambda d: d):
        try:
            module = Module(unwrap(data))
        except (DecodeError, KeyError, IndexError):
            continue
        if module.entry.instructions:
            return module
    raise errors.InputError(
        f"{path}: not an HLO module", hint="give optimized HLO as text or as a serialized HloModuleProto"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Runs the command."""
    modules = [read_module(path, args.module) for path in args.dumps]
    devices = args.devices or max(max(program.device_count(m) for m in modules), len(modules))
    verdict = check.compare([check.issues(m) for m in modules], devices)
    style = {"same": "green", "differ": "yellow", "deadlock": "red"}[verdict.status]
    console.print(Text(f"{verdict.status}: {verdict.message}", style=style))
    if args.json:
        import dataclasses

        args.json.write_text(json.dumps(dataclasses.asdict(verdict), indent=2) + "\n", encoding="utf-8")
    return {"same": 0, "differ": 3, "deadlock": 2}[verdict.status]
