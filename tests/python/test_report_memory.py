"""Live bytes over the program equal what XLA reports, and what is live is named rightly."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import report_programs as programs
from farrier._src import errors, hlo, report
from farrier._src.report import estimate, memory, origin
from farrier._src.report.program import Program, layer_of, phase_of, scope_of


@pytest.mark.parametrize("name", ["plain", "scan", "sharded"])
def test_peak_and_total_are_xlas_to_the_byte(name):
    if name == "plain":
        done, made = programs.compiled()[0], programs.made()
    else:
        done, made = programs.scanned() if name == "scan" else programs.sharded()
    stats = done.memory_analysis()
    total = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )
    assert made.peak_bytes == stats.peak_memory_in_bytes
    assert made.total_bytes == total
    # XLA leaves constants out of its total.
    constants = sum(a["bytes"] for a in made.data["memory"]["allocations"] if a["kind"] == "constant")
    assert made.data["memory"]["allocated"] == total + constants
    assert sum(b["bytes"] for b in made.at_peak()) == made.peak_bytes
    assert max(live for _, live in made.data["memory"]["timeline"]) == made.peak_bytes


def test_origins_follow_the_data_flow():
    made = programs.made()
    weights = programs.LAYERS * 2 * 4 * programs.WIDTH**2 * 4
    by_origin = made.peak_by("origin")
    assert by_origin["parameters"] == weights
    assert by_origin["optimizer"] == weights
    assert by_origin["inputs"] == programs.ROWS * programs.WIDTH * 4
    origins = {b["name"]: b["origin"] for b in made.buffers if b["opcode"] == "parameter"}
    assert origins["state['params'][0]['up']"] == "parameters"
    assert origins["state['momentum'][1]['down']"] == "optimizer"
    residuals = [b for b in made.buffers if b["origin"] == "residuals"]
    assert {b["layer"] for b in residuals} >= {"layer_0", "layer_1"}
    assert all("report_programs.py" in b["source"] for b in residuals)
    # A residual is live from the forward into the backward pass, so it spans the peak between them.
    assert all(b["start"] < made.data["memory"]["peak"]["position"] for b in residuals[:1])
    assert all(b["donated"] for b in made.buffers if b["origin"] in ("parameters", "optimizer"))


def test_stacked_residuals_of_a_scan_name_what_computes_them():
    _, made = programs.scanned()
    stacked = [b for b in made.at_peak() if b["origin"] == "residuals" and b["shape"].startswith("f32[4,")]
    assert stacked
    assert all("report_programs.py" in b["source"] for b in stacked)
    assert [loop["trips"] for loop in made.data["program"]["loops"]] == [4, 4]


def test_without_donation_results_are_memory_of_their_own():
    made, kept = programs.made("undonated"), programs.made()
    assert not any(b["donated"] for b in made.buffers)
    assert made.peak_by("origin")["outputs"] - kept.peak_by("origin").get("outputs", 0) > 4 * 2**20
    # The data flow still tells parameters from optimizer state.
    assert made.peak_by("origin")["parameters"] == kept.peak_by("origin")["parameters"]


def test_buffers_of_one_allocation_never_overlap():
    """Two buffers that are live together have bytes of their own: positions and offsets are consistent."""
    for made in (programs.made(), programs.scanned()[1]):
        by_allocation = {}
        for b in made.buffers:
            by_allocation.setdefault(b["allocation"], []).append(b)
        for buffers in by_allocation.values():
            if len(buffers) == 1:
                continue
            for k, a in enumerate(buffers):
                for b in buffers[k + 1 :]:
                    together = a["start"] <= b["end"] and b["start"] <= a["end"]
                    apart = a["offset"] + a["bytes"] <= b["offset"] or b["offset"] + b["bytes"] <= a["offset"]
                    assert not together or apart, (a, b)


def test_cpu_program(tmp_path):
    def loss(w, x):
        return jnp.mean(jnp.tanh(x @ w) ** 2)

    fn = jax.jit(lambda w, x: w - 0.1 * jax.grad(loss)(w, x), donate_argnums=0)
    lowered = fn.lower(jnp.ones((64, 64)), jnp.ones((32, 64)))
    made = report.explain(lowered)
    assert made.step_ns is None
    assert made.peak_bytes <= made.data["memory"]["allocated"]
    assert made.data["memory"]["figures"]["temp"] > 0
    assert "parameters" in made.peak_by("origin")
    assert str(made).startswith("_lambda")


def test_user_says_what_an_argument_is_for():
    artifact = programs.compiled()[1]
    made = report.from_artifact(artifact, origins={r"momentum.*up": "inputs"})
    assert {b["origin"] for b in made.buffers if "momentum" in b["name"]} == {"inputs", "optimizer"}
    with pytest.raises(errors.OptionError, match="expected one of parameters"):
        report.from_artifact(artifact, origins={"x": "weights"})


def test_replay_counts_shared_memory_once():
    """A value that shares another's memory adds nothing and keeps it alive until both are free."""
    artifact = programs.compiled()[1]
    module = hlo.Module(artifact.module)
    program = Program(module)
    assignment = type(artifact.assignment)()
    a, b, c = [i for i in program.steps if i.opcode == "fusion"][:3]
    for number, i in enumerate((a, b, c)):
        assignment.logical_buffers.add(id=number, size=100).defined_at.instruction_id = i.proto.id
    allocation = assignment.buffer_allocations.add(index=0, size=200)
    for number, offset in enumerate((0, 0, 100)):
        allocation.assigned.add(logical_buffer_id=number, offset=offset, size=100)
    trace = assignment.heap_simulator_traces.add(buffer_allocation_index=7)  # jax 0.11 writes a stale index
    for kind, number, share in ((0, 0, 0), (2, 1, 0), (1, 0, 0), (0, 2, 0), (1, 1, 0), (1, 2, 0)):
        trace.events.add(kind=kind, buffer_id=number, share_with_canonical_id=share)
    profile = memory.MemoryProfile(program, assignment)
    assert profile.peak_bytes == 200
    assert [x.bytes for x in profile.buffers] == [100, 100]
    assert profile.buffers[0].shared == 1
    assert np.all(profile.live <= 200)


