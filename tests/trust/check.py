"""Whether a pipeline keeps what a module computes: the property that random programs are tested for."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from typing import Any

import jax
import numpy as np
from farrier import _core
from jax._src import compiler
from jaxlib import _jax
from jaxlib.mlir import ir

from trust import pipelines

REGRESSIONS = pathlib.Path(__file__).parents[1] / "lit" / "trust"

# The simplifier moves operations through one another where nothing stands between them (see comparator.py).
# Without LLVM's optimizations a kernel rounds after each operation whatever it was fused with, and compiles in
# half the time.
OPTIONS = {"xla_disable_hlo_passes": "algsimp", "xla_backend_optimization_level": 0}


# A substitution may differ from the original this many times as much as the original differs from itself when its
# arguments are rounded anew; see `Checked.bounds`.
FACTOR = 16
_ROUNDINGS = (("bf16", 2.0**-8), ("f16", 2.0**-11), ("f32", 2.0**-24))

_PARTITIONS = re.compile(r"mhlo\.num_partitions = (\d+)")


class Broken(AssertionError):
    """A pipeline that breaks a promise on a module."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one pipeline did to one module; ``counters`` are those of its passes that are not zero."""

    changed: bool
    text: str
    counters: dict[str, int] = dataclasses.field(default_factory=dict)


def parse(text: str) -> ir.Module:
    """The module in jaxlib, verified there."""
    from programs import parse

    return parse(text)


def partitions(text: str) -> int:
    """How many devices the module is for."""
    found = _PARTITIONS.search(text)
    return int(found[1]) if found else 1


def compile_text(text: str) -> Any:
    """Compiles for CPU, without the parts of a compile that only measuring needs; kernels become what they compute."""
    module = parse(text)
    if "stablehlo.custom_call" in text:
        from farrier._src.fusion import reference

        with jax.enable_x64(True):
            module = reference.with_references(module)
    devices = partitions(text)
    chosen = jax.devices()[:devices]
    options = compiler.get_compile_options(
        num_replicas=1,
        num_partitions=devices,
        device_assignment=np.array(chosen, dtype=object).reshape(1, devices),
        env_options_overrides=OPTIONS,
        detailed_logging=False,
        backend=chosen[0].client,
    )
    with module.context:
        return compiler.backend_compile_and_load(
            chosen[0].client, module, _jax.DeviceList(tuple(chosen)), options, []
        )


def arguments(text: str, seed: int = 0) -> list[np.ndarray]:
    """Data for ``main``: small numbers, so that products of many stay finite."""
    module = parse(text)
    main = next(
        op for op in module.body.operations if ir.StringAttr(op.attributes["sym_name"]).value == "main"
    )
    draw = np.random.default_rng(seed)
    result = []
    for type_ in main.type.inputs:
        ranked = ir.RankedTensorType(type_)
        dtype = _dtype(str(ranked.element_type))
        shape = tuple(ranked.shape)
        if dtype == np.bool_:
            result.append(draw.integers(0, 2, shape).astype(np.bool_))
        elif jax.dtypes.issubdtype(dtype, np.integer):
            low = 0 if jax.dtypes.issubdtype(dtype, np.unsignedinteger) else -3
            result.append(draw.integers(low, 7, shape).astype(dtype))
        else:
            result.append(draw.uniform(-1.5, 1.5, shape).astype(dtype))
    return result


def _dtype(name: str) -> Any:
    if name == "i1":
        return np.dtype(np.bool_)
    if name == "bf16":
        return np.dtype(jax.numpy.bfloat16)
    kind, bits = ("u", name[2:]) if name.startswith("ui") else (name[0], name[1:])
    return np.dtype(f"{kind}{int(bits) // 8}")


def run(executable: Any, values: list[np.ndarray]) -> list[np.ndarray]:
    """The results on the first device; every device gets every argument whole."""
    devices = executable.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.enable_x64(True):
        # A donated argument must not be the caller's own memory.
        inputs = [jax.device_put(value, replicated, may_alias=False) for value in values]
    shards = executable.execute_sharded(inputs).disassemble_into_single_device_arrays()
    return [np.asarray(shard[0]) for shard in shards]


def rewrite(text: str, pipeline: str) -> Outcome:
    """Runs the pipeline twice from the text: it must verify, and give the same bytes both times."""
    module = _core.Module.parse(text)
    before = module.print()
    result = module.run(pipeline)
    after = module.print()
    again = _core.Module.parse(text)
    again.run(pipeline)
    if again.print() != after:
        raise Broken("two runs of the same pipeline on the same text gave different bytes")
    counters = {f"{p.name}: {name}": n for p in result.passes for name, n in p.counters.items() if n}
    return Outcome(after != before, after.decode(), counters)


