"""A planner's world in text: a module that can be edited by hand, a pass and a search over it.

The pass turns sines into cosines, so what it did shows in the values; its plan names each sine by
its position among the sines. Everything around it (plans, caches, fallbacks, processes) is the
product's own.
"""

import hashlib
import re

from farrier._src import interchange, pipeline
from farrier._src.pipeline import StepPlan


class TextModule:
    """The part of ``farrier._core.Module`` that the planner uses, over editable text."""

    constants = None
    num_ops = 1

    def __init__(self, text):
        self.text = text

    def print(self, *, locations=True):
        return (self.text if locations else self._without_locations()).encode()

    def clone(self):
        return TextModule(self.text)

    @property
    def fingerprint(self):
        return hashlib.sha256(self.print(locations=False)).hexdigest()

    def _without_locations(self):
        return re.sub(r"(?m)^#loc.*\n| ?loc\((?:[^()\"]|\"[^\"]*\")*\)", "", self.text)


class SwapDriver:
    """Plans for every sine; counts its calls."""

    name = "swap"
    planned = applied = 0

    def __init__(self, options):
        self.options = options

    def plan(self, module, context):
        type(self).planned += 1
        return {"sines": [f"sine {k}" for k in range(module.text.count("stablehlo.sine"))]}

    def apply(self, module, plan, *, remark=None):
        type(self).applied += 1
        present = [f"sine {k}" for k in range(module.text.count("stablehlo.sine"))]
        missing = [key for key in plan["sines"] if key not in present]
        module.text = module.text.replace("stablehlo.sine", "stablehlo.cosine")
        return missing


class BrokenDriver(SwapDriver):
    """Fails while it decides."""

    name = "broken"

    def plan(self, module, context):
        raise RuntimeError("cannot decide")


class HarmfulDriver(SwapDriver):
    """Makes a module that no verifier accepts."""

    name = "harmful"

    def plan(self, module, context):
        return {"all": True}

    def apply(self, module, plan, *, remark=None):
        module.text = module.text.replace("stablehlo.sine", "stablehlo.no_such_op")


class IdleDriver(SwapDriver):
    """Finds nothing to do."""

    name = "idle"

    def plan(self, module, context):
        return None


class Search:
    """Asks each driver once; keeps the contexts that it was given."""

    def __init__(self):
        self.contexts = []
        self.remarks = []

    def __call__(self, module, drivers, context):
        self.contexts.append(context)
        for remark in self.remarks:
            context.remark(remark)
        measured = {}
        if context.measure is not None and context.max_compiles:
            measured["before"] = context.measure(module).to_json()
        passes = {driver.name: driver.plan(module, context) for driver in drivers}
        return StepPlan({k: v for k, v in passes.items() if v}, measured, len(measured))


def install(monkeypatch):
    """Puts the textual world in place; returns its search."""
    module = __name__
    drivers = {
        cls.name: f"{module}:{cls.__name__}" for cls in (IdleDriver, SwapDriver, BrokenDriver, HarmfulDriver)
    }
    search = Search()
    SwapDriver.planned = SwapDriver.applied = 0
    monkeypatch.setattr(pipeline, "DRIVERS", drivers)
    monkeypatch.setattr(pipeline, "search", search)
    monkeypatch.setattr(
        interchange, "to_core", lambda m: TextModule(m.operation.get_asm(enable_debug_info=True))
    )
    return search
