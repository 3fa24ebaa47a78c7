"""``farrier targets``: the GPUs that a program can be compiled for, with the figures the cost models use."""

from __future__ import annotations

import argparse
import json

from rich import box
from rich.console import Console
from rich.table import Table

from farrier._src.targets import Target, builtin_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command line."""
    parser.add_argument(
        "names", nargs="*", metavar="TARGET", help="built-in names or TOML files; default: all built-in"
    )
    parser.add_argument("--json", action="store_true", help="all facts with their sources, as JSON")
    parser.add_argument("--sources", action="store_true", help="also where each figure comes from")
    parser.add_argument(
        "--config",
        action="store_true",
        help="print XLA's target configuration of one target, and nothing else",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compile a small program for each, with its time"
    )


_PEAKS = ("bfloat16", "float8_e4m3fn", "float4_e2m1fn", "int8", "tensorfloat32", "float32", "float64")


def _rows(target: Target) -> list[tuple[str, str]]:
    """(row with its unit, figure) of one target."""
    facts = target.facts

    def scaled(value: float, unit: float) -> str:
        figure = value / unit
        if not figure:
            return "-"
        return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.4g}"

    return [
        ("compute capability", facts.compute_capability),
        ("multiprocessors", str(facts.sm_count)),
        *((f"{dtype}, TFLOP/s", scaled(facts.peak_flops.get(dtype, 0), 1e12)) for dtype in _PEAKS),
        ("memory, GB", scaled(facts.memory_bytes, 1e9)),
        ("  of it reserved, GB", scaled(facts.reserved_bytes, 1e9)),
        ("memory bandwidth, GB/s", scaled(facts.hbm_bytes_per_s, 1e9)),
        ("L2 cache, MB", scaled(facts.l2_bytes, 1e6)),
        ("NVLink, GB/s", scaled(facts.nvlink_bytes_per_s, 1e9)),
        ("host link", facts.host_link),
        ("host link, GB/s", scaled(facts.host_link_bytes_per_s, 1e9)),
        ("network, GB/s", scaled(facts.nic_bytes_per_s, 1e9)),
        ("devices per host", str(facts.devices_per_host)),
    ]


def _verify(target: Target) -> str:
    import jax
    import jax.numpy as jnp

    from farrier._src import oracle

    x = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=target.sharding())
    compiled = oracle.compile_lowered(jax.jit(lambda a: a @ a).lower(x), target)
    return f"{compiled.measurement.compile_seconds:.1f}"


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the table. Returns 0; an unknown target or a refused compile raises farrier.Error."""
    targets = [Target(name) for name in args.names or builtin_names()]
    if args.config:
        console.out("".join(t.config_text() for t in targets), end="", highlight=False)
        return 0
    if args.json:
        console.out(json.dumps([t.to_json() for t in targets], indent=1, sort_keys=True), highlight=False)
        return 0
    table = Table(
        title="per GPU; rates without sparsity; links in one direction",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    for target in targets:
        table.add_column(target.name, justify="right", no_wrap=True)
    for cells in zip(*(_rows(t) for t in targets), strict=True):
        table.add_row(cells[0][0], *(figure for _, figure in cells))
    if args.verify:
        table.add_row("compile here, s", *(_verify(t) for t in targets))
    console.print(table)
    if args.sources:
        for target in targets:
            console.print(f"\n[bold]{target.name}[/bold]: {target.facts.description}")
            for key, source in sorted(target.facts.sources.items()):
                console.print(f"  {key}: {source}", highlight=False)
    return 0
