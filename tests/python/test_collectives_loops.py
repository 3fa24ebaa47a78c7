"""Collectives that move across the iterations of loops, and buckets: what is found, and that every bit stays."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from farrier._src import hlo, oracle
from farrier._src.collectives import drive, hooks, loops, parameters, prepare, schedule
from jax import lax
from jax.extend import xla
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxlib import _hlo, _jax, xla_client
from jaxlib.mlir import ir
from test_hooks import TARGET, compiled_module
from test_hooks import order as order_of

PLAN = schedule.SchedulePlan(
    parameters=parameters.for_target(TARGET),
    peak_flops=dict(TARGET.peak_flops),
    hbm_bytes_per_s=TARGET.hbm_bytes_per_s,
    costs={},
    memory_growth_bytes=1 << 30,
    pipeline=True,
    buckets=True,
)
SPECS = (P(None, "x"), P(None, None, "x"))


def step(mesh, layers, microbatches, width=64, rows=64):
    """Forward, backward and update of two weights a layer, sharded over eight devices (FSDP), by automatic sharding."""

    def layer(x, w):
        up, down = (v.astype(x.dtype) for v in w)
        y = x + jnp.tanh(x @ up) @ down
        return lax.with_sharding_constraint(y, NamedSharding(mesh, P("x"))), None

    def loss(w, x):
        y, _ = lax.scan(layer, x.astype(jnp.bfloat16), w)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    def train_step(w, x):
        def one(total, piece):
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(w, piece)), None

        if microbatches == 1:
            value, gradients = jax.value_and_grad(loss)(w, x)
        else:
            start = (jnp.float32(0), jax.tree.map(jnp.zeros_like, w))
            (value, gradients), _ = lax.scan(one, start, x.reshape(microbatches, -1, x.shape[-1]))
        return value, jax.tree.map(lambda a, g: a - 0.1 * g, w, gradients)

    shapes = [
        jax.ShapeDtypeStruct((layers, width, width), jnp.float32, sharding=NamedSharding(mesh, s))
        for s in SPECS
    ]
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    return jax.jit(train_step), (tuple(shapes), x)


class _Enough(Exception):
    """Ends a compile when the hook has what it wants."""


def before_the_scheduler(lower):
    """The step that ``lower()`` lowers for eight GPUs, as XLA has it before its scheduler."""
    found = []

    def take(data):
        if b"jit_train_step" in data[:200]:
            found.append(data)
            raise _Enough

    TARGET.topology_desc()
    where = xla.PipelineStage.PRE_SCHEDULER
    xla.register_hlo_module_transformation(take, name="take", stage=where, platforms=["cuda"])
    try:
        with pytest.raises(jax.errors.JaxRuntimeError):
            lower().compile()
    finally:
        xla.clear_hlo_module_transformation("take", stage=where, platforms=["cuda"])
    return found[0]


def run(data, args):
    """Runs a partitioned module on eight CPU devices, its partitions as replicas; shards of all results."""
    text = str(_parse(_jax.mlir.hlo_to_stablehlo(data)))
    text = re.sub(r"channel_handle = #stablehlo.channel_handle<[^>]*>(, )?", "", text)
    text = re.sub(r"(, )?use_global_device_ids", "", text).replace(
        "stablehlo.partition_id", "stablehlo.replica_id"
    )
    text = text.replace("mhlo.num_partitions = 8", "mhlo.num_partitions = 1")
    text = text.replace("mhlo.num_replicas = 1", "mhlo.num_replicas = 8")
    devices = jax.devices("cpu")
    options = xla_client.CompileOptions()
    for part in (options, options.executable_build_options):
        part.num_replicas, part.num_partitions = 8, 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.arange(8).reshape(8, 1))
    executable = devices[0].client.compile_and_load(text, tuple(devices), options)
    results = executable.execute_sharded(args).disassemble_into_single_device_arrays()
    return [[np.asarray(shard) for shard in shards] for shards in results]


def _parse(data):
    from jax._src.interpreters import mlir

    context = mlir.make_ir_context()
    with context:
        return ir.Module.parse(data, context)


# Both weights forward and backward, both gradients; a piece of the batch is gathered by the outer loop.
@pytest.mark.parametrize(("layers", "microbatches", "early"), [(4, 1, 4), (2, 2, 5)])
def test_every_bit_stays(layers, microbatches, early):
    function, shapes = step(TARGET.mesh(names=("x",)), layers, microbatches)
    data = before_the_scheduler(lambda: function.lower(*shapes))
    new, done = prepare.prepare(hlo.Module(data), PLAN)
    assert (done.early, done.late) == (early, 2) and done.buckets > 2
    assert done.carried_bytes >= 6 * 64 * 64 * 2
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    args = [
        jax.device_put(rng.standard_normal(shape, np.float32) / 8, NamedSharding(mesh, spec))
        for shape, spec in zip([(layers, 64, 64)] * 2 + [(64, 64)], [*SPECS, P("x")], strict=True)
    ]
    for before, after in zip(run(data, args), run(new, args), strict=True):
        np.testing.assert_array_equal(before, after)


def test_improve_moves_what_its_own_iteration_cannot_hide():
    function, args = step(TARGET.mesh(names=("x",)), 4, 1, width=2048, rows=8 * 8192)
    module = str(function.lower(*args).compiler_ir("stablehlo"))
    found = drive.improve(module, TARGET, memory_growth=0.5)
    assert found.prepared is not None and found.prepared.early > 0, found.rejected
    assert found.plan.pipeline and found.plan.buckets and found.compiles == 3
    for ours, plain in zip(found.simulated_after, found.simulated_before, strict=True):
        assert ours.seconds < plain.seconds and ours.exposed_seconds < plain.exposed_seconds
    # The plan alone makes the same program again.
    plan = schedule.SchedulePlan.from_json(found.plan.to_json())
    again = oracle.clone_module(module)
    hooks.rename(again, plan)
    with hooks.applying(plan) as record:
        second = oracle.compile_module(again, TARGET, compiler_options=drive.STATISTICS)
    assert record.error is None and record.prepared == found.prepared
    assert order_of(second.hlo()) == order_of(found.after.hlo())


def test_a_failing_change_does_not_fail_the_compile(monkeypatch):
    def broken(module, plan):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(hooks, "prepare", broken)
    plan = dataclasses.replace(PLAN, order=False)
    with hooks.applying(plan) as record:
        compiled_module(hooks.tagged_name("step", plan))
    assert record.calls == 1 and record.prepared is None and "on purpose" in record.error


def test_without_room_nothing_moves():
    module = hlo.Module(_text())
    new, done = prepare.prepare(module, dataclasses.replace(PLAN, memory_growth_bytes=0, buckets=False))
    assert new is None and not done.changed
    # A whole weight carried, and a gradient's part that waits.
    assert done.left_bytes == 2 * 64 * 4


def test_what_does_not_fit_is_wished_for():
    """The judge's question for more memory, of a compile in which nothing fitted."""
    waits = (
        types.SimpleNamespace(exposed_seconds=0.2, runs=8),
        types.SimpleNamespace(exposed_seconds=0.1, runs=1),
    )

    def program(seconds, size):
        return drive._Found(
            types.SimpleNamespace(measurement=types.SimpleNamespace(total_bytes=size)),
            (types.SimpleNamespace(seconds=seconds, compute_seconds=0.6, waits=waits),),
            dataclasses.replace(PLAN, memory_growth_bytes=40),
            schedule.Outcome(
                changed=True,
                before=(1.0,),
                after=(0.9,),
                peak_before=500,
                peak_after=500,
                tried=1,
                over_cap=0,
            ),
            None,
            prepare.Prepared(buckets=1, left_bytes=60),
        )

    judge = drive._Judge(
        target=TARGET, sets=PLAN.parameters[:1], scored=(), compile=None, options={}, left=None, order=True,
        limit_bytes=1000,
    )  # fmt: skip
    judge._asked_for(program(1.0, 980), program(0.9, 990))
    order = schedule.Wish(30, 0.25, 70)
    judge.asked, asked = [order], judge.asked
    judge._ask_to_move(program(1.0, 980), program(0.9, 990), 60, 100)
    # What was gained already, and what waits in loops; with more memory for the order, no more than all that waits.
    assert asked == [judge.asked[1]]
    assert [(w.bytes, w.growth, w.pipeline) for w in judge.asked[1:]] == [(60, 100, True), (90, 130, True)]
    assert [w.seconds for w in judge.asked[1:]] == pytest.approx([0.1 + 0.2, 0.4])


