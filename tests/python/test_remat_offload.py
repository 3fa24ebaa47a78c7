"""Residuals that wait in host memory: chosen when cheaper, really moved by XLA:GPU, harmless to results."""

import functools
import json
import re

import comparator
import farrier
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import workloads
from farrier import _core
from farrier._src import interchange, oracle

LAYERS = 6
# A link on which every transfer hides behind a product; a link on which none does; none at all.
FAST, SLOW, NO_LINK = ({"host_bytes_per_second": rate} for rate in (1e13, 1e6, 0.0))


def loss(weights, x, *, scanned):
    def layer(x, w):
        with jax.named_scope("mlp"):
            return jnp.tanh(x @ w) + x, None

    if scanned:
        x, _ = jax.lax.scan(layer, x, weights)
    else:
        for w in weights:
            x, _ = layer(x, w)
    return jnp.mean(x * x)


def train_step(weights, x, *, scanned):
    gradient = jax.grad(functools.partial(loss, scanned=scanned))(weights, x)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient)


def shapes_of(scanned, width, rows, sharding=None):
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, np.float32, sharding=sharding)

    # A loop needs its weights in one array; without one they are apart, so that gradients are too.
    weights = shape(LAYERS, width, width) if scanned else [shape(width, width)] * LAYERS
    return weights, shape(rows, width)


def arguments(scanned, width=64, rows=64):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) / width**0.5, s.dtype), shapes_of(scanned, width, rows)
    )


def module_of(scanned, *, width=64, rows=256, sharding=None):
    step = jax.jit(functools.partial(train_step, scanned=scanned))
    lowered = step.lower(*shapes_of(scanned, width, rows, sharding))
    return interchange.to_core(lowered.compiler_ir("stablehlo"))


def plan_for(module, share=0.7, **options):
    estimate = json.loads(module.query("memory.estimate", "{}"))["temp"]
    request = {"budget": int(share * estimate), "small_bytes": 256, "offload": True} | options
    return json.loads(module.query("remat.plan", json.dumps(request)))


def offloaded(plan):
    """Names of what a plan sends to the host."""
    parts = [part for loop in plan["loops"] for part in loop["parts"]]
    segments = [segment for block in plan["blocks"] for segment in block["segments"] if segment]
    return [name for entry in (*parts, *segments) for name in entry.get("offload", ())]


def apply(module, plan, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    rewritten = module.clone()
    rewritten.run(f"builtin.module(farrier-remat{{plan={path}}})")
    return rewritten


BOTH = pytest.mark.parametrize("scanned", [True, False], ids=["scan", "unrolled"])


@BOTH
def test_the_gpu_compiler_moves_what_the_plan_sends(scanned, tmp_path):
    """Device memory falls and host memory rises as planned."""
    target = farrier.Target("h100")
    sharding = jax.sharding.NamedSharding(target.mesh((1,), ("x",)), jax.sharding.PartitionSpec())
    module = module_of(scanned, width=2048, rows=8192, sharding=sharding)
    plan = plan_for(module, 0.75, machine=FAST, small_bytes=4 << 20)
    assert offloaded(plan)
    rewritten = apply(module, plan, tmp_path)
    before = oracle.measure(interchange.to_jaxlib(module), target)
    after = oracle.measure(interchange.to_jaxlib(rewritten), target)
    value = 4 * 8192 * 2048
    assert after.host_temp_bytes >= 2 * value
    assert after.temp_bytes <= before.temp_bytes - after.host_temp_bytes + 3 * value
    assert after.temp_bytes <= 1.01 * plan["predicted"]["after"]
    assert after.flops <= 1.01 * before.flops


def loss_with_head(weights, head, x):
    """Layers of two products and a loss that takes more memory than all that the layers save."""

    def layer(x, w):
        return x + jnp.tanh(x @ w[0]) @ w[1], None

    x, _ = jax.lax.scan(layer, x, weights)
    return jnp.mean(jax.nn.logsumexp(x @ head, -1))


def module_with_head(layers=LAYERS, rows=256, width=64, vocabulary=4096):
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, np.float32)

    gradient = jax.jit(jax.grad(loss_with_head, argnums=(0, 1, 2)))
    lowered = gradient.lower(shape(layers, 2, width, width), shape(width, vocabulary), shape(rows, width))
    return interchange.to_core(lowered.compiler_ir("stablehlo"))


def test_nothing_is_fetched_before_the_gradient_is_there(tmp_path):
    """What the backward loop reads first of what waits on the host would else lie beside the loss."""
    module = module_with_head()
    plan = plan_for(module, 0.95, machine=FAST, objective="flops")
    assert offloaded(plan)
    text = apply(module, plan, tmp_path).print(locations=False).decode()
    (name,) = re.findall(r"(%\w+):2 = .*optimization_barrier.* : \(tensor<256x64xf32>, tensor<i32>\)", text)
    assert len(re.findall(rf"dynamic_slice\W+[%\w#]+, {name}#1", text)) == len(offloaded(plan))
    assert re.search(rf"while.*{name}#0", text)


def test_slices_under_way_do_not_count_beside_the_loss():
    """The budget leaves no room for stacks where the loss is, and slices are not there yet: all may go to the host."""
    predicted = plan_for(module_with_head(layers=8), 0.9, machine=FAST)["predicted"]
    assert predicted["fits"]
    assert predicted["flops"] == 0
    assert plan_for(module_with_head(layers=8), 0.9, machine=FAST, offload=False)["predicted"]["flops"] > 0


