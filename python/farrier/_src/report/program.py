"""A compiled module in the order in which it runs: positions, loops, source lines, scopes, phases."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re

from farrier._src import hlo

FORWARD, BACKWARD, OTHER = "forward", "backward", "other"

# Name-stack entries that JAX's own tracing adds: they say how an operation was traced, not where it belongs.
_MACHINERY = frozenset(
    (
        "while",
        "body",
        "cond",
        "closed_call",
        "checkpoint",
        "rematted_computation",
        "remat",
        "remat2",
        "scan",
        "pjit",
        "shard_map",
        "core_call",
        "eval_jaxpr",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "custom_lin",
        "xla_call",
    )
)
_TRANSFORM = re.compile(r"^(jvp|transpose|vmap|remat|checkpoint|shard_map)\((.*)\)$")
_CALL = re.compile(r"^(?:jit|pjit|xla_pmap|pmap)\((.*)\)$")
_BRANCH = re.compile(r"^branch_\d+_fun$")
_NUMBERED = re.compile(r"^[A-Za-z][\w.\-]*?[_.\-]?\d+$")
_ARGUMENT_LAYER = re.compile(
    r"^(.*?[\[.]'?[A-Za-z_]*(?:layer|block|stage|stack)[A-Za-z_]*'?\]?[\[._]'?\d+'?\]?)"
)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A while loop in program order; its condition and body lie at positions `first`..`last` inclusive."""

    position: int
    """Where the while itself stands: after its body."""
    first: int
    last: int
    trips: int
    """Iterations; 1 where XLA does not know them."""
    known: bool


def _split(name: str, separator: str = "/") -> list[str]:
    """Splits at separators outside parentheses."""
    parts, depth, start = [], 0, 0
    for k, c in enumerate(name):
        if c == "(":
            depth += 1
        elif c == ")":
            depth -= 1
        elif c == separator and depth == 0:
            parts.append(name[start:k])
            start = k + 1
    parts.append(name[start:])
    return parts


@functools.lru_cache(maxsize=65536)
def phase_of(op_name: str) -> str:
    """Whether an operation belongs to the forward pass, the backward pass or neither (the update, plain
    code).

    JAX puts ``jvp(...)`` around what differentiation traced and ``transpose(...)`` around its transpose;
    operations that XLA combined carry several names, and the more frequent one decides.
    """
    if "transpose(" not in op_name and "jvp(" not in op_name:
        return OTHER
    backward = op_name.count("transpose(")
    # A rematerialized forward runs in the backward pass.
    remat = op_name.count("rematted_computation")
    forward = op_name.count("jvp(") - backward
    return BACKWARD if backward + remat >= max(forward, 1) else FORWARD


@functools.lru_cache(maxsize=65536)
def scope_of(op_name: str) -> str:
    """The user's named scopes of an operation, outermost first, joined by ``/``; empty when there are none.

    >>> scope_of("jit(step)/transpose(jvp(layer_3))/mlp/dot_general")
    'layer_3/mlp'
    """
    out: list[str] = []

    def visit(part: str, top: bool) -> None:
        if part.startswith("(") and part.endswith(")"):  # combined operations: a:b:c
            alternatives = _split(part[1:-1], ":")
            for inner in _split(alternatives[0])[:-1]:
                visit(inner, False)
            return
        found = _TRANSFORM.match(part)
        if found:
            for inner in _split(found.group(2)):
                visit(inner, False)
            return
        found = _CALL.match(part)
        if found:
            if not top:
                out.append(found.group(1))
            return
        if part and part not in _MACHINERY and not _BRANCH.match(part):
            out.append(part)

    parts = _split(op_name)
    for k, part in enumerate(parts[:-1]):
        visit(part, k == 0)
    if parts and parts[-1].startswith("("):
        visit(parts[-1], False)
    return "/".join(out)


@functools.lru_cache(maxsize=65536)
def layer_of(scope: str) -> str:
    """The first numbered scope (``layer_3``), or of an argument's path the prefix up to the layer's number.

    >>> layer_of("decoder/layer_3/mlp"), layer_of("params['layers'][0]['wq']")
    ('layer_3', "params['layers'][0]")
    """
    if "[" in scope:
        found = _ARGUMENT_LAYER.match(scope)
        return found.group(1) if found else ""
    parts = scope.split("/")
    for k, part in enumerate(parts):
        if _NUMBERED.match(part):
            return part
        if part.isdigit() and k:
            return f"{parts[k - 1]}/{part}"
    return ""


def _is_condition(c: hlo.Computation) -> bool:
    return c.root is not None and c.root.proto.shape.element_type == 1  # a predicate