BODY = """
  gathered = f32[64]{0} all-gather(piece), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, use_global_device_ids=true
  product = f32[64]{0} multiply(x, gathered)
  reduced = f32[64]{0} all-reduce(product), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=add
  slot = f32[1,64]{1,0} reshape(reduced)
  written = f32[4,64]{1,0} dynamic-update-slice(stack, slot, i, zero)
"""


def _text(body=BODY, *, root="next, product, w, written", limit="4"):
    text = f"""HloModule m, num_partitions=8

add {{
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT sum = f32[] add(a, b)
}}

condition {{
  p = (s32[], f32[64]{{0}}, f32[4,8]{{1,0}}, f32[4,64]{{1,0}}) parameter(0)
  n = s32[] get-tuple-element(p), index=0
  limit = s32[] constant({limit})
  ROOT less = pred[] compare(n, limit), direction=LT
}}

body {{
  state = (s32[], f32[64]{{0}}, f32[4,8]{{1,0}}, f32[4,64]{{1,0}}) parameter(0)
  i = s32[] get-tuple-element(state), index=0
  x = f32[64]{{0}} get-tuple-element(state), index=1
  w = f32[4,8]{{1,0}} get-tuple-element(state), index=2
  stack = f32[4,64]{{1,0}} get-tuple-element(state), index=3
  one = s32[] constant(1)
  zero = s32[] constant(0)
  next = s32[] add(i, one)
  row = f32[1,8]{{1,0}} dynamic-slice(w, i, zero), dynamic_slice_sizes={{1,8}}
  piece = f32[8]{{0}} reshape(row)
{body}
  ROOT out = (s32[], f32[64]{{0}}, f32[4,8]{{1,0}}, f32[4,64]{{1,0}}) tuple({root})
}}

ENTRY main {{
  first = s32[] constant(0)
  x0 = f32[64]{{0}} parameter(0)
  w0 = f32[4,8]{{1,0}} parameter(1)
  s0 = f32[4,64]{{1,0}} parameter(2)
  init = (s32[], f32[64]{{0}}, f32[4,8]{{1,0}}, f32[4,64]{{1,0}}) tuple(first, x0, w0, s0)
  loop = (s32[], f32[64]{{0}}, f32[4,8]{{1,0}}, f32[4,64]{{1,0}}) while(init), condition=condition, body=body
  ROOT result = f32[4,64]{{1,0}} get-tuple-element(loop), index=3
}}
"""
    return _hlo.hlo_module_from_text(text).as_serialized_hlo_module_proto()


