"""The benchmark and the gate with the real XLA:GPU compiler, no GPU: what users see, end to end."""

import dataclasses
import gzip
import html
import json
import os
import pathlib
import re
import shlex
import subprocess
import textwrap

import jax
import jax.numpy as jnp
import pytest
from farrier._src.bench import fits, lines, runner
from farrier._src.bench import result as results
from farrier._src.bench.metric import exact
from farrier._src.cli.main import main
from farrier._src.gate import baseline, compare

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def documented_files(text):
    """The files that the page shows, by name."""
    return dict(re.findall(r"```python file=(\S+)\n(.*?)```", text, re.DOTALL))


def documented_commands(text):
    """The arguments of the page's first block of commands."""
    block = re.search(r"```console\n(.*?)```", text, re.DOTALL)[1]
    return [shlex.split(line.removeprefix("$ farrier ")) for line in block.strip().splitlines()]


def test_a_users_repository(tmp_path, monkeypatch, capsys):
    """The three commands of docs/gate.md: green; after a bad commit red, naming the line."""
    text = (DOCS / "gate.md").read_text()
    for name, content in documented_files(text).items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)

    def git(*args):
        subprocess.run(("git", "-c", "user.name=u", "-c", "user.email=u@example.org", *args), check=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "start")
    quick = ["--repeats", "1", "--cache-dir", str(tmp_path / "cache")]
    bench, update, gate = documented_commands(text)
    assert main([*bench, *quick]) == 0
    assert "train_step" in capsys.readouterr().out
    assert main([*update, *quick]) == 0
    git("add", "baseline.toml", "baseline.lines.json", "baseline.reports")
    git("commit", "-qm", "baseline")
    assert main([*gate, *quick]) == 0
    assert "unchanged" in capsys.readouterr().out
    assert not (tmp_path / "diff").exists()

    good = (tmp_path / "train.py").read_text()
    old = "        hidden = jnp.tanh(hidden @ weights[layer])\n"
    new = old + "        hidden = hidden * jnp.sin(jnp.exp(hidden) @ weights[layer])\n"
    assert old in good
    (tmp_path / "train.py").write_text('"""Now with a docstring."""\n\n' + good.replace(old, new))
    git("commit", "-qam", "improve the model")
    assert main([*gate, *quick, "--markdown", "comment.md"]) == 2
    shown = capsys.readouterr().out
    number = (tmp_path / "train.py").read_text().splitlines().index(new.splitlines()[1]) + 1
    where = f"train.py:{number} (loss)"
    regressed = re.search(r"temp_bytes: (.*)", shown)
    assert regressed is not None
    assert regressed[1].startswith(where)
    # The report's diff of the two compiled programs, in the terminal, on the page and in the comment.
    answer = re.search(r"train_step@h100/plain: (memory grew by .*)", shown)
    assert answer is not None
    assert f"from train.py:{number}" in answer[1]
    (page,) = (p for p in (tmp_path / "diff").iterdir() if not p.name.endswith(".report.html"))
    assert where in page.read_text()
    assert answer[1].partition(";")[0] in html.unescape(page.read_text())
    picture = page.with_name(page.stem + ".report.html")
    assert picture.name in page.read_text()
    assert answer[1].partition(";")[0] in html.unescape(picture.read_text())
    comment = (tmp_path / "comment.md").read_text()
    assert where in comment
    assert answer[1] in comment
    # What is committed names no folder of this machine.
    for kept in (tmp_path / "baseline.reports").iterdir():
        assert str(tmp_path) not in gzip.decompress(kept.read_bytes()).decode()


