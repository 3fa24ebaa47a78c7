"""Rematerialization: recompute residuals in the backward part instead of keeping them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from farrier._src import corrections, errors, sharding
from farrier._src.remarks import Remark


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remat:
    """Options of rematerialization, for ``optimize(passes=[farrier.Remat(...), ...])``.

    Attributes:
      keep: name-scope fragments (``"attn"``, a ``checkpoint_name``, an operation's name stack); operations
        whose name stack contains one are never computed twice, so what they give is kept.
      objective: "time" or "flops" for this pass alone; None takes the step's.
      offload: whether residuals may wait in host memory, where that costs less than computing them again.
      to_host: name-scope fragments; residuals made there are neither computed twice nor kept in device memory:
        what is needed of them waits in host memory.
      on_device: name-scope fragments; residuals made there never wait in host memory.
      small_bytes: values smaller than this, in bytes, are kept whatever is chosen. None: than 4 MiB; where no plan
        fits so, than a 512th of the program's temporaries (64 KiB at least), which matters to programs below 2 GiB.
      checkpoint: what becomes of ``jax.checkpoint``: "replan" decides anew what is kept and what is computed again, so
        that a budget above what the annotated program needs is used, too; "keep" leaves those decisions and moves only
        what they left to be saved.
      stress: with a seed, arbitrary legal choices instead of good ones, whatever the budget: for tests.
    """

    name = "remat"

    keep: Sequence[str] = ()
    offload: bool = True
    to_host: Sequence[str] = ()
    on_device: Sequence[str] = ()
    objective: str | None = None
    small_bytes: int | None = None
    checkpoint: str = "replan"
    stress: int | None = None

    def __post_init__(self):
        for name in ("keep", "to_host", "on_device"):
            if isinstance(value := getattr(self, name), str):
                raise errors.OptionError(
                    f"Remat({name}={value!r}): expected a sequence of texts, not one text"
                )
        if not isinstance(self.offload, bool):
            raise errors.OptionError(f"Remat(offload={self.offload!r}): expected True or False")
        if self.to_host and not self.offload:
            raise errors.OptionError(
                f"Remat(offload=False, to_host={list(self.to_host)!r}): nothing may wait in host memory",
                hint="drop one of the two",
            )
        if self.objective not in (None, "time", "flops"):
            raise errors.OptionError(f"Remat(objective={self.objective!r}): expected 'time' or 'flops'")
        if self.checkpoint not in ("replan", "keep"):
            raise errors.OptionError(f"Remat(checkpoint={self.checkpoint!r}): expected 'replan' or 'keep'")


# A program of which a budget asks more than big values can give: what counts as small is this share of it, and more
# than the least.
_SHARE, _LEAST_SMALL = 512, 64 << 10

# What is computed again counts from this share of the program's FLOPs on: less is what JAX itself computes twice here and
# there, which no annotation asked for.
_COMPUTED_AGAIN = 1e-3

# Values from this size on, in bytes, are in a row where stacks are asked to hold them so.
_BIG = 4 << 20

# Of the modelled step, what a plan may cost that leaves a two-hundredth of the budget: one that misses by a thousandth costs
# a compile, and the next is no surer. Within 2.58 GB of four FSDP layers scanned two plans missed by 0.1 and 0.4 %; one that
# leaves 3 % costs 0.05 % of the step more.
_SPARING = 1e-3

# Where a budget is out of reach: the share of what the plan needs that is asked for next, and how often at most.
_LESS, _TIMES = 0.97, 4


class RematDriver:
    """Decides by the query ``remat.plan`` and applies by the pass ``farrier-remat``."""

    name = "remat"

    def __init__(self, options: Remat | None = None):
        self.options = options or Remat()

    @property
    def needs_budget(self) -> bool:
        """Whether there is nothing to decide without a memory budget."""
        return self.options.stress is None

    def sizes(self, module: Any, context: Any) -> dict[str, Any]:
        """What the queries must be told about ``module`` to count one device's bytes and work.

        {"shards": ..., "kernels": ...} under automatic sharding; empty where the module's own shapes are a device's, or
        where nobody can say.
        """
        if context.partitions == 1:
            return {}
        found = sharding.shards(module)
        if found is None:
            return {}
        kernels = sharding.kernels(module)
        return {"shards": found, **({"kernels": kernels} if kernels else {})}

    def learn(self, module: Any, context: Any, measurement: Any) -> tuple[dict[str, Any], int] | None:
        """What ``module``'s own compile showed that the estimator did not know.

        Returns:
          What `plan` is to be told as ``measured``, and the temporary bytes that the estimator then says; None where
          the measurement does not say what was held, or there is nothing to correct.
        """
        if measurement.held is None:
            return None
        sizes = self.sizes(module, context)
        found = corrections.corrections(module, sizes, measurement.held, measurement.temp_bytes)
        if not found:
            return None
        request = json.dumps({**sizes, "measured": found})
        return found, json.loads(module.query("memory.estimate", request))["temp"]

    def afresh(self, module: Any, context: Any, *, shared: bool = False) -> Any | None:
        """``module`` without what ``jax.checkpoint`` computes again, for planning from there; None where nothing worth it
        is computed again, or the options keep it so.

        With ``shared`` also without what two loops compute of the same though neither hands the other anything; None where
        that is no more. To give up what is kept so can cost more than before: a whole loop runs again for it.
        """
        if self.options.checkpoint == "keep" or self.options.stress is not None:
            return None
        objective, sizes = self.options.objective or context.objective, self.sizes(module, context)
        found = module
        for shares in (False, True) if shared else (False,):
            less, found = found, module.clone()
            if not self._forget(found, objective, sizes, shared=shares) and shares == shared:
                return None
        before, after = (self.cost(each, context)["flops"] for each in (less, found))
        return found if after < (1 - _COMPUTED_AGAIN) * before else None

    def from_afresh(
        self, plan: Mapping[str, Any] | None, temp: int, module: Any, context: Any, *, shared: bool = False
    ) -> dict[str, Any]:
        """What `apply` makes of the program as it is written: `afresh`'s ``module``, ``shared`` or not, then ``plan`` (None:
        nothing), which needs ``temp`` bytes by the estimate.
        """
        if plan is None:
            predicted = {"before": temp, "after": temp, "seconds": 0.0, "flops": 0, "host_bytes": 0}
            plan = {"version": 1, "loops": [], "blocks": [], "predicted": {**predicted, "fits": True}}
            plan |= _told(self.sizes(module, context))
        also = {"shared": True} if shared else {}
        return {**plan, "afresh": self.options.objective or context.objective, **also}

    def has_stacks(self, plan: Mapping[str, Any] | None, module: Any, context: Any) -> bool:
        """Whether ``module`` has stacks that may hold the elements of their values in a row, and ``plan`` rewrites them or there
        is none: parts of several devices have an order that tells them apart.
        """
        if context.partitions > 1:
            return False
        if plan:
            return bool(plan["loops"])
        return any(pair["stack_bytes"] >= _BIG for pair in json.loads(module.query("remat.loops"))["pairs"])

    @staticmethod
    def _forget(module: Any, objective: str, known: Mapping[str, Any], *, shared: bool) -> dict[str, int]:
        """Rewrites ``module``, of which `sizes` is ``known``; what was taken back, by kind, of which there was some."""
        with _file(known) as path:
            options = f"objective={objective} shared={str(shared).lower()} known={path}"
            result = module.run(f"builtin.module(farrier-forget-checkpoints{{{options}}})")
        return {name: count for record in result.passes for name, count in record.counters.items() if count}

    def cost(self, module: Any, context: Any) -> dict[str, float]:
        """ "seconds" and "flops" of one run of ``module`` on one device, as modelled."""
        request = {"machine": machine(context.target), **self.sizes(module, context)}
        return json.loads(module.query("cost.total", json.dumps(request)))

    def plan(
        self,
        module: Any,
        context: Any,
        *,
        temp_budget: int | None = None,
        host: bool = True,
        rows: bool = False,
        measured: Mapping[str, Any] | None = None,
    ) -> Mapping[str, Any] | None:
        """A plan that keeps temporaries within ``temp_budget`` bytes, as the estimator counts them, corrected by what
        `learn` found.

        With ``host`` false nothing new waits in host memory but what ``to_host`` names. With ``rows`` stacks hold the elements
        of big values in a row: XLA writes a stack anew, beside itself, for a loop that reads it in another order. The plan's
        "predicted" entry has "before" and "after" (bytes), "seconds" and "flops" of recomputation, "host_bytes", and whether
        the estimator believes that it fits.
        """
        if temp_budget is None and self.needs_budget:
            return None
        request: dict[str, Any] = {
            "budget": int(temp_budget or 0),
            "objective": self.options.objective or context.objective,
            "keep": list(self.options.keep),
            "keep_checkpoints": self.options.checkpoint == "keep",
            # On CPU host memory is device memory: nothing is gained there but in tests of the rewriting.
            "offload": self.options.offload
            and (context.platform != "cpu" or self.options.stress is not None),
            "offload_only_asked": not host,
            "to_host": list(self.options.to_host),
            "on_device": list(self.options.on_device),
            "machine": machine(context.target),
            "sparing": _SPARING,
            **self.sizes(module, context),
        }
        if self.options.small_bytes is not None:
            request["small_bytes"] = self.options.small_bytes
        if rows:
            request["flat_bytes"] = _BIG
        if measured:
            request["measured"] = dict(measured)
        if self.options.stress is not None:
            request["stress"] = self.options.stress
        plan = json.loads(module.query("remat.plan", json.dumps(request)))
        if self.options.stress is None and not plan["predicted"]["fits"]:
            if self.options.small_bytes is None:
                plan = self._of_smaller_values(module, request, plan)
            if plan["loops"] and not plan["predicted"]["fits"]:
                plan = self._nearer(module, request, plan)
        if not plan["blocks"] and not plan["loops"] and not plan.get("gathers"):
            return None
        plan |= _told(request)
        return plan

    @staticmethod
    def _of_smaller_values(module: Any, request: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
        """The plan that decides on smaller values too, where that comes closer to the budget."""
        small = max(_LEAST_SMALL, plan["predicted"]["before"] // _SHARE)
        if small >= plan["small_bytes"]:
            return plan
        finer = json.loads(module.query("remat.plan", json.dumps({**request, "small_bytes": small})))
        return finer if finer["predicted"]["after"] < plan["predicted"]["after"] else plan

    @staticmethod
    def _nearer(module: Any, request: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
        """The plan that comes nearest to a budget out of reach: loops that are asked for too much give up what they need
        not, and come to more than those that are asked for a little less than that. Asks again as long as it helps.
        """
        for _ in range(_TIMES):
            budget = int(_LESS * plan["predicted"]["after"])
            if budget <= request["budget"]:
                break
            again = {**request, "small_bytes": plan["small_bytes"], "budget": budget}
            nearer = json.loads(module.query("remat.plan", json.dumps(again)))
            if nearer["predicted"]["after"] >= plan["predicted"]["after"]:
                break
            plan = nearer
        plan["predicted"]["fits"] = plan["predicted"]["after"] <= request["budget"]
        return plan

    def apply(
        self, module: Any, plan: Mapping[str, Any], *, remark: Callable[[Any], None] | None = None
    ) -> Sequence[str] | None:
        """Rewrites ``module``; returns the diagnostics of a plan that the program does not fit.

        ``remark`` takes what was decided about each kind of value: kept or recomputed, bytes, cost, source line.
        """
        from farrier import _core

        if plan.get("afresh"):
            known = _known(module, plan)
            taken = self._forget(module, plan["afresh"], known, shared=plan.get("shared", False))
            if remark:
                what = ", ".join(f"{count} {name.replace('-', ' ')}" for name, count in taken.items())
                message = f"what jax.checkpoint computes again is decided anew: {what}"
                remark(Remark(self.name, message, args=taken))
        try:
            # A file, because pass options cannot carry every character that a name stack may have.
            with _file({**plan, **_known(module, plan)}) as path:
                result = module.run(f"builtin.module(farrier-remat{{plan={path}}})")
        except _core.DiagnosticError as error:
            stale = [d.message for d in error.diagnostics if "plan is stale" in d.message]
            if stale:
                return stale
            raise
        for said in result.remarks if remark else ():
            remark(said)
        return None


def _told(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan says of the `RematDriver.sizes` that it was made by. Numbers and addresses are this process's: whoever
    applies the plan asks again.
    """
    kernels = {"wrapped_kernels": sorted(set(sizes["kernels"].values()))} if "kernels" in sizes else {}
    return {**kernels, "sharded": "shards" in sizes}


