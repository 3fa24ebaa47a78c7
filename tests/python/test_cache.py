"""The store behind plans and measurements: atomic, shared, and a damaged record is a miss."""

import os
import subprocess
import sys

import farrier
import pytest
from farrier._src import cache, store


@pytest.fixture
def plan():
    return farrier.Plan("step", {}, "a", "b", "cpu", 1, {}, {})


def test_records_by_key(tmp_path):
    records = store.JsonStore("things", tmp_path)
    assert records.get("k") is None
    records.put("k", {"a": [1, 2]})
    assert records.get("k") == {"a": [1, 2]}
    assert store.JsonStore("things", tmp_path).get("k") == {"a": [1, 2]}
    assert store.JsonStore("others", tmp_path).get("k") is None
    records.put("k", 3)
    assert records.get("k") == 3


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": "k"}', None], ids=repr)
def test_a_damaged_record_is_a_miss(tmp_path, damage):
    records = store.JsonStore("things", tmp_path)
    records.put("k", {"value": 12345})
    path = records.path("k")
    path.write_bytes(path.read_bytes().replace(b"12345", b"12346") if damage is None else damage)
    assert records.get("k") is None
    records.put("k", 1)
    assert records.get("k") == 1


def test_a_record_under_another_name_is_a_miss(tmp_path):
    records = store.JsonStore("things", tmp_path)
    records.put("aa", 1)
    os.replace(records.path("aa"), records.path("aab"))
    assert records.get("aab") is None


def test_nothing_half_written_is_left(tmp_path):
    records = store.JsonStore("things", tmp_path)
    with pytest.raises(TypeError):
        records.put("k", {"value": object()})
    records.put("k", 1)
    assert [p.name for p in records.path("k").parent.iterdir()] == ["k.json"]


def test_a_directory_that_cannot_be_made_costs_nothing_but_the_memory(tmp_path):
    (tmp_path / "file").write_text("")
    records = store.JsonStore("things", tmp_path / "file")
    records.put("k", 1)
    assert records.get("k") is None


def test_several_processes_write_one_record(tmp_path):
    code = (
        "import sys; from farrier._src.store import JsonStore\n"
        "s = JsonStore('things', sys.argv[1])\n"
        "for k in range(200):\n"
        "    s.put('k', {'value': [k] * 500}); assert len(set(s.get('k')['value'])) == 1"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert [p.name for p in store.JsonStore("things", tmp_path).path("k").parent.iterdir()] == ["k.json"]


def test_plans_come_back_with_their_remarks(tmp_path, plan):
    cache.PlanStore(tmp_path).put("k", plan, [{"message": "m"}])
    assert cache.PlanStore(tmp_path).get("k") == (plan, [{"message": "m"}])
    assert cache.PlanStore(tmp_path).get("other") is None


def test_a_plan_of_another_format_is_a_miss(tmp_path, plan):
    store.JsonStore("plans", tmp_path).put("k", {"plan": plan.to_json() | {"format": 0}, "remarks": []})
    assert cache.PlanStore(tmp_path).get("k") is None


def test_the_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("FARRIER_CACHE_DIR", str(tmp_path / "env"))
    assert store.default_directory() == tmp_path / "env"
    assert store.default_directory(tmp_path) == tmp_path
    monkeypatch.delenv("FARRIER_CACHE_DIR")
    assert store.default_directory().name == "farrier"
