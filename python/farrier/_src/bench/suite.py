"""Suites: what to measure, for which targets, with which options."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from farrier._src.errors import Error

MODULE_SUFFIXES = (".mlir", ".mlirbc", ".stablehlo", ".jaxexport")


class SuiteError(Error):
    """A suite cannot be read, or does not follow the protocol of :mod:`farrier.bench`."""


class Unsupported(Error):
    """A case cannot be compiled with an option set, by no fault of either: recorded, not a failure."""


@dataclasses.dataclass(frozen=True)
class OptionSet:
    """A named way to compile every case: un-annotated, by farrier, or by a rival.

    Attributes:
      name: shown in tables; unique in a suite.
      optimize: keyword arguments of :func:`farrier.optimize`; ``None`` leaves the program alone.
      variant: keyword arguments handed to the case's ``build`` (a rival that
        rewrites the model, such as a ``jax.checkpoint`` policy). A case that
        cannot be built so is recorded as unsupported.
      compiler_options: XLA options of the compile (a flag sweep).
      transform: ``"module:function"`` of another tool: ``function(step, donated) -> jitted
        step``, given the case's function and the positions of donated arguments. Importable
        from the suite; where the tool is not installed, the set is unsupported. One device.
      budget: total device memory the set has to stay within ("16GiB" or bytes), for the report only.
    """

    name: str
    _: dataclasses.KW_ONLY
    optimize: Mapping[str, Any] | None = None
    variant: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    transform: str | None = None
    budget: int | str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the option set as JSON values."""
        return {
            "name": self.name,
            "optimize": None if self.optimize is None else dict(self.optimize),
            "variant": dict(self.variant),
            "compiler_options": dict(self.compiler_options),
            "transform": self.transform,
            "budget": self.budget,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OptionSet:
        """Reads what :meth:`to_json` wrote."""
        return cls(**data)


@dataclasses.dataclass(frozen=True)
class Case:
    """One program of a suite. Give exactly one of ``fn``, ``build`` and ``measure``.

    Attributes:
      name: unique in the suite.
      fn: a function, jitted if donation or shardings matter.
      args: its positional arguments: arrays, or ``jax.ShapeDtypeStruct`` with
        shardings over the target's devices where it has more than one.
      kwargs: its keyword arguments.
      build: ``build(target, **variant) -> (fn, args)`` or ``(fn, args, kwargs)``,
        for programs that depend on the target's devices or exist in variants.
      measure: ``measure(target, option_set, repeats) -> {name: Metric}``, for what is not one compile.
      targets, option_sets: names; ``None`` means all of the suite's.
      timeout_s: limit in seconds of elapsed time; ``None`` means the runner's.
      memory_bytes: limit of the measuring process' resident memory; ``None`` means the runner's.
    """

    name: str
    fn: Callable[..., Any] | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    _: dataclasses.KW_ONLY
    build: Callable[..., Any] | None = None
    measure: Callable[..., Any] | None = None
    targets: Sequence[str] | None = None
    option_sets: Sequence[str] | None = None
    timeout_s: float | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if "@" in self.name or not self.name or self.name != self.name.strip():
            raise SuiteError(
                f"case name {self.name!r}: must not be empty, contain '@' or have blanks around it"
            )
        given = [x for x in ("fn", "build", "measure") if getattr(self, x) is not None]
        if len(given) != 1:
            raise SuiteError(
                f"case {self.name!r} has {' and '.join(given) or 'nothing to run'}: "
                "give one of fn, build, measure"
            )


@dataclasses.dataclass(frozen=True)
class Suite:
    """A loaded suite: the cases, and the targets and option sets they run with."""

    path: str
    cases: tuple[Case, ...]
    targets: tuple[str, ...]
    option_sets: tuple[OptionSet, ...]
    reference: str
    digest: str

    def case(self, name: str) -> Case:
        """Returns the case of this name.

        Raises:
          SuiteError: there is none.
        """
        for c in self.cases:
            if c.name == name:
                return c
        raise SuiteError(f"{self.path} has no case {name!r}; it has {', '.join(c.name for c in self.cases)}")

    def pairs(self) -> list[tuple[Case, str, OptionSet]]:
        """Returns the matrix: every case with its targets and option sets, in the suite's order."""
        known = {o.name: o for o in self.option_sets}
        out = []
        for case in self.cases:
            for target in self.targets if case.targets is None else case.targets:
                names = list(known) if case.option_sets is None else case.option_sets
                for name in names:
                    if name not in known:
                        raise SuiteError(
                            f"case {case.name!r} of {self.path} asks for option set {name!r}; "
                            f"the suite has {', '.join(known)}"
                        )
                    out.append((case, target, known[name]))
        return out


def _as_case(item: Any, path: pathlib.Path) -> Case:
    if isinstance(item, Case):
        return item
    if isinstance(item, tuple) and 2 <= len(item) <= 4 and isinstance(item[0], str) and callable(item[1]):
        return Case(*item)
    raise SuiteError(
        f"cases() of {path} yields {type(item).__name__}: yield farrier.bench.Case, "
        "(name, function, args) or (name, function, args, kwargs)"
    )


def _from_python(path: pathlib.Path) -> Suite:
    source = path.read_bytes()
    # Two files of one name in different folders must not share a module.
    name = f"_farrier_suite_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SuiteError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # A suite imports the training code beside it, as a script started from there does.
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "cases", None)):
            raise SuiteError(
                f"{path} defines no function cases(): see docs/benchmarks.md, 'A suite of your own'"
            )
        cases = tuple(_as_case(item, path) for item in module.cases())
    except SuiteError:
        raise
    except Exception as e:
        raise SuiteError(f"{path} failed while it was loaded: {type(e).__name__}: {e}") from e
    option_sets = tuple(getattr(module, "OPTION_SETS", (OptionSet("plain"),)))
    for o in option_sets:
        if not isinstance(o, OptionSet):
            raise SuiteError(f"OPTION_SETS of {path} holds {type(o).__name__}: use farrier.bench.OptionSet")
    return Suite(
        path=str(path),
        cases=cases,
        targets=tuple(getattr(module, "TARGETS", ("h100",))),
        option_sets=option_sets,
        reference=getattr(module, "REFERENCE", "plain"),
        digest=hashlib.sha256(source).hexdigest(),
    )


