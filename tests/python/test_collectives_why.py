"""Why a collective waits, in words, on small scheduled programs."""

import re

import pytest
from farrier import Target
from farrier._src.collectives import parameters, schedule, stage
from farrier._src.hlo import Module
from farrier._src.report import kernels
from jaxlib import _hlo

_HEAD = """HloModule m, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""
_GROUP = "replica_groups={{0,1,2,3,4,5,6,7}}, channel_id=1, use_global_device_ids=true, to_apply=%add"
_BIG, _SMALL = "f32[4096,4096]", "f32[3072,3072]"


def _module(text: str) -> Module:
    made = _hlo.hlo_module_from_text(_HEAD + text)
    return Module(made.as_serialized_hlo_module_proto())


def _waits(module: Module) -> dict[str, schedule.Wait]:
    target = Target("h100", topology="1x1x8")
    (found,) = schedule.simulate(module, target, parameters.for_target(target)[:1])
    return {w.name: w for w in found.waits}


def _entry(body: str, root: str) -> str:
    lines = "\n".join(f"  {line.strip()}" for line in body.strip().splitlines())
    lines = re.sub(rf"^  %{root} =", f"  ROOT %{root} =", lines, flags=re.MULTILINE)
    return f"\nENTRY %e (p: {_BIG}, q: {_BIG}, s: {_SMALL}) -> {_BIG} {{\n{lines}\n}}\n"


_ARGUMENTS = f"""
    %p = {_BIG} parameter(0)
    %q = {_BIG} parameter(1)
    %s = {_SMALL} parameter(2)
"""
_DOT = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"


@pytest.mark.parametrize(
    ("body", "root", "name", "why"),
    [
        (
            f"""%start = {_BIG} all-reduce-start(%p), {_GROUP}
                %done = {_BIG} all-reduce-done(%start)
                %out = {_BIG} dot(%done, %q), {_DOT}""",
            "out",
            "start",
            "next to nothing in the program is independent of it",
        ),
        (
            f"""%start = {_BIG} all-reduce-start(%p), {_GROUP}
                %small = {_SMALL} dot(%s, %s), {_DOT}
                %done = {_BIG} all-reduce-done(%start)
                %slice = {_SMALL} slice(%done), slice={{[0:3072], [0:3072]}}
                %mixed = {_SMALL} add(%small, %slice)
                %pad = f32[] constant(0)
                %out = {_BIG} pad(%mixed, %pad), padding=0_1024x0_1024""",
            "out",
            "start",
            "not enough to run beside it: 0.0",
        ),
        (
            f"""%start = {_BIG} all-reduce-start(%p), {_GROUP}
                %done = {_BIG} all-reduce-done(%start)
                %half = {_BIG} dot(%q, %q), {_DOT}
                %other = {_BIG} dot(%half, %q), {_DOT}
                %out = {_BIG} dot(%done, %other), {_DOT}""",
            "out",
            "start",
            "the order does not use what there is",
        ),
        (
            f"""%now = {_BIG} all-reduce(%p), {_GROUP}
                %half = {_BIG} dot(%q, %q), {_DOT}
                %other = {_BIG} dot(%half, %q), {_DOT}
                %out = {_BIG} dot(%now, %other), {_DOT}""",
            "out",
            "now",
            "it is synchronous",
        ),
        (
            f"""%first = {_BIG} all-reduce-start(%p), {_GROUP}
                %second = {_BIG} all-reduce-start(%q), {_GROUP}
                %other = {_BIG} dot(%q, %q), {_DOT}
                %end = {_BIG} all-reduce-done(%second)
                %both = {_BIG} dot(%end, %other), {_DOT}
                %done = {_BIG} all-reduce-done(%first)
                %out = {_BIG} dot(%done, %both), {_DOT}""",
            "out",
            "second",
            "it is ordered behind other collectives on the same stream, the last first",
        ),
    ],
    ids=["nothing", "too-little", "order", "synchronous", "queued"],
)
def test_reasons(body, root, name, why):
    wait = _waits(_module(_entry(_ARGUMENTS + body, root)))[name]
    assert wait.exposed_seconds > 0
    assert wait.why.startswith(why), wait.why


def test_an_iteration_that_waits_for_the_one_before():
    state = f"(s32[], {_BIG}, {_BIG})"
    loop = f"""
%body (state: {state}) -> {state} {{
  %state = {state} parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = {_BIG} get-tuple-element(%state), index=1
  %w = {_BIG} get-tuple-element(%state), index=2
  %y = {_BIG} dot(%x, %w), {_DOT}
  %start = {_BIG} all-reduce-start(%y), {_GROUP}
  %done = {_BIG} all-reduce-done(%start)
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = {state} tuple(%next, %done, %w)
}}

%condition (state: {state}) -> pred[] {{
  %state.1 = {state} parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %n = s32[] constant(4)
  ROOT %less = pred[] compare(%i.1, %n), direction=LT
}}

ENTRY %e (x: {_BIG}, w: {_BIG}) -> {_BIG} {{
  %x.1 = {_BIG} parameter(0)
  %w.1 = {_BIG} parameter(1)
  %zero = s32[] constant(0)
  %init = {state} tuple(%zero, %x.1, %w.1)
  %while = {state} while(%init), condition=%condition, body=%body
  ROOT %result = {_BIG} get-tuple-element(%while), index=1
}}
"""
    module = _module(loop)
    assert (
        "each iteration of its loop waits for the one before: it depends on element 1"
        in _waits(module)["start"].why
    )
    # The same words in the dump's header and in the report's table.
    _, header = stage.reschedule(module.proto.SerializeToString(), "h100")
    assert "each iteration of its loop waits for the one before" in header
    row = kernels.Collective("start", "all-reduce", 1, 8, 1, 0, 1, 2.0, 2.0, "", "")
    hidden = kernels.Collective("other", "all-reduce", 1, 8, 1, 0, 1, 2.0, 0.0, "", "")
    told = kernels.explained([row, hidden], module, Target("h100", topology="1x1x8"))
    assert "each iteration" in told[0].why and not told[1].why
