"""Planted regressions are named, and a move of code is not one."""

import copy
import pathlib

import report_programs as programs
from farrier._src.report import Report, diff, page


def test_same_program_has_no_changes():
    d = diff.compare(programs.made(), programs.made())
    assert d.changes == ()
    assert d.answer().startswith("memory is unchanged")


def _line(text):
    source = pathlib.Path(programs.__file__).read_text().split("\n")
    return next(k for k, line in enumerate(source, 1) if text in line)


def test_added_residual_is_named_with_its_line():
    d = diff.compare(programs.made(), programs.made("saved"))
    answer = d.answer()
    assert answer.startswith("memory grew by")
    assert f"report_programs.py:{_line('optimization_barrier(jnp.sin(h))')}" in answer
    worst = max(d.of(diff.BUFFER), key=lambda c: c.delta)
    assert worst.name.startswith("residuals f32[512,1024]")
    # Every group's change together is the change of the peak.
    total = sum(c.delta for c in d.of(diff.BUFFER))
    assert total == d.after.peak_bytes - d.before.peak_bytes > 0


def test_lost_donation_is_named():
    d = diff.compare(programs.made(), programs.made("undonated"))
    answer = d.answer()
    assert "state['" in answer and "no longer donated" in answer
    assert {c.name for c in d.of(diff.DONATION)} >= {
        "state['params'][0]['up']",
        "state['momentum'][1]['down']",
    }
    back = diff.compare(programs.made("undonated"), programs.made())
    assert "now donated" in back.answer()


def test_kernel_that_fell_apart_is_named():
    d = diff.compare(programs.made(), programs.made("fenced"))
    grown = [c for c in d.of(diff.KERNEL) if c.delta > 0]
    assert [c.source.rpartition(":")[2] for c in grown] == [str(_line("0.9 * m + g"))]
    assert "0 -> 4 launches" in grown[0].message and "new: loop_add_fusion" in grown[0].message
    assert "slower" in d.answer() and f"report_programs.py:{_line('0.9 * m + g')}" in d.answer()


def test_collective_that_lost_its_overlap_is_named():
    before, after = programs.sharded()[1], programs.sharded(overlap=False)[1]
    assert any(c["done"] is not None and c["exposed_ns"] < c["ns"] for c in before.collectives)
    d = diff.compare(before, after)
    found = d.of(diff.COLLECTIVE)
    assert len(found) == 1
    assert found[0].name == "all-gather" and found[0].delta > 0
    assert f":{_line('jax.lax.all_gather')}" in found[0].source
    assert "exposed" in found[0].message
    assert after.exposed_ns > before.exposed_ns
    assert "all-gather" in d.answer()


def test_moved_code_is_not_a_change():
    """Five lines inserted above everything, in another checkout: the same program."""
    before = programs.made()
    data = copy.deepcopy(before.to_json())

    def moved(source):
        file, _, line = source.rpartition(":")
        return f"/elsewhere/{file.rsplit('/', 1)[-1]}:{int(line) + 5}" if file else source

    data["program"]["source_table"] = [moved(s) for s in data["program"]["source_table"]]
    for items in (data["memory"]["buffers"], data["kernels"], data["collectives"]):
        for item in items:
            item["source"] = moved(item["source"])
    assert diff.compare(before, Report.from_json(data)).changes == ()


def test_versions_and_options_that_differ_are_named():
    before = programs.made()
    data = {
        **before.to_json(),
        "versions": {**before.data["versions"], "jax": "0.4.1"},
        "options": {"xla_gpu_autotune_level": "0"},
    }
    d = diff.compare(before, Report.from_json(data))
    now = before.data["versions"]["jax"]
    assert d.circumstances() == [f"jax {now} -> 0.4.1", "xla_gpu_autotune_level unset -> 0"]
    assert "also different: jax" in str(d) and "also different: jax" in page.render(d.after.compare(before))
    assert diff.compare(before, before).circumstances() == []


def test_diff_as_json_and_text():
    d = diff.compare(programs.made(), programs.made("saved"))
    assert d.to_json()["answer"] == d.answer()
    assert str(d).split("\n")[0] == d.answer()
    assert len(d.to_json()["changes"]) == len(d.changes)


def test_public_module_offers_the_parts():
    from farrier import report

    assert report.Report is Report
    assert report.compare(programs.made(), programs.made()).changes == ()


def test_lines_stay_where_they_are_when_only_their_kernels_changed():
    """The same file compiled in another way: no line of it is taken for its neighbour."""

    def report(lines):
        table = [f"/model.py:{line}" for line in lines]
        names = [name for kinds in lines.values() for name in kinds]
        sources = [k for k, kinds in enumerate(lines.values()) for _ in kinds]
        return Report({"program": {"source_table": table, "names": names, "sources": sources}})

    written = report({3: ["dot.1"], 4: ["dot.2", "cosine"], 5: ["tanh"]})
    rewritten = report({3: ["dot.1", "sine"], 4: ["dot.2"], 5: ["tanh"]})
    assert diff.align(written, rewritten) == {f"/model.py:{k}": f"/model.py:{k}" for k in (3, 4, 5)}