@BOTH
def test_estimates_count_nothing_for_what_waits_on_the_host(scanned, tmp_path):
    module = module_of(scanned, width=2048, rows=8192)
    plan = plan_for(module, 0.75, machine=FAST, small_bytes=4 << 20)
    rewritten = apply(module, plan, tmp_path)
    assert plan["predicted"]["after"] >= json.loads(rewritten.query("memory.estimate", "{}"))["temp"]
    before, after = (json.loads(m.query("memory.estimate", "{}"))["temp"] for m in (module, rewritten))
    assert len(offloaded(plan)) >= (1 if scanned else 2)
    assert after <= before - 2 * 4 * 8192 * 2048


@BOTH
@pytest.mark.parametrize("share", [0.8, 0.6, 0.4])
@pytest.mark.parametrize(
    "machine", [FAST, {"host_bytes_per_second": 2e9}, SLOW], ids=["fast", "medium", "slow"]
)
def test_host_memory_never_makes_a_plan_dearer(scanned, share, machine):
    module = module_of(scanned)
    with_host = plan_for(module, share, machine=machine)["predicted"]
    without = plan_for(module, share, machine=machine, offload=False)["predicted"]
    assert (not with_host["fits"], with_host["seconds"]) <= (not without["fits"], without["seconds"]) or (
        not without["fits"] and with_host["after"] < without["after"]
    )


def test_a_plan_with_transfers_is_not_believed_below_its_own_estimate(tmp_path):
    """Stacks sent in the straight-line part: segments miss what loops hold."""
    step = workloads.build("llm-tiny-scan", layers=2, length=512, batch=2)
    module = interchange.to_core(step.lower().compiler_ir("stablehlo"))
    sent = 0
    for share in (0.55, 0.3, 0.05):
        plan = plan_for(module, share=share, machine=FAST)
        sent += any("offload" in (part or {}) for block in plan["blocks"] for part in block["segments"])
        estimate = json.loads(apply(module, plan, tmp_path).query("memory.estimate", "{}"))["temp"]
        # Gradients wait, which the estimate may put later.
        assert plan["predicted"]["after"] >= 0.998 * estimate
    assert sent


@BOTH
def test_what_forbids_offloading_is_heeded(scanned):
    module = module_of(scanned)
    assert offloaded(plan_for(module, 0.7, machine=FAST))
    assert not offloaded(plan_for(module, 0.7, machine=FAST, offload=False))
    assert not offloaded(plan_for(module, 0.7, machine=NO_LINK))
    # What is left are values that the scope does not make: a loop's carry.
    left = offloaded(plan_for(module, 0.7, machine=FAST, on_device=["mlp"]))
    assert not [name for name in left if "mlp" in name]


@BOTH
def test_what_is_asked_for_waits_on_the_host(scanned):
    module = module_of(scanned)
    plan = plan_for(module, 0.7, machine=SLOW, to_host=["mlp"])
    assert [name for name in offloaded(plan) if "mlp" in name]
    assert not offloaded(plan_for(module, 0.7, machine=SLOW))


@BOTH
def test_transfers_do_not_change_a_bit(scanned):
    step = jax.jit(functools.partial(train_step, scanned=scanned))
    sent = 0
    for seed in range(2):
        passes = [farrier.Remat(stress=seed, small_bytes=256)]
        stressed = farrier.optimize(step, passes=passes, strict=True)
        comparison = comparator.compare(stressed, *arguments(scanned))
        assert comparison.equal, comparison.differences
        # A seed may choose to change nothing.
        passes = stressed.plan(*arguments(scanned)).passes
        sent += len(offloaded(passes["remat"])) if passes else 0
    assert sent


@BOTH
def test_a_plan_with_transfers_is_the_same_in_every_run(scanned, tmp_path):
    module = module_of(scanned)
    plans = [plan_for(module, 0.7, machine=FAST) for _ in range(2)]
    assert plans[0] == plans[1]
    texts = [apply(module, plan, tmp_path).print() for plan in plans]
    assert texts[0] == texts[1]


@BOTH
def test_a_stale_transfer_is_refused_by_name(scanned, tmp_path):
    module = module_of(scanned)
    plan = plan_for(module, 0.7, machine=FAST)
    name = offloaded(plan)[0]
    plan = json.loads(json.dumps(plan).replace(json.dumps(name), json.dumps("gone|0")))
    with pytest.raises(_core.DiagnosticError, match=r"stale.*gone"):
        apply(module, plan, tmp_path)


def test_explain_names_what_waits_on_the_host():
    step = jax.jit(functools.partial(train_step, scanned=True))
    stressed = farrier.optimize(step, passes=[farrier.Remat(stress=0, small_bytes=256)])
    said = stressed.explain(*arguments(True)).to_json()["remarks"]
    sent = [remark for remark in said if remark["message"].startswith("offloaded")]
    assert sent
    for remark in sent:
        assert "host memory" in remark["message"]
        assert "test_remat_offload.py:" in remark["location"]
        assert int(remark["args"]["Bytes"]) >= 256


def test_contradicting_options_are_refused():
    with pytest.raises(farrier.OptionError, match="host memory"):
        farrier.Remat(offload=False, to_host=["mlp"])
    with pytest.raises(farrier.OptionError, match="sequence"):
        farrier.Remat(on_device="mlp")
