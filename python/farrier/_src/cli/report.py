"""``farrier report``: the picture of a compiled program."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from rich.console import Console

from farrier._src import errors, report
from farrier._src.cli import hlo_opt_forms as forms_of_modules
from farrier._src.report import forms
from farrier._src.targets import Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "input",
        type=pathlib.Path,
        nargs="+",
        help="an XLA dump folder (xla_dump_to with xla_dump_hlo_as_proto), an *after_optimizations.hlo.pb, "
        "a report's .json, or a StableHLO module or jax.export artifact to compile for --target; several: the "
        "ranks of one job",
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
        "--pipeline",
        metavar="PASSES",
        help="passes to run on a StableHLO module first, like 'builtin.module(farrier-fusion)'; the report has "
        "their remarks and, without --before, the module as it was beside it",
    )
    parser.add_argument(
        "--stablehlo",
        type=pathlib.Path,
        metavar="MODULE",
        help="of a dump: the module before XLA, for its estimate",
    )
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
        for path in args.output:
            console.print(f"wrote {forms.save_merged(merged, path)}")
        console.print(merged)
        return 0 if merged.agree else 2
    made = _load(args.input[0], args)
    if args.trace is not None:
        made = measured.lay_beside(made, measured.read_trace(args.trace, made))
    if args.before is not None:
        made = made.compare(_load(args.before, args, other=True))
    elif args.diff and made.before is None:
        raise errors.OptionError("--diff needs --before or --pipeline")
    for path in args.output:
        console.print(f"wrote {forms.save(made, path)}")
    if args.diff:
        console.print(diff.compare(made.before, made))
    elif args.kernels:
        console.print(text.opportunities(made))
    elif not args.output:
        console.print(made)
    return 0


def _load(path: pathlib.Path, args: argparse.Namespace, *, other: bool = False) -> report.Report:
    """The report of one input; `other`: what it is compared with, which has no remarks of its own."""
    if not path.exists():
        raise errors.InputError("no such file or folder", where=str(path))
    target = Target(args.target, topology=args.topology) if args.target else None
    options = {
        "target": target,
        "budget_bytes": _bytes(args.budget),
        "origins": dict(_origin(o) for o in args.origin),
    }
    remarks = [] if other or args.remarks is None else _remarks(args.remarks)
    head = b"" if path.is_dir() else path.read_bytes()[:4096]
    if path.name.endswith((".json", ".json.gz")):
        return report.Report.load(path)
    if b"stablehlo" in head or b"ML\xefR" in head or path.suffix == ".mlir":
        if target is None:
            raise errors.OptionError(
                "a StableHLO module is compiled for a target", hint="pass --target, like h100"
            )
        original = _Module(_read(path), target)
        if other or args.pipeline is None:
            return report.explain(original, remarks=remarks, **options)
        rewritten, said = original.rewritten(args.pipeline)
        before = original if args.before is None else None
        return report.explain(rewritten, before=before, remarks=[*said, *remarks], **options)
    artifact = (
        report.read_folder(path, module=args.module)
        if path.is_dir()
        else report.read_proto(path.read_bytes(), str(path))
    )
    stablehlo = None
    if args.stablehlo is not None and not other:
        from farrier._src import interchange

        stablehlo = interchange.to_core(_read(args.stablehlo))
    return report.from_artifact(artifact, remarks=remarks, stablehlo=stablehlo, **options)


def _read(path: pathlib.Path) -> Any:
    """A StableHLO module in any of its forms, as jaxlib's `ir.Module`."""
    from farrier._src import oracle

    data = path.read_bytes()
    if forms_of_modules.detect(data, str(path)) == "export":
        import jax.export

        data = jax.export.deserialize(bytearray(data)).mlir_module().encode()
    return oracle.parse_module(data if data.startswith(b"ML\xefR") else data.decode())


def _remarks(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except ValueError as e:
        raise errors.InputError(f"remarks are one JSON object a line: {e}", where=str(path)) from e


class _Module:
    """A StableHLO module that compiles like a `jax.stages.Lowered`."""

    def __init__(self, module: Any, target: Target):
        self._module, self._target = module, target

    def compiler_ir(self, dialect: str) -> Any:
        """The module."""
        return self._module

    def compile(self, compiler_options: dict[str, object]) -> _Executable:
        from farrier._src import oracle

        made = oracle.compile_module(self._module, self._target, compiler_options=compiler_options)
        return _Executable(made.executable)

    def rewritten(self, pipeline: str) -> tuple[_Module, list[Any]]:
        """What passes make of it, and their remarks."""
        from farrier import _core
        from farrier._src import interchange

        module = interchange.to_core(self._module)
        try:
            said = module.run(pipeline).remarks
        except (_core.DiagnosticError, ValueError) as e:
            raise errors.InputError(f"the passes failed: {e}", where=pipeline) from e
        return _Module(interchange.to_jaxlib(module, self._module.context), self._target), list(said)


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
