"""Rewritten scans against the originals on CPU: arbitrary legal choices, bit by bit.

XLA's algebraic simplifier is off on both sides: it folds constants across operations (``x * a * b`` to
``x * (a * b)``), which rounds differently, and recomputing brings operations together that a residual
stack had kept apart. ``jax.checkpoint`` changes results in the same way.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from farrier import _core
from farrier._src import oracle
from farrier._src.drivers.remat import RematDriver
from jax import lax

KEY = jax.random.key(0)
OPTIONS = {"xla_disable_hlo_passes": "algsimp"}


def normal(number, *shape, dtype=jnp.float32):
    return (0.3 * jax.random.normal(jax.random.fold_in(KEY, number), shape)).astype(dtype)


def norm(x):
    f = x.astype(jnp.float32)
    return (f * lax.rsqrt(jnp.mean(f * f, -1, keepdims=True) + 1e-6)).astype(x.dtype)


def attend(q, k, v):
    mask = jnp.tri(q.shape[1], k.shape[1], dtype=bool)
    scores = jnp.where(mask, jnp.einsum("bshd,bthd->bhst", q, k, preferred_element_type=jnp.float32), -1e30)
    return jnp.einsum("bhst,bthd->bshd", jax.nn.softmax(scores).astype(q.dtype), v)


def attend_chunked(q, k, v):
    def chunk(_, part):
        return None, attend(part, k, v)

    parts = q.reshape(q.shape[0], 2, -1, *q.shape[2:]).swapaxes(0, 1)
    return lax.scan(chunk, None, parts)[1].swapaxes(0, 1).reshape(q.shape)


def weights(layers, number=0, dtype=jnp.float32):
    shapes = {"q": (8, 2, 4), "k": (8, 2, 4), "v": (8, 2, 4), "o": (2, 4, 8), "up": (8, 12), "down": (12, 8)}
    return {n: normal(number + i, layers, *s, dtype=dtype) for i, (n, s) in enumerate(shapes.items())}


def layer(x, w, memory=None, attention=attend, key=None):
    h = norm(x)
    m = h if memory is None else memory
    q, k, v = (jnp.einsum("bsd,dhk->bshk", y, w[n]) for y, n in ((h, "q"), (m, "k"), (m, "v")))
    x = x + jnp.einsum("bshk,hkd->bsd", attention(q, k, v), w["o"])
    a = jax.nn.silu(norm(x) @ w["up"])
    if key is not None:
        a = jnp.where(jax.random.bernoulli(key, 0.8, a.shape), a / 0.8, 0)
    return x + a @ w["down"]


def decoder(attention=attend, dropout=False, checkpoint=False, dtype=jnp.float32, layers=3, **scan):
    def loss(w, x):
        def step(x, inputs):
            w, i = inputs
            key = jax.random.fold_in(jax.random.key(7), i) if dropout else None

            def body(x, w):
                return layer(x, w, attention=attention, key=key)

            return (jax.checkpoint(body) if checkpoint else body)(x, w), None

        x, _ = lax.scan(step, x, (w, jnp.arange(layers)), **scan)
        return (x.astype(jnp.float32) ** 2).mean()

    return jax.value_and_grad(loss), (weights(layers, dtype=dtype), normal(9, 2, 4, 8, dtype=dtype))


def encoder_decoder():
    def loss(w, x, y):
        x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, w["encoder"])
        y, _ = lax.scan(lambda y, w: (layer(layer(y, w), w, memory=x), None), y, w["decoder"])
        return (y**2).mean()

    both = {"encoder": weights(3), "decoder": weights(2, 20)}
    return jax.value_and_grad(loss), (both, normal(9, 2, 4, 8), normal(10, 2, 4, 8))


def accumulated():
    gradient, (w, x) = decoder()

    def step(w, batches):
        def microbatch(sum_, x):
            value, g = gradient(w, x)
            return jax.tree.map(jnp.add, sum_, g), value

        return lax.scan(microbatch, jax.tree.map(jnp.zeros_like, w), batches)

    return step, (w, jnp.stack([x, 2 * x]))


def recurrent(steps=5, unroll=1):
    def loss(w, xs):
        def cell(state, x):
            h, c = state
            i, f, g, o = jnp.split(jnp.concatenate([h, x], -1) @ w, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((3, 4))
        (h, _), forwards = lax.scan(cell, (zero, zero), xs, unroll=unroll)
        _, backwards = lax.scan(cell, (zero, zero), xs, reverse=True, unroll=unroll)
        return (forwards * backwards).mean() + h.sum()

    return jax.value_and_grad(loss), (normal(1, 12, 16), normal(2, steps, 3, 8))


def mixture():
    def loss(w, x):
        def step(x, w):
            share = jax.nn.softmax(x @ w["router"])
            value, chosen = lax.top_k(share, 2)
            gate = jnp.einsum("tk,tke->te", value, jax.nn.one_hot(chosen, 4))
            h = jax.nn.gelu(jnp.einsum("td,edf->etf", x, w["up"]))
            return x + jnp.einsum("te,etf,efd->td", gate, h, w["down"]), share.mean(0)

        x, shares = lax.scan(step, x, w)
        return (x**2).mean() + (shares**2).sum()

    w = {"router": normal(1, 3, 8, 4), "up": normal(2, 3, 4, 8, 6), "down": normal(3, 3, 4, 6, 8)}
    return jax.value_and_grad(loss), (w, normal(4, 5, 8))


def mapped():
    """`lax.map` over examples: iterations that hand nothing on."""

    def loss(w, xs):
        return (lax.map(lambda x: layer(x[None], w)[0], xs) ** 2).mean()

    first = {name: value[0] for name, value in weights(1).items()}
    return jax.value_and_grad(loss), (first, normal(9, 3, 4, 8))


def counted():
    """`fori_loop` over a static range."""

    def loss(w, x):
        def step(i, x):
            return layer(x, jax.tree.map(lambda v: lax.dynamic_index_in_dim(v, i, keepdims=False), w))

        return (lax.fori_loop(0, 3, step, x) ** 2).mean()

    return jax.value_and_grad(loss), (weights(3), normal(9, 2, 4, 8))


def recurrent_layers(layers=3, steps=4, checkpoint=False):
    """Layers in a scan, each of which scans over time, or over chunks of it."""

    def loss(w, x):
        def cell(state, x):
            gate = jax.nn.sigmoid(x)
            state = gate * state + (1 - gate) * jnp.tanh(x)
            return state, state * gate

        def step(x, w):
            gates = jnp.cumsum(x @ w["in"], 0)
            _, y = lax.scan(jax.checkpoint(cell) if checkpoint else cell, jnp.zeros_like(x[0]), gates)
            return x + y @ w["out"], None

        return (lax.scan(step, x, w)[0] ** 2).mean()

    w = {"in": normal(1, layers, 8, 8), "out": normal(2, layers, 8, 8)}
    return jax.value_and_grad(loss), (w, normal(3, steps, 4, 8))


def by_hand():
    """A scan whose layers are manual computations over a mesh."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def loss(w, x):
        def step(x, w):
            local = jax.shard_map(
                layer, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()), out_specs=spec
            )
            return local(x, w), None

        return (lax.scan(step, x, w)[0] ** 2).mean()

    return jax.value_and_grad(loss), (weights(3), normal(9, 2, 4, 8))


