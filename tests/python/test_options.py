"""The options: validated when the decorator is applied, with the nearest suggestion."""

import farrier
import pytest
import textual
from farrier._src.options import Options, parse_bytes


@pytest.fixture(autouse=True)
def _passes(monkeypatch):
    textual.install(monkeypatch)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("72GiB", 72 * 2**30),
        ("72 GB", 72 * 10**9),
        ("1.5 KiB", 1536),
        ("10", 10),
        ("800mb", 8 * 10**8),
        ("3TiB", 3 * 2**40),
    ],
)
def test_amounts_of_memory(text, size):
    assert parse_bytes(text) == size
    assert Options.make(memory_budget=text).memory_budget == size


@pytest.mark.parametrize(
    ("value", "budget"),
    [(0.5, 0.5), ("80%", 0.8), (1.0, 1.0), (10**9, 10**9), (2e9, 2 * 10**9), (None, None)],
)
def test_budgets(value, budget):
    made = Options.make(memory_budget=value).memory_budget
    assert made == budget
    assert type(made) is type(budget)


@pytest.mark.parametrize("value", ["72 GiBs", "lots", -1, 0, True, 1.5, "150%", [1], 0.0])
def test_budgets_that_are_none(value):
    with pytest.raises(farrier.OptionError):
        farrier.optimize(memory_budget=value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_bugdet": 1}, "did you mean 'memory_budget'"),
        ({"objective": "flop"}, "did you mean 'flops'"),
        ({"numerics": "bitwize"}, "did you mean 'bitwise'"),
        ({"passes": ("swop",)}, "did you mean 'swap'"),
        ({"passes": ("swap", "swap")}, "twice"),
        ({"passes": (3,)}, "expected a pass's name"),
        ({"max_compiles": -1}, "0 or more"),
        ({"max_compiles": 2.0}, "0 or more"),
        ({"strict": 1}, "True or False"),
        ({"plan": 3}, "the path of a saved one"),
        ({"target": 3}, "a name or a farrier.Target"),
        ({"cache_dir": 3}, "expected a path"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(farrier.OptionError, match=message):
        farrier.optimize(**options)


def test_an_unknown_target():
    with pytest.raises(farrier.TargetError, match="h100"):
        farrier.optimize(target="h10")


def test_a_missing_plan_file(tmp_path):
    with pytest.raises(farrier.PlanError, match=r"nothing\.json"):
        farrier.optimize(plan=tmp_path / "nothing.json")


def test_options_are_keyword_only_and_take_functions():
    with pytest.raises(farrier.OptionError, match="keyword-only"):
        farrier.optimize("72GiB")
    with pytest.raises(TypeError):
        farrier.optimize(lambda x: x, "72GiB")


def test_description_is_the_same_for_equal_options():
    a = Options.make(memory_budget="1GiB", target="h100", passes="swap")
    b = Options.make(memory_budget=2**30, target=farrier.Target("h100"), passes=("swap",))
    assert a.describe() == b.describe()
    assert a.describe()["target"]["topology"] == "1x1x1"
