"""``farrier report``: the picture of a compiled program."""

from __future__ import annotations

import argparse
import pathlib

from rich.console import Console

from farrier._src import errors, report
from farrier._src.report import forms
from farrier._src.targets import Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "input",
        type=pathlib.Path,
        nargs="+",
        help="an XLA dump folder (xla_dump_to with xla_dump_hlo_as_proto), an *after_optimizations.hlo.pb, "
        "a report's .json, or a StableHLO module to compile for --target; several: the ranks of one job",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"write a file, repeatable; the suffix says which: {', '.join(forms.FORMS)} (default: print)",
    )
    parser.add_argument("--before", type=pathlib.Path, metavar="INPUT", help="compare with this program")
    parser.add_argument("--diff", action="store_true", help="print only what changed since --before")
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="print kernels and what passes between them, ranked by the bytes that another program would not "
        "move, with source lines and the rewrite that helps",
    )
    parser.add_argument(
        "--target", metavar="NAME", help="GPU model for predicted times (default: the dump's)"
    )
    parser.add_argument(
        "--topology", default="1x1x1", metavar="AxBxC", help="domains x hosts x devices per host"
    )
    parser.add_argument("--budget", metavar="SIZE", help='drawn as a line, like "72GiB"')
    parser.add_argument("--module", default="", metavar="TEXT", help="part of the name of a dump's module")
    parser.add_argument(
        "--remarks", type=pathlib.Path, metavar="JSONL", help="remarks, one JSON object a line"
    )
    parser.add_argument(
        "--trace", type=pathlib.Path, metavar="XPLANE", help="profile of a real run, laid beside"
    )
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="REGEX=ORIGIN",
        help="what arguments whose path matches are for, where the data flow does not tell (repeatable)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Runs the command. 0: done; 2: the ranks of a job disagree."""
    from farrier._src.report import diff, measured, merge, text

    if len(args.input) > 1:
        merged = merge.merge([_load(p, args) for p in args.input])
        console.print(merged)
        return 0 if merged.agree else 2
    made = _load(args.input[0], args)
    if args.trace is not None:
        made = measured.lay_beside(made, measured.read_trace(args.trace, made))
    if args.before is not None:
        made = made.compare(_load(args.before, args))
    elif args.diff:
        raise errors.OptionError("--diff needs --before")
    for path in args.output:
        console.print(f"wrote {forms.save(made, path)}")
    if args.diff:
        console.print(diff.compare(made.before, made))
    elif args.kernels:
        console.print(text.opportunities(made))
    elif not args.output:
        console.print(made)
    return 0


def _load(path: pathlib.Path, args: argparse.Namespace) -> report.Report:
    import json

    if not path.exists():
        raise errors.InputError("no such file or folder", where=str(path))
    target = Target(args.target, topology=args.topology) if args.target else None
    options = {
        "target": target,
        "budget_bytes": _bytes(args.budget),
        "origins": dict(_origin(o) for o in args.origin),
        "remarks": [json.loads(line) for line in args.remarks.read_text().splitlines()]
        if args.remarks
        else (),
    }
    if path.is_dir():
        return report.from_artifact(report.read_folder(path, module=args.module), **options)
    head = path.read_bytes()[:4096]
    if path.name.endswith((".json", ".json.gz")):
        return report.Report.load(path)
    if b"stablehlo" in head or head[:4] == b"ML\xefR" or path.suffix == ".mlir":
        if target is None:
            raise errors.OptionError(
                "a StableHLO module is compiled for a target", hint="pass --target, like h100"
            )
        return report.explain(_Uncompiled(path, target), **options)
    return report.from_artifact(report.read_proto(path.read_bytes(), str(path)), **options)


class _Uncompiled:
    """A StableHLO module that compiles like a `jax.stages.Lowered`."""

    def __init__(self, path: pathlib.Path, target: Target):
        self._data, self._target = path.read_bytes(), target

    def compile(self, compiler_options: dict[str, object]):
        from farrier._src import oracle

        made = oracle.compile_module(
            self._data.decode() if not self._data.startswith(b"ML\xefR") else self._data,
            self._target,
            compiler_options=compiler_options,
        )
        return _Executable(made.executable)


class _Executable:
    def __init__(self, executable: object):
        self._executable = executable

    def memory_analysis(self):
        return self._executable.get_compiled_memory_stats()  # type: ignore[attr-defined]


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    from farrier._src import options

    return options.parse_bytes(text)


def _origin(text: str) -> tuple[str, str]:
    pattern, found, origin = text.rpartition("=")
    if not found:
        raise errors.OptionError(f"--origin {text!r}: expected REGEX=ORIGIN")
    return pattern, origin
