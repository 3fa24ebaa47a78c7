"""The workloads build, lower and train; their options mean what they say."""

import functools

import farrier
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import workloads
from farrier._src import oracle
from farrier._src.hlo.stablehlo_flops import stablehlo_flops
from farrier._src.targets import Target
from jax.sharding import PartitionSpec as P
from workloads import attention, moe, remat_policies, rivals

TINY = tuple(n for n in workloads.names() if "tiny" in n)
BIG = tuple(n for n in workloads.names() if "tiny" not in n)


@functools.cache
def target(topology="1x1x1"):
    return Target("h100", topology=topology)


@pytest.mark.parametrize("name", TINY)
def test_tiny_workloads_lower_for_a_target(name):
    lowered = workloads.build(name, target()).lower()
    flops, unknown = stablehlo_flops(lowered.compiler_ir())
    assert flops > 0
    assert not unknown
    # All state is donated: every weight and moment has an output to alias.
    donated = sum(bool(a.donated) for a in jax.tree.leaves(lowered.args_info))
    assert donated == len(jax.tree.leaves(workloads.build(name).arguments[0]))


@pytest.mark.parametrize("name", ["llama3-70b-scan", "moe-8x7b-scan", "resnet-50", "translator"])
def test_full_sizes_cost_nothing_to_build(name):
    built = workloads.build(name, target("1x1x8") if "scan" in name else target())
    weights = sum(a.size for a in jax.tree.leaves(built.arguments[0]["weights"]))
    billions = {"llama3-70b-scan": 70.6, "moe-8x7b-scan": 46.7, "resnet-50": 0.0256, "translator": 0.387}[
        name
    ]
    assert weights / 1e9 == pytest.approx(billions, rel=0.02)


def test_every_name_has_a_builder():
    for name in BIG:
        assert workloads.options(name)


def test_training_lowers_the_loss():
    built = workloads.build("lstm-tiny")
    state, *batch = built.real_arguments()
    losses = []
    for _ in range(3):
        state, loss = built.function(state, *batch)
        losses.append(float(loss))
    assert losses[0] > losses[1] > losses[2] and int(state["step"]) == 3


def test_attention_kinds_agree():
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(k, (2, 16, h, 8)) for k, h in zip(keys, (4, 2, 2), strict=True))
    want = attention.naive(query, key, value)
    np.testing.assert_allclose(attention.chunked(query, key, value), want, rtol=1e-5, atol=1e-6)
    # And neither sees the future.
    later = attention.naive(query, key, value.at[:, -1].set(0.0))
    np.testing.assert_array_equal(later[:, :-1], want[:, :-1])


def test_policies_cost_flops_in_the_expected_order():
    def flops(policy):
        return stablehlo_flops(workloads.build("llm-tiny-scan", remat=policy).lower().compiler_ir())[0]

    cost = {p: flops(p) for p in ("none", "everything", "dots", "names-all", "names-mlp", "nothing")}
    assert set(cost) < set(remat_policies.names())
    assert cost["none"] == cost["everything"] <= cost["dots"]
    assert cost["dots"] < cost["names-all"] < cost["names-mlp"] < cost["nothing"]


def test_grouped_matmuls_cost_what_one_expert_per_token_costs():
    """Forward, and both gradients, whose groups lie along rows, along rows, and along what is contracted."""
    shapes = (64, 16), (4, 16, 24), (4,)
    args = [
        jax.ShapeDtypeStruct(s, jnp.int32 if len(s) == 1 else jnp.bfloat16, sharding=target().sharding())
        for s in shapes
    ]

    def f(x, w, sizes):
        return jnp.sum(jax.lax.ragged_dot(x, w, sizes).astype(jnp.float32) ** 2)

    one = 2 * 64 * 16 * 24
    assert stablehlo_flops(jax.jit(f).lower(*args).compiler_ir()) == (one, {})
    both = jax.jit(jax.grad(f, argnums=(0, 1))).lower(*args)
    assert stablehlo_flops(both.compiler_ir()) == (3 * one, {})


def test_a_policy_that_names_flash_residuals_runs_flash_once():
    """What no policy over JAX's own entry point can do: its residuals have no names."""

    def calls(policy):
        built = workloads.build("llm-1b", target(), layers=1, remat=policy)
        return built.lower().as_text().count("@__cudnn$fmhaSoftmax(")

    assert calls("none") == calls("names-qkv-flash") == 1
    assert calls("names-qkv-attention") == 2


def _least_layers(name):
    return 8 if name == "pipeline" else 1


@pytest.mark.parametrize("name", workloads.COLLECTIVES)
def test_the_collectives_set_lowers_for_its_topology(name):
    where = target(workloads.topology(name))
    module = workloads.build(name, where, layers=_least_layers(name)).lower().compiler_ir()
    assert int(module.operation.attributes["mhlo.num_partitions"]) == where.device_count


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("fsdp-manual", {"all_gather", "reduce_scatter"}),
        ("tensor-manual", {"all_reduce"}),
        ("experts", {"all_to_all", "all_gather", "reduce_scatter"}),
        ("pipeline", {"collective_permute"}),
        ("ring", {"collective_permute", "all_gather"}),
    ],
)
def test_hand_written_collectives_are_in_the_program(name, kinds):
    built = workloads.build(name, target(workloads.topology(name)), layers=_least_layers(name))
    text = built.lower().as_text()
    assert not {k for k in kinds if f"stablehlo.{k}" not in text}


