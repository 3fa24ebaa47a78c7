"""Hints in the user's program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jax.experimental.xla_metadata import set_xla_metadata

from farrier._src import errors

__all__ = ["hint"]

_CHOICES = {"fuse": ("off",), "kernel": ("off",), "fence": ("on",)}


@contextlib.contextmanager
def hint(*, fuse: str | None = None, kernel: str | None = None, fence: str | None = None) -> Iterator[None]:
    """Says how the fusion pass shall treat what is traced inside: ``with farrier.hint(kernel="off"): ...``.

    The hint travels with the operations as XLA frontend attributes, through ``jit``, ``scan`` and
    ``checkpoint``. Gradients do not inherit it: a rewrite that spans forward and backward is decided by the
    forward's hint. It decorates functions too: ``@farrier.hint(fuse="off")``.

    Args:
      fuse: ``"off"`` leaves the attention, cross-entropy or ragged product whose first product is traced inside
        as it is written.
      kernel: ``"off"`` puts no kernel in its place (cuDNN's attention, grouped products), and still allows what
        only restructures the program. Functions under ``jit`` that are called inside stay calls, and what
        spans one is left alone.
      fence: ``"on"`` keeps XLA from merging the matrix products traced inside with others that share an
        operand: merged, their results exist together, which undoes a program's own chunks.

    Raises:
      farrier.OptionError: there is no such hint, or none was given.
    """
    given = {
        name: value
        for name, value in (("fuse", fuse), ("kernel", kernel), ("fence", fence))
        if value is not None
    }
    if not given:
        raise errors.OptionError("hint() says nothing", hint='pass fuse="off", kernel="off" or fence="on"')
    for name, value in given.items():
        if value not in _CHOICES[name]:
            raise errors.OptionError.unknown(str(value), _CHOICES[name], of=f"hint({name}=...)")
    with set_xla_metadata(**{f"farrier.{name}": value for name, value in given.items()}):
        yield
