"""The exact reference of the benchmarks, against brute force and against the planner."""

import collections
import itertools
import json
import math
import pathlib
import random
import sys

import farrier
import jax
import jax.numpy as jnp
import pytest
from farrier import _core
from farrier._src.drivers import remat

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks" / "remat"))

import exact
import straight
import workloads

MIB = 2**20


def random_block(seed: int) -> tuple[dict, int]:
    """Five forward values at operations 0 to 4, and a backward part of five operations that reads some of them. From
    the 24th on most values cost nothing to compute again.
    """
    draw = random.Random(seed)
    cost = (
        (lambda: draw.randrange(1, 9)) if seed < 24 else (lambda: draw.choice((0, 0, draw.randrange(1, 9))))
    )
    values, reads = [], []
    for v in range(5):
        values.append(
            {
                "key": str(v),
                "operation": v,
                "merged": v,
                "bytes": draw.choice((8, 8, 16, 24)) * MIB,
                "seconds": cost() * 1e-6,
                "recomputable": draw.random() < 0.9,
                "stored": draw.random() < 0.8,
                "elementwise": False,
                "kept_from": min(5, v + draw.randrange(1, 3)),
                "beside_bytes": draw.choice((0, 0, 8)) * MIB,
                "operands": sorted(draw.sample(range(v), min(v, draw.randrange(3)))),
            }
        )
    for v in sorted(draw.sample(range(5), 3)):
        op = draw.randrange(5, 10)
        reads.append([op, min(9, op + draw.randrange(2)), v, False])
    base = [draw.randrange(4) * 8 * MIB for _ in range(10)]
    # Between two operations that read something nothing changes, nor is anything computed again.
    for t in range(6, 10):
        if t not in times_of(reads):
            base[t] = base[t - 1]
    block = {"boundary": 4, "values": values, "reads": reads, "base_bytes": base}
    block["before_bytes"] = [max(0, bytes - draw.randrange(3) * 8 * MIB) for bytes in base]
    return block, draw.randrange(32, 72, 8) * MIB


def times_of(reads: list) -> list[int]:
    """Where something can begin or end in the backward part of a random block."""
    return sorted({5} | {t for op, last, _, _ in reads for t in (op, op + 1, last + 1) if t < 10})


def fits(block: dict, kept: tuple, placed: tuple, budget: int) -> bool:
    """Whether what is `kept`, and stored values computed again right before the operations `placed`, take at most `budget`
    bytes and leave nothing without an operand in time.
    """
    values, begin = block["values"], block["boundary"] + 1
    asked, until = [math.inf] * len(values), [-1] * len(values)
    for op, last, v, _ in block["reads"]:
        asked[v], until[v] = min(asked[v], op), max(until[v], last)
    for w in reversed(range(len(values))):
        if kept[w] or asked[w] == math.inf:
            continue
        if values[w]["stored"]:
            if placed[w] > asked[w]:
                return False
            asked[w] = placed[w]
        for u in values[w]["operands"]:
            asked[u] = min(asked[u], asked[w])
            # What is computed right before an operation has read by then.
            until[u] = max(until[u], asked[w] - 0.5 if values[w]["stored"] else until[w])

    def size(v: int) -> int:
        # What is fused may still be kept, as a buffer; what is always kept and fused has none.
        return values[v]["bytes"] if values[v]["stored"] or (kept[v] and values[v]["recomputable"]) else 0

    def there(v: int, t: float) -> bool:
        begins = values[v]["kept_from"] if kept[v] else asked[v]
        return asked[v] < math.inf and begins <= t <= (max(until[v], begin - 1) if kept[v] else until[v])

    every = range(len(values))
    for t, base in enumerate(block["base_bytes"]):
        if base + sum(size(v) for v in every if there(v, t)) > budget:
            return False
    for w in every:
        if kept[w] or asked[w] == math.inf or not values[w]["stored"]:
            continue
        # Right before the operation, without what is computed there, but with what w reads.
        t = asked[w]
        carried = {v for v in every if there(v, t) and (kept[v] or asked[v] < t)}
        carried |= {u for u in values[w]["operands"] if values[u]["stored"]}
        if block["before_bytes"][t] + sum(map(size, carried)) + size(w) + values[w]["beside_bytes"] > budget:
            return False
    return True