PROGRAMS = {
    "dropout": (lambda: decoder(dropout=True), 1),
    "bf16": (lambda: decoder(dtype=jnp.bfloat16), 1),
    "chunked attention": (lambda: decoder(attention=attend_chunked), 1),
    "checkpointed": (lambda: decoder(checkpoint=True), 1),
    "encoder and decoder": (encoder_decoder, 2),
    "gradient accumulation": (accumulated, 1),
    "LSTM both ways": (recurrent, 2),
    "mixture of experts": (mixture, 1),
    "unrolled by two": (lambda: decoder(layers=4, unroll=2), 1),
    "unrolled, checkpointed": (lambda: decoder(layers=4, unroll=2, checkpoint=True), 1),
    "unrolled both ways": (lambda: recurrent(steps=4, unroll=2), 2),
    "one iteration": (lambda: decoder(layers=1), 1),
    "map": (mapped, 1),
    "recurrent layers": (recurrent_layers, 1),
    "counted": (counted, 1),
    "manual computations": (by_hand, 1),
}


def lowered(build):
    function, arguments = build()
    module = jax.jit(function).lower(*arguments).compiler_ir("stablehlo")
    return module.operation.get_asm(print_generic_op_form=True, enable_debug_info=True), arguments


def rewritten(text, options):
    module = _core.Module.parse(text)
    result = module.run(f"builtin.module(farrier-remat-loops{{{options}}})")
    counters = {n: c for record in result.passes for n, c in record.counters.items()}
    return bytes(module.print()).decode(), counters