def different(a: np.ndarray, b: np.ndarray) -> int:
    """How many elements differ in their bits; NaNs count as equal, whichever NaN they are."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return max(a.size, 1)
    if not a.size:
        return 0
    bits = [np.frombuffer(x.tobytes(), np.uint8).reshape(x.size, -1) for x in (a, b)]
    unequal = (bits[0] != bits[1]).any(axis=1)
    if jax.dtypes.issubdtype(a.dtype, np.inexact):
        unequal &= ~(np.isnan(a) & np.isnan(b)).reshape(-1)
    return int(unequal.sum())


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """2-norm of the difference; infinite where only one of the two is no number, or integers differ."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return np.inf
    if not jax.dtypes.issubdtype(a.dtype, np.inexact):
        return 0.0 if (a == b).all() else np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    gap = np.where(same, 0, a - b)
    return float(np.linalg.norm(gap)) if np.isfinite(gap).all() else np.inf


class Checked:
    """One program: compiled and run once as it is, then against any number of pipelines."""

    def __init__(self, text: str):
        self.text = text
        self._executable: Any = None
        self._expected: list[np.ndarray] | None = None
        self._values: list[np.ndarray] | None = None
        self._bounds: list[float] | None = None

    def expected(self) -> list[np.ndarray]:
        if self._expected is None:
            self._values = arguments(self.text)
            self._executable = compile_text(self.text)
            self._expected = run(self._executable, self._values)
        return self._expected

    def bounds(self) -> list[float]:
        """How far from the original, in the 2-norm, each result may be after a substitution.

        A substitution adds the same terms in another order, or rounds at other places: backward stable, it computes
        what the original would for arguments that differ in their last bits. So the original itself says what that
        does to each result: the largest change in three runs whose arguments are off by one rounding of the
        narrowest type in the program, and that rounding of the result itself, FACTOR times.
        """
        if self._bounds is None:
            expected = self.expected()
            unit = next((size for name, size in _ROUNDINGS if name in self.text), 2.0**-53)
            self._bounds = [0.0] * len(expected)
            for seed in range(3):
                draw = np.random.default_rng(seed)
                moved = [
                    (v * (1 + unit * draw.choice([-1, 1], v.shape))).astype(v.dtype)
                    if jax.dtypes.issubdtype(v.dtype, np.inexact)
                    else v
                    for v in self._values
                ]
                runs = zip(expected, run(self._executable, moved), strict=True)
                self._bounds = [
                    max(bound, distance(a, b)) for bound, (a, b) in zip(self._bounds, runs, strict=True)
                ]
            sizes = [distance(a, np.zeros_like(a)) for a in expected]
            self._bounds = [
                FACTOR * (bound + unit * (size if np.isfinite(size) else 0))
                for bound, size in zip(self._bounds, sizes, strict=True)
            ]
        return self._bounds

    def against(self, pipeline: str) -> Outcome:
        """Raises :class:`Broken` when the pipeline does not keep the program's results."""
        try:
            outcome = rewrite(self.text, pipeline)
        except _core.DiagnosticError as error:
            raise Broken(f"{pipeline} fails: {error}") from error
        if not outcome.changed:
            return outcome
        expected = self.expected()
        try:
            parse(outcome.text)
        except ir.MLIRError as error:
            raise Broken(f"jaxlib refuses what {pipeline} made: {error}") from error
        got = run(compile_text(outcome.text), self._values)
        pairs = list(zip(expected, got, strict=True))
        counts = {i: n for i, (a, b) in enumerate(pairs) if (n := different(a, b))}
        if counts and pipelines.exact(pipeline):
            raise Broken(f"{pipeline} changes results: {counts} (result: elements)")
        if counts:
            far = {i: (d, self.bounds()[i]) for i in counts if (d := distance(*pairs[i])) > self.bounds()[i]}
            if far:
                raise Broken(f"{pipeline} changes results by more than its bound: {far} (result: by, bound)")
        return outcome


def save_regression(text: str, pipeline: str, error: BaseException) -> pathlib.Path:
    """Writes a lit test of a failing module; ``test_trust_programs.py`` runs its two versions, too."""
    name = hashlib.sha256((text + pipeline).encode()).hexdigest()[:12]
    REGRESSIONS.mkdir(parents=True, exist_ok=True)
    path = REGRESSIONS / f"found-{name}.mlir"
    reason = str(error).splitlines()[0][:100]
    path.write_text(
        f"// RUN: farrier-opt %s --pass-pipeline='{pipeline}' | farrier-opt | FileCheck %s\n"
        f"// {reason}\n// CHECK: func.func public @main\n\n{text}"
    )
    return path
