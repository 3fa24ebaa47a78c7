"""Over which mesh axes each attention of a partitioned program is split.

XLA cannot partition cuDNN's calls; the pass puts them into manual computations and has to be told over which axes.
Shardy's propagation says how queries, keys and values are split; batch and heads may be, positions and the
width of heads may not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from farrier._src import sharding

__all__ = ["attention_splits"]

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")


def attention_splits(module: Any) -> list[str]:
    """The pass option ``attention-split`` for a `farrier._core.Module`: one entry for each attention in it.

    An entry is ``"mesh|x:4+y:2|x|y"`` (the mesh; all of its axes; those that split the batch; those that split
    the heads), ``"local"`` inside a computation that is manual already, or ``"!why"``, without spaces, where the
    kernel cannot be split as its operands are. Empty if the program has no attention, or nobody knows how it is split.
    """
    sites = json.loads(module.query("fusion.attention", "{}"))
    found = sharding.layouts(module) if sites else None
    return [] if found is None else [_entry(site, found) for site in sites]


class _CannotSplit(Exception):
    pass


def _entry(site: Mapping[str, Any], found: sharding.Layouts) -> str:
    taken = {name for at in site["manual"] if at for name in found.manual.get(at["op"], ())}
    layouts = {name: _layout(tensor["value"], found) for name, tensor in site["tensors"].items()}
    meshes = {each.mesh for each in layouts.values() if each is not None}
    if site["manual"] and all(taken >= axes.keys() for axes in found.meshes.values() if axes):
        return "local"
    if site["manual"]:
        return "!partly-manual"  # Shardy's propagation does not say how its arguments are split further
    # Split by nothing: any mesh serves.
    mesh = meshes.pop() if meshes else next((name for name, axes in found.meshes.items() if axes), None)
    if meshes or mesh is None:
        return "!several-meshes"
    try:
        axes = {name: _axes(site, name, layouts[name]) for name in layouts}
        for name in ("query", "key", "value"):
            for position in site["positions"]:
                _refuse(axes[name].get(position), "positions")
            _refuse(axes[name].get(site["width"]), "width")
        batch = _first([_flat(site, axes[name], site["batch"]) for name in axes])
        # The last axes of the heads are the queries' alone: what splits keys says less.
        heads = _first([_flat(site, axes[name], site["heads"]) for name in axes])
    except _CannotSplit as reason:
        return f"!{reason}"
    manual = found.meshes[mesh]
    if any(not _PLAIN.fullmatch(name) for name in (mesh, *manual)) or not {*batch, *heads} <= manual.keys():
        return "!axes-without-plain-names"
    written = "+".join(f"{name}:{size}" for name, size in manual.items())
    return f"{mesh}|{written}|{'+'.join(batch)}|{'+'.join(heads)}"


def _layout(value: Mapping[str, int] | None, found: sharding.Layouts) -> sharding.Layout | None:
    if value is None:
        return None
    of = found.arguments if "argument" in value else found.operations.get(value["op"], [])
    index = value["argument"] if "argument" in value else value["result"]
    return of[index] if index < len(of) else None


def _axes(
    site: Mapping[str, Any], name: str, layout: sharding.Layout | None
) -> dict[int, list[tuple[str, int]]]:
    """The mesh axes that split each axis of the attention, by what splits the dimensions that it lies in."""
    axes: dict[int, list[tuple[str, int]]] = {}
    if layout is None:
        return axes
    for lying, splitting in zip(site["tensors"][name]["dims"], layout.dimensions, strict=True):
        left = [(axis, site["sizes"][axis]) for axis in lying]
        for mesh_axis, size in splitting:
            while left and left[0][1] == 1:
                left.pop(0)
            if not left or left[0][1] % size:
                # Of an axis and the next at once: only as a whole.
                left = [(lying[0], math.prod(n for _, n in left))] if left else [(lying[0], 0)]
                if left[0][1] % size:
                    raise _CannotSplit("unevenly")
            axes.setdefault(left[0][0], []).append((mesh_axis, size))
            left[0] = (left[0][0], left[0][1] // size)
    return axes


def _refuse(splitting: Sequence[tuple[str, int]] | None, what: str) -> None:
    for mesh_axis, size in splitting or ():
        if size > 1:
            name = mesh_axis.partition(":")[0]
            raise _CannotSplit(f"{what}:{name if _PLAIN.fullmatch(name) else '?'}")


def _flat(site: Mapping[str, Any], axes: Mapping[int, Sequence[tuple[str, int]]], order: Sequence[int]):
    """Mesh axes that split several axes flattened into one dimension, or None where they do not split it evenly."""
    result, whole = [], True
    for axis in order:
        splitting = [(name, size) for name, size in axes.get(axis, ()) if size > 1]
        if splitting and not whole:
            return None
        result += [name for name, _ in splitting]
        whole = whole and math.prod(size for _, size in splitting) >= site["sizes"][axis]
    return None if any(":" in name for name in result) else result


def _first(lists: Sequence[list[str] | None]) -> list[str]:
    """What splits the queries; what splits keys or values where nothing splits the queries."""
    for names in lists:
        if names:
            return names
    if any(names is None for names in lists):
        raise _CannotSplit("strided")
    return []
