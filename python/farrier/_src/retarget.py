"""Arguments of a call, as they would be on the devices of a target."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding

from farrier._src import compat, errors
from farrier._src.where import with_device_count

__all__ = ["on_target", "wants_target"]

_HOST_KINDS = ("pinned_host", "unpinned_host")


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _sharding(leaf: Any) -> Any:
    return getattr(leaf, "sharding", None)


def _is_placed(leaf: Any) -> bool:
    """Whether a leaf says where it lives: a committed array, or an abstract one with a sharding."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding is not None
    return isinstance(leaf, jax.Array)


def wants_target(args: Any, kwargs: Any) -> bool:
    """Whether a call is abstract and leaves open where it runs, so that it is lowered for the target."""
    leaves = [leaf for leaf in jax.tree.leaves((args, kwargs)) if _is_array(leaf)]
    return bool(leaves) and not any(_is_placed(leaf) for leaf in leaves)


def on_target(target: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments as abstract values on the target's devices; everything that is no array stays.

    An array sharded over a mesh gets the same spec over the same mesh shape of the target's devices.
    Arrays that are already there stay.

    Raises:
      farrier.TargetError: the target has another number of devices than a mesh; a memory kind that
        the target's compile-only devices do not carry.
    """
    meshes: dict[Any, Any] = {}
    leaves = jax.tree.leaves((args, kwargs))
    widest = max((len(s.device_set) for s in map(_sharding, leaves) if s is not None), default=1)

    def move(leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        sharding = _sharding(leaf)
        if sharding is not None and getattr(sharding, "memory_kind", None) in _HOST_KINDS:
            raise errors.TargetError(
                f"an argument of shape {tuple(leaf.shape)} lies in {sharding.memory_kind!r}: the "
                f"compile-only devices of {target!r} have no memory kinds, it would count as device memory",
                hint="move it with jax.device_put(x, jax.memory.Space.Host) inside the function, "
                "or plan on the machine that has the GPU",
            )
        return jax.ShapeDtypeStruct(
            leaf.shape,
            leaf.dtype,
            sharding=_moved(target, sharding, meshes, widest),
            weak_type=bool(getattr(leaf, "weak_type", False)),
        )

    return jax.tree.map(move, (args, kwargs))


def _moved(target: Any, sharding: Any, meshes: dict[Any, Any], widest: int) -> Any:
    if sharding is not None and not any(compat.is_attached(device) for device in sharding.device_set):
        return sharding
    if isinstance(sharding, NamedSharding) and len(sharding.device_set) > 1:
        mesh = sharding.mesh
        if mesh not in meshes:
            meshes[mesh] = _mesh(target, mesh)
        return NamedSharding(meshes[mesh], sharding.spec)
    if sharding is not None and len(sharding.device_set) > 1:
        raise errors.TargetError(
            f"cannot carry {sharding} over to {target!r}", hint="shard the arguments with jax.NamedSharding"
        )
    # Beside sharded arguments an unplaced one is left to the compiler, as jit does.
    return SingleDeviceSharding(target.devices()[0]) if widest == 1 else None


def _mesh(target: Any, mesh: Any) -> Any:
    count = mesh.devices.size
    if target.device_count == 1 and count > 1:
        target = with_device_count(target, count)
    if target.device_count != count:
        raise errors.TargetError(
            f"the arguments are sharded over {count} devices and {target!r} has {target.device_count}",
            hint="give the target a topology of that many devices",
        )
    devices = np.array(target.devices(), dtype=object).reshape(mesh.devices.shape)
    return jax.sharding.Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)
