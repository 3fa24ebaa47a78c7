"""Plans as files: small, versioned, reviewable, refused by name when they are none."""

import json

import farrier
import pytest


@pytest.fixture
def plan():
    return farrier.Plan(
        function="step",
        passes={"remat": {"save": ["layer.0/attn"]}},
        input_fingerprint="a" * 64,
        output_fingerprint="b" * 64,
        platform="cuda",
        partitions=8,
        options={"numerics": "bounded"},
        versions={"jax": "0.12.0"},
        measured={"before": {"temp_bytes": 1}},
    )


def test_round_trip(plan, tmp_path):
    path = tmp_path / "step.plan.json"
    plan.save(path)
    assert farrier.Plan.load(path) == plan
    assert farrier.Plan.from_json(json.loads(str(plan))) == plan


def test_the_text_is_sorted_and_one_decision_per_line(plan, tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    plan.save(first)
    farrier.Plan.from_json(dict(reversed(plan.to_json().items()))).save(second)
    assert first.read_bytes() == second.read_bytes()
    assert '    "layer.0/attn"' in first.read_text().splitlines()


def test_saving_replaces_whole_files_only(plan, tmp_path):
    path = tmp_path / "step.plan.json"
    path.write_text("old")
    plan.save(path)
    assert farrier.Plan.load(path) == plan
    assert [p.name for p in tmp_path.iterdir()] == ["step.plan.json"]


def test_the_fingerprint_is_about_what_is_decided(plan):
    data = plan.to_json()
    same = farrier.Plan.from_json(data | {"measured": {}, "versions": {}})
    other = farrier.Plan.from_json(data | {"passes": {"remat": {"save": []}}})
    assert plan.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "something"}, "not a farrier plan"),
        ({"format": 99}, "format 99"),
        ({"surprise": 1}, "unknown entries surprise"),
        ({"passes": []}, "'passes' is not an object"),
    ],
    ids=str,
)
def test_what_is_no_plan(plan, change, message):
    with pytest.raises(farrier.PlanError, match=message):
        farrier.Plan.from_json(plan.to_json() | change)


def test_missing_entries(plan):
    data = plan.to_json()
    del data["platform"], data["passes"]
    with pytest.raises(farrier.PlanError, match="missing entries passes, platform"):
        farrier.Plan.from_json(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"kind": 1}'])
def test_files_that_hold_no_plan(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(farrier.PlanError, match=r"x\.json"):
        farrier.Plan.load(path)