def earliest(block: dict) -> list[float]:
    """Where each value may be computed again at the earliest: where it may be asked for, or at the beginning of the backward
    part if what it reads has more bytes.
    """
    values, result = block["values"], [math.inf] * len(block["values"])
    for op, _, v, _ in block["reads"]:
        result[v] = min(result[v], op)
    for w in reversed(range(len(values))):
        if result[w] < math.inf and values[w]["recomputable"]:
            if (
                values[w]["stored"]
                and sum(values[u]["bytes"] for u in values[w]["operands"]) > values[w]["bytes"]
            ):
                result[w] = block["boundary"] + 1
            for u in values[w]["operands"]:
                result[u] = min(result[u], result[w])
    return result


def brute_force(block: dict, budget: int) -> float:
    """The least seconds over everything that may be kept and every place of what is computed again."""
    values, times, best = block["values"], times_of(block["reads"]), math.inf
    begin = [min(t, 9) for t in earliest(block)]
    for kept in itertools.product((False, True), repeat=len(values)):
        if any(not keep and not value["recomputable"] for keep, value in zip(kept, values, strict=True)):
            continue
        places = [
            [t for t in times if t >= begin[v]] if value["stored"] and not kept[v] else [0]
            for v, value in enumerate(values)
        ]
        for placed in itertools.product(*places):
            needed = {v for _, _, v, _ in block["reads"]}
            for w in reversed(range(len(values))):
                if w in needed and not kept[w]:
                    needed.update(values[w]["operands"])
            cost = sum(values[w]["seconds"] for w in needed if not kept[w])
            if cost >= best:
                continue
            if fits(block, kept, placed, budget):
                best = cost
    return best


@pytest.mark.parametrize("seed", range(48))
def test_the_reference_finds_what_brute_force_finds(seed):
    block, budget = random_block(seed)
    expected = brute_force(block, budget)
    found = straight.Reference(block, budget).solve(limit=30, gap=0)
    if expected == math.inf:
        assert found["exact_seconds"] is None
    else:
        assert found["exact_seconds"] == pytest.approx(expected, abs=1e-9)


def test_most_random_blocks_have_something_to_decide():
    best = [brute_force(*random_block(seed)) for seed in range(24)]
    assert sum(0 < seconds < math.inf for seconds in best) >= 8


def scores(**of_product) -> dict:
    """Two products, of which the first is read through a fused value that reads a small one, too: the last layer's scores
    and the first's with their maximum.
    """
    common = {"elementwise": False, "kept_from": 5, "beside_bytes": 0, "recomputable": True, "stored": True}
    values = [
        {**common, "bytes": 24 * MIB, "seconds": 5e-6, "operands": [], **of_product},
        {**common, "bytes": MIB, "seconds": 1e-6, "operands": [0], "recomputable": False},
        {**common, "bytes": 24 * MIB, "seconds": 1e-6, "operands": [0, 1], "stored": False},
        {**common, "bytes": 24 * MIB, "seconds": 5e-6, "operands": []},
    ]
    values = [{"key": str(v), "operation": v, "merged": v, **value} for v, value in enumerate(values)]
    reads = [[6, 6, 3, False], [8, 9, 2, True]]
    base = [0] * 10
    return {"boundary": 4, "values": values, "reads": reads, "base_bytes": base, "before_bytes": base}


def test_a_small_value_that_is_kept_binds_nothing():
    block = scores()
    assert brute_force(block, 32 * MIB) == pytest.approx(6e-6)
    assert straight.Reference(block, 32 * MIB).solve(limit=30)["exact_seconds"] == pytest.approx(6e-6)


def test_a_result_may_take_the_place_of_what_it_is_made_of():
    block = scores(last_read=8)
    # What the last operation makes is as large as the scores.
    block["base_bytes"] = [0] * 9 + [24 * MIB]
    assert straight.Reference(block, 32 * MIB).solve(limit=30)["exact_seconds"] == pytest.approx(6e-6)
    del block["values"][0]["last_read"]
    assert straight.Reference(block, 32 * MIB).solve(limit=30)["exact_seconds"] is None