def _from_folder(path: pathlib.Path) -> Suite:
    files = sorted(f for f in path.rglob("*") if f.suffix in MODULE_SUFFIXES and f.is_file())
    if not files:
        raise SuiteError(
            f"{path} is no Python file and holds no dumped module (*{', *'.join(MODULE_SUFFIXES)})"
        )
    digest = hashlib.sha256()
    cases = []
    for f in files:
        digest.update(f.name.encode() + b"\0" + f.read_bytes())
        name = f.relative_to(path).with_suffix("").as_posix()
        cases.append(Case(name, build=ModuleFile(f)))
    return Suite(str(path), tuple(cases), ("h100",), (OptionSet("plain"),), "plain", digest.hexdigest())


@dataclasses.dataclass(frozen=True)
class ModuleFile:
    """Builds a case from a dumped module instead of a function."""

    path: pathlib.Path

    def __call__(self, target: Any) -> ModuleFile:
        return self


def _unique(names: Iterable[str], what: str, path: str) -> None:
    seen: set[str] = set()
    for n in names:
        if n in seen:
            raise SuiteError(f"{path} has two {what} named {n!r}: rename one")
        seen.add(n)


def load_suite(path: str | pathlib.Path) -> Suite:
    """Loads a suite: a Python file with ``cases()``, or a folder of dumped modules.

    Raises:
      SuiteError: there is no such file, it fails on import, or does not follow the protocol.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise SuiteError(
            f"no suite at {path}: give a Python file that defines cases(), or a folder of modules"
        )
    suite = _from_folder(path) if path.is_dir() else _from_python(path)
    if not suite.cases:
        raise SuiteError(f"cases() of {path} yields nothing")
    _unique((c.name for c in suite.cases), "cases", str(path))
    _unique((o.name for o in suite.option_sets), "option sets", str(path))
    return suite