class Program:
    """A module's instructions, flattened to the order in which one step runs them.

    A loop's condition and body stand once, before the while instruction itself, as XLA's own live-range
    analysis counts them; `runs` says how often each position executes per step.
    """

    def __init__(self, module: hlo.Module):
        self.module = module
        self.steps: list[hlo.Instruction] = []
        self.runs: list[int] = []
        self.depth: list[int] = []
        self.loops: list[Loop] = []
        self.position: dict[int, int] = {}
        """Instruction id (the proto's) -> its first position."""
        self._sequence = {
            entry.computation_id: list(entry.sequence.instruction_ids)
            for entry in module.proto.schedule.sequences
        }
        self._frames = module.proto.stack_frame_index
        self._flatten(module.entry, 1, 0)
        self.loop_at = {loop.position: loop for loop in self.loops}

    def __len__(self) -> int:
        return len(self.steps)

    def sequence(self, computation: hlo.Computation) -> list[hlo.Instruction]:
        """A computation's instructions as scheduled; unscheduled ones in the module's order."""
        ids = self._sequence.get(computation.id)
        if ids is None:
            return computation.instructions
        by_id = {i.proto.id: i for i in computation.instructions}
        if any(k not in by_id for k in ids):  # a schedule may hold numbers local to the computation
            by_id = {i.proto.id & 0xFFFFFFFF: i for i in computation.instructions}
            ids = [k & 0xFFFFFFFF for k in ids]
        return [by_id[k] for k in ids if k in by_id]

    def _flatten(self, computation: hlo.Computation, runs: int, depth: int) -> None:
        for i in self.sequence(computation):
            trips, known = 1, True
            first = len(self.steps)
            if i.opcode == "while":
                known = i.trip_count is not None
                trips = i.trip_count if i.trip_count is not None else 1
            if i.opcode in ("while", "conditional", "call", "async-start"):
                # XLA's order: a loop's condition before its body.
                parts = (
                    sorted(i.called, key=lambda c: not _is_condition(c)) if i.opcode == "while" else i.called
                )
                for called in parts:
                    self._flatten(called, runs * trips, depth + 1)
            where = len(self.steps)
            if i.opcode == "while":
                self.loops.append(Loop(where, first, where - 1, trips, known))
            self.position.setdefault(i.proto.id, where)
            self.steps.append(i)
            self.runs.append(runs)
            self.depth.append(depth)

    # --- what an instruction is called and where it comes from ----------------------------------------------

    def metadata(self, i: hlo.Instruction):
        """The instruction's OpMetadata; a fusion without its own borrows the one nearest to its root."""
        own = i.proto.metadata
        if own.op_name or not i.called or i.opcode not in ("fusion", "async-start", "call"):
            return own
        found = i.__dict__.get("_borrowed_metadata")
        if found is None:
            found = own
            inner = i.called[0]
            root = inner.root
            for candidate in ([root] if root is not None else []) + inner.instructions[::-1]:
                if candidate.proto.metadata.op_name and candidate.opcode != "parameter":
                    found = candidate.proto.metadata
                    break
            i.__dict__["_borrowed_metadata"] = found
        return found

    def op_name(self, i: hlo.Instruction) -> str:
        """JAX's name stack and primitive, such as ``jit(step)/jvp(layer_0)/dot_general``."""
        return self.metadata(i).op_name

    def phase(self, i: hlo.Instruction) -> str:
        """`FORWARD`, `BACKWARD` or `OTHER`."""
        return phase_of(self.op_name(i))

    def scope(self, i: hlo.Instruction) -> str:
        """Named scopes; a parameter's is its argument path."""
        name = self.op_name(i)
        return name if i.opcode == "parameter" else scope_of(name)

    def source(self, i: hlo.Instruction) -> str:
        """``file:line`` of the innermost user frame, or empty."""
        m = self.metadata(i)
        frames = self._frames
        if 0 < m.stack_frame_id <= len(frames.stack_frames):
            location = frames.stack_frames[m.stack_frame_id - 1].file_location_id
            if 0 < location <= len(frames.file_locations):
                found = frames.file_locations[location - 1]
                if 0 < found.file_name_id <= len(frames.file_names):
                    return f"{frames.file_names[found.file_name_id - 1]}:{found.line}"
        return f"{m.source_file}:{m.source_line}" if m.source_file else ""

    def frames(self, i: hlo.Instruction) -> list[tuple[str, str, int]]:
        """The user's stack, innermost first: (function, file, line)."""
        index, out = self._frames, []
        k = self.metadata(i).stack_frame_id
        while 0 < k <= len(index.stack_frames) and len(out) < 64:
            frame = index.stack_frames[k - 1]
            if not 0 < frame.file_location_id <= len(index.file_locations):
                break
            at = index.file_locations[frame.file_location_id - 1]
            function = index.function_names[at.function_name_id - 1] if at.function_name_id else ""
            file = index.file_names[at.file_name_id - 1] if at.file_name_id else ""
            out.append((function, file, at.line))
            k = frame.parent_frame_id
        return out

    def differentiated(self) -> bool:
        """Whether the program holds a backward pass."""
        counts = collections.Counter(self.phase(i) for i in self.steps)
        return counts[BACKWARD] > 0
