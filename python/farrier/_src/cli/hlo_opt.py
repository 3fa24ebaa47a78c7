"""`hlo-opt`: runs StableHLO passes on a file of any form that JAX and XLA write.

This is the front: it reads the command line, hands the untrusted bytes to a child process with memory and
time limits (`hlo_opt_child`), and reports what came of it. A crash of the child is one error message here.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from farrier._src import errors
from farrier._src.cli import hlo_opt_forms as forms

DESCRIPTION = """\
Runs passes on a program and writes it in any form it can become. The input's form is recognised by its
content: StableHLO text (pretty or generic), MLIR bytecode, portable artifacts, serialized jax.export
artifacts, HLO text, HloModuleProto and HloProto files, folders written by --xla_dump_to or JAX_DUMP_IR_TO,
and standard input.

This is farrier's hlo-opt. XLA has a tool of the same name, built with bazel, that runs HLO passes; the flags
--list-passes, --stage, --platform and -o mean the same here.
"""

EPILOG = """\
Every flag that is not listed is handed to farrier-opt, which takes mlir-opt's: --cse, --canonicalize,
--pass-pipeline=..., --mlir-print-ir-after-all, --mlir-timing, --split-input-file, --mlir-print-debuginfo, ...
Exit status: 0 fine, 1 the input is bad or a pass failed, 2 the command line is wrong.

examples:
  hlo-opt --cse step.mlir -o out.mlir
  hlo-opt step.export --canonicalize --emit=export -o smaller.export
  hlo-opt xla_dump/ --module=jit_step --cse --emit=hlo-text
  cat step.mlir | hlo-opt --stage=optimized --platform=h100 > step.optimized.txt
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="hlo-opt",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("input", nargs="?", default="-", help="file or folder; standard input by default")
    p.add_argument("-o", dest="output", default="-", metavar="FILE", help="standard output by default")
    p.add_argument("--emit", choices=forms.EMIT, help="form of the output (default: what fits the stage)")
    p.add_argument("--list-passes", action="store_true", help="list the passes and exit")
    p.add_argument("--pass-pipeline", metavar="PIPELINE", help="textual pipeline, as mlir-opt takes it")
    p.add_argument(
        "--stage",
        choices=forms.STAGES,
        default="stablehlo",
        help="stablehlo: passes on StableHLO; hlo: what XLA gets; optimized: what XLA makes of it for "
        "--platform; scheduled: optimized HLO in and out",
    )
    p.add_argument("--platform", default="cpu", help="cpu or a GPU (h100, b200, ...) for --stage=optimized")
    p.add_argument("--module", metavar="NAME", help="which module of a dump folder (a part of its file name)")
    p.add_argument("--memory-limit", type=float, default=16, metavar="GIB", help="of the child process")
    p.add_argument("--time-limit", type=float, default=600, metavar="SECONDS", help="of the child process")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args, passes = parser().parse_known_args(argv)
    try:
        return run(args, passes)
    except errors.Error as error:
        print(f"hlo-opt: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130


def run(args: argparse.Namespace, passes: list[str]) -> int:
    if args.pass_pipeline is not None:
        passes = [*passes, f"--pass-pipeline={args.pass_pipeline}"]
    if args.list_passes:
        return subprocess.run([forms.farrier_opt(), "--list-passes"], check=False).returncode
    data, name = read(args)
    with tempfile.TemporaryDirectory(prefix="hlo-opt-") as scratch:
        folder = pathlib.Path(scratch)
        (folder / "input").write_bytes(data)
        request = {
            "name": name,
            "passes": passes,
            "emit": args.emit,
            "stage": args.stage,
            "platform": args.platform,
        }
        (folder / "request.json").write_text(json.dumps(request))
        child(folder, args, name)
        result = folder / "output"
        if args.output == "-":
            sys.stdout.buffer.write(result.read_bytes())
            sys.stdout.buffer.flush()
        else:
            write(pathlib.Path(args.output), result.read_bytes())
    return 0


def read(args: argparse.Namespace) -> tuple[bytes, str]:
    """The input's bytes and the name to use for it in messages."""
    if args.input == "-":
        return sys.stdin.buffer.read(), "<stdin>"
    path = pathlib.Path(args.input)
    try:
        if path.is_dir():
            path = forms.choose(path, args.module, scheduled=args.stage == "scheduled")
        return path.read_bytes(), str(path)
    except OSError as error:
        raise errors.InputError(f"cannot read {path}: {error.strerror}") from error


def write(path: pathlib.Path, data: bytes) -> None:
    """Writes all or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise errors.InputError(f"cannot write {path}: {error.strerror}") from error


def child(folder: pathlib.Path, args: argparse.Namespace, name: str) -> None:
    """Runs the conversion; returns when `folder/output` holds the result.

    Raises:
      farrier.InputError: whatever went wrong in the child, its death included.
    """
    memory = int(args.memory_limit * 2**30)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    # What passes print (--mlir-print-ir-after-all) goes to the user; what a dying reader prints does not.
    passes_stderr = os.dup(2)
    log = folder / "log"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "farrier._src.cli.hlo_opt_child", str(folder), str(passes_stderr)]
    sys.stderr.flush()
    try:
        with log.open("wb") as stderr:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=environment,
                pass_fds=[passes_stderr],
                preexec_fn=limit,
                timeout=args.time_limit,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise errors.InputError(
            f"{name} took more than {args.time_limit:g} s",
            hint="give a larger --time-limit if it is worth it",
        ) from None
    finally:
        os.close(passes_stderr)
    outcome = folder / "outcome.json"
    if done.returncode == 0 and outcome.exists():
        failure = json.loads(outcome.read_text())
        if failure is None:
            return
        raise errors.InputError(failure["what"], where=failure["where"], hint=failure["hint"])
    raise errors.InputError(_death(done.returncode, log, name, args), hint="it is probably damaged")


def _death(code: int, log: pathlib.Path, name: str, args: argparse.Namespace) -> str:
    lines = log.read_text(errors="replace").splitlines()
    if any("MemoryError" in line or "bad_alloc" in line or "out of memory" in line for line in lines):
        return f"{name} needs more than {args.memory_limit:g} GiB to read (--memory-limit)"
    if code == -signal.SIGPROF:
        how = "was stopped, because it took longer than any file of this size does"
    elif code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    else:
        how = f"ended with status {code}: {lines[-1] if lines else 'no message'}"
    return f"{name} cannot be read: the reader {how}"


if __name__ == "__main__":
    sys.exit(main())
