"""Hints in the user's program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jax.experimental.xla_metadata import set_xla_metadata

from farrier._src import errors

__all__ = ["hint"]

_FUSE = ("off",)


@contextlib.contextmanager
def hint(*, fuse: str) -> Iterator[None]:
    """Says how the fusion pass shall treat what is traced inside: ``with farrier.hint(fuse="off"): ...``.

    The hint travels with the operations as XLA frontend attributes, through ``jit``, ``scan`` and
    ``checkpoint``. Gradients do not inherit it: a rewrite that spans forward and backward is decided by the
    forward's hint.

    Args:
      fuse: ``"off"`` leaves the attention or cross-entropy whose first product is traced inside as it is
        written.

    Raises:
      farrier.OptionError: there is no such hint.
    """
    if fuse not in _FUSE:
        raise errors.OptionError.unknown(str(fuse), _FUSE, of="hint(fuse=...)")
    with set_xla_metadata(**{"farrier.fuse": fuse}):
        yield
