"""Targets: facts, files, configuration text, meshes."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from farrier._src import errors
from farrier._src.targets import Target, builtin_names, load_facts
from farrier._src.targets.config_text import MATRIX_UNITS_PER_SM, matrix_ops_per_clock

MINIMAL = """
base = "h100"
memory_bytes = 40000000000
[peak_flops]
bfloat16 = 500e12
[sources]
memory_bytes = "half a board"
"""


def test_builtin_models():
    assert builtin_names() == ("a100", "b200", "gb200", "h100", "h200")


@pytest.mark.parametrize("name", builtin_names())
def test_facts_are_complete_and_sourced(name):
    facts = load_facts(name)
    assert facts.name == name
    for field in (
        "peak_flops",
        "hbm_bytes_per_s",
        "memory_bytes",
        "nvlink_bytes_per_s",
        "host_link_bytes_per_s",
    ):
        assert facts.sources[field]
    assert 0 < facts.reserved_bytes < facts.memory_bytes and facts.sources["reserved_bytes"]


@pytest.mark.parametrize("name", builtin_names())
def test_matrix_rates_agree_with_the_datasheet(name):
    """Rate x units x clock is the datasheet's dense peak: within 7% (the driver's clock is below the boost
    clock)."""
    facts = load_facts(name)
    clock = facts.xla.tensor_clock_hz or facts.clock_hz
    rates = matrix_ops_per_clock(facts)
    for dtype in ("bfloat16", "float16", "int8"):
        peak = 2 * rates[dtype] * MATRIX_UNITS_PER_SM * facts.sm_count * clock
        assert peak == pytest.approx(facts.peak_flops[dtype], rel=0.07)


def test_topology_and_derived_figures():
    t = Target("h100", topology="2x18x4")
    assert (t.device_count, t.host_count, t.devices_per_nvlink_domain) == (144, 36, 72)
    assert t.usable_bytes == t.memory_bytes - t.reserved_bytes
    assert (
        t == Target("h100", topology="2x18x4")
        and t != Target("h100")
        and t != Target("h200", topology="2x18x4")
    )
    assert t.to_json()["topology"] == "2x18x4"


def test_file_over_a_builtin(tmp_path):
    path = tmp_path / "half.toml"
    path.write_text(MINIMAL)
    t = Target(path)
    assert (t.name, t.memory_bytes, t.sm_count) == ("half", 40000000000, 132)
    assert t.peak_flops["bfloat16"] == 500e12
    # The override reaches XLA's cost model: half the peak, half the rate.
    assert matrix_ops_per_clock(t.facts)["bfloat16"] == pytest.approx(512 * 500 / 989.4, abs=1)
    assert "device_memory_size: 40000000000" in t.config_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("h10", None, "did you mean 'h100'"),
        ("missing.toml", None, "cannot read"),
        ("bad.toml", "name = ", "not valid TOML"),
        (
            "typo.toml",
            'base = "h100"\nmemory_byte = 1',
            "unknown key 'memory_byte'; did you mean 'memory_bytes'",
        ),
        ("base.toml", 'base = "h1000"', "not a built-in target"),
        ("few.toml", 'name = "x"', "missing"),
        ("negative.toml", 'base = "h100"\nmemory_bytes = -1', "must be a positive number"),
        ("text.toml", 'base = "h100"\nmemory_bytes = "80GB"', "must be a positive number"),
        ("dtype.toml", 'base = "h100"\n[peak_flops]\nbf16 = 1e12', "unknown type 'bf16'"),
        ("cc.toml", 'base = "h100"\ncompute_capability = "sm90"', "compute_capability"),
        ("reserved.toml", 'base = "h100"\nreserved_bytes = 99000000000', "leaves nothing"),
    ],
)
def test_wrong_names_and_files(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(errors.TargetError, match=message):
        Target(name if name == "h10" else path)


@pytest.mark.parametrize("topology", ["8", "1x8", "0x1x1", "1x1x8x", 8])
def test_wrong_topologies(topology):
    with pytest.raises(errors.TargetError, match="domains x hosts x devices"):
        Target("h100", topology=topology)


def test_mesh_of_the_wrong_size():
    with pytest.raises(errors.TargetError, match="needs 4 devices"):
        Target("h100", topology="1x1x8").mesh((4,), ("x",))


@pytest.mark.parametrize("name", builtin_names())
def test_xla_compiles_for_every_builtin(name):
    t = Target(name)
    x = jax.ShapeDtypeStruct((128, 128), jnp.bfloat16, sharding=t.sharding())
    compiled = jax.jit(lambda a: a @ a).lower(x).compile()
    assert compiled.memory_analysis().argument_size_in_bytes == 128 * 128 * 2


@pytest.mark.parametrize("platforms", ["cpu", ""])
def test_no_environment_variable_is_needed(platforms):
    """Where CUDA is a wanted platform, the plugin's own check of CUDA's libraries fails without a GPU."""
    code = """
import jax
jax.devices()
from farrier._src.targets import Target
print(len(Target("h100", topology="1x1x2").devices()), jax.default_backend())
"""
    env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    if platforms:
        env["JAX_PLATFORMS"] = platforms
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "cpu"]


def test_missing_plugin_names_the_extra(monkeypatch):
    from farrier._src.targets import target as module
    from jax.experimental import topologies

    def absent(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    monkeypatch.setattr(module, "_PLUGINS", ("jax_plugins.not_there",))
    module._topology_desc.cache_clear()
    with pytest.raises(errors.MissingPluginError, match=r"farrier\[cuda13\]"):
        Target("h100", topology="1x1x3").topology_desc()


def test_command_line(capsys):
    from farrier._src.cli.main import main

    assert main(["targets"]) == 0
    table = capsys.readouterr().out
    assert "989.4" in table and "nvlink-c2c" in table
    assert main(["targets", "gb200", "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["sources"]["hbm_bytes_per_s"] and facts["host_link"] == "nvlink-c2c"
    assert main(["targets", "h100", "--config"]) == 0
    assert capsys.readouterr().out == Target("h100").config_text()
    assert main(["targets", "h10"]) == 1
    assert "did you mean 'h100'" in capsys.readouterr().err
