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
    "dtype",
    [
        jnp.bfloat16,
        jnp.float8_e4m3fn,
        jnp.float4_e2m1fn,
        jnp.int4,
        jnp.uint2,
        jnp.bool_,
        jnp.complex64,
        np.complex128,
        jnp.int8,
    ],
)
def test_large_constants_of_every_kind(dtype):
    def lower(table):
        with jax.enable_x64(True):
            return jax.jit(lambda: jnp.asarray(table)).lower().compiler_ir("stablehlo")

    table = (np.arange(300) % 7).astype(dtype)
    module = lower(table)
    core = interchange.to_core(module)
    assert len(core.constants) == 1
    for context in (module.context, programs.parse("module {}").context):
        result = interchange.to_jaxlib(core, context)
        assert text(result, locations=True) == text(module, locations=True)
    changed = table.copy()
    changed[150] = 1 - changed[150]
    digests = [list(interchange.to_core(lower(t)).constants) for t in (table, table.copy(), changed)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("element", "carrier"),
    [("f32", "uint32"), ("bf16", "uint16"), ("f8E4M3FN", "uint8"), ("complex<f32>", "uint64")],
)
def test_memory_of_large_constants(element, carrier):
    """67 MB of constants cost at most half as much again in extra memory."""
    script = textwrap.dedent("""
        import sys
        import numpy as np
        import farrier._src.interchange as interchange
        from jax._src.interpreters import mlir
        from jaxlib.mlir import ir

        element, carrier = sys.argv[1:]
        size = 67_000_000 // np.dtype(carrier).itemsize
        with mlir.make_ir_context(), ir.Location.unknown():
            table = np.arange(size, dtype=np.uint32).astype(carrier, copy=False)
            kind = f"tensor<{size}x{element}>"
            zero = "(0.0, 0.0)" if element.startswith("complex") else "0.0"
            module = ir.Module.parse(
                f"func.func public @main() -> {kind} {{ "
                f"%0 = stablehlo.constant dense<{zero}> : {kind} return %0 : {kind} }}"
            )
            (constant,) = interchange._constant_ops(module)
            value = ir.DenseElementsAttr.get(table, type=ir.RankedTensorType(ir.Type.parse(kind)))
            constant.attributes["value"] = value
        open("/proc/self/clear_refs", "w").write("5")  # what setting up needed at once does not count
        def high():
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        before = high()
        result = interchange.to_jaxlib(interchange.to_core(module), module.context)
        (constant,) = interchange._constant_ops(result)
        assert interchange._value(constant) == value
        print((high() - before) / table.nbytes)
    """)
    command = [sys.executable, "-c", script, element, carrier]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.5


@pytest.mark.parametrize("name", ALL)
def test_mlirs_own_passes_keep_every_program_valid(name):
    module = programs.get(name).module()
    core = interchange.to_core(module)
    before = core.num_ops
    core.run("cse,canonicalize")
    assert core.num_ops <= before
    interchange.to_jaxlib(core, module.context)  # verified by jaxlib