def planned_within(text, share, *, small_bytes):
    """The program as planned on the device alone, within that share of the temporaries that it is estimated to need."""
    module = _core.Module.parse(text)
    budget = int(share * json.loads(module.query("memory.estimate"))["temp"])
    RematDriver().apply(module, plan_of(module, budget=budget, offload=False, small_bytes=small_bytes))
    return bytes(module.print()).decode()


def run(text, arguments):
    device = jax.devices()[0]
    compiled = oracle.compile_module(text, devices=[device], compiler_options=OPTIONS)
    inputs = [jax.device_put(a, device) for a in jax.tree.leaves(arguments)]
    results = compiled.executable.execute_sharded(inputs).disassemble_into_single_device_arrays()
    return [np.asarray(shards[0]) for shards in results]


@pytest.mark.parametrize("name", PROGRAMS)
def test_arbitrary_choices_mean_the_same(name):
    build, pairs = PROGRAMS[name]
    text, arguments = lowered(build)
    expected = run(text, arguments)
    new, counters = rewritten(text, f"stress={list(PROGRAMS).index(name)} sink-bytes=1")
    assert counters["loop-pairs-rewritten"] == pairs
    for a, b in zip(expected, run(new, arguments), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ["dropout", "chunked attention", "checkpointed", "LSTM both ways"])
def test_stacks_of_values_in_a_row_mean_the_same(name, tmp_path):
    build, _ = PROGRAMS[name]
    text, arguments = lowered(build)
    stacks = {}
    for least in (0, 1):
        module, file = _core.Module.parse(text), tmp_path / f"{least}.json"
        file.write_text(json.dumps(plan_of(module, stress=1, flat_bytes=least)))
        module.run(f"builtin.module(farrier-remat{{plan={file}}})")
        new = bytes(module.print()).decode()
        writes = re.findall(r"dynamic_update_slice.*-> tensor<([0-9x]+)x", new)
        stacks[least] = sum(shape.count("x") > 1 for shape in writes)
        for a, b in zip(run(text, arguments), run(new, arguments), strict=True):
            assert a.tobytes() == b.tobytes()
    assert stacks[1] < stacks[0]