SUITE = """
import pathlib
from functools import partial
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from farrier.bench import Case, Clock

FAULT = pathlib.Path(__file__).with_name("fault").read_text().strip()
TARGETS = ["h100"]


def loss(weights, inputs):
    hidden = inputs
    for n in range(3):
        hidden = jnp.tanh(hidden @ weights[n])
    if FAULT == "memory":
        kept = jnp.exp(inputs[:, :256] @ weights[0, :256, :256])
        return jnp.mean(hidden**2) + jnp.mean(kept**3)
    return jnp.mean(hidden**2)


@partial(jax.jit, donate_argnums=0)
def step(weights, inputs):
    value, gradient = jax.value_and_grad(loss)(weights, inputs)
    if FAULT == "kernel":
        gradient = jax.lax.optimization_barrier(jnp.tanh(gradient))
    return weights - 0.1 * gradient, value


def gathered(target):
    mesh = target.mesh(names=("x",))
    put = lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P("x"), P("x"), P()), out_specs=P(), check_vma=False)
    def forward(first, second, inputs):
        a = jax.lax.all_gather(first, "x", tiled=True)
        hidden = jnp.tanh(inputs @ a)
        if FAULT == "exposed":
            second, hidden = jax.lax.optimization_barrier((second, hidden))
        b = jax.lax.all_gather(second, "x", tiled=True)
        return hidden @ b

    return forward, (put((4096, 4096), P("x")), put((4096, 4096), P("x")), put((8192, 4096), P()))


def planner(target, options, repeats):
    # Samples as a quiet machine gives them: the verdict is what is tested, and a real clock on a busy machine
    # has so much noise that the gate rightly says nothing.
    clock = Clock()
    for n in range(max(repeats, 3)):
        clock.add("pass_seconds", (2.0 if FAULT == "slow" else 1.0) * (1 + 0.01 * n), 1.0)
    return clock.metrics()


def cases():
    a = jax.ShapeDtypeStruct
    yield "step", step, (a((3, 512, 512), jnp.float32), a((2048, 512), jnp.float32))
    yield Case("gathered", build=gathered, targets=["h100:1x1x8"])
    yield Case("planner", measure=planner)
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A content cache that the processes of one test run share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bench-cache"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, cache):
    """A suite into which faults can be injected, measured when good: folder, run, arguments."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "suite.py").write_text(SUITE)
    (folder / "fault").write_text("none")
    run = runner.run_suite(str(folder / "suite.py"), repeats=3, repeat_budget_s=0, cache_dir=cache)
    assert [r.status for r in run.results] == ["ok"] * 3
    results.save(run, folder / "good.json")
    baseline.write(run, folder / "base.toml", suite="suite.py")
    return folder, run, ["gate", "--baseline", str(folder / "base.toml"), "--cache-dir", str(cache)]


@pytest.mark.parametrize(
    ("fault", "case", "metric", "code"),
    [
        ("memory", "step", "temp_bytes", "kept = jnp.exp("),
        ("kernel", "step", "kernels", "jnp.tanh(gradient)"),
        ("exposed", "gathered", "exposed_collectives", "jax.lax.all_gather("),
        ("slow", "planner", "pass_seconds", ""),
    ],
)
def test_injected_regressions_turn_the_gate_red(faulty, tmp_path, fault, case, metric, code):
    folder, _, gate = faulty
    (folder / "fault").write_text(fault)
    arguments = ["--case", case, "--json", str(tmp_path / "c.json"), "--repeat-budget", "0"]
    try:
        assert main([*gate, *arguments]) == 2
    finally:
        (folder / "fault").write_text("none")
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    (row,) = [r for r in rows if r["metric"] == metric and r["verdict"] == "regressed"]
    if fault == "memory":
        # A twentieth more memory is enough, and not much more was injected.
        assert 0.01 < row["current"] / row["baseline"] - 1 < 0.35
    if fault in ("kernel", "exposed"):
        assert row["current"] == row["baseline"] + 1
    if fault == "slow":
        assert row["current"] / row["baseline"] == pytest.approx(2, rel=0.5)
    if code:
        assert code in row["source_lines"][0]["code"]
        assert row["source_lines"][0]["file"].endswith("suite.py")


QUIET = """
from farrier.bench import Case, Clock


def planner(target, options, repeats):
    def work():
        table = {}
        for n in range(300_000):
            table[n * 7919 % 65537] = n

    clock = Clock()
    for _ in range(repeats):
        clock.time("pass_seconds", work)
    return clock.metrics()


def cases():
    for n in range(21):
        yield Case(f"run{n}", measure=planner)
"""


def test_noise_alone_does_not_turn_the_gate_red(tmp_path):
    """Twenty runs of the same timing against one baseline, on a machine that does other things too."""
    (tmp_path / "suite.py").write_text(QUIET)
    run = runner.run_suite(str(tmp_path / "suite.py"), use_cache=False, jobs=2)
    first, *others = [dataclasses.replace(r, case="planner") for r in run.results]
    baseline.write(dataclasses.replace(run, results=(first,)), tmp_path / "base.toml", suite="suite.py")
    loaded = baseline.load(tmp_path / "base.toml")
    found = [compare.compare(loaded, dataclasses.replace(run, results=(r,))) for r in others]
    assert [c.exit_code for c in found] == [0] * 20, [c.rows for c in found if c.exit_code]


