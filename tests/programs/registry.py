"""What a test program is, and the table of all of them.

A program is a jittable function with small real arguments. Tests lower it (interchange), run it on CPU
original against optimized, and differentiate it where that makes sense.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax import export
from jax.sharding import AbstractDevice, AbstractMesh
from jaxlib.mlir import ir


@dataclasses.dataclass(frozen=True)
class Program:
    """One named JAX program.

    `build()` gives the function and its positional arguments: arrays where the program runs on CPU,
    `jax.ShapeDtypeStruct` where it only lowers.
    """

    name: str
    build: Callable[[], tuple[Callable, tuple]]
    devices: int = 1
    """How many devices it needs."""
    platform: str = "cpu"
    """What it is lowered for; only `cpu` programs run in tests."""
    runs: bool = True
    """Whether it can be executed on CPU here (a call into an unknown library cannot)."""
    has_gradient: bool = False
    """Whether `jax.grad` of the summed float outputs with respect to the first argument works."""
    has_callback: bool = False
    """Whether it calls back into Python: `jax.export` refuses those."""
    abstract_gpu: bool = False
    """Whether lowering asks which GPU (Pallas kernels do)."""
    symbolic: bool = False
    """Whether `build` gives an exported module of symbolic shapes instead of a function."""

    def lower(self):
        """The lowered program: a `jax.stages.Lowered`."""
        function, arguments = self.build()
        jitted = function if hasattr(function, "trace") else jax.jit(function)
        with self.device_context(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
            return jitted.trace(*arguments).lower(lowering_platforms=(self.platform,))

    def device_context(self):
        """What tells Pallas which GPU to lower for when none is attached."""
        if not self.abstract_gpu:
            return contextlib.nullcontext()
        device = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "cuda")
        return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("gpu",), abstract_device=device))

    def module(self) -> ir.Module:
        """The StableHLO module that jax hands to its compiler, in jaxlib's MLIR, with locations."""
        if self.symbolic:
            function, arguments = self.build()
            return parse(export.export(jax.jit(function))(*arguments).mlir_module())
        return self.lower().compiler_ir("stablehlo")


_PROGRAMS: dict[str, Program] = {}


def program(**options: Any):
    """Registers the decorated builder under its own name; options are `Program`'s fields."""

    def register(build):
        name = build.__name__
        if name in _PROGRAMS:
            raise ValueError(f"two programs are named {name}")
        _PROGRAMS[name] = Program(name=name, build=build, **options)
        return build

    return register


def programs(**wanted: Any) -> list[Program]:
    """All programs whose fields equal `wanted`, by name: `programs(platform="cpu", runs=True)`."""
    return [
        _PROGRAMS[name]
        for name in sorted(_PROGRAMS)
        if all(getattr(_PROGRAMS[name], field) == value for field, value in wanted.items())
    ]


def get(name: str) -> Program:
    """The program of that name."""
    return _PROGRAMS[name]


def parse(text: str | bytes) -> ir.Module:
    """Parses StableHLO text in jaxlib, every dialect that jax emits registered."""
    from jax._src.interpreters import mlir

    with mlir.make_ir_context():
        return ir.Module.parse(text)
