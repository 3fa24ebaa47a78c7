"""The fusion pass as `optimize` sees it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from farrier._src import errors, sharding
from farrier._src.fusion.split import attention_splits

REWRITES = ("cross-entropy", "attention", "ragged-dot", "one-hot", "sink", "fence", "stacks")
_DEFAULT = tuple(r for r in REWRITES if r != "stacks")
_GPU_ONLY = ("attention", "ragged-dot", "one-hot", "sink", "fence", "stacks")

# Sizes of a chunk's f32 logits, in bytes, that are weighed against a memory budget: a smaller chunk would be less
# than a few rows for each of the device's cores, and the next larger is the whole of most models' logits.
_CHUNK_BYTES = tuple(1 << exponent for exponent in range(26, 36))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusion:
    """Options of kernel substitution and restructuring, for ``optimize(passes=[Fusion(...), ...])``.

    Attributes:
      rewrites: which to try; by default all but "stacks". "attention" (cuDNN), "ragged-dot" (a Triton kernel),
        "one-hot" (dispatch and combine of a mixture of experts as gathers),
        "sink" (what loops carry unchanged and is cheap to make, made inside),
        "fence" (against XLA:GPU's merging of products that the program computes one after another) and "stacks" (buffers without a first value; moves fewer
        bytes, may take more memory) are tried on GPUs only.
      chunks: cross-entropy: number of chunks of tokens, rounded up to a divisor; 0: by ``chunk_bytes``.
      chunk_bytes: cross-entropy: the most bytes of f32 logits that may exist at once when ``chunks`` is 0. None:
        weighed against recomputation where a memory budget is planned for, else a 64th of the budget, or of the
        target's memory without one. Every chunk reads the weights and adds to the sum of their gradient once
        more, so that fewer chunks move fewer bytes.
      min_bytes: cross-entropy: smaller f32 logits are left alone when ``chunks`` is 0.
      fence_bytes: fence: products that read the same operand are kept apart where XLA's merging of them would
        raise the predicted peak of temporary memory by this many bytes or more. None: a 64th of the budget, or of
        the target's memory without one. Apart, they read that operand several times.
    """

    name = "fusion"

    rewrites: Sequence[str] = _DEFAULT
    chunks: int = 0
    chunk_bytes: int | None = None
    min_bytes: int = 256 << 20
    fence_bytes: int | None = None

    def __post_init__(self):
        for rewrite in self.rewrites:
            if rewrite not in REWRITES:
                raise errors.OptionError.unknown(rewrite, REWRITES, of="Fusion(rewrites=...)")
        for field in ("chunks", "chunk_bytes", "min_bytes", "fence_bytes"):
            value = getattr(self, field)
            if field in ("chunk_bytes", "fence_bytes") and value is None:
                continue
            if not isinstance(value, int) or value < 0:
                raise errors.OptionError(f"Fusion({field}={value!r}): expected a count, 0 or more")


class FusionDriver:
    """Tries the rewrites on a copy; the plan is the pipeline that found something, and how much it found."""

    name = "fusion"

    def __init__(self, options: Fusion | None = None):
        self.options = options or Fusion()

    def plan(self, module: Any, context: Any) -> Mapping[str, Any] | None:
        plan, remarks = self._tried(module, context, self.options.chunk_bytes)
        # What is found is said when it is applied; why nothing is found has to be said here.
        for remark in remarks if plan is None else ():
            context.remark(remark)
        return plan

    def alternatives(self, module: Any, context: Any) -> Sequence[Mapping[str, Any] | None]:
        """Plans that differ in what they take of memory and time, for a search that weighs one against the other.

        Every rewrite, with the cross-entropy whole and in 2, 4, ... chunks; one plan where nothing depends on
        the size of a chunk, or where the options give it.
        """
        if self.options.chunks or self.options.chunk_bytes is not None or not context.budget_bytes:
            return [self.plan(module, context)]
        # The smallest chunks first: where no cross-entropy is found at all, no size matters.
        plans: list[Mapping[str, Any] | None] = []
        seen: set[tuple[int, ...]] = set()
        for chunk_bytes in _CHUNK_BYTES:
            plan, remarks = self._tried(module, context, chunk_bytes)
            chunks = _chunks(remarks)
            if chunks not in seen:
                plans.append(plan)
            if not chunks and (any(seen) or all(remark.name != "cross-entropy" for remark in remarks)):
                break
            seen.add(chunks)
        if plans == [None]:
            return [self.plan(module, context)]
        return plans[::-1]

    def _tried(
        self, module: Any, context: Any, chunk_bytes: int | None
    ) -> tuple[Mapping[str, Any] | None, Sequence[Any]]:
        """What the rewrites find with chunks of this size, and what they say."""
        pipeline = self.pipeline(module, context, chunk_bytes)
        if pipeline is None:
            return None, ()
        result = module.clone().run(self.with_shardings(pipeline, module))
        sites = _sites(result)
        return ({"version": 1, "pipeline": pipeline, "sites": sites} if sites else None), result.remarks

    def apply(
        self, module: Any, plan: Mapping[str, Any], *, remark: Callable[[Any], None] | None = None
    ) -> Sequence[str] | None:
        result = module.run(self.with_shardings(plan["pipeline"], module))
        for said in result.remarks if remark else ():
            remark(said)
        found = _sites(result)
        return [
            f"{rewrite}: {count} sites in the plan, {found.get(rewrite, 0)} in the program"
            for rewrite, count in plan["sites"].items()
            if found.get(rewrite, 0) != count
        ] or None

    def with_shardings(self, pipeline: str, module: Any) -> str:
        """The pipeline told how XLA will split large products; as it is on one device. Not part of the plan: the
        numbers are those of this program."""
        if "cross-entropy" not in pipeline:
            return pipeline
        # As the pass: with a number of chunks given, no product is too small.
        found = sharding.products(module, 0 if self.options.chunks else self.options.min_bytes)
        return (
            pipeline.replace("rewrites=", f"shardings={','.join(found)} rewrites=", 1) if found else pipeline
        )

    def pipeline(self, module: Any, context: Any, chunk_bytes: int | None = None) -> str | None:
        """The pass with its options for this program, as a plan has it; None where no rewrite is for the platform."""
        rewrites = [r for r in self.options.rewrites if r not in _GPU_ONLY or context.platform == "cuda"]
        if not rewrites:
            return None
        splits: Sequence[str] = ()
        if "attention" in rewrites and context.partitions > 1:
            splits = attention_splits(module)
        return self._pipeline(rewrites, context, chunk_bytes, splits)

    def _pipeline(
        self, rewrites: Sequence[str], context: Any, chunk_bytes: int | None, splits: Sequence[str] = ()
    ) -> str:
        options = {
            "rewrites": ",".join(rewrites),
            "numerics": context.numerics,
            "deterministic": str(_deterministic()).lower(),
            "chunks": self.options.chunks,
            "chunk-bytes": _chunk_bytes(context) if chunk_bytes is None else chunk_bytes,
            "min-bytes": self.options.min_bytes,
            # As jax.nn.dot_product_attention: wider heads from Hopper on.
            "max-head-width": 256 if _is_hopper_or_later(context.target) else 128,
        }
        if self.options.fence_bytes is not None:
            options["fence-bytes"] = self.options.fence_bytes
        elif memory := _memory(context):
            options["fence-bytes"] = memory // 64
        if splits:
            options["attention-split"] = ",".join(splits)
        text = " ".join(f"{name}={value}" for name, value in options.items())
        return f"builtin.module(farrier-fusion{{{text}}})"


def _memory(context: Any) -> int:
    """Bytes that the program may take; 0 if nobody says."""
    return context.budget_bytes or (context.target.memory_bytes if context.target is not None else 0)


def _chunk_bytes(context: Any) -> int:
    """Bytes of f32 logits in one chunk: their gradient takes their place, so that a 64th of memory is all."""
    memory = _memory(context)
    return min(max(memory // 64, 64 << 20), 2 << 30) if memory else 1 << 30


def _chunks(remarks: Sequence[Any]) -> tuple[int, ...]:
    """Into how many chunks each cross-entropy went."""
    return tuple(
        int(value)
        for remark in remarks
        if remark.kind == "applied"
        for name, value in remark.args
        if name == "Chunks"
    )


def _sites(result: Any) -> dict[str, int]:
    counters = next(record.counters for record in result.passes if record.name == "farrier-fusion")
    return {name: count for name, count in sorted(counters.items()) if count}


def _deterministic() -> bool:
    """Whether results that do not vary from run to run were asked of XLA:GPU."""
    flags = os.environ.get("XLA_FLAGS", "")
    return any(
        f"--{flag}=true" in flags or flags.split().count(f"--{flag}")
        for flag in ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")
    )


def _is_hopper_or_later(target: Any) -> bool:
    return target is None or not str(target.name).startswith("a100")