def test_the_cache_knows_content(faulty, cache):
    folder, _, _ = faulty
    options = {"cases": ["step"], "repeats": 3, "repeat_budget_s": 0, "cache_dir": cache}
    suite = str(folder / "suite.py")
    assert [r.cached for r in runner.run_suite(suite, **options).results] == [True]
    options["repeats"] = 1
    (once,) = runner.run_suite(suite, **options).results
    assert not once.cached, "another number of samples is another result"


def test_a_folder_of_modules(tmp_path):
    from jax import export

    step = jax.jit(lambda x: jnp.tanh(x @ x))
    args = (jax.ShapeDtypeStruct((256, 256), jnp.float32),)
    exported = export.export(step, platforms=["cuda"])(*args)
    (tmp_path / "a.mlir").write_text(exported.mlir_module())
    (tmp_path / "b.jaxexport").write_bytes(exported.serialize())
    (tmp_path / "broken.mlir").write_text("module {")
    run = runner.run_suite(str(tmp_path), repeats=1, use_cache=False)
    found = {r.case: r for r in run.results}
    assert {k: r.status for k, r in found.items()} == {"a": "ok", "b": "ok", "broken": "failed"}
    assert "not a StableHLO module" in found["broken"].message
    assert found["a"].metrics["flops"].value == 2 * 256**3
    assert found["a"].fingerprint == found["b"].fingerprint


def test_assert_fits(assert_fits):
    def step(weights, inputs):
        hidden = jnp.tanh(inputs @ weights)
        return jnp.sum(hidden @ weights)

    grad = jax.jit(jax.grad(step))
    shapes = (jax.ShapeDtypeStruct((512, 512), jnp.float32), jax.ShapeDtypeStruct((4096, 512), jnp.float32))
    measured = assert_fits(grad, shapes, "1GiB")
    assert measured.argument_bytes == 4 * (512 * 512 + 4096 * 512)
    with pytest.raises(pytest.fail.Exception) as e:
        assert_fits(grad, shapes, measured.total_bytes - 1)
    message = str(e.value)
    assert "1 B above the budget" in message
    assert "test_bench_compile.py" in message
    assert "hidden = jnp.tanh(inputs @ weights)" in message
    assert assert_fits(grad, shapes, measured.total_bytes).total_bytes == measured.total_bytes
    with pytest.raises(Exception, match="size '3 fathoms'"):
        fits.fit(grad, shapes, "3 fathoms")


def test_line_summaries_agree_with_xla(faulty):
    _, run, _ = faulty
    r = run.by_id()["step@h100/plain"]
    assert sum(row["bytes"] for row in r.lines) == r.metrics["peak_bytes"].value
    assert sum(row["moved"] for row in r.lines) == r.metrics["bytes_moved"].value
    assert sum(row["flops"] for row in r.lines) == r.metrics["flops"].value
    assert sum(row["kernels"] for row in r.lines) == r.metrics["kernels"].value
    assert lines.diff(r.lines, r.lines) == []


