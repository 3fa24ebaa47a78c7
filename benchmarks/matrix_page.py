"""The page of the full matrix: where farrier wins and where it does not."""

from __future__ import annotations

from farrier.bench import Result


def ok(results: list[Result]) -> list[Result]:
    """Those that compiled."""
    return [r for r in results if r.status == "ok"]


def total(r: Result) -> float:
    """Total device memory, bytes."""
    return r.metrics["total_bytes"].value


def flops(r: Result) -> float:
    """Matrix FLOPs of one step."""
    return r.metrics["flops"].value


def undominated(results: list[Result]) -> list[Result]:
    """Results that no other one beats in memory and FLOPs, by memory."""
    out: list[Result] = []
    for r in sorted(results, key=lambda r: (total(r), flops(r), r.options)):
        if not out or flops(r) < flops(out[-1]):
            out.append(r)
    return out


def frontier_policies(results: list[Result]) -> list[Result]:
    """The `jax.checkpoint` policies that keep everything on the device and that no other one beats."""
    device = [r for r in ok(results) if r.options.startswith("checkpoint-") and "offload" not in r.options]
    plain = [r for r in ok(results) if r.options == "unannotated"]
    return [r for r in undominated([*device, *plain]) if r.options != "unannotated"]
