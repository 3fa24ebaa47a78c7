"""The report of one result, for comparing programs. Runs in a child process."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from farrier._src.bench import lines, measure
from farrier._src.bench.suite import Case, ModuleFile, OptionSet, Unsupported, load_suite
from farrier._src.bench.timing import Clock


def report_job(job: Mapping[str, Any], phase: Callable[[str], None]) -> dict[str, Any]:
    """Compiles a case with an option set and returns its report as JSON, with paths relative to the suite's tree.

    Raises:
      Unsupported: the case is not one compile.
      farrier.Error: XLA refuses the program.
    """
    from farrier import report

    phase("loading the suite")
    suite = load_suite(job["suite"])
    case = suite.case(job["case"])
    options = OptionSet.from_json(job["options"])
    target = measure.parse_target(job["target"])
    if case.measure is not None:
        raise Unsupported(f"{case.name} is not one compile: it has no report")
    phase("planning and lowering")
    lowered = _lowered(case, options, target)
    phase("compiling with XLA")
    made = report.explain(lowered, target=target, compiler_options=options.compiler_options, title=case.name)
    return portable(made.to_json(), measure.source_root(suite.path))


def _lowered(case: Case, options: OptionSet, target: Any) -> Any:
    if isinstance(case.build, ModuleFile) or options.transform is not None:
        if isinstance(case.build, ModuleFile):
            program: Any = measure.ModuleProgram(case, options, target)
        else:
            program = measure.FunctionProgram(case, options, target)
        return _Compiling(program.lower(Clock()), target)
    return measure.FunctionProgram(case, options, target).lower(Clock())


class _Compiling:
    """A module that compiles like a `jax.stages.Lowered`."""

    def __init__(self, module: Any, target: Any):
        self._module, self._target = module, target

    def compile(self, compiler_options: Mapping[str, Any]) -> Any:
        from farrier._src import oracle

        return _Executable(
            oracle.compile_module(self._module, self._target, compiler_options=compiler_options).executable
        )


class _Executable:
    def __init__(self, executable: Any):
        self._executable = executable

    def memory_analysis(self) -> Any:
        return self._executable.get_compiled_memory_stats()


def portable(data: Any, root: pathlib.Path | None) -> Any:
    """Returns report data whose source locations name no folder of this machine.

    Files below ``root`` become relative to it, those of installed packages to the package folder.
    """
    known: dict[str, str] = {}

    def place(text: str) -> str:
        if text not in known:
            file, colon, rest = text.partition(":")
            known[text] = lines.relative(file, root) + colon + rest
        return known[text]

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: walk(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [walk(v) for v in value]
        return place(value) if isinstance(value, str) and value.startswith("/") else value

    return walk(data)