@pytest.mark.parametrize("name", ["chunked attention", "recurrent layers"])
@pytest.mark.parametrize("seed", range(4))
def test_loops_inside_of_a_pair_save_what_is_chosen_and_mean_the_same(name, seed):
    text, arguments = lowered(PROGRAMS[name][0])
    module = _core.Module.parse(text)
    plan = plan_of(module, stress=seed, small_bytes=1)
    assert ("within" in plan["loops"][0]) == (seed != 3)
    RematDriver().apply(module, plan)
    for a, b in zip(run(text, arguments), run(bytes(module.print()).decode(), arguments), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_loop_inside_of_a_pair_need_not_save_all_that_is_cheap_to_make():
    """As jax.checkpoint around its body does, which computes no product again here."""
    layers = dict(layers=4, steps=64)
    text, arguments = lowered(lambda: recurrent_layers(**layers))
    module = _core.Module.parse(text)
    written = json.loads(module.query("memory.estimate", "{}"))["temp"]
    by_hand, _ = lowered(lambda: recurrent_layers(**layers, checkpoint=True))
    budget = json.loads(_core.Module.parse(by_hand).query("memory.estimate", "{}"))["temp"]
    assert budget < 0.8 * written
    plan = plan_of(module, budget=int(1.02 * budget), small_bytes=1, offload=False)
    assert plan["predicted"]["fits"] and plan["predicted"]["flops"] == 0
    RematDriver().apply(module, plan)
    for a, b in zip(run(text, arguments), run(bytes(module.print()).decode(), arguments), strict=True):
        assert a.tobytes() == b.tobytes()


def test_stacks_that_all_fit_are_put_in_rows_where_that_is_asked_for(tmp_path):
    text, arguments = lowered(decoder)
    module, file = _core.Module.parse(text), tmp_path / "plan.json"
    assert plan_of(module, budget=1 << 40)["loops"] == []
    plan = plan_of(module, budget=1 << 40, flat_bytes=1)
    assert plan["predicted"]["seconds"] == plan["predicted"]["flops"] == 0
    file.write_text(json.dumps(plan))
    module.run(f"builtin.module(farrier-remat{{plan={file}}})")
    new = bytes(module.print()).decode()
    flat, before = (len(re.findall(r"dynamic_update_slice.*-> tensor<3x[0-9]+xf32>", t)) for t in (new, text))
    assert flat > before
    for a, b in zip(run(text, arguments), run(new, arguments), strict=True):
        assert a.tobytes() == b.tobytes()


def test_stacks_keep_within_their_share():
    text, _ = lowered(decoder)

    def stack_bytes(module):
        pairs = json.loads(_core.Module.parse(module).query("remat.loops", "{}"))["pairs"]
        return sum(pair["stack_bytes"] for pair in pairs), len(pairs)

    before, _ = stack_bytes(text)
    # A third of the way between two choices: the loops are split, and each part is a pair again.
    after, pairs = stack_bytes(rewritten(text, "save=0.4")[0])
    assert 0 < after <= 0.4 * before
    assert pairs == 2


def test_an_unrolled_scan_is_cut_as_finely_as_its_layers():
    def frontier(unroll):
        text, _ = lowered(lambda: decoder(layers=4, unroll=unroll))
        (pair,) = json.loads(_core.Module.parse(text).query("remat.loops", "{}"))["pairs"]
        assert pair["iterations"] == 4 // unroll
        least = pair["frontier"][-1]
        return pair["stack_bytes"], least["saved_bytes"], least["flops"]

    # What is stacked is the same; two layers at a time, less need be saved and more is computed again.
    (stacks, least, flops), (same, less, more) = frontier(1), frontier(2)
    assert stacks == same
    assert less == least // 2 and more > flops


def test_groups_of_iterations_that_do_not_match_are_left_alone():
    # Five iterations by twos: forwards 01 23 4, backwards 43 21 0.
    text, _ = lowered(lambda: decoder(layers=5, unroll=2))
    module = _core.Module.parse(text)
    result = module.run("builtin.module(farrier-remat-loops{save=0})")
    assert any("unrolled with a remainder" in diagnostic.message for diagnostic in result.diagnostics)
    assert module.print().count(b"stablehlo.while") == 2


def test_an_unrolled_scan_without_a_loop_is_a_straight_line():
    def least(unrolled):
        def loss(w, x):
            if unrolled:
                x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, w, unroll=4)
            else:
                for i in range(4):
                    x = layer(x, {name: value[i] for name, value in w.items()})
            return (x**2).mean()

        text, _ = lowered(lambda: (jax.grad(loss), (weights(4), normal(9, 8, 64, 8))))
        assert "stablehlo.while" not in text
        module = _core.Module.parse(text)
        request = json.dumps({"plan": plan_of(module, budget=1)})
        return json.loads(module.query("memory.estimate", request))["temp"]

    # As long as residuals are glued together, four times as much.
    assert least(unrolled=True) < 2.1 * least(unrolled=False)


def test_rewriting_is_deterministic():
    text, _ = lowered(encoder_decoder)
    assert rewritten(text, "save=0.3") == rewritten(text, "save=0.3")