def keeps_a_part(plan: dict, blocks: list) -> bool:
    """Whether the plan computes some, but not all, of the products again that XLA makes one."""
    segments = [segment for block in plan["blocks"] for segment in block["segments"] if segment]
    recomputed = {name for segment in segments for name in segment["recompute"]}
    again = collections.defaultdict(set)
    for value in blocks[0]["values"]:
        again[value["merged"]].add(value["key"] in recomputed)
    return any(len(kinds) > 1 for kinds in again.values())


def rms_norm(x):
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)).astype(x.dtype)


# With norms, the estimate has 1.5 MB more than the segments, and so than the reference: what the optimum is planned by is rejected.
@pytest.mark.parametrize(
    "normed, layers, share, most",
    [
        (False, 2, 0.85, 1.02),
        (False, 2, 0.8, 1.02),
        (False, 2, 0.6, 1.02),
        (False, 3, 0.74, 1.001),
        (True, 2, 0.62, 1.02),
        (True, 2, 0.6, 1.15),
    ],
)
def test_the_planner_is_near_the_reference(normed, layers, share, most):
    norm = rms_norm if normed else lambda x: x

    def loss(weights, x):
        for w in weights:
            x = x + jnp.tanh(norm(x) @ w["in"]) @ w["out"]
            x = x + (jax.nn.silu(norm(x) @ w["gate"]) * (norm(x) @ w["up"])) @ w["down"]
        if normed:
            return jnp.mean(jax.nn.logsumexp((norm(x) @ weights[0]["gate"]).astype(jnp.float32), -1))
        return jnp.mean(x.astype(jnp.float32) ** 2)

    sizes = {"in": (512, 512), "out": (512, 512), "gate": (512, 1408), "up": (512, 1408), "down": (1408, 512)}
    weights = {name: jax.ShapeDtypeStruct(size, jnp.bfloat16) for name, size in sizes.items()}
    arguments = [weights] * layers, jax.ShapeDtypeStruct((8192, 512), jnp.bfloat16)
    module = jax.jit(jax.grad(loss)).lower(*arguments).compiler_ir("stablehlo")
    program = _core.Module.parse(module.operation.get_asm(print_generic_op_form=True, enable_debug_info=True))
    machine = {"machine": remat.machine(farrier.Target("h100"))}
    budget = int(share * json.loads(program.query("memory.estimate"))["temp"])
    plan = json.loads(program.query("remat.plan", json.dumps({"budget": budget, **machine})))
    blocks = json.loads(program.query("remat.blocks", json.dumps(machine)))["blocks"]
    seconds = plan["predicted"]["seconds"]
    solved = [straight.Reference(block, budget).solve(limit=30, known=seconds) for block in blocks]
    exact = min(one["exact_seconds"] or math.inf for one in solved)
    assert plan["predicted"]["fits"]
    assert 0 < seconds <= most * min(exact, *(one["bound_seconds"] for one in solved))
    # The reference keeps all of the products that XLA makes one, or none; a plan that keeps a part may be cheaper.
    assert keeps_a_part(plan, blocks) or exact <= seconds * (1 + 1e-6)


def test_a_decoder_is_planned_as_the_reference_says():
    # What a later segment starts from was counted as kept twice where XLA makes it inside its readers: 1.03 of the optimum.
    (row,) = straight.compare("llm-1b", farrier.Target("h100"), (0.25,), layers=2, limit=30)
    assert 0 < row["exact_seconds"] <= row["bound_seconds"] * (1 + 1e-3)
    assert row["planned_seconds"] == pytest.approx(row["exact_seconds"])


def test_loops_are_decided_near_the_reference():
    step = workloads.build("llm-tiny-scan", layers=5).lower().compiler_ir("stablehlo")
    program = _core.Module.parse(step.operation.get_asm(print_generic_op_form=True, enable_debug_info=True))
    request = {"shares": exact.SHARES, "machine": remat.machine(farrier.Target("h100"))}
    pairs = json.loads(program.query("remat.loops", json.dumps(request)))["pairs"]
    rows = exact.compare(pairs)
    assert len(rows) == len(exact.SHARES)
    for row in rows:
        assert 0 < row["exact_seconds"] <= row["planned_seconds"] * (1 + 1e-6)
        # A split of the loops has to gain 2 %.
        assert row["planned_seconds"] <= 1.02 / 0.98 * row["exact_seconds"]
