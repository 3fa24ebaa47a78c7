"""`Target`: a GPU model times a number of devices, as something to compile for."""

from __future__ import annotations

import functools
import importlib
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from farrier._src import errors
from farrier._src.targets.config_text import target_config_text
from farrier._src.targets.facts import DeviceFacts, load_facts

_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")


def _register_plugin() -> bool:
    """Registers an installed XLA:GPU plugin that JAX's own discovery gave up on; False when none is
    installed.

    Where CUDA is among the wanted platforms, the plugin first compares the versions of the CUDA libraries,
    and without a GPU's libraries that fails. A deviceless compile needs none of them.
    """
    for name in _PLUGINS:
        try:
            plugin = importlib.import_module(name)
        except ImportError:
            continue
        skip = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"
        before = os.environ.get(skip)
        os.environ[skip] = "1"
        try:
            plugin.initialize()
        finally:
            if before is None:
                del os.environ[skip]
            else:
                os.environ[skip] = before
        return True
    return False


@functools.lru_cache(maxsize=64)
def _topology_desc(config: str, topology: str):
    """One topology object per configuration: meshes made from it share their devices, so jit sees equal
    shardings."""
    import jax
    from jax.experimental import topologies

    def make():
        return topologies.get_topology_desc(platform="cuda", target_config=config, topology=topology)

    try:
        try:
            return make()
        except NotImplementedError:
            if not _register_plugin():
                raise
            return make()
    except NotImplementedError as e:
        raise errors.MissingPluginError(
            "compiling for a GPU needs JAX's XLA:GPU plugin, which is not installed here",
            hint='pip install "farrier[cuda13]" (no GPU and no driver are needed to compile)',
        ) from e
    except jax.errors.JaxRuntimeError as e:
        raise errors.TargetError(
            f"XLA rejects the target configuration for topology {topology!r}: {e}"
        ) from e