def plan_of(module, **options):
    request = {"budget": 0, "small_bytes": 64} | options
    return json.loads(module.query("remat.plan", json.dumps(request)))


def test_a_plan_that_leaves_a_little_may_cost_more_where_asked():
    text, _ = lowered(encoder_decoder)
    module = _core.Module.parse(text)
    written = json.loads(module.query("memory.estimate", "{}"))["temp"]
    # What one plan uses up.
    budget = int(plan_of(module, budget=int(0.52 * written), sparing=0)["predicted"]["after"] / 0.998)
    tight, spared = (plan_of(module, budget=budget, sparing=share)["predicted"] for share in (0, 1))
    assert tight["fits"] and tight["after"] > 0.995 * budget >= spared["after"]
    assert tight["seconds"] < spared["seconds"]
    # Not more than that.
    assert plan_of(module, budget=budget, sparing=1e-9)["predicted"] == tight


@pytest.fixture(scope="module")
def checkpointed():
    """A scan whose layers say themselves what is computed again."""
    text, _ = lowered(lambda: decoder(checkpoint=True))
    return _core.Module.parse(text)


def test_checkpoints_are_planned_anew_or_kept(checkpointed):
    def saved(keep):
        plans = [plan_of(checkpointed, keep_checkpoints=keep, stress=seed) for seed in range(6)]
        parts = [part for plan in plans for loop in plan["loops"] for part in loop["parts"]]
        return {name for part in parts for name in part["save"]}

    assert not any("dot_general" in name for name in saved(keep=True))
    assert any("dot_general" in name for name in saved(keep=False))


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_flops_or_seconds_decide(share):
    """Where FLOPs count, no plan of equal memory has fewer; the prices are what the loop is cut by."""
    text, _ = lowered(lambda: decoder(layers=4))
    module = _core.Module.parse(text)
    machine = {"flops_full": 1e18, "bytes_per_second": 1e9}
    budget = int(share * json.loads(module.query("memory.estimate", "{}"))["temp"])
    by = {o: plan_of(module, budget=budget, objective=o, machine=machine) for o in ("time", "flops")}
    assert by["flops"]["predicted"]["fits"]
    assert by["flops"]["predicted"]["flops"] <= by["time"]["predicted"]["flops"]


def test_pairs_of_loops_share_a_budget():
    """Where each of three recurrences can spare something for nothing, none of them computes a product again."""

    def cell(hidden, entering):
        i, f = jnp.split(jax.nn.sigmoid(entering[0] + hidden @ entering[1]), 2, -1)
        hidden = f * hidden + i * jnp.tanh(hidden)
        return hidden, hidden

    def loss(w, x):
        for each in w:
            _, x = lax.scan(lambda h, e, each=each: cell(h, (e, each)), jnp.zeros((8, 64)), x @ each)
        return (x**2).mean()

    arguments = [normal(i, 64, 128) for i in range(3)], normal(3, 256, 8, 64)
    text, _ = lowered(lambda: (jax.value_and_grad(loss), arguments))
    module = _core.Module.parse(text)
    written = json.loads(module.query("memory.estimate"))["temp"]
    plan = plan_of(module, budget=int(0.6 * written), offload=False)
    assert plan["predicted"]["fits"]
    assert plan["predicted"]["flops"] == 0
    assert len(plan["loops"]) == 3
    RematDriver().apply(module, plan)
    for a, b in zip(run(text, arguments), run(bytes(module.print()).decode(), arguments), strict=True):
        assert a.tobytes() == b.tobytes()