@pytest.mark.parametrize(
    "op_name, scope, phase",
    [
        ("jit(step)/jvp(layer_3)/mlp/dot_general", "layer_3/mlp", "forward"),
        ("jit(step)/transpose(jvp(layer_3))/mlp/dot_general", "layer_3/mlp", "backward"),
        ("jit(step)/jvp()/while/body/closed_call/checkpoint/attn/exp", "attn", "forward"),
        ("jit(step)/transpose(jvp())/checkpoint/rematted_computation/h0/tanh", "h0", "backward"),
        ("jit(step)/(jvp(a)/convert:jvp(b)/convert:transpose(jvp(c))/dot)", "a", "forward"),
        ("jit(step)/jvp(jit(silu))/mul", "silu", "forward"),
        ("jit(step)/sub", "", "other"),
        ("", "", "other"),
    ],
)
def test_names(op_name, scope, phase):
    assert scope_of(op_name) == scope
    assert phase_of(op_name) == phase


@pytest.mark.parametrize(
    "scope, layer",
    [
        ("layer_3/mlp", "layer_3"),
        ("decoder/layers.7/mlp", "layers.7"),
        ("decoder/blocks/7/mlp", "blocks/7"),
        ("state['p']['layers'][0]['wq']", "state['p']['layers'][0]"),
        ("x", ""),
    ],
)
def test_layers(scope, layer):
    assert layer_of(scope) == layer


def test_unreadable_inputs_are_named(tmp_path):
    with pytest.raises(errors.InputError, match="after_optimizations"):
        report.read_folder(tmp_path)
    with pytest.raises(errors.InputError, match="not an HloProto"):
        report.read_proto(b"\xff\xff\xff\xff", "x.pb")
    with pytest.raises(errors.InputError, match="no buffer assignment"):
        report.read_proto(b"", "x.pb")


def test_origin_names_are_documented():
    assert set(origin.ORIGINS) >= {b["origin"] for b in programs.made().buffers}


def test_estimate_stands_on_what_is_no_temporary_and_reaches_the_planners_peak():
    made, module = programs.made(), programs.module()
    planned = made.data["memory"]["estimate"]
    assert planned["temp"] == json.loads(module.query("memory.estimate"))["temp"]
    fixed = [a for a in made.data["memory"]["allocations"] if a["kind"] != "temp"]
    assert planned["fixed"] == sum(a["bytes"] for a in fixed if a["space"] == "device")
    assert max(b for _, b in planned["points"]) == planned["peak"] == planned["temp"] + planned["fixed"]
    positions = [x for x, _ in planned["points"]]
    assert positions == sorted(positions) and positions[0] == 0
    assert positions[-1] <= len(made.data["program"]["names"])
    # Near XLA's own, or the planner could not plan with it.
    assert abs(planned["peak"] - made.peak_bytes) < 0.25 * made.peak_bytes


def test_estimate_is_aligned_at_operations_that_both_programs_have():
    made = programs.made()
    # Each layer's two products, and their two gradients each.
    assert made.data["memory"]["estimate"]["anchors"] >= programs.LAYERS * 4
    # The gap shows where it is: both curves peak at about the same place.
    points = made.data["memory"]["estimate"]["points"]
    top = max(points, key=lambda p: p[1])[0]
    assert abs(top - made.data["memory"]["peak"]["position"]) < 0.25 * len(made.data["program"]["names"])


def test_estimate_descends_into_loops():
    made = programs.scanned()[1]
    planned = made.data["memory"]["estimate"]
    assert planned["operations"] > 40  # the loops' bodies, not only the loops
    backward = made.data["program"]["loops"][1]
    inside = [b for x, b in planned["points"] if backward["first"] <= x <= backward["last"]]
    assert len(set(inside)) > 3


def test_estimate_of_manual_partitioning_is_per_device_already():
    planned = programs.sharded()[1].data["memory"]["estimate"]
    assert planned["divided_by"] == 1
    assert 0 < planned["temp"] < 2**30


def test_estimate_of_a_program_that_xla_partitions_is_of_one_device():
    made = programs.partitioned()
    planned = made.data["memory"]["estimate"]
    assert planned["divided_by"] == 1
    assert abs(planned["peak"] - made.peak_bytes) < 0.2 * made.peak_bytes


def test_common_names_pair_in_order():
    a = [("x", 0), ("dot", 3), ("dot", 5), ("y", 7), ("dot", 9)]
    b = [("dot", 2), ("dot", 4), ("z", 5), ("y", 6), ("y", 8)]
    assert estimate.common(a, b) == [(3, 2), (5, 4), (7, 6)]
    assert estimate._spread([(2, 4)], 4, 6) == [0, 2, 4, 5]
    assert estimate._spread([], 2, 4) == [0, 2]


def test_no_estimate_without_the_stablehlo_program():
    assert report.from_artifact(programs.compiled()[1]).data["memory"]["estimate"] is None
