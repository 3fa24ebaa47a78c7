"""The deviceless compile, its measurement, and the cache of measurements."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from farrier._src import errors, fingerprint, interchange, metrics_cache, oracle
from farrier._src.targets import Target
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

ONE, EIGHT = Target("h100"), Target("h100", topology="1x1x8")


def step(x, w):
    return jnp.tanh(x @ w) @ w.T, jnp.sum(x)


@functools.cache
def lowered(sharded=False):
    """A donated matmul, on one device or sharded over eight."""
    if sharded:
        mesh = EIGHT.mesh()
        x = jax.ShapeDtypeStruct((512, 256), jnp.bfloat16, sharding=NamedSharding(mesh, P("x")))
        w = jax.ShapeDtypeStruct((256, 1024), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, "x")))
    else:
        x = jax.ShapeDtypeStruct((512, 256), jnp.bfloat16, sharding=ONE.sharding())
        w = jax.ShapeDtypeStruct((256, 1024), jnp.bfloat16, sharding=ONE.sharding())
    return jax.jit(step, donate_argnums=0).lower(x, w)


def numbers(m):
    return {k: v for k, v in m.to_json().items() if k not in ("compile_seconds", "target")}


def test_a_lowered_is_measured():
    m = oracle.compile_lowered(lowered(), ONE).measurement
    assert m.argument_bytes == 2 * (512 * 256 + 256 * 1024)
    assert m.alias_bytes == 2 * 512 * 256
    assert m.flops == m.stablehlo_flops == 2 * 2 * 512 * 256 * 1024
    assert m.kernels >= 2 and m.bytes_moved >= m.argument_bytes and m.compile_seconds > 0
    assert m.target == "h100 1x1x1"


def test_what_was_lowered_for_a_cpu_is_not_measured_for_a_gpu():
    low = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((8,), jnp.float32))
    with pytest.raises(errors.CompileError, match=r"lowered for cpu .*not for"):
        oracle.measure(low, ONE, cache=False)
    assert oracle.measure(low, cache=False).argument_bytes == 32


@pytest.mark.parametrize("sharded", [False, True])
def test_a_module_compiles_as_its_lowered_does(sharded):
    """Donation, shardings and device order come from the module alone; as text as well."""
    target = EIGHT if sharded else ONE
    low = lowered(sharded)
    module = low.compiler_ir("stablehlo")
    before = oracle.module_bytes(module)
    one = oracle.compile_lowered(low, target)
    two = oracle.compile_module(str(module) if sharded else module, target)
    assert numbers(one.measurement) == numbers(two.measurement)
    assert oracle.module_bytes(module) == before
    if sharded:
        assert {c.kind for c in one.measurement.collectives} and one.hlo().entry.instructions
        assert "num_partitions=8" in one.as_text()


def test_measurements_are_remembered(tmp_path, monkeypatch):
    cache = metrics_cache.MeasurementCache(tmp_path)
    module = lowered().compiler_ir("stablehlo")
    first = oracle.measure(module, ONE, cache=cache)
    monkeypatch.setattr(oracle, "compile_module", lambda *a, **k: pytest.fail("compiled again"))
    again = oracle.measure(str(module), ONE, cache=cache)
    assert again == first and again.from_cache and not first.from_cache

    # Anything wrong with the entry is a miss.
    (entry,) = (tmp_path / "measurements").rglob("*.json")
    good = entry.read_text()
    tampered = json.loads(good)
    tampered["body"]["temp_bytes"] += 1
    for bad in ("", good[:100], "[]", "{}", json.dumps(tampered)):
        entry.write_text(bad)
        assert cache.get(entry.stem) is None
    entry.write_text(good)
    assert cache.get(entry.stem) == first


def test_what_changes_the_result_changes_the_key(monkeypatch):
    module = lowered().compiler_ir("stablehlo")

    def key(target=ONE, **options):
        return oracle.measurement_key(module, target, compiler_options=options)

    other = oracle.parse_module(str(module).replace("tanh", "logistic"))
    keys = [
        key(),
        key(xla_gpu_memory_limit_slop_factor=90),
        key(Target("h200")),
        oracle.measurement_key(other, ONE),
        oracle.measurement_key(lowered(), ONE),
    ]
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/nowhere")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    monkeypatch.undo()
    assert key() == keys[0]


def test_partitioning_callbacks_have_no_address_in_the_key():
    """cuDNN attention under automatic sharding stands in the module as the address of a Python object."""
    sharding = NamedSharding(EIGHT.mesh(), P("x"))
    q = jax.ShapeDtypeStruct((8, 128, 2, 64), jnp.bfloat16, sharding=sharding)

    def lower(causal):
        def attend(q):
            return jax.nn.dot_product_attention(q, q, q, is_causal=causal, implementation="cudnn")

        return jax.jit(attend).lower(q)

    one, same, other = lower(True), lower(True), lower(False)
    assert one.as_text() != same.as_text()
    keys = [fingerprint.of_module(interchange.to_core(x.compiler_ir())) for x in (one, same, other)]
    assert keys[0] == keys[1] != keys[2]
    one, same, other = (oracle.module_bytes(x.compiler_ir()) for x in (one, same, other))
    assert one == same != other


def test_the_devices_own_memory_without_a_target():
    low = jax.jit(step).lower(jnp.ones((64, 64)), jnp.ones((64, 64)))
    m = oracle.measure(low)
    assert m.argument_bytes == 2 * 4 * 64 * 64 and m.target == ""
    assert oracle.measure(low).from_cache


def test_errors_say_what_to_do():
    module = lowered().compiler_ir("stablehlo")
    with pytest.raises(errors.CompileError, match="topology with 1 devices"):
        oracle.compile_module(module, EIGHT)
    with pytest.raises(errors.CompileError, match="not a StableHLO module"):
        oracle.compile_module("func.func @main( {", ONE)
    with pytest.raises(errors.CompileError, match=r"pass target="):
        oracle.measure(str(module))
    with pytest.raises(errors.CompileError, match=r"(?s)xla_gpu_no_such_option.*compiler option's name"):
        oracle.compile_module(module, ONE, compiler_options={"xla_gpu_no_such_option": True})


def test_a_compile_that_can_end_the_process_is_announced(monkeypatch):
    target = Target("h100", topology="1x8x8")
    sharding = NamedSharding(target.mesh((64,), ("x",)), P("x"))
    lowered = jax.jit(jnp.tanh).lower(jax.ShapeDtypeStruct((64,), jnp.float32, sharding=sharding))
    with pytest.warns(
        UserWarning, match="XLA_FLAGS=--xla_gpu_unsupported_use_all_reduce_one_shot_kernel=false"
    ):
        oracle.compile_lowered(lowered, target)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_unsupported_use_all_reduce_one_shot_kernel=false")
    oracle.compile_lowered(lowered, target)  # warnings are errors here