def test_results_and_comparisons_follow_their_schemas(faulty, tmp_path):
    import jsonschema

    folder, _, gate = faulty
    out, comparison = folder / "good.json", tmp_path / "c.json"
    assert main([*gate, "--results", str(out), "--json", str(comparison)]) == 0
    for path, name in ((out, "results"), (comparison, "comparison")):
        schema = json.loads((DOCS / "schema" / f"{name}.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        data = json.loads(path.read_text())
        jsonschema.validate(data, schema)
        data["surprise"] = 1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data, schema)


def test_step_times_are_interleaved(tmp_path):
    """On whatever device this machine has; here the CPU."""
    suite = tmp_path / "suite.py"
    suite.write_text(
        textwrap.dedent(
            """
            import jax, jax.numpy as jnp
            from functools import partial
            from farrier.bench import Case, OptionSet
            OPTION_SETS = [OptionSet("plain"), OptionSet("thrice", variant={"times": 3})]

            def build(target, times=1):
                @partial(jax.jit, donate_argnums=0)
                def step(state, batch):
                    # A loop: a hundred products in a row take XLA minutes to compile.
                    return jax.lax.fori_loop(0, 100 * times, lambda _, x: jnp.tanh(x @ batch), state)
                a = jax.ShapeDtypeStruct((128, 128), jnp.float32)
                return step, (a, jnp.eye(128))

            def cases():
                yield Case("work", build=build)
            """
        )
    )
    run = runner.run_suite(str(suite), repeats=1, use_cache=False, device=True, device_rounds=5)
    times = {r.options: r.metrics["step_seconds"] for r in run.results}
    assert len(times["plain"].samples) == 5
    assert times["thrice"].value > 1.5 * times["plain"].value
    assert run.environment["device"]


@pytest.mark.gpu
def test_step_times_on_a_gpu(faulty):
    folder, _, _ = faulty
    run = runner.run_suite(str(folder / "suite.py"), cases=["step"], repeats=1, device=True)
    assert run.results[0].metrics["step_seconds"].value < 0.1


def test_a_baseline_of_a_real_run_reads_back(faulty):
    folder, _, _ = faulty
    loaded = baseline.load(folder / "base.toml")
    assert {"step@h100/plain", "gathered@h100:1x1x8/plain", "planner@h100/plain"} == set(loaded.metrics)
    gathered = loaded.metrics["gathered@h100:1x1x8/plain"]
    assert gathered["collectives.all-gather.count"].value == 2
    assert gathered["exposed_collectives"].value + gathered["overlapped_collectives"].value == 2
    assert gathered["flops"] == exact("flops", 2 * 2 * 8192 * 4096 * 4096)


def test_other_jax_version(faulty, capsys):
    folder, _, _ = faulty
    path = folder / "other.toml"
    text = (folder / "base.toml").read_text()
    path.write_text(re.sub(r'^jax = ".*"$', 'jax = "0.4.1"', text, flags=re.MULTILINE))
    arguments = ["gate", "--baseline", str(path), "--results", str(folder / "good.json")]
    assert main(arguments) == 1
    assert "jax 0.4.1 -> " in capsys.readouterr().err
    assert main([*arguments, "--allow-version-change"]) == 0
    assert "across versions: jax 0.4.1 -> " in capsys.readouterr().out


def test_the_store_gets_a_gates_results(faulty, tmp_path):
    folder, run, gate = faulty
    assert main([*gate, "--results", str(folder / "good.json"), "--store", str(tmp_path)]) == 0
    (kept,) = tmp_path.glob("*/*.json")
    assert results.load(kept) == run


def test_a_step_through_farrier_is_measured_as_what_it_becomes(tmp_path, cache):
    """An option set with no pass leaves the program what it was: same figures, same module."""
    (tmp_path / "suite.py").write_text(
        textwrap.dedent(
            """
            import jax, jax.numpy as jnp
            from farrier.bench import OptionSet
            OPTION_SETS = [
                OptionSet("plain"),
                OptionSet("farrier", optimize={"passes": ()}, budget="1GiB"),
                OptionSet("tool", transform="tool:optimize"),
                OptionSet("absent", transform="nowhere_at_all:optimize"),
            ]

            def cases():
                a = jax.ShapeDtypeStruct((256, 256), jnp.float32)
                yield "work", jax.jit(lambda x, y: jnp.tanh(x @ y) @ y, donate_argnums=0), (a, a)
            """
        )
    )
    (tmp_path / "tool.py").write_text(
        "import jax\ndef optimize(step, donated):\n    return jax.jit(step, donate_argnums=donated)\n"
    )
    run = runner.run_suite(str(tmp_path / "suite.py"), repeats=1, cache_dir=cache)
    plain, through = run.by_id()["work@h100/plain"], run.by_id()["work@h100/farrier"]
    assert (plain.status, through.status) == ("ok", "ok"), through.message
    assert plain.fingerprint == through.fingerprint
    assert through.metrics["total_bytes"] == plain.metrics["total_bytes"]
    assert through.metrics["recomputed_flops"].value == 0
    assert through.metrics["budget_bytes"].value == 2**30
    assert "plan_seconds" in through.metrics
    tool = run.by_id()["work@h100/tool"]
    assert tool.status == "ok", tool.message
    assert tool.metrics["alias_bytes"] == plain.metrics["alias_bytes"]
    assert tool.metrics["alias_bytes"].value == 4 * 256 * 256
    assert tool.metrics["flops"] == plain.metrics["flops"]
    assert run.by_id()["work@h100/absent"].status == "unsupported"
