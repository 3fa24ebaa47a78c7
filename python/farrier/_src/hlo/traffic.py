"""Bytes of device memory that one kernel reads and writes, from shapes and indexing.

Each distinct operand is read once and each result written once; caches are ignored. Reading a slice of a
buffer counts the slice, writing a slice in place counts the slice: this is what makes loops over stacked
residuals come out right.
"""

from __future__ import annotations

from farrier._src.hlo.module import Instruction

_VIEWS = {"bitcast", "reshape", "copy-done", "get-tuple-element"}


def _through_views(i: Instruction) -> Instruction:
    while i.opcode in ("bitcast", "reshape") and i.operands:
        i = i.operands[0]
    return i


def _read(parameter: Instruction) -> int:
    """Bytes of a fused parameter that the fusion reads."""
    total, whole = 0, parameter.bytes
    pending, seen = [parameter], set()
    while pending:
        value = pending.pop()
        for user in value.users:
            if id(user) in seen:
                continue
            seen.add(id(user))
            if user.opcode in ("bitcast", "reshape"):
                pending.append(user)
            elif user.opcode in ("slice", "dynamic-slice") or (
                user.opcode == "gather" and user.operands[0] is value
            ):
                total += user.bytes
            elif (
                user.opcode in ("dynamic-update-slice", "scatter")
                and user.operands[0] is value
                and value not in user.operands[1:]
            ):
                continue  # updated in place: only the slices are written
            elif user.opcode == "fusion":
                # A fusion inside a fusion (XLA nests Triton GEMM tiles this way): look at its own parameter.
                for k, operand in enumerate(user.operands):
                    if operand is value and user.called:
                        total += _read(_parameter(user, k))
            else:
                return whole
            if total >= whole:
                return whole
    return total


def _parameter(fusion: Instruction, index: int) -> Instruction:
    cached = fusion.__dict__.get("_parameters")
    if cached is None:
        cached = {
            p.proto.parameter_number: p for p in fusion.called[0].instructions if p.opcode == "parameter"
        }
        fusion.__dict__["_parameters"] = cached
    return cached[index]


def _written(value: Instruction) -> int:
    """Bytes that the fusion writes for one root value."""
    source = _through_views(value)
    if source.opcode == "dynamic-update-slice":
        base = _through_views(source.operands[0])
        if base.opcode == "parameter":
            return source.operands[1].bytes
    if source.opcode == "scatter" and len(source.operands) == 3:
        base = _through_views(source.operands[0])
        if base.opcode == "parameter":
            return source.operands[2].bytes
    if source.opcode == "fusion" and source.called and source.called[0].root is not None:
        return _written(source.called[0].root)
    return value.bytes


def fusion_bytes(i: Instruction) -> int:
    """Bytes read and written by a fusion."""
    total, done = 0, set()
    for k, operand in enumerate(i.operands):
        key = id(operand)
        if key in done and operand.bytes > 0:
            continue
        done.add(key)
        total += _read(_parameter(i, k))
    root = i.called[0].root
    if root is None:
        return total
    if root.opcode == "tuple":
        return total + sum(_written(o) for o in root.operands)
    return total + _written(root)


def operand_bytes(i: Instruction, index: int) -> int:
    """Bytes that one execution of kernel `i` reads of its operand `index`."""
    operand = i.operands[index]
    if i.opcode == "fusion":
        return _read(_parameter(i, index))
    match i.opcode:
        case "slice" | "dynamic-slice" | "gather" if index == 0:
            return i.bytes
        case "dynamic-update-slice" | "scatter" if index == 0:
            return 0
    return operand.bytes


def result_bytes(i: Instruction, index: int) -> int:
    """Bytes that one execution of kernel `i` writes for its result `index`; of an array, the only one is 0."""
    root = i.called[0].root if i.opcode == "fusion" else None
    if root is not None and root.opcode == "tuple":
        return _written(root.operands[index])
    if root is not None and len(i.leaf_bytes) == 1:
        return _written(root)
    if i.opcode == "dynamic-update-slice":
        return i.operands[1].bytes
    if i.opcode == "scatter" and len(i.operands) == 3:
        return i.operands[2].bytes
    return i.leaf_bytes[index]


def kernel_bytes(i: Instruction) -> int:
    """Bytes of device memory read and written by one execution of `i`, an instruction outside any fusion."""
    match i.opcode:
        case "fusion":
            return fusion_bytes(i)
        case "slice" | "dynamic-slice":
            return 2 * i.bytes
        case "dynamic-update-slice":
            return 2 * i.operands[1].bytes
        case "gather":
            return 2 * i.bytes + i.operands[1].bytes
        case "scatter" if len(i.operands) == 3:
            return 2 * i.operands[2].bytes + i.operands[1].bytes
        case "copy-start":
            return 2 * i.operands[0].bytes
        case "broadcast" | "iota" | "rng":
            return i.bytes + sum(o.bytes for o in i.operands)
    distinct = {id(o): o.bytes for o in i.operands}
    return i.bytes + sum(distinct.values())
