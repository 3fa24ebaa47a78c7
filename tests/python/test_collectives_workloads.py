"""Every workload whose communication is judged means the same in every form, on eight CPU devices, at small shapes.

Two routes: what is rewritten in StableHLO where the program states its collectives, and what is changed in the program
that XLA partitioned for GPUs, before its scheduler. Our order alone runs the same instructions.
"""

import functools

import jax
import numpy as np
import pytest
import workloads
from farrier._src import hlo
from farrier._src.collectives import prepare, rewrites
from test_collectives_loops import PLAN, before_the_scheduler, run
from test_collectives_passes import through
from test_hooks import TARGET
from test_workloads import EightCpus

DENSE = {"size": "tiny-8", "attention": "naive", "length": 8}
MIXTURE = {**DENSE, "size": "tiny-8-moe"}
TENSOR = {**DENSE, "length": 16}
RING = {"size": "tiny-8", "batch": 1, "length": 16}
GRID = {**DENSE, "tensor": 2}
# By workload, its options at small shapes; the loops have two iterations.
STATED = {
    "fsdp-manual": DENSE | {"layers": 1},
    "fsdp-manual-scan": DENSE,
    "tensor-manual": TENSOR | {"layers": 1},
    "tensor-manual-scan": TENSOR,
    "experts": MIXTURE | {"layers": 1},
    "experts-scan": MIXTURE,
    "pipeline": DENSE | {"layers": 8, "batch": 16, "length": 4},
    "ring": RING | {"layers": 1},
    "ring-unrolled": RING | {"layers": 1},
}
PARTITIONED = {
    **STATED,
    "fsdp": DENSE | {"layers": 1},
    "fsdp-scan": DENSE,
    "data": DENSE | {"layers": 1},
    "data-scan": DENSE,
    "two-axes": GRID | {"layers": 1},
    "two-axes-scan": GRID,
}
CHAINED = {"buckets", "chained"}
# What the rewrites find, where it is something; chains are in all.
FOUND = {
    ("tensor-manual", "split-batch"): {"halved-collectives", "regions", "regrouped-sums"},
    ("tensor-manual-scan", "split-batch"): {"halved-collectives", "regions", "regrouped-sums"},
    ("tensor-manual", "scatter"): {"gathers", "partial-sums", "scattered-reductions"},
    ("tensor-manual-scan", "scatter"): {"gathers", "partial-sums", "scattered-reductions"},
    ("ring-unrolled", "simplify"): {"narrowed"},
    ("ring-unrolled", "chain"): {"narrowed", *CHAINED},
}
# Sums that these add up in another order; the others keep every bit.
REGROUPING = ("split-batch", "scatter")


def test_no_workload_is_left_out():
    assert set(PARTITIONED) == set(workloads.COLLECTIVES)


@functools.cache
def built(name):
    """A workload on this machine's eight devices."""
    return workloads.build(name, EightCpus(), **PARTITIONED[name])


def arguments(name):
    """Random numbers for it, placed as it wants them; the step donates them."""
    one = built(name)
    return jax.tree.map(lambda a, v: jax.device_put(v, a.sharding), one.arguments, one.real_arguments())


@functools.cache
def expected(name):
    """State and loss after a step as written."""
    return jax.tree.map(np.asarray, built(name).function(*arguments(name)))


@pytest.mark.parametrize("form", rewrites.PASSES)
@pytest.mark.parametrize("name", STATED)
def test_forms_mean_the_same(name, form):
    pipeline = rewrites.pipeline(form, numerics="bounded", min_bytes=64, bucket_bytes=512)
    changed, site = through(f"builtin.module({pipeline})", built(name).function)
    changed.lower(*built(name).arguments)
    found = {counter for counter, count in site.counters.items() if count}
    assert found == FOUND.get((name, form), CHAINED if form == "chain" else set())
    if not found:  # The program as written.
        return
    got = jax.tree.map(np.asarray, changed(*arguments(name)))
    want = expected(name)
    if form in REGROUPING:
        assert got[1] == pytest.approx(want[1], rel=1e-3)
        got, want = got[0]["first"], want[0]["first"]
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        if form in REGROUPING:
            # Products and their sums are in bf16.
            assert np.linalg.norm(b - a) <= 0.02 * np.linalg.norm(a)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", PARTITIONED)
def test_changes_before_the_scheduler_keep_every_bit(name):
    data = before_the_scheduler(lambda: workloads.build(name, TARGET, **PARTITIONED[name]).lower())
    new, done = prepare.prepare(hlo.Module(data), PLAN)
    assert done.changed
    before, after = (run(module, jax.tree.leaves(arguments(name))) for module in (data, new))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
