"""jaxlib -> farrier -> jaxlib loses nothing, for every program in tests/programs."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from farrier._src import interchange
from jaxlib.mlir import ir

ALL = [program.name for program in programs.programs()]


def text(module: ir.Module, *, locations: bool) -> bytes:
    return interchange.print_module(module, locations=locations)


@pytest.mark.parametrize("name", ALL)
def test_every_program_comes_back_identical(name):
    module = programs.get(name).module()
    before = text(module, locations=True)
    result = interchange.to_jaxlib(interchange.to_core(module), module.context)
    assert text(result, locations=True) == before
    assert text(module, locations=True) == before, "the module that went in was changed"

    bare = interchange.to_jaxlib(interchange.to_core(module, locations=False), module.context)
    assert text(bare, locations=False) == text(module, locations=False)


@pytest.mark.parametrize("name", ["decoder_step_scanned", "collectives", "metadata", "symbolic_shapes"])
def test_text_is_the_same_in_both(name):
    # Stronger than after a second printing: farrier prints what jaxlib prints.
    module = programs.get(name).module()
    assert interchange.to_core(module).print() == interchange.print_module(
        module, locations=True, limit=interchange.LARGE
    )


def test_constants_stay_behind_and_come_back():
    module = programs.get("large_constant").module()
    core = interchange.to_core(module)
    assert len(core.constants) == 2  # the float table and the mask
    assert len(core.print()) < 20_000
    assert core.clone().constants == core.constants


def test_fingerprint_knows_the_contents_of_constants():
    def fingerprint(table):
        return interchange.to_core(
            jax.jit(lambda x: x + table).lower(np.ones(200)).compiler_ir("stablehlo")
        ).fingerprint

    ones = np.ones(200, np.float32)
    table = np.arange(200, dtype=np.float32)
    changed = table.copy()
    changed[150] = -1
    assert fingerprint(table) == fingerprint(table.copy())
    assert fingerprint(table) != fingerprint(changed)
    assert fingerprint(ones) != fingerprint(table)


def test_twice_through_one_context():
    module = programs.get("large_constant").module()
    before = text(module, locations=True)
    for _ in range(2):
        module = interchange.to_jaxlib(interchange.to_core(module), module.context)
    assert text(module, locations=True) == before


def test_constants_move_to_another_context():
    module = programs.get("large_constant").module()
    other = programs.parse("module {}").context
    result = interchange.to_jaxlib(interchange.to_core(module), other)
    assert text(result, locations=True) == text(module, locations=True)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float8_e4m3fn, jnp.int4, jnp.bool_, jnp.complex64, jnp.int8]
)
def test_large_constants_of_every_kind(dtype):
    table = np.arange(300).astype(dtype)
    module = jax.jit(lambda: jnp.asarray(table)).lower().compiler_ir("stablehlo")
    result = interchange.to_jaxlib(interchange.to_core(module), module.context)
    assert text(result, locations=True) == text(module, locations=True)


def test_memory_of_large_constants():
    """67 MB of constants cost at most half as much again in extra memory."""
    script = textwrap.dedent("""
        import resource
        import numpy as np
        import farrier._src.interchange as interchange
        from jax._src.interpreters import mlir
        from jaxlib.mlir import ir

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        size = 67_000_000 // 4
        with mlir.make_ir_context(), ir.Location.unknown():
            table = np.arange(size, dtype=np.float32)
            module = ir.Module.parse(
                f"func.func public @main() -> tensor<{size}xf32> {{ "
                f"%0 = stablehlo.constant dense<0.0> : tensor<{size}xf32> return %0 : tensor<{size}xf32> }}"
            )
            (constant,) = interchange._constant_ops(module)
            constant.attributes["value"] = ir.DenseElementsAttr.get(table)
        before = peak()
        result = interchange.to_jaxlib(interchange.to_core(module), module.context)
        (constant,) = interchange._constant_ops(result)
        assert np.array_equal(np.asarray(constant.attributes["value"]), table)
        print((peak() - before) / table.nbytes)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.5


@pytest.mark.parametrize("name", ALL)
def test_mlirs_own_passes_keep_every_program_valid(name):
    module = programs.get(name).module()
    core = interchange.to_core(module)
    before = core.num_ops
    core.run("cse,canonicalize")
    assert core.num_ops <= before
    interchange.to_jaxlib(core, module.context)  # verified by jaxlib
