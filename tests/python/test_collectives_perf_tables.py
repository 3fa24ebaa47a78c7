"""XLA's performance tables of collectives and products, text and binary, as a parameter set."""

import dataclasses
import json

import farrier
import pytest
from farrier import Target
from farrier._src.collectives import costs, parameters, perf_tables, schedule
from farrier._src.hlo import proto
from google.protobuf import text_format


def _collective(opcode: str, elements: int, groups: str, rate: int) -> str:
    return f"""
    entries {{
      instruction {{
        name: "_" opcode: "{opcode}"
        shape {{ element_type: F32 dimensions: {elements} layout {{ minor_to_major: 0 tail_padding_alignment_in_elements: 1 }} is_dynamic_dimension: false }}
        collective_device_list {{ iota_replica_group_list {{ {groups} }} }}
        constrain_layout: false use_global_device_ids: true channel_id: 1
      }}
      fingerprint: "{opcode}{elements}{rate}"
      network_throughput_bytes_per_sec: {rate}
    }}"""


_HOST = "num_replica_groups: 1 num_devices_per_group: 8 iota_reshape_dims: 8 iota_transpose_perm: 0"
_HALF = "num_replica_groups: 2 num_devices_per_group: 4 iota_reshape_dims: 8 iota_transpose_perm: 0"
# Groups of two, one on each of two hosts.
_ACROSS = (
    "num_replica_groups: 8 num_devices_per_group: 2 iota_reshape_dims: 2 iota_reshape_dims: 8 "
    "iota_transpose_perm: 1 iota_transpose_perm: 0"
)
COLLECTIVES = (
    'entries { key: "sm_90" value {'
    + _collective("all-reduce", 1 << 20, _HOST, 100_000_000_000)
    + _collective("all-reduce", 1 << 24, _HOST, 200_000_000_000)
    + _collective("all-reduce", 1 << 24, _HALF, 300_000_000_000)
    + _collective("all-gather-start", 1 << 24, _HOST, 250_000_000_000)
    + _collective("reduce-scatter", 1 << 21, _HOST, 150_000_000_000)
    + _collective("all-reduce", 1 << 24, _ACROSS, 40_000_000_000)
    + "} }"
)


def _dot(size: int, rate: int, element: str = "BF16") -> str:
    def shape(name):
        return f"{name} {{ element_type: {element} dimensions: {size} dimensions: {size} }}"

    return f"""
    entries {{
      instruction {{
        name: "d" opcode: "dot" {shape("shape")}
        dot_dimension_numbers {{ lhs_contracting_dimensions: 1 rhs_contracting_dimensions: 0 }}
        precision_config {{ operand_precision: DEFAULT operand_precision: DEFAULT }}
      }}
      operands {{ name: "l" opcode: "parameter" {shape("shape")} }}
      operands {{ name: "r" opcode: "parameter" {shape("shape")} }}
      clock_cycles: 1
      flops: {rate}
    }}"""


MATMULS = f'entries {{ key: "sm_90" value {{ {_dot(1024, 10**14)} {_dot(4096, 5 * 10**14)} }} }}'


@pytest.fixture
def files(tmp_path):
    """A text table of collectives and a binary one of products."""
    text, binary = tmp_path / "collectives.pbtxt", tmp_path / "matmuls.pb"
    text.write_text(COLLECTIVES, encoding="utf-8")
    made = perf_tables._parse(MATMULS.encode(), "matmuls")
    binary.write_bytes(made.SerializeToString())
    return text, binary


def test_rates_become_times(files):
    base = parameters.load("nv")
    found = perf_tables.measured_set(base, collectives=[files[0]], matmuls=[files[1]], name="ours")
    assert found.name == "ours"
    curves = {(c.kind, c.network): dict(c.points) for c in found.curves}
    # The largest group's, bytes of the whole message over the throughput.
    assert curves["all-reduce", False] == pytest.approx(
        {4 << 20: (4 << 20) / 1e11, 4 << 24: (4 << 24) / 2e11}
    )
    assert curves["all-gather", False] == pytest.approx({4 << 24: (4 << 24) / 2.5e11})
    assert curves["reduce-scatter", False] == pytest.approx({8 * 4 << 21: (8 * 4 << 21) / 1.5e11})
    assert curves["all-reduce", True] == pytest.approx({4 << 24: (4 << 24) / 4e10})
    (products,) = found.products
    assert products.element_type == 16
    assert products.rate(2 * 1024.0**3) == 1e14
    assert products.rate(2 * 4096.0**3) == 5e14
    assert products.rate(2 * 2048.0**3) == pytest.approx((1e14 * 5e14) ** 0.5)
    assert products.rate(1.0) == 1e14 and products.rate(1e20) == 5e14


