"""Replica groups in the encodings XLA uses, and how groups lie across NVLink domains."""

import types

import numpy as np
import pytest
from farrier._src.collectives import groups
from farrier._src.hlo import proto


def _instruction():
    return proto.parse_module(b"").computations.add().instructions.add()


def _fake(p):
    return types.SimpleNamespace(proto=p)


def test_explicit_groups():
    p = _instruction()
    for ids in ([0, 1, 2, 3], [4, 5, 6, 7]):
        p.replica_groups.add().replica_ids.extend(ids)
    assert groups.span(_fake(p), 8, 8) == groups.Span(4, 1, 4)
    assert groups.span(_fake(p), 8, 2) == groups.Span(4, 2, 2)


def test_iota_with_transpose():
    p = _instruction()
    p.iota_collective_device_list.num_replica_groups = 8
    p.iota_collective_device_list.num_devices_per_group = 8
    p.iota_collective_device_list.iota_reshape_dims.extend([8, 8])
    p.iota_collective_device_list.iota_transpose_perm.extend([1, 0])
    listed = groups.replica_groups(_fake(p), 64)
    assert list(listed[1]) == [1, 9, 17, 25, 33, 41, 49, 57]
    assert groups.span(_fake(p), 64, 8) == groups.Span(8, 8, 1)
    del p.iota_collective_device_list.iota_transpose_perm[:]
    assert groups.span(_fake(p), 64, 8) == groups.Span(8, 1, 8)


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ([(0, None)], np.arange(64).reshape(8, 8).T),
        ([(1, None)], np.arange(64).reshape(8, 8)),
        ([(0, None), (1, None)], np.arange(64).reshape(1, 64)),
        # The first axis in halves (before, part): the outer half alone pairs devices 32 apart.
        ([(0, (1, 2))], [[d, d + 32] for d in range(32)]),
        ([(1, (4, 2))], np.arange(64).reshape(32, 2)),
    ],
)
def test_mesh_axes(axes, expected):
    p = _instruction()
    listing = p.mesh_axes_replica_groups
    for name in ("x", "y"):
        listing.mesh.axes.add(name=name, size=8)
    for axis, part in axes:
        reference = listing.axes.add(mesh_axis_index=axis)
        if part is not None:
            reference.sub_axis_info.pre_size, reference.sub_axis_info.size = part
    got = groups.replica_groups(_fake(p), 64)
    assert sorted(map(sorted, got.tolist())) == sorted(map(sorted, np.asarray(expected).tolist()))


def test_a_permute_is_bound_by_its_slowest_pair():
    p = _instruction()
    for a, b in ((0, 0), (1, 8)):
        p.source_target_pairs.add(source=a, target=b)
    assert groups.span(_fake(p), 16, 8).domains == 2
    assert groups.span(_fake(p), 16, 16).domains == 1
