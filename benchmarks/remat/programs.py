"""Training steps of `benchmarks/unseen`, laid out for the H100s that they are written for."""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import farrier
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import lines
import unseen
from unseen.steps import ADAM, state_of, step_of


def laid_out(
    loss: Any, parameters: Any, shapes: Any, training: Any = ADAM, devices: Any = None
) -> tuple[Any, tuple[Any, ...], farrier.Target]:
    """The jitted step of what a program gives (`unseen`), its abstract arguments, and the target they are placed on."""
    count = math.prod(devices.shape) if devices else 1
    target = farrier.Target("h100", topology=f"1x1x{count}")
    mesh = target.mesh(devices.shape, devices.names) if devices else None

    def placed(x, spec=None):
        x = x if hasattr(x, "dtype") else jax.ShapeDtypeStruct(x, jnp.float32)
        where = target.sharding() if mesh is None else NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    state = jax.eval_shape(lambda: state_of(parameters(), training))
    if devices is None:
        state = jax.tree.map(placed, state)
    else:
        state = tuple(jax.tree.map(placed, each, devices.parameters) for each in state)
    batch = jax.tree.map(
        lambda x: placed(x, devices and devices.batch), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    return step_of(loss, training, devices, mesh), (state, batch), target


def lowered(name: str):
    """The training step of a program, lowered for the H100s it is for, and those."""
    (program,) = (part[name] for part in unseen.PARTS.values() if name in part)
    function, arguments, target = laid_out(*program())
    return function.lower(*arguments), target


def measure_each(
    description: str, measure: Callable[[str], dict[str, Any]], show: Callable[[list[dict[str, Any]]], None]
) -> None:
    """The command line of a benchmark that measures every unseen program, given its name, as `lines.main` does."""

    def run(args: argparse.Namespace, found: lines.Lines) -> None:
        for part, programs in unseen.PARTS.items():
            for name in programs:
                if not args.only or name in args.only:
                    row = {"part": part, "program": name}
                    found.once(row, lambda name=name: measure(name), again=args.again)

    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="PROGRAM")
    lines.main(parser, ("program",), run, show)
