"""The cluster's A/B script, on eight CPU devices: it runs, takes turns and reports."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "collectives" / "ab.py"


def step_and_args():
    """What the script is pointed at."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(x):
        return jax.shard_map(lambda x: lax.psum(x, "x"), mesh=mesh, in_specs=P("x"), out_specs=P())(x)

    return step, (jax.device_put(jnp.arange(16.0), jax.NamedSharding(mesh, P("x"))),)


def test_it_reports_both(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("ab", SCRIPT)
    ab = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ab)
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    output = tmp_path / "ab.json"
    assert ab.main([f"{__name__}:step_and_args", "--rounds=3", "--steps=2", f"--output={output}"]) == 0
    found = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["devices"] == 8 and not found["changed"]  # planned for CPU: left alone
    assert found["bytes"]["plain"] == found["bytes"]["farrier"] > 0
    low, high = found["ratio_quartiles"]
    assert 0 < low <= found["ratio"] <= high