def test_gradients_before_loops_that_were_split_run_before_them():
    """XLA would put the head's off until after them, and hold the logits' gradient."""

    def build():
        def loss(w, head, x):
            x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, w)
            return ((x @ head) ** 2).mean()

        arguments = weights(4), normal(1, 8, 48), normal(9, 2, 4, 8)
        return jax.value_and_grad(loss, argnums=(0, 1)), arguments

    text, arguments = lowered(build)
    changed, _ = rewritten(text, "save=0.4")
    outside = [line for line in changed.splitlines() if "stablehlo.optimization_barrier" in line]
    assert any("tensor<8x48xf32>" in line for line in outside)
    assert not any("tensor<8x48xf32>" in line for line in text.splitlines() if "optimization_barrier" in line)
    for a, b in zip(*(jax.tree.leaves(run(t, arguments)) for t in (text, changed)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weight_gradients_of_a_body_run_before_its_peak():
    """XLA would put those of the wide layer off, and hold what they read while the scores of attention are in memory."""

    def build():
        def step(x, w):
            q = (x @ w["q"]).reshape(2, 64, 2, 8)
            x = x + attend(q, q, q).reshape(2, 64, 16)
            return x + jnp.tanh(x @ w["up"]) @ w["down"], None

        def loss(w, x):
            return (lax.scan(step, x, w)[0] ** 2).mean()

        shapes = {"q": (4, 16, 16), "up": (4, 16, 64), "down": (4, 64, 16)}
        return jax.value_and_grad(loss), (
            {n: normal(i, *s) for i, (n, s) in enumerate(shapes.items())},
            normal(9, 2, 64, 16),
        )

    text, arguments = lowered(build)
    changed = planned_within(text, 0.6, small_bytes=1024)
    waits = [line for line in changed.splitlines() if "stablehlo.optimization_barrier" in line]
    assert len(waits) == 1
    # They are in their stacks by then.
    assert "tensor<4x16x64xf32>" in waits[0] and "tensor<4x64x16xf32>" in waits[0]
    for a, b in zip(run(text, arguments), run(changed, arguments), strict=True):
        assert a.tobytes() == b.tobytes()


def test_updates_run_before_a_peak_that_their_gradients_would_raise():
    """Without a scan: the head's gradient is as wide as the vocabulary, and its update waits for nothing."""

    def build():
        def loss(w, x):
            w, x = jax.tree.map(lambda v: v.astype(jnp.bfloat16), (w, x))
            for each in ("first", "second"):
                q = (x @ w[each]).reshape(2, 64, 2, 32)
                x = x + attend(q, q, q).reshape(2, 64, 64)
            return (jnp.tanh(x @ w["head"]).astype(jnp.float32) ** 2).mean()

        def step(state, x):
            w, momentum = state
            value, gradient = jax.value_and_grad(loss)(w, x)
            momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
            return (jax.tree.map(lambda w, m: w - 0.1 * m, w, momentum), momentum), value

        shapes = {"first": (64, 64), "second": (64, 64), "head": (64, 96)}
        w = {n: normal(i, *s) for i, (n, s) in enumerate(shapes.items())}
        return step, ((w, jax.tree.map(jnp.zeros_like, w)), normal(9, 2, 64, 64))

    text, arguments = lowered(build)
    changed = planned_within(text, 0.8, small_bytes=1024)
    lines = changed.splitlines()
    waits = [i for i, line in enumerate(lines) if line.count("tensor<64x96xf32>") == 4 and "barrier" in line]
    scores = [i for i, line in enumerate(lines) if "dot_general" in line and "x64x64xf32>" in line]
    assert len(waits) == 1 and waits[0] < scores[-1]
    for a, b in zip(run(text, arguments), run(changed, arguments), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("element", ["f32", "bf16"])
def test_a_clipped_heads_gradient_runs_before_the_loop_over_layers(element):
    """XLA may put it off until after the loop, and hold the logits' gradient, which is padded where logits are cut.

    What is cast for the products waits as they made it, not as the update reads it.
    """

    def build():
        def loss(w, x):
            x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, w["layers"])
            x, head = (v.astype({"f32": jnp.float32, "bf16": jnp.bfloat16}[element]) for v in (x, w["head"]))
            return ((x @ head)[:, :-1] ** 2).astype(jnp.float32).mean()

        def step(w, x):
            gradient = jax.grad(loss)(w, x)
            length = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradient)))
            return jax.tree.map(lambda w, g: w - 0.1 * g / jnp.maximum(length, 1), w, gradient)

        return step, ({"layers": weights(4), "head": normal(1, 8, 96)}, normal(9, 2, 16, 8))

    text, arguments = lowered(build)
    changed = planned_within(text, 0.7, small_bytes=256)
    lines = changed.splitlines()
    waits = [i for i, line in enumerate(lines) if "barrier" in line and f"tensor<8x96x{element}>" in line]
    gradients = [
        i for i, line in enumerate(lines) if "dot_general" in line and f"-> tensor<96x8x{element}>" in line
    ]
    loops = [i for i, line in enumerate(lines) if "stablehlo.while" in line]
    assert len([line for line in lines if "barrier" in line and "tensor<8x96x" in line]) == len(waits)
    assert waits and gradients[0] < waits[0] < loops[-1]
    for a, b in zip(run(text, arguments), run(changed, arguments), strict=True):
        assert a.tobytes() == b.tobytes()


