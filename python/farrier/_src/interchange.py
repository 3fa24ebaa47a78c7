"""Between jaxlib's modules and farrier's own: generic-form text both ways, nothing is lost.

jaxlib's raw bytecode is never read by farrier's MLIR, which can misread it without an error.
"""

from __future__ import annotations

import io
from typing import Any

from jax.interpreters import mlir

from farrier import _core
from farrier._src import errors

__all__ = ["to_core", "to_jaxlib"]

ir = mlir.ir


def to_core(module: ir.Module) -> _core.Module:
    """farrier's copy of a jaxlib module, locations included."""
    text = io.BytesIO()
    module.operation.print(
        file=text, binary=True, enable_debug_info=True, print_generic_op_form=True, assume_verified=True
    )
    return _core.Module.parse(text.getvalue())


def to_jaxlib(module: _core.Module, context: Any | None = None) -> ir.Module:
    """jaxlib's copy of one of farrier's modules, verified by jaxlib.

    Args:
      module: farrier's module, left as it is.
      context: the MLIR context that the copy lives in; by default a new one.

    Raises:
      farrier.InternalError: jaxlib refuses the module.
    """
    context = mlir.make_ir_context() if context is None else context
    with context:
        try:
            return ir.Module.parse(module.print())
        except ir.MLIRError as error:
            raise errors.InternalError(
                f"XLA's verifier refuses the module that farrier made: {error}"
            ) from error
