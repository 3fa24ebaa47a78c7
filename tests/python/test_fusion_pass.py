"""The fusion pass as a whole: options, cost, and leaving alone what has nothing to gain."""

import contextlib
import functools
import re
import time

import farrier
import fusion_cases as cases
import jax
import jax.numpy as jnp
import pytest
from farrier import _core
from farrier._src import interchange, oracle
from farrier._src.fusion.driver import Fusion, FusionDriver
from farrier._src.fusion.hints import hint
from jax import lax
from jax.interpreters import mlir
from programs import get, programs

CHANGED = {"decoder_step", "decoder_step_remat", "decoder_step_scanned"}
"""Programs that have a loss in chunks, or masks that a scan carries, however small; nothing else is there to find."""


def feed_forward(x, w):
    for _ in range(3):
        x = jax.nn.softmax(jnp.tanh(x @ w), -1)
    return x.sum()


def test_nothing_to_gain_comes_out_byte_identical():
    x = jnp.ones((8, 8))
    lowered = jax.jit(jax.grad(feed_forward)).lower(x, x)
    before = cases.interchange.to_core(lowered.compiler_ir("stablehlo")).print()
    module, result = cases.rewrite(lowered)
    assert not cases.applied(result)
    assert module.print() == before


@pytest.mark.parametrize("name", [program.name for program in programs()])
def test_programs_without_a_site_come_out_byte_identical(name):
    module = interchange.to_core(get(name).module())
    before = module.print()
    result = module.run("builtin.module(farrier-fusion{min-bytes=0 chunks=2 sink-bytes=1024})")
    assert (module.print() == before) == (not cases.applied(result)), cases.applied(result)
    assert bool(cases.applied(result)) == (name in CHANGED), cases.applied(result)


def test_the_same_input_gives_the_same_bytes():
    lowered = jax.jit(cases.with_gradients(cases.MATCHED["causal"])).lower(*cases.Sizes().arguments())
    texts = {cases.rewrite(lowered)[0].print() for _ in range(3)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("rewrites=atention", "no rewrite 'atention'"),
        ("numerics=exact", "not 'exact'"),
        ("chunks=-1", "negative"),
    ],
)
def test_wrong_options_are_refused(options, message):
    lowered = jax.jit(jnp.exp).lower(jnp.ones(3))
    with pytest.raises(_core.DiagnosticError, match=message):
        cases.rewrite(lowered, options)


def test_ten_thousand_operations_take_half_a_second():
    def model(q, k, v):
        for _ in range(60):
            q = cases.MATCHED["causal"](q, k, v)
        return jnp.sum(q.astype(jnp.float32))

    lowered = jax.jit(jax.grad(model, (0, 1, 2))).lower(*cases.Sizes(length=512).arguments())
    module = cases.interchange.to_core(lowered.compiler_ir("stablehlo"))
    operations = module.num_ops
    start = time.process_time()
    result = module.run("builtin.module(farrier-fusion)")
    seconds = time.process_time() - start
    assert cases.applied(result) == {"attention": 60}
    assert seconds / operations * 10_000 <= 0.5 * 3, (seconds, operations)  # a busy machine gets three times


@pytest.mark.parametrize("rewrite", ["attention", "cross-entropy"])
def test_a_hint_forbids_a_rewrite_in_its_scope(rewrite):
    if rewrite == "attention":
        function, arguments = cases.MATCHED["causal"], cases.Sizes().arguments()
    else:
        function, arguments = cases.negative_log_likelihood, cases.cross_entropy_arguments()

    def hinted(*arguments):
        with hint(fuse="off"):
            return function(*arguments)

    options = f"rewrites={rewrite} chunks=4"
    assert cases.applied(cases.rewrite(jax.jit(function).lower(*arguments), options)[1])
    _, result = cases.rewrite(jax.jit(hinted).lower(*arguments), options)
    assert not cases.applied(result)
    # Inside the scope calls keep their attributes and stay calls, so not every site is even seen.
    assert all("a hint forbids it" in reason for reason in cases.reasons(result))


def test_a_hint_against_kernels_still_allows_restructuring():
    options = "rewrites=attention,cross-entropy chunks=4"

    # Without calls inside: calls in a hinted scope keep the hint and stay calls.
    def log_partition(x, w):
        return jnp.log(jnp.sum(jnp.exp(lax.dot_general(x, w, (((2,), (0,)), ((), ())))), -1))

    restructured = log_partition, cases.cross_entropy_arguments()[:2]
    attention = cases.MATCHED["causal"], cases.Sizes().arguments()
    for (function, arguments), sites in ((restructured, {"cross-entropy": 1}), (attention, {})):
        assert cases.applied(cases.rewrite(jax.jit(function).lower(*arguments), options)[1])
        hinted = hint(kernel="off")(function)
        assert cases.applied(cases.rewrite(jax.jit(hinted).lower(*arguments), options)[1]) == sites


def test_a_fence_keeps_the_compiler_from_merging_products():
    target = farrier.Target("h100")

    def chunks(x, w, fenced):
        # Both products read w; merged, they are one of all of x.
        with hint(fence="on") if fenced else contextlib.nullcontext():
            return [jnp.max(part @ w, -1) for part in jnp.split(x, 4)]

    def measured(fenced):
        given = [
            jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=target.sharding())
            for s in ((2048, 256), (256, 2048))
        ]
        lowered = jax.jit(functools.partial(chunks, fenced=fenced)).lower(*given)
        module, result = cases.rewrite(lowered)
        assert cases.applied(result) == ({"fence": 4} if fenced else {})
        return oracle.measure(interchange.to_jaxlib(module, mlir.make_ir_context()), target)

    merged, apart = measured(False), measured(True)
    assert apart.flops == merged.flops
    assert apart.temp_bytes <= merged.temp_bytes / 2, (apart.temp_bytes, merged.temp_bytes)