def test_one_iteration_is_computed_again_when_its_gradient_is_there():
    """XLA inlines the loops of that iteration, and what waited for nothing would run in the forward part."""
    text, arguments = lowered(lambda: decoder(layers=3))
    module = _core.Module.parse(text)
    written = json.loads(module.query("memory.estimate"))["temp"]
    plan = plan_of(module, budget=int(0.6 * written), offload=False, small_bytes=256)
    (loop,) = plan["loops"]
    saved = loop["parts"][0]["save"]
    loop["parts"] = [{"iterations": 1, "save": []}, {"iterations": 2, "save": saved}]
    RematDriver().apply(module, plan)
    changed = bytes(module.print()).decode()
    waits = [line for line in changed.splitlines() if "stablehlo.optimization_barrier" in line]
    carried = f"tensor<{'x'.join(map(str, arguments[-1].shape))}xf32>"
    # What the iteration starts from and the gradient that it goes on with.
    assert any(line.count(carried) >= 4 for line in waits)
    for a, b in zip(run(text, arguments), run(changed, arguments), strict=True):
        assert a.tobytes() == b.tobytes()


def test_masks_of_a_constant_key_are_drawn_again():
    """XLA stores them as any others; what they are drawn from waits, or XLA would merge both masks. As a GPU draws them."""

    def loss(w, x):
        for key, each in zip(jax.random.split(jax.random.key(7), 4), w, strict=True):
            kept = jax.random.bernoulli(key, 0.9, x.shape)
            x = jnp.where(kept, jnp.tanh(x @ each), 0) @ each
        return (x**2).mean()

    arguments = [normal(i, 64, 64) for i in range(4)], normal(9, 256, 64)
    traced = jax.jit(jax.value_and_grad(loss)).trace(*arguments)
    step = traced.lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")
    text = step.operation.get_asm(print_generic_op_form=True, enable_debug_info=True)
    changed = planned_within(text, 0.5, small_bytes=4096)
    assert len(re.findall(r"stablehlo.compare.*-> tensor<256x64xi1>", changed)) > 4
    waits = [line for line in changed.splitlines() if "stablehlo.optimization_barrier" in line]
    assert any("ui32>" in line for line in waits)
    for a, b in zip(run(text, arguments), run(changed, arguments), strict=True):
        assert a.tobytes() == b.tobytes()


def test_where_flops_decide_transfers_cost_next_to_nothing():
    def loss(w, x):
        return jnp.sum(lax.scan(lambda x, w: (jnp.sin(jnp.sin(x @ w) @ w), None), x, w)[0])

    shapes = (
        jax.ShapeDtypeStruct((8, 1024, 1024), jnp.float32),
        jax.ShapeDtypeStruct((1024, 1024), jnp.float32),
    )
    text, _ = lowered(lambda: (jax.grad(loss), shapes))
    module = _core.Module.parse(text)
    # A link so slow that time forbids it.
    machine = {
        "flops_full": 1e15,
        "flops_half": 1e15,
        "bytes_per_second": 1e13,
        "host_bytes_per_second": 1e11,
    }
    request = {
        "budget": int(0.6 * json.loads(module.query("memory.estimate", "{}"))["temp"]),
        "offload": True,
    }
    time, flops = (
        plan_of(module, objective=objective, machine=machine, **request)["predicted"]
        for objective in ("time", "flops")
    )
    assert time["host_bytes"] == 0 < time["flops"]
    assert flops["host_bytes"] > 0 == flops["flops"]
    assert flops["seconds"] > time["seconds"] > 0