def _known(module: Any, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of ``module`` that a plan was made by."""
    known: dict[str, Any] = {}
    if plan.get("wrapped_kernels"):
        known["kernels"] = sharding.kernels(module)
    if plan.get("sharded") and (found := sharding.shards(module)):
        known["shards"] = found  # decided by a device's sizes, applied by them
    return known


@contextlib.contextmanager
def _file(content: Mapping[str, Any]) -> Iterator[str]:
    """The path of a file that has this JSON."""
    handle, path = tempfile.mkstemp(suffix=".json")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file)
        yield path
    finally:
        os.unlink(path)


def machine(target: Any) -> dict[str, float]:
    """The rates of a target that the cost models use: datasheet peaks times what kernels reach of them.

    Efficiencies as measured by others and assumed here: GEMMs 62% of the dense peak, memory 85% of HBM, the host
    link 85% of its rate in one direction.
    """
    if target is None:
        return {}
    peak = target.peak_flops
    gemm = 0.62

    def flops(*names: str) -> float:
        return gemm * next((peak[name] for name in names if name in peak), 0.0)

    rates = {
        "flops_half": flops("bfloat16", "float16"),
        "flops_full": flops("tensorfloat32", "float32"),
        "flops_double": flops("float64"),
        "flops_byte": flops("float8_e4m3fn", "int8"),
        "bytes_per_second": 0.85 * target.hbm_bytes_per_s,
    }
    # A target without a usable link says 0, which must not fall back to the default.
    return {name: rate for name, rate in rates.items() if rate} | {
        "host_bytes_per_second": 0.85 * target.host_link_bytes_per_s
    }
