"""XLA's performance tables (``DeviceHloInstructionProfiles``) as measured curves of a parameter set.

XLA's ``collective_perf_table_gen`` and ``matmul_perf_table_gen`` measure on a user's machine and write what
``xla_gpu_experimental_collective_perf_table_path`` and ``xla_gpu_experimental_matmul_perf_table_path`` read, as text
(.pbtxt) or binary (.pb). Each entry is an instruction with a rate: of a collective the bytes of the whole message, as
nccl-tests counts them, over the time that it took; of a product FLOP/s.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pathlib
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import message, text_format

from farrier._src import errors
from farrier._src.collectives import groups
from farrier._src.collectives.parameters import Curve, ParameterSet, Products
from farrier._src.hlo import Instruction, proto
from farrier._src.hlo.module import shape_bytes

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Element types by XLA's name: their numbers, which is how farrier declares them (xla/xla_data.proto).
_TYPES = {
    "PRED": 1, "S8": 2, "S16": 3, "S32": 4, "S64": 5, "U8": 6, "U16": 7, "U32": 8, "U64": 9, "F16": 10, "F32": 11,
    "F64": 12, "TUPLE": 13, "C64": 15, "BF16": 16, "C128": 18, "F8E5M2": 19, "F8E4M3FN": 20, "S4": 21, "U4": 22,
    "F8E4M3B11FNUZ": 23, "F8E5M2FNUZ": 24, "F8E4M3FNUZ": 25, "F8E4M3": 28,
}  # fmt: skip
_ELEMENT_TYPE = re.compile(r"(\belement_type\s*:\s*)([A-Z]\w*)")


def read(path: str | os.PathLike[str], device: str | None = None) -> list[Any]:
    """The entries of one device's table.

    Args:
      path: a text or binary ``DeviceHloInstructionProfiles``; told apart by content.
      device: the table's name of the device, such as ``sm_90``; None takes the only one that there is.

    Raises:
      farrier.Error: unreadable, not a table, or not this device's.
    """
    name = os.fspath(path)
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as e:
        raise errors.InputError(f"cannot read the performance table {name!r}: {e}") from e
    table = _parse(data, name)
    by_device = {e.key: list(e.value.entries) for e in table.entries}
    if not by_device:
        raise errors.InputError(f"{name}: no device in the performance table")
    if device is None:
        if len(by_device) > 1:
            raise errors.InputError(
                f"{name}: the performance table has several devices",
                hint=f"name one of {', '.join(sorted(by_device))}",
            )
        (device,) = by_device
    if device not in by_device:
        raise errors.InputError(
            f"{name}: the performance table does not know {device!r}",
            hint=f"it has {', '.join(sorted(by_device))}",
        )
    return by_device[device]


def _parse(data: bytes, name: str) -> Any:
    made = proto.message("DeviceHloInstructionProfiles")
    binary = made()
    try:
        binary.ParseFromString(data)
        if binary.entries and all(e.key.isprintable() and e.value.entries for e in binary.entries):
            return binary
    except (message.DecodeError, UnicodeDecodeError):
        pass
    try:
        text = data.decode("utf-8")

        def number(found: re.Match[str]) -> str:
            if found[2] not in _TYPES:
                raise errors.InputError(f"{name}: element type {found[2]} is not known")
            return f"{found[1]}{_TYPES[found[2]]}"

        return text_format.Parse(_ELEMENT_TYPE.sub(number, text), made(), allow_unknown_field=True)
    except (UnicodeDecodeError, text_format.ParseError) as e:
        raise errors.InputError(
            f"{name}: not a performance table of XLA's (DeviceHloInstructionProfiles): {str(e).splitlines()[0]}"
        ) from e


@dataclasses.dataclass(frozen=True)
class _Proto:
    """What `groups` asks of an instruction."""

    proto: Any


def curves(
    entries: Iterable[Any], domain_devices: int, name: str = "the performance table"
) -> tuple[Curve, ...]:
    """Curves of the collectives among `entries`: of each kind, inside a domain and across, the largest group's.

    Raises:
      farrier.Error: an entry without a rate or a size.
    """
    # (kind, across domains) -> devices of a group -> bytes -> seconds
    found: dict[tuple[str, bool], dict[int, dict[float, list[float]]]] = collections.defaultdict(
        lambda: collections.defaultdict(lambda: collections.defaultdict(list))
    )
    for entry in entries:
        p = entry.instruction
        kind = p.opcode.removesuffix("-start")
        if kind not in _KINDS:
            continue
        span = groups.span(_as_instruction(p), 1, domain_devices)
        size = shape_bytes(p.shape) * (span.group if kind == "reduce-scatter" else 1)
        rate = entry.network_throughput_bytes_per_sec
        if size <= 0 or rate <= 0 or span.group < 2:
            raise errors.InputError(
                f"{name}: {kind} {p.name}: an entry needs a size, a group and a throughput"
            )
        found[kind, span.domains > 1][span.group][float(size)].append(size / rate)
    made = []
    for (kind, network), by_group in sorted(found.items()):
        points = by_group[max(by_group)]
        made.append(
            Curve(
                kind=kind,
                network=network,
                points=tuple((size, statistics.median(times)) for size, times in sorted(points.items())),
            )
        )
    return tuple(made)


def products(entries: Iterable[Any], name: str = "the performance table") -> tuple[Products, ...]:
    """Rates of the products among `entries` by element type; of several with the same FLOPs the median.

    Raises:
      farrier.Error: an entry without operands or a rate.
    """
    found: dict[int, dict[float, list[float]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for entry in entries:
        p = entry.instruction
        if p.opcode != "dot":
            continue
        if len(entry.operands) != 2 or entry.flops <= 0:
            raise errors.InputError(f"{name}: dot {p.name}: an entry needs two operands and a rate")
        left = entry.operands[0].shape
        depth = math.prod(left.dimensions[d] for d in p.dot_dimension_numbers.lhs_contracting_dimensions)
        flops = 2.0 * math.prod(p.shape.dimensions) * depth
        found[left.element_type][flops].append(float(entry.flops))
    return tuple(
        Products(
            element_type=element_type,
            points=tuple((flops, statistics.median(rates)) for flops, rates in sorted(by_flops.items())),
        )
        for element_type, by_flops in sorted(found.items())
    )


def measured_set(
    base: ParameterSet,
    *,
    collectives: Sequence[str | os.PathLike[str]] = (),
    matmuls: Sequence[str | os.PathLike[str]] = (),
    device: str | None = None,
    name: str = "measured",
) -> ParameterSet:
    """`base` with the collectives and products of these tables replaced by what was measured.

    Args:
      base: gives what was not measured, and how many devices share a domain.
      collectives: tables of collectives.
      matmuls: tables of products.
      device: as `read`.
      name: the set's name.

    Raises:
      farrier.Error: a table cannot be read, or has nothing that was asked of it.
    """
    new: list[Curve] = []
    rates: list[Products] = []
    for path in collectives:
        added = curves(read(path, device), base.domain_devices, os.fspath(path))
        if not added:
            raise errors.InputError(f"{os.fspath(path)}: no collective in the performance table")
        new += added
    for path in matmuls:
        measured = products(read(path, device), os.fspath(path))
        if not measured:
            raise errors.InputError(f"{os.fspath(path)}: no product in the performance table")
        rates += measured
    replaced = {(c.kind, c.network) for c in new}
    typed = {r.element_type for r in rates}
    return dataclasses.replace(
        base,
        name=name,
        curves=(*(c for c in base.curves if (c.kind, c.network) not in replaced), *new),
        products=(*(r for r in base.products if r.element_type not in typed), *rates),
    )


def _as_instruction(p: Any) -> Instruction:
    return _Proto(p)  # type: ignore[return-value]
