"""Measured times beside predicted ones, and the reports of several processes."""

import copy

import farrier
import jax
import jax.numpy as jnp
import pytest
import report_programs as programs
from farrier._src import errors, report
from farrier._src.fusion import driver as fusion
from farrier._src.report import measured, merge, page


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A CPU program, its report and a profile of three runs."""

    def loop_step(w, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
        return x

    fn = jax.jit(loop_step)
    args = jnp.ones((3, 64, 64)), jnp.ones((32, 64))
    made = report.explain(fn.lower(*args))
    jax.block_until_ready(fn(*args))
    folder = tmp_path_factory.mktemp("trace")
    with jax.profiler.trace(str(folder)):
        for _ in range(3):
            jax.block_until_ready(fn(*args))
    return made, folder


def test_measured_times_of_a_cpu_run(traced):
    made, folder = traced
    found = measured.read_trace(folder, made)
    assert found["steps"] == 3
    assert found["step_ns"] > 0
    by_name = {o["name"]: o for o in found["ops"]}
    position = {name: k for k, name in enumerate(made.data["program"]["names"])}
    inside = [
        o
        for name, o in by_name.items()
        if name in position and made.data["program"]["runs"][position[name]] == 3
    ]
    # What stands in the loop's body runs three times a step.
    assert inside and all(o["count"] == pytest.approx(3) for o in inside)
    beside = measured.lay_beside(made, found, device=jax.devices()[0])
    assert beside.data["measured"]["step_ns"] == found["step_ns"]
    assert "Measured on" in str(beside)


@pytest.mark.gpu
def test_measured_times_and_memory_of_a_gpu_run(tmp_path):
    device = jax.devices("cuda")[0]
    fn = jax.jit(lambda w, x: jnp.tanh(x @ w) @ w)
    args = jax.device_put((jnp.ones((1024, 1024)), jnp.ones((512, 1024))), device)
    made = report.explain(fn.lower(*args))
    jax.block_until_ready(fn(*args))
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(3):
            jax.block_until_ready(fn(*args))
    found = measured.read_trace(tmp_path, made)
    assert found["device"].startswith("/device:GPU") and found["steps"] == 3
    assert any(o["position"] is not None and o["ns"] > 0 for o in found["ops"])
    beside = measured.lay_beside(made, found, device=device)
    assert beside.data["measured"]["allocator"]["peak_bytes_in_use"] >= made.peak_bytes


def test_allocator_figures_are_shown_where_the_platform_has_them(traced):
    made, folder = traced
    found = measured.read_trace(folder, made)

    class Device:
        def memory_stats(self):
            return {"bytes_in_use": 3 << 20, "peak_bytes_in_use": 5 << 20, "num_allocs": 7, "pool": "cuda"}

    beside = measured.lay_beside(made, found, device=Device())
    assert beside.data["measured"]["allocator"] == {
        "bytes_in_use": 3 << 20, "peak_bytes_in_use": 5 << 20, "num_allocs": 7,
    }  # fmt: skip
    said = str(beside)
    assert "peak bytes in use" in said and "5 MiB" in said and "num allocs" not in said
    shown = page.render(beside)
    assert "allocator&#39;s peak" in shown and "5 MiB" in shown

    class Silent:
        def memory_stats(self):
            return None

    assert "allocator" not in str(measured.lay_beside(made, found, device=Silent()))


def test_an_optimized_function_reports_on_itself():
    x = jnp.ones((8, 8))
    step = farrier.optimize(jax.jit(lambda x: jnp.tanh(x) @ x), passes=())
    made = step.explain(x).report(budget_bytes=1 << 20)
    assert made.peak_bytes >= 2 * x.nbytes
    assert made.data["memory"]["budget"] == 1 << 20
    assert made.before is None  # nothing was changed
    with pytest.raises(errors.OptionError, match="no program"):
        type(step.explain(x))("f", None).report()


def test_explain_lays_the_step_as_written_beside_the_optimized_one():
    def step(w, h, labels):
        def loss(w):
            logits = (h @ w).astype(jnp.float32)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1))

        return w - jax.grad(loss)(w)

    options = {"target": "h100", "passes": [fusion.Fusion(rewrites=["cross-entropy"], chunks=4)]}
    explanation = farrier.optimize(jax.jit(step, donate_argnums=0), **options).explain(
        jax.ShapeDtypeStruct((256, 4096), jnp.bfloat16),
        jax.ShapeDtypeStruct((1024, 256), jnp.bfloat16),
        jax.ShapeDtypeStruct((1024,), jnp.int32),
    )
    made = explanation.report()
    assert made.before is not None and made.before.peak_bytes > made.peak_bytes
    assert made.data["memory"]["estimate"]["peak"] != made.before.data["memory"]["estimate"]["peak"]
    assert [r["name"] for r in made.remarks if r["kind"] == "applied"] == ["cross-entropy"]
    assert "test_report_runs.py:" in made.remarks[0]["location"]
    assert "memory shrank by" in str(made)


def test_profile_of_another_program_is_refused(traced, tmp_path):
    _, folder = traced
    with pytest.raises(errors.InputError, match="no event of module 'jit_"):
        measured.read_trace(folder, programs.made())
    with pytest.raises(errors.InputError, match="in this folder"):
        measured.read_trace(tmp_path, programs.made())
    (tmp_path / "x.xplane.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(errors.InputError):
        measured.read_trace(tmp_path / "x.xplane.pb", programs.made())


def test_ranks_that_agree_and_the_slowest_of_them():
    made = programs.sharded()[1]
    name = made.collectives[0]["name"]
    ranks = []
    for ns in (10_000.0, 11_000.0, 90_000.0):
        op = {
            "name": name,
            "ns": ns,
            "count": 1,
            "total_ns": ns,
            "predicted_ns": None,
            "position": 0,
            "source": "",
        }
        ranks.append(
            measured.lay_beside(
                made,
                {
                    "device": "d",
                    "steps": 1,
                    "step_ns": ns,
                    "unmatched_ns": 0.0,
                    "ops": [op],
                    "allocator": None,
                },
            )
        )
    merged = merge.merge(ranks)
    assert merged.agree and merged.ranks == 3
    assert merged.slowest == ((name, 2, 90_000.0, 11_000.0),)
    assert "slowest on rank 2" in str(merged)


def test_a_rank_with_another_order_is_named():
    made = programs.sharded()[1]
    data = copy.deepcopy(made.to_json())
    data["collective_order"][1:3] = ["all-reduce f32[8] channel=1 groups=[]", *data["collective_order"][1:2]]
    other = report.Report.from_json(data)
    merged = merge.merge([made, made, other, made])
    (found,) = merged.mismatches
    assert (found.rank, found.what, found.index) == (2, "collective order", 1)
    assert "all-reduce f32[8]" in found.found
    assert not merged.agree and "rank 2" in str(merged)


def test_another_program_is_named_with_its_first_instruction():
    merged = merge.merge([programs.made(), programs.made(), programs.made("saved")])
    assert [m.rank for m in merged.mismatches] == [2]
    assert merged.mismatches[0].what == "program"
    assert merged.mismatches[0].expected != merged.mismatches[0].found
    with pytest.raises(errors.InputError, match="at least two"):
        merge.merge([programs.made()])


def test_order_tells_groups_apart():
    order = programs.sharded()[1].data["collective_order"]
    assert len(order) == 2  # XLA combined the first two
    assert all(o.startswith("all-gather bf16[") and "groups=" in o and "groups=[]" not in o for o in order)