def _found(data):
    return [(len(loop.early), len(loop.late), loop.trips) for loop in loops.find(hlo.Module(data))]


def test_a_plain_loop_and_its_result_as_the_root():
    data = _text()
    assert _found(data) == [(1, 1, 4)]
    new, done = prepare.prepare(hlo.Module(data), PLAN)
    assert (done.early, done.late) == (1, 1)
    text = _hlo.HloModule.from_serialized_hlo_module_proto(new).to_string()
    # One gather before the loop, one reduction after it, and what comes after it is the module's result.
    assert len(re.findall(r" all-gather\(", text)) == 2 and len(re.findall(r" all-reduce\(", text)) == 2
    assert "ROOT %written.farrier" in text
    shapes = re.findall(r"= (\([^\n]*\)) while\(", text)
    assert shapes and shapes[0].count("f32[64]") == 3


@pytest.mark.parametrize(
    ("what", "changes", "expected"),
    [
        ("the stack's old value is read", {"root": "next, peek, w, written"}, [(1, 0, 4)]),
        ("the reduced value is read", {"root": "next, reduced, w, written"}, [(1, 0, 4)]),
        ("the weights change", {"root": "next, product, changed, written"}, [(0, 1, 4)]),
        ("the slot depends on the data", {"index": "where"}, [(1, 0, 4)]),
        ("another step", {"root": "i, product, w, written"}, []),
        ("no iteration", {"limit": "0"}, []),
    ],
)
def test_what_stays(what, changes, expected):
    body = BODY
    if "peek" in changes.get("root", ""):
        body += "  old = f32[1,64]{1,0} dynamic-slice(stack, i, zero), dynamic_slice_sizes={1,64}\n"
        body += "  peek = f32[64]{0} reshape(old)\n"
    if "changed" in changes.get("root", ""):
        body += "  changed = f32[4,8]{1,0} negate(w)\n"
    if index := changes.pop("index", None):
        body = body.replace("slot, i, zero", f"slot, {index}, zero")
        body = body.replace("  written", "  some = f32[1]{0} slice(x), slice={[0:1]}\n  written")
        body = body.replace(
            "  written", "  number = f32[] reshape(some)\n  where = s32[] convert(number)\n  written"
        )
    assert _found(_text(body, **changes)) == expected, what


def test_a_waiting_circle_is_an_error():
    from farrier._src.hlo.edit import Editor

    module = hlo.Module(_text())
    editor = Editor(module)
    body = next(c for c in module.computations if c.name == "body")
    by_name = {i.name: i for i in body.instructions}
    by_name["piece"].proto.control_predecessor_ids.append(by_name["product"].proto.id)
    editor.touch(body)
    with pytest.raises(ValueError, match="waits for itself"):
        editor.finish()
