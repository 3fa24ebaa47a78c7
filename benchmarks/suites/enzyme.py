"""The `enzyme_ad` package's StableHLO optimizer as a rival: its whole pipeline on an un-annotated step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from enzyme_ad.jax import JaXPipeline, enzyme_jax_ir, full_optimization_pass_pipeline


def optimize(step: Callable[..., Any], donated: tuple[int, ...]) -> Any:
    """The step through enzyme_ad's full pipeline, jitted with the same donation."""
    pipeline = JaXPipeline(full_optimization_pass_pipeline())
    return jax.jit(enzyme_jax_ir(pipeline_options=pipeline, jit_options={})(step), donate_argnums=donated)
