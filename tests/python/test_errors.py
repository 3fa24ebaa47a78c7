"""The exception family: one base, messages that say what, where and what to do, pickle."""

import pickle

import pytest
from farrier._src import errors

SAMPLES = [
    errors.Error("it broke", where="step.py:3", hint="mend it"),
    errors.OptionError.unknown("memory_bugdet", ["memory_budget", "target"], of="farrier.optimize"),
    errors.PassError("remat failed", repro="hlo-opt --remat x.mlir"),
    errors.InternalError("refused", repro="hlo-opt --remat x.mlir"),
    errors.BudgetError("too small", budget_bytes=10, smallest_bytes=20),
    errors.StalePlanError("stale", differences=["target: h100, now h200"], missing_keys=["layer.3"]),
    errors.CompileError("no"),
    errors.DistributedError("ranks differ"),
]


def test_every_public_class_is_of_the_family():
    classes = [getattr(errors, name) for name in errors.__all__ if name != "nearest"]
    assert all(issubclass(cls, errors.Error) for cls in classes)


def test_a_message_says_what_where_and_what_to_do():
    assert str(SAMPLES[0]) == "it broke\n  at: step.py:3\n  to do: mend it"


@pytest.mark.parametrize("error", SAMPLES, ids=lambda e: type(e).__name__)
def test_errors_survive_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__


def test_an_unknown_option_suggests_the_nearest_one():
    assert "did you mean 'memory_budget'?" in str(SAMPLES[1])
    assert "known options: a, b" in str(errors.OptionError.unknown("zzz", ["b", "a"], of="f"))


def test_a_stale_plan_lists_what_differs():
    text = str(SAMPLES[5])
    assert "target: h100, now h200" in text
    assert "layer.3" in text
    many = errors.StalePlanError("stale", missing_keys=[f"k{i}" for i in range(11)])
    assert "k7 and 3 more" in str(many)


def test_a_repro_command_is_part_of_the_message():
    assert "reproduce with: hlo-opt --remat x.mlir" in str(SAMPLES[2])