def micro_batches(weights, batches):
    """Gradients of micro-batches one after another, added up."""

    def loss(weights, x):
        for up, down in weights:
            x = x + jax.nn.gelu(x @ up) @ down
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    total = None
    for x in batches:
        gradients = jax.grad(loss)(weights, x)
        total = gradients if total is None else jax.tree.map(jnp.add, total, gradients)
    return total


def test_micro_batches_are_kept_apart_by_themselves():
    target = farrier.Target("h100")

    def given(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=target.sharding())

    weights, batches = [(given(1024, 4096), given(4096, 1024))] * 2, [given(2048, 1024)] * 4
    lowered = jax.jit(micro_batches).lower(weights, batches)
    module, result = cases.rewrite(lowered, "fence-bytes=4194304")
    assert cases.applied(result)["fence"] >= 16
    (said, *_) = [remark for remark in result.remarks if remark.name == "fence"]
    merged = oracle.measure(lowered, target)
    apart = oracle.measure(interchange.to_jaxlib(module, mlir.make_ir_context()), target)
    assert apart.flops == merged.flops
    assert apart.temp_bytes <= 0.5 * merged.temp_bytes, (apart.temp_bytes, merged.temp_bytes)
    # What the remark says, within what an estimate is.
    said = dict(said.args)
    assert merged.temp_bytes - apart.temp_bytes >= 0.5 * (int(said["PeakMerged"]) - int(said["Peak"]))
    # Only where it is worth it.
    assert not cases.applied(cases.rewrite(lowered, "fence-bytes=400000000")[1])


@pytest.mark.parametrize("given", [{"fuse": "of"}, {"kernel": "on"}, {"fence": "off"}, {}])
def test_an_unknown_hint_is_refused(given):
    with pytest.raises(farrier.Error, match="hint"), hint(**given):
        pass


class _Context:
    """What a driver may know, for a test."""

    platform, numerics, target, budget_bytes, partitions = "cuda", "bounded", None, None, 1

    def __init__(self):
        self.remarks = []
        self.remark = self.remarks.append


def test_the_driver_plans_applies_and_knows_a_stale_plan():
    lowered = jax.jit(cases.with_gradients(cases.MATCHED["causal"])).lower(*cases.Sizes().arguments())
    module = cases.interchange.to_core(lowered.compiler_ir("stablehlo"))
    context, driver = _Context(), FusionDriver()
    before = module.print()
    plan = driver.plan(module, context)
    assert plan["sites"] == {"attention": 1}
    assert module.print() == before
    assert driver.apply(module, plan, remark=context.remark) is None
    assert [remark.kind for remark in context.remarks] == ["applied"]
    assert b"fmhaSoftmaxBackward" in module.print()
    assert driver.apply(module, plan) == ["attention: 1 sites in the plan, 0 in the program"]
    # cuDNN's calls do not exist elsewhere.
    context.platform = "cpu"
    assert driver.plan(cases.interchange.to_core(lowered.compiler_ir("stablehlo")), context) is None


def test_the_size_of_chunks_follows_the_memory():
    context, driver = _Context(), FusionDriver()

    def chunk_bytes():
        pipeline = driver._pipeline(["cross-entropy"], context, driver.options.chunk_bytes)
        return int(re.search(r"chunk-bytes=(\d+)", pipeline).group(1))

    assert chunk_bytes() == 1 << 30
    context.target = farrier.Target("h100")
    assert chunk_bytes() == context.target.memory_bytes // 64
    context.budget_bytes = 32 << 30
    assert chunk_bytes() == 512 << 20
    driver = FusionDriver(Fusion(chunk_bytes=1 << 20))
    assert chunk_bytes() == 1 << 20


def test_a_budget_is_offered_chunks_of_several_sizes():
    class Context(_Context):
        budget_bytes = 16 << 30

    def loss(x, w):
        return jax.nn.logsumexp(x @ w, -1).sum()

    def offered(rows, **options):
        given = jax.ShapeDtypeStruct((rows, 64), jnp.float32), jax.ShapeDtypeStruct((64, 32768), jnp.float32)
        module = interchange.to_core(jax.jit(jax.grad(loss, (0, 1))).lower(*given).compiler_ir("stablehlo"))
        plans = FusionDriver(Fusion(**options)).alternatives(module, Context())
        sizes = [int(re.search(r"chunk-bytes=(\d+)", plan["pipeline"]).group(1)) for plan in plans if plan]
        return len(plans), [size >> 20 for size in sizes]

    # 1 GiB of logits: whole, or in 2 to 16 chunks.
    assert offered(8192) == (5, [512, 256, 128, 64])
    assert offered(8192, chunks=4) == (1, [256])
    assert offered(8192, chunk_bytes=1 << 28) == (1, [256])
    # Too small to be worth it.
    assert offered(1024) == (1, [])


def test_options_are_checked():
    with pytest.raises(farrier.OptionError, match="attention"):
        Fusion(rewrites=("atention",))
    with pytest.raises(farrier.OptionError, match="chunks"):
        Fusion(chunks=-1)


def test_optimize_applies_it():
    arguments = cases.cross_entropy_arguments()
    step = jax.jit(jax.value_and_grad(cases.negative_log_likelihood, (0, 1)))
    optimized = farrier.optimize(step, passes=[Fusion(chunks=4)])
    text = optimized.lower(*arguments).as_text()
    assert "stablehlo.while" in text
    for new, old in zip(
        jax.tree.leaves(optimized(*arguments)), jax.tree.leaves(step(*arguments)), strict=True
    ):
        assert cases.error(new, old) < 1e-6