def test_elementwise_work_is_computed_again_before_products():
    """However many operations it has, one kernel reads what it starts from and writes what comes of it: less than a product."""

    def chained(x):
        x = x.astype(jnp.float32)
        x = x * x
        for k in range(8):
            x = jnp.sin(x) if k == 7 else x * (1 + 0.1 * k) + 0.1
        return x.astype(jnp.bfloat16)

    def loss(w, x):
        x, _ = lax.scan(lambda x, w: (jnp.tanh(chained(x @ w["a"]) @ w["b"]), None), x, w)
        return (x.astype(jnp.float32) ** 2).mean()

    w = {n: jnp.ones((4, 1024, 1024), jnp.bfloat16) for n in "ab"}
    text, _ = lowered(lambda: (jax.value_and_grad(loss), (w, jnp.ones((8192, 1024), jnp.bfloat16))))
    module = _core.Module.parse(text)
    # Both products of 16 MB of each layer are kept, with what the layers start from.
    plan = plan_of(module, budget=int(330e6), small_bytes=4 << 20, offload=False)
    assert plan["predicted"]["fits"] and plan["predicted"]["flops"] == 0


def accumulated(layers=3, parts=4):
    """Gradients of unrolled layers, summed over parts of a batch in a loop, beside a large sum."""

    def loss(w, x):
        for each in w:
            x = jnp.sin(x @ each["a"]) @ each["b"]
        return (x**2).mean()

    def step(w, x):
        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.grad(loss)(w, part)), None

        sums = lax.scan(add, jax.tree.map(jnp.zeros_like, w), x)[0]
        return jax.tree.map(lambda p, g: p - 0.1 * g, w, sums)

    w = [{"a": normal(2 * i, 64, 256), "b": normal(2 * i + 1, 256, 64)} for i in range(layers)]
    return step, (w, normal(9, parts, 128, 64))


def test_layers_in_a_loop_that_sums_gradients_are_planned_beside_the_sums():
    text, arguments = lowered(accumulated)
    module = _core.Module.parse(text)
    written = json.loads(module.query("memory.estimate", "{}"))["temp"]
    plan = plan_of(module, budget=int(0.7 * written), small_bytes=1024, offload=False)
    assert plan["predicted"]["fits"] and plan["blocks"]
    assert all("/" in block["path"] for block in plan["blocks"])
    RematDriver().apply(module, plan)
    for a, b in zip(run(text, arguments), run(bytes(module.print()).decode(), arguments), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_loop_that_saves_for_another_may_run_again_as_a_whole():
    """Layers with a recurrence each: what jax.checkpoint around a layer does. What it costs is counted."""

    def cell(state, now):
        state = jnp.tanh(state + now)
        return state, state

    def loss(w, x):
        for each in w:
            x = lax.scan(cell, jnp.zeros(x.shape[1:]), x @ each)[1]
        return (x**2).mean()

    text, arguments = lowered(
        lambda: (jax.value_and_grad(loss), ([normal(i, 32, 32) for i in range(4)], normal(9, 64, 8, 32)))
    )
    module = _core.Module.parse(text)
    before = json.loads(module.query("cost.total", "{}"))["flops"]
    plan = plan_of(module, budget=1, small_bytes=1024, offload=False)
    again = [name for b in plan["blocks"] for s in b["segments"] if s for name in s["recompute"]]
    assert any("stablehlo.while" in name for name in again)
    RematDriver().apply(module, plan)
    after = json.loads(module.query("cost.total", "{}"))["flops"]
    assert plan["predicted"]["flops"] == pytest.approx(after - before)
    for a, b in zip(run(text, arguments), run(bytes(module.print()).decode(), arguments), strict=True):
        assert a.tobytes() == b.tobytes()
