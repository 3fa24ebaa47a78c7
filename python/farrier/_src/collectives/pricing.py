"""What single collectives cost, asked of the same simulator that judges whole programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from farrier._src.collectives import groups, program
from farrier._src.collectives.parameters import ParameterSet
from farrier._src.hlo import Instruction, Module


@dataclasses.dataclass(frozen=True)
class Price:
    """Seconds of one execution, by the slowest parameter set."""

    seconds: float
    latency: float
    """Of the same collective without bytes."""


def collectives(
    module: Module, found: Sequence[Instruction], parameters: Sequence[ParameterSet]
) -> dict[int, Price]:
    """The price of each collective of `found` (instructions of `module`, not asynchronous yet), by its `id`.

    An all-reduce of which each device reads one slice only is what XLA will make a reduce-scatter, and costs that.
    """
    from farrier._src.collectives.schedule import request

    if not found:
        return {}
    devices = program.device_count(module)
    rows: list[dict[str, Any]] = []
    for i in found:
        span = groups.span(i, devices, parameters[0].domain_devices)
        kind, size = i.opcode, i.bytes
        if kind == "all-reduce" and i.users and all(u.opcode == "dynamic-slice" for u in i.users):
            kind, size = "reduce-scatter", sum(u.bytes for u in i.users)
        row = {"kind": kind, "group": span.group, "domains": span.domains, "per_domain": span.per_domain}
        rows += [{**row, "bytes": size}, {**row, "bytes": 0}]
    n = len(rows)
    computation = {
        "name": "collectives",
        "role": [program.COMM_SYNC] * n,
        "cost": [0.0] * n,
        "partner": [-1] * n,
        "collective": list(range(n)),
        "body": [-1] * n,
        "trips": [1] * n,
        "preds": [[] for _ in range(n)],
        "reads": [[] for _ in range(n)],
        "writes": [[] for _ in range(n)],
        "buffers": [],
        "live_in": [],
        "live_out": [],
    }
    answer = request(
        action="simulate",
        program={"entry": 0, "computations": [computation], "collectives": rows},
        models=[p.comm_json() for p in parameters],
    )
    slowest = [0.0] * n
    for result in answer["results"]:
        for _, k, total, *_ in result["waits"]:
            slowest[k] = max(slowest[k], total / 1e6)
    return {id(i): Price(slowest[2 * k], slowest[2 * k + 1]) for k, i in enumerate(found)}