class EightCpus:
    """Stands for a target: eight CPU devices, to run on."""

    device_count = 8

    def mesh(self, shape=None, names=("x",)):
        return jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(shape or (8,)), names)


def _one_step(name, where, function=None, **options):
    """State and loss after a step on random numbers."""
    built = workloads.build(name, where, **options)
    real = built.real_arguments()
    if where is not None:
        real = jax.tree.map(lambda a, v: jax.device_put(v, a.sharding), built.arguments, real)
    return (function or (lambda step: step))(built.function)(*real)


@pytest.mark.parametrize(
    ("name", "options", "plain"),
    [
        ("fsdp-manual", {"batch": 8, "attention": "naive", "layers": 1}, {}),
        ("ring", {"batch": 1, "length": 64, "layers": 1}, {"attention": "naive", "style": "scanned"}),
        (
            "ring-unrolled",
            {"batch": 1, "length": 64, "layers": 1},
            {"attention": "naive", "style": "scanned"},
        ),
        ("pipeline", {"batch": 16, "length": 8, "attention": "naive", "layers": 8}, {"style": "scanned"}),
    ],
)
def test_every_way_to_shard_computes_the_same(name, options, plain):
    """On eight CPU devices, with real numbers, against one device: the loss, and gradients by the first moment."""
    state, loss = _one_step(name, EightCpus(), size="tiny", **options)
    want, want_loss = _one_step("llm-1b", None, size="tiny", **(options | plain))
    assert float(loss) == pytest.approx(float(want_loss), rel=2e-3)
    for a, b in zip(jax.tree.leaves(want["first"]), jax.tree.leaves(state["first"]), strict=True):
        np.testing.assert_allclose(b, a, atol=0.06 * float(jnp.max(jnp.abs(a))))


def test_experts_on_other_devices_compute_the_same():
    """Each device's tokens meet the same experts, wherever these live: values and gradients."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"router": (16, 8), "gate": (8, 16, 32), "up": (8, 16, 32), "down": (8, 32, 16)}
    weights = {
        k: 0.2 * jax.random.normal(key, shape) for key, (k, shape) in zip(keys, shapes.items(), strict=False)
    }
    x = jax.random.normal(keys[4], (8 * 32, 16))
    mesh = EightCpus().mesh()
    specs = {k: P() if k == "router" else P("x") for k in shapes}
    across = jax.shard_map(
        lambda x, w: moe.exchanged(x, w, 2, axis="x", devices=8),
        mesh=mesh,
        in_specs=(P("x"), specs),
        out_specs=P("x"),
    )

    def alone(x, w):
        return jnp.concatenate([moe.gather(piece, w, 2) for piece in jnp.split(x, 8)])

    def both(f):
        return jax.jit(jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), argnums=(0, 1)))(x, weights)

    for a, b in zip(jax.tree.leaves(both(alone)), jax.tree.leaves(both(across)), strict=True):
        assert jnp.any(a)
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)


def test_ring_attention_through_the_rewrites_keeps_every_bit():
    """Gradients travel home in the type they are needed in: permutes and converts change places."""
    where, options = EightCpus(), {"size": "tiny", "batch": 1, "length": 64, "layers": 1}
    want = _one_step("ring-unrolled", where, **options)
    rewrites = farrier.Collectives(stress=True, rewrites=("simplify",))
    seen = []

    def optimized(function):
        step = farrier.optimize(function, passes=[rewrites])
        seen.append(step)
        return step

    got = _one_step("ring-unrolled", where, optimized, **options)
    built = workloads.build("ring-unrolled", where, **options)
    sites = seen[0].lower(*built.arguments).plan.passes["collectives"]["rewrite"]["sites"]
    assert sites["narrowed"] > 0
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_wrong_names_are_told():
    with pytest.raises(KeyError, match="did you mean 'llm-1b'"):
        workloads.build("lm-1b")
    with pytest.raises(KeyError, match="no option 'remt'"):
        workloads.build("llm-1b", remt="dots")
    with pytest.raises(ValueError, match="attention 'flash'"):
        workloads.build("llm-1b", attention="flash")


def test_rivals_are_option_sets_that_xla_takes():
    sets = rivals.rematerialization() + rivals.overlap()
    names = [s.name for s in rivals.rematerialization()]
    assert len(set(names)) == len(names) and "unannotated" in names
    options = {k: v for s in sets for k, v in s.compiler_options.items()}
    x = jax.ShapeDtypeStruct((128, 128), jnp.bfloat16, sharding=target().sharding())
    lowered = jax.jit(lambda a: a @ a).lower(x)
    assert oracle.compile_lowered(lowered, target(), compiler_options=options).measurement.flops > 0