class Target:
    """A GPU model and a topology to plan and compile for; no GPU is needed.

    ``Target("h100")`` is one device; ``Target("h100", topology="1x1x8")`` is eight in one host;
    ``"1x18x4"`` is one NVLink domain of 18 hosts with 4 GPUs each; the numbers are domains x hosts per
    domain x devices per host.

    Args:
      name: a built-in model (``farrier targets`` lists them) or the path of a TOML file in their format.
      topology: ``"AxBxC"`` as above.

    Raises:
      farrier.Error: unknown name, malformed file or topology.

    >>> t = Target("h100", topology="1x1x8")
    >>> t.device_count, t.peak_flops["bfloat16"]
    (8, 989400000000000.0)
    """

    def __init__(self, name: str | os.PathLike[str] | DeviceFacts = "h100", *, topology: str = "1x1x1"):
        if not isinstance(topology, str) or not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", topology):
            raise errors.TargetError(
                f"topology {topology!r}: expected domains x hosts x devices per host",
                hint='write "1x1x8" for eight GPUs in one host',
            )
        self._facts = name if isinstance(name, DeviceFacts) else load_facts(name)
        self._topology = topology

    @property
    def facts(self) -> DeviceFacts:
        """All datasheet facts with their sources."""
        return self._facts

    @property
    def name(self) -> str:
        """Short name of the GPU model."""
        return self._facts.name

    @property
    def topology(self) -> str:
        """Domains x hosts per domain x devices per host."""
        return self._topology

    @property
    def device_count(self) -> int:
        """Number of devices."""
        return math.prod(int(n) for n in self._topology.split("x"))

    @property
    def host_count(self) -> int:
        """Number of hosts."""
        domains, hosts, _ = (int(n) for n in self._topology.split("x"))
        return domains * hosts

    @property
    def devices_per_nvlink_domain(self) -> int:
        """Devices that reach each other over NVLink."""
        _, hosts, devices = (int(n) for n in self._topology.split("x"))
        return hosts * devices

    @property
    def memory_bytes(self) -> int:
        """Memory of one device, bytes."""
        return self._facts.memory_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes of one device's memory that XLA's buffers cannot have; see `facts.sources`."""
        return self._facts.reserved_bytes

    @property
    def usable_bytes(self) -> int:
        """`memory_bytes` less `reserved_bytes`: what a budget given as a fraction refers to."""
        return self._facts.memory_bytes - self._facts.reserved_bytes

    @property
    def hbm_bytes_per_s(self) -> float:
        """Device memory bandwidth, bytes/s."""
        return self._facts.hbm_bytes_per_s

    @property
    def peak_flops(self) -> dict[str, float]:
        """Peak rates without sparsity by dtype name, FLOP/s."""
        return dict(self._facts.peak_flops)

    @property
    def l2_bytes(self) -> int:
        """L2 cache, bytes."""
        return self._facts.l2_bytes

    @property
    def sm_count(self) -> int:
        """Streaming multiprocessors of one device."""
        return self._facts.sm_count

    @property
    def nvlink_bytes_per_s(self) -> float:
        """NVLink bandwidth of one device in one direction, bytes/s."""
        return self._facts.nvlink_bytes_per_s

    @property
    def host_link(self) -> str:
        """``"pcie"`` or ``"nvlink-c2c"``."""
        return self._facts.host_link

    @property
    def host_link_bytes_per_s(self) -> float:
        """Bandwidth between host memory and one device in one direction, bytes/s."""
        return self._facts.host_link_bytes_per_s

    @property
    def nic_bytes_per_s(self) -> float:
        """Network bandwidth of one device in one direction, bytes/s."""
        return self._facts.nic_bytes_per_s

    def config_text(self) -> str:
        """The GpuTargetConfigProto text that XLA compiles for."""
        return target_config_text(self._facts)

    def topology_desc(self):
        """JAX's description of the target's devices (`jax.experimental.topologies.TopologyDescription`).

        Raises:
          farrier.MissingPluginError: JAX's XLA:GPU plugin is not installed.
        """
        return _topology_desc(self.config_text(), self._topology)

    def devices(self) -> list[Any]:
        """The target's compile-only devices."""
        return list(self.topology_desc().devices)

    def mesh(self, shape: Sequence[int] | None = None, names: Sequence[str] = ("x",)):
        """A mesh of the target's devices to put on `jax.ShapeDtypeStruct` shardings.

        Args:
          shape: devices along each axis; by default all devices on one axis.
          names: axis names.

        Raises:
          farrier.Error: the shape does not multiply to the number of devices.
        """
        from jax.experimental import topologies

        shape = (self.device_count,) if shape is None else tuple(shape)
        names = tuple(names)
        if math.prod(shape) != self.device_count or len(shape) != len(names):
            raise errors.TargetError(
                f"mesh {shape} with axes {names} needs {math.prod(shape)} devices, one name per axis; "
                f"{self!r} has {self.device_count} devices",
                hint="pass a topology with as many devices",
            )
        return topologies.make_mesh(self.topology_desc(), shape, names)

    def sharding(self):
        """The sharding of an array that is whole on every device: for abstract arguments on one device."""
        import jax

        return jax.sharding.NamedSharding(self.mesh(), jax.sharding.PartitionSpec())

    def to_json(self) -> dict[str, Any]:
        """Facts and topology as plain JSON data."""
        return {"topology": self._topology, **self._facts.to_json()}

    def _key(self) -> tuple[str, str]:
        return (self.config_text(), self._topology)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Target) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Target({self.name!r}, topology={self._topology!r})"


def attached_target() -> Target | None:
    """The target of the GPUs attached to this process, or None when there are none.

    The model is recognised by the name the driver reports; a GPU that is not among the built-in models
    gives None.
    """
    import jax

    from farrier._src.targets.facts import builtin_names

    try:
        devices = jax.devices("cuda")
    except RuntimeError:
        return None
    kind = devices[0].device_kind
    for name in builtin_names():
        facts = load_facts(name)
        if facts.description == kind or name.upper() in kind.replace("-", " ").split():
            return Target(facts, topology=f"1x{jax.process_count()}x{len(devices) // jax.process_count()}")
    return None
