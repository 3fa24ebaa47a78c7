"""What a better program would not move: each kind of edge in a program that has just that one."""

import inspect

import farrier
import jax
import jax.numpy as jnp
import pytest
from farrier import Target
from farrier._src import errors, report
from farrier._src.cli import main as cli
from farrier._src.report import text

MIB = 1 << 20
ROWS, WIDTH, VOCABULARY = 1024, 64, 8192


def fenced(x):
    return jnp.cos(jax.lax.optimization_barrier(jnp.sin(x)))


def loss(x, w, labels):
    logits = x @ w
    return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0])


def reread(x):
    a = jnp.sort(x, 1)
    return jnp.sum(a, 0), jnp.sum(a, 1)


def lowered(fn, *shapes):
    sharding = Target("h100").sharding()
    arguments = [jax.ShapeDtypeStruct(s, d, sharding=sharding) for s, d in shapes]
    return jax.jit(fn).lower(*arguments)


@pytest.fixture(scope="module")
def loss_report():
    low = lowered(
        jax.grad(loss, (0, 1)),
        ((ROWS, WIDTH), jnp.float32), ((WIDTH, VOCABULARY), jnp.float32), ((ROWS,), jnp.int32),
    )  # fmt: skip
    first = inspect.getsourcelines(loss)[1] + 1
    remark = {"pass": "farrier-fusion", "kind": "missed", "message": "left as it is: a test says so"}
    return report.explain(
        low, target=Target("h100"), remarks=[{**remark, "location": f"{__file__}:{first}"}]
    ), first


def test_two_elementwise_kernels_could_be_one_and_the_bytes_are_exact():
    made = report.explain(lowered(fenced, ((1024, 1024), jnp.float32)), target=Target("h100"))
    found = made.opportunities
    (edge,) = found["edges"]
    line = inspect.getsourcelines(fenced)[1] + 1
    assert (edge["kind"], edge["rewrite"], edge["count"]) == ("fuse", "", 1)
    assert edge["source"].endswith(f"test_report_opportunities.py:{line}")
    # Of x read, sin written, sin read, cos written (4 MiB each) the two in the middle would go.
    assert found["bytes"] == 16 * MIB
    assert edge["removable_bytes"] == found["removable_bytes"] == 8 * MIB
    bandwidth = Target("h100").hbm_bytes_per_s
    assert edge["removable_ns"] == pytest.approx(8 * MIB / bandwidth * 1e9)
    assert found["roofline_ns"] == pytest.approx(16 * MIB / bandwidth * 1e9)


def test_logits_are_named_with_their_line_their_rewrite_and_why_it_did_not_happen(loss_report):
    made, first = loss_report
    found = made.opportunities
    edge = found["edges"][0]
    assert edge["rewrite"] == "cross-entropy"
    assert edge["source"].endswith(f":{first}")
    assert edge["bytes"] == ROWS * VOCABULARY * 4
    assert edge["missed"] == "left as it is: a test says so"
    assert found["removable_bytes"] >= 2 * ROWS * VOCABULARY * 4
    # Each access counts once, whatever edges it belongs to.
    assert found["removable_bytes"] == sum(k["removable_bytes"] for k in found["kernels"])
    assert all(0 <= k["removable_bytes"] <= k["bytes"] for k in found["kernels"])
    assert found["removable_ns"] <= found["roofline_ns"]


def test_a_table_with_as_many_elements_as_logits_is_no_logits():
    def tied(table, x, labels):
        narrow = jax.lax.optimization_barrier(jnp.tanh(table).astype(jnp.bfloat16))
        return loss(x, narrow.T, labels)

    rows = 512  # as many as a row of the table has columns
    low = lowered(
        jax.grad(tied, (0, 1)),
        ((VOCABULARY, rows), jnp.float32), ((rows, rows), jnp.bfloat16), ((rows,), jnp.int32),
    )  # fmt: skip
    made = report.explain(low, target=Target("h100"))
    edges = made.opportunities["edges"]
    assert {e["rewrite"] for e in edges if f"[{rows},{VOCABULARY}]" in e["shape"]} >= {"cross-entropy"}
    of_table = [e for e in edges if f"[{VOCABULARY},{rows}]" in e["shape"]]
    assert of_table
    assert all(e["rewrite"] == "" for e in of_table), of_table


def test_several_readers_of_what_cannot_move_could_share_a_read():
    made = report.explain(lowered(reread, ((1024, 1024), jnp.float32)), target=Target("h100"))
    shared = [e for e in made.opportunities["edges"] if e["kind"] == "share"]
    assert [e["bytes"] for e in shared] == [4 * MIB]
    assert shared[0]["removable_bytes"] == 4 * MIB


def test_the_command_prints_the_ranking(loss_report, tmp_path, capsys):
    made, _ = loss_report
    path = made.save(tmp_path / "step.json")
    assert cli.main(["report", str(path), "--kernels"]) == 0
    printed = capsys.readouterr().out
    assert "removable" in printed and "cross-entropy" in printed and "in chunks of tokens" in printed


def test_ranking_needs_a_target():
    made = report.explain(jax.jit(jnp.sin).lower(jnp.ones(8)))
    assert made.opportunities is None
    with pytest.raises(errors.OptionError, match="roofline of a target"):
        text.opportunities(made)
    assert issubclass(errors.OptionError, farrier.Error)