def test_the_simulator_takes_the_table(files):
    ours = perf_tables.measured_set(parameters.load("nv"), collectives=[files[0]])
    row = {"kind": "all-reduce", "bytes": 4 << 24, "group": 8, "domains": 1, "per_domain": 8}
    column = {
        "name": "e", "role": [4], "cost": [0.0], "preds": [[]], "partner": [-1], "collective": [0], "body": [-1],
        "trips": [1], "reads": [[]], "writes": [[]], "buffers": [], "live_in": [], "live_out": [],
    }  # fmt: skip
    program = {"entry": 0, "computations": [column], "collectives": [row]}
    answer = schedule.request(action="simulate", program=program, models=[ours.comm_json()])
    assert answer["results"][0]["time"] == pytest.approx((4 << 24) / 2e11 * 1e6)


def test_products_are_priced_by_the_table(files):
    target = Target("h100")
    base = parameters.load("nv")
    ours = perf_tables.measured_set(base, matmuls=[files[1]])
    dot = perf_tables._parse(MATMULS.encode(), "m").entries[0].value.entries[1]
    kernel = dataclasses.make_dataclass(
        "Kernel", ["opcode", "proto", "operands", "bytes", "called", "config", "dims"]
    )

    def instruction(p):
        return kernel(p.opcode, p, [], 1 << 25, [], {}, tuple(p.shape.dimensions))

    i = instruction(dot.instruction)
    i.operands = [instruction(o) for o in dot.operands]
    flops = 2 * 4096**3
    assert costs.CostModel(target, ours)._estimate(i) == pytest.approx(flops / 5e14 * 1e6)
    assumed = flops / (target.peak_flops["bfloat16"] * base.gemm_fraction) * 1e6
    assert costs.CostModel(target, base)._estimate(i) == pytest.approx(assumed)


def test_a_set_names_tables_and_a_plan_keeps_them(files, tmp_path):
    toml = tmp_path / "fabric.toml"
    toml.write_text('base = "nv"\n[xla]\ncollectives = ["collectives.pbtxt"]\nmatmuls = ["matmuls.pb"]\n')
    found = parameters.load(toml)
    assert found.name == "fabric" and len(found.curves) == 4 and len(found.products) == 1
    plan = schedule.SchedulePlan(parameters=(found,), peak_flops={}, hbm_bytes_per_s=1.0, costs={})
    again = schedule.SchedulePlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again.parameters[0].products == found.products and again.fingerprint == plan.fingerprint


@pytest.mark.parametrize(
    ("text", "device", "message"),
    [
        ("no table at all", None, "not a performance table"),
        ("", None, "no device"),
        (COLLECTIVES.replace("F32", "F99"), None, "element type F99 is not known"),
        (COLLECTIVES, "sm_100", "sm_100"),
        (COLLECTIVES + COLLECTIVES.replace("sm_90", "sm_100"), None, "several devices"),
        (COLLECTIVES.replace("network_throughput_bytes_per_sec: 40000000000", ""), None, "needs a size"),
    ],
    ids=["text", "empty", "type", "device", "several", "rate"],
)
def test_bad_tables_are_named(tmp_path, text, device, message):
    path = tmp_path / "table.pbtxt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(farrier.Error, match=message):
        perf_tables.measured_set(parameters.load("nv"), collectives=[path], device=device)


def test_a_set_with_a_wrong_section_is_named(tmp_path):
    toml = tmp_path / "fabric.toml"
    toml.write_text('base = "nv"\n[xla]\ncollective = ["a.pb"]\n')
    with pytest.raises(farrier.Error, match=r"\[xla\] has lists of paths"):
        parameters.load(toml)


def test_text_and_binary_are_the_same_table(files):
    made = perf_tables._parse(MATMULS.encode(), "m")
    assert text_format.MessageToString(made) == text_format.MessageToString(
        perf_tables._parse(files[1].read_bytes(), "m")
    )
    assert proto.message("DeviceHloInstructionProfiles")() != made
