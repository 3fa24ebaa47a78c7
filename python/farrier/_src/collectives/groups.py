"""Who takes part in a collective: group size and how groups lie across NVLink domains."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math

import numpy as np

from farrier._src.hlo import Instruction


@dataclasses.dataclass(frozen=True, order=True)
class Span:
    """The shape of a collective's groups."""

    group: int
    """Devices in one group."""
    domains: int
    """NVLink domains that one group touches, at most over the groups."""
    per_domain: int
    """Members of one group within one domain, at most."""


def replica_groups(i: Instruction, device_count: int) -> np.ndarray | list[list[int]]:
    """The collective's device groups, device numbers as in the module's device assignment.

    Three encodings exist: explicit lists, an iota with a transpose, and mesh axes (XLA since jax 0.11).
    """
    p = i.proto
    if p.HasField("mesh_axes_replica_groups"):
        return _from_mesh(p.mesh_axes_replica_groups)
    if p.HasField("iota_collective_device_list"):
        return _from_iota(p.iota_collective_device_list)
    if p.HasField("collective_device_list"):
        listing = p.collective_device_list
        if listing.HasField("iota_replica_group_list"):
            return _from_iota(listing.iota_replica_group_list)
        groups = [list(g.replica_ids) for g in listing.replica_groups]
        if groups:
            return groups
    groups = [list(g.replica_ids) for g in p.replica_groups if g.replica_ids]
    return groups or [list(range(device_count))]


def _from_iota(iota) -> np.ndarray:
    dims = list(iota.iota_reshape_dims)
    devices = np.arange(math.prod(dims)).reshape(dims)
    if iota.iota_transpose_perm:
        devices = devices.transpose(list(iota.iota_transpose_perm))
    return devices.reshape(iota.num_replica_groups, iota.num_devices_per_group)


def _from_mesh(listing) -> np.ndarray:
    sizes = [a.size for a in listing.mesh.axes]
    devices = np.arange(math.prod(sizes))
    if listing.mesh.device_ids:
        devices = np.asarray(listing.mesh.device_ids)
    # Each axis is split where a reference names a part of it: (before, the part, after).
    cuts: dict[int, set[int]] = collections.defaultdict(set)
    chosen: list[tuple[int, int, int]] = []
    for reference in listing.axes:
        axis, size = reference.mesh_axis_index, sizes[reference.mesh_axis_index]
        before, part = 1, size
        if reference.HasField("sub_axis_info"):
            before, part = reference.sub_axis_info.pre_size, reference.sub_axis_info.size
        cuts[axis] |= {before, before * part}
        chosen.append((axis, before, part))
    shape: list[int] = []
    where: dict[tuple[int, int], int] = {}
    for axis, size in enumerate(sizes):
        edges = sorted({1, size} | cuts[axis])
        for low, high in itertools.pairwise(edges):
            where[axis, low] = len(shape)
            shape.append(high // low)
    group_dims: list[int] = []
    for axis, before, part in chosen:
        at = before
        while at < before * part:
            k = where[axis, at]
            group_dims.append(k)
            at *= shape[k]
    rest = [k for k in range(len(shape)) if k not in group_dims]
    count = math.prod(shape[k] for k in group_dims)
    return devices.reshape(shape or [1]).transpose(rest + group_dims if shape else [0]).reshape(-1, count)


def span(i: Instruction, device_count: int, domain_devices: int) -> Span:
    """Group size and spread of a collective instruction (the collective itself, not an async wrapper)."""
    pairs = [(p.source, p.target) for p in i.proto.source_target_pairs]
    if pairs:
        crossing = any(a // domain_devices != b // domain_devices for a, b in pairs)
        # Every device sends through its own link and network card.
        return Span(2, 2 if crossing else 1, 1)
    groups = replica_groups(i, device_count)
    if isinstance(groups, np.ndarray):
        # Groups made from a mesh are alike up to a shift, but the shift may move them across a domain's edge.
        counts = [np.unique(g // domain_devices, return_counts=True)[1].tolist() for g in groups]
        size = groups.shape[1]
    else:
        counts = [list(collections.Counter(d // domain_devices for d in g).values()) for g in groups]
        size = max(len(g) for g in groups)
    return Span(size, max(len(c) for c in counts), max(max(c) for c in counts))
