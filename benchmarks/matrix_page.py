"""The page of the full matrix: where farrier wins and where it does not."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Collection

from farrier.bench import Result

ASKED = 0.01
"""A budget this near to a policy's memory, as a part of it, asks farrier the policy's question."""

Cases = dict[tuple[str, str], list[Result]]

ROUNDED = 10_000_000
"""A policy's memory, rounded up to this many bytes, is farrier's budget."""


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


# --- judgement --------------------------------------------------------------------------------------------

# FLOPs closer than this part of the un-annotated step's, and memory closer than this part, are the same.
_EVEN = 0.002


@dataclasses.dataclass(frozen=True)
class Duel:
    """farrier against one policy.

    Attributes:
      policy: the policy's result.
      within_memory: farrier's result with the fewest FLOPs within the policy's memory (rounded up as its budget
        is), None if it has none.
      within_flops: farrier's result with the least memory within the policy's FLOPs.
    """

    policy: Result
    within_memory: Result | None
    within_flops: Result | None
    asked: bool
    """Whether farrier was given this much memory, or nearly."""

    @property
    def verdict(self) -> str:
        """``wins``, ``even``, ``loses`` or ``not asked``: by FLOPs at the policy's memory, ties by memory.

        A plan for less memory can win here; that it does not says nothing where farrier had no such budget.
        """
        if self.within_memory is None:
            return "loses" if self.asked else "not asked"
        more = flops(self.within_memory) / flops(self.policy) - 1
        if abs(more) > _EVEN:
            return "wins" if more < 0 else "loses" if self.asked else "not asked"
        if self.within_flops is not None and total(self.within_flops) < (1 - _EVEN) * total(self.policy):
            return "wins"
        return "even"


def ours(results: list[Result]) -> list[Result]:
    """farrier's results under a budget."""
    return [r for r in ok(results) if r.options.startswith("farrier") and "budget_bytes" in r.metrics]


def budget_of(r: Result) -> float | None:
    """The budget in bytes that farrier had, also where it failed; None for other option sets."""
    m = re.fullmatch(r"farrier-(?:remat-)?([\d.]+)GB", r.options)
    return 1e9 * float(m[1]) if m else None


def duels(results: list[Result], *, alone: bool = False) -> list[Duel]:
    """farrier against every policy that no other one beats, most memory first.

    Args:
      results: of one case and target.
      alone: only farrier's rematerialization, without its other passes.
    """
    found = [r for r in ours(results) if not alone or r.options.startswith("farrier-remat-")]
    given = [b for r in results if (b := budget_of(r)) is not None]
    out = []
    for policy in reversed(frontier_policies(results)):
        room = -(-total(policy) // ROUNDED) * ROUNDED
        inside = [r for r in found if total(r) <= room]
        cheap = [r for r in found if flops(r) <= (1 + _EVEN) * flops(policy)]
        out.append(
            Duel(
                policy,
                min(inside, key=lambda r: (flops(r), total(r)), default=None),
                min(cheap, key=lambda r: (total(r), flops(r)), default=None),
                any(abs(b - room) <= ASKED * room for b in given),
            )
        )
    return out


def over_budget(results: list[Result]) -> list[Result]:
    """farrier's results that need more than they were allowed: never to be seen."""
    return [r for r in ours(results) if total(r) > r.metrics["budget_bytes"].value]


# --- text -------------------------------------------------------------------------------------------------


def _gb(value: float) -> str:
    return f"{value / 1e9:.2f}"


def _percent(r: Result, base: Result) -> str:
    return f"{100 * (flops(r) / flops(base) - 1):+.1f}"


def _seconds(r: Result, name: str) -> str:
    m = r.metrics.get(name)
    return "" if m is None else f"{m.value:.2f}"


def _link(path: pathlib.Path, page: pathlib.Path) -> str:
    return os.path.relpath(path, page.parent)


def _frontier(case: str, target: str, results: list[Result]) -> list[str]:
    base = next(r for r in results if r.options == "unannotated")
    out = [
        "| | total GB | temp GB | FLOPs % | kernels | GB moved | budget GB | planned GB | passes s | search compiles |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in sorted(ok(results), key=lambda r: (-total(r), flops(r), r.options)):
        m = r.metrics
        cells = [
            f"`{r.options}`",
            _gb(total(r)),
            _gb(m["temp_bytes"].value),
            _percent(r, base),
            f"{m['kernels'].value:.0f}",
            f"{m['bytes_moved'].value / 1e9:.0f}",
            _gb(m["budget_bytes"].value) if "budget_bytes" in m else "",
            _gb(m["planned_bytes"].value) if "planned_bytes" in m else "",
            _seconds(r, "pass_seconds"),
            f"{m['search_compiles'].value:.0f}" if "search_compiles" in m else "",
        ]
        out.append("| " + " | ".join(cells) + " |")
    for r in sorted(results, key=lambda r: r.options):
        if r.status not in ("ok", "unsupported"):
            out.append(f"\n`{r.options}`: **{r.status}**: {_first_line(r.message)}")
    return out


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].replace("|", "\\|") if text.strip() else ""


def _duels(results: list[Result]) -> list[str]:
    found = duels(results)
    if not found or not ours(results):
        return []
    base = next(r for r in results if r.options == "unannotated")
    out = [
        "",
        "| policy | its GB | its FLOPs % | farrier within its memory | farrier within its FLOPs | farrier |",
        "|---|---:|---:|---|---|---|",
    ]
    for d in found:
        memory = (
            "none"
            if d.within_memory is None
            else f"{_percent(d.within_memory, base)} % (`{d.within_memory.options}`)"
        )
        cheap = (
            "none"
            if d.within_flops is None
            else f"{_gb(total(d.within_flops))} GB (`{d.within_flops.options}`)"
        )
        verdict = f"**{d.verdict}**" if d.verdict == "loses" else d.verdict
        out.append(
            f"| `{d.policy.options.removeprefix('checkpoint-')}` | {_gb(total(d.policy))} | {_percent(d.policy, base)} "
            f"| {memory} | {cheap} | {verdict} |"
        )
    return out


def _exposed(results: list[Result]) -> list[str]:
    out = [
        "| | step ms | exposed ms | two-stream exposed ms | collectives exposed / overlapped | total GB |",
        "|---|---:|---:|---:|---:|---:|",
    ]

    def ms(r: Result, name: str) -> str:
        m = r.metrics.get(name)
        return "" if m is None else f"{1e3 * m.value:.2f}"

    def step(r: Result) -> float:
        return (r.metrics.get("simulated_seconds") or r.metrics["modelled_seconds"]).value

    for r in sorted(ok(results), key=lambda r: (step(r), r.options)):
        count = "/".join(
            f"{r.metrics[k].value:.0f}" if k in r.metrics else "-"
            for k in ("exposed_collectives", "overlapped_collectives")
        )
        cells = [
            f"`{r.options}`",
            ms(r, "simulated_seconds"),
            ms(r, "simulated_exposed_seconds"),
            ms(r, "exposed_seconds"),
            count,
            _gb(total(r)),
        ]
        out.append("| " + " | ".join(cells) + " |")
    for r in sorted(results, key=lambda r: r.options):
        if r.status not in ("ok", "unsupported"):
            out.append(f"\n`{r.options}`: **{r.status}**: {_first_line(r.message)}")
    return out


def is_overlap(results: list[Result]) -> bool:
    """Whether the case is judged by its communication."""
    return any(r.options.startswith("flags-") for r in results)


def summary(cases: Cases) -> list[str]:
    """Wins and losses in figures, and every loss, excess and failure by name."""
    out, losses, failures = [], [], []
    alone: collections.Counter[str] = collections.Counter()
    together: collections.Counter[str] = collections.Counter()
    for (case, target), results in sorted(cases.items()):
        where = f"{case} on {target}"
        together.update(d.verdict for d in (duels(results) if ours(results) else ()))
        for d in duels(results, alone=True) if ours(results) else ():
            alone[d.verdict] += 1
            if d.verdict == "loses":
                against = f"`{d.policy.options}` ({_gb(total(d.policy))} GB)"
                if d.within_memory is None:
                    losses.append(f"{where}: no farrier plan was measured within the memory of {against}")
                else:
                    more = 100 * (flops(d.within_memory) / flops(d.policy) - 1)
                    losses.append(f"{where}: {more:+.1f} % FLOPs against {against}")
        for r in over_budget(results):
            excess = total(r) - r.metrics["budget_bytes"].value
            failures.append(f"{where}: `{r.options}` needs {_gb(excess)} GB more than its budget")
        for r in results:
            if r.status not in ("ok", "unsupported"):
                failures.append(f"{where}: `{r.options}`: {r.status}: {_first_line(r.message)}")
        if is_overlap(results):
            line = _overlap_verdict(where, results)
            if line:
                (losses if "slower" in line else out).append(line)
    head = [
        f"Against the {alone.total()} policies that no other policy beats, at their own memory: rematerialization alone "
        f"wins {alone['wins']}, is even at {alone['even']}, loses {alone['loses']}; with every pass farrier wins "
        f"{together['wins']}, is even at {together['even']}, loses {together['loses']}.",
        "",
    ]
    head += [*(f"- {line}" for line in out), ""] if out else []
    head += ["### Where it does not win", "", "Of rematerialization alone, and of schedules:", ""]
    head += [f"- {line}" for line in losses] or ["Nowhere in this matrix."]
    head += ["", "### Budgets missed, failures", ""]
    head += [f"- {line}" for line in failures] or ["None."]
    return head


def _overlap_verdict(where: str, results: list[Result]) -> str:
    timed = [r for r in ok(results) if "simulated_seconds" in r.metrics]
    mine = [r for r in timed if r.options.startswith("farrier")]
    others = [r for r in timed if not r.options.startswith("farrier")]
    if not mine or not others:
        return ""

    def seconds(r: Result) -> float:
        return r.metrics["simulated_seconds"].value

    best, rival = min(mine, key=seconds), min(others, key=seconds)
    change = seconds(best) / seconds(rival) - 1
    word = "slower" if change > _EVEN else "faster" if change < -_EVEN else "the same"
    return (
        f"{where}: simulated step {1e3 * seconds(best):.2f} ms, best flags (`{rival.options}`) "
        f"{1e3 * seconds(rival):.2f} ms: {word} ({100 * change:+.1f} %)"
    )


def _incomplete(cases: Cases, missing: Collection[tuple[str, str, str]]) -> list[str]:
    if not missing:
        return []
    whole = sorted({case for case, _, _ in missing} - {case for case, _ in cases})
    text = f"**Incomplete**: {len(missing)} results of the suite are not here yet"
    return [text + (f", nothing at all of {', '.join(whole)}." if whole else "."), ""]


def render(
    cases: Cases,
    environment: dict[str, str],
    page: pathlib.Path,
    plots: pathlib.Path | None,
    *,
    missing: Collection[tuple[str, str, str]] = (),
) -> str:
    """The page as Markdown.

    Args:
      cases: results by case and target.
      environment: versions to state.
      page: where the page will lie, for links.
      plots: folder of `plots.py`'s output.
      missing: case, target and option set of what the suite has and nobody compiled yet.
    """
    versions = ("farrier", "jax", "jaxlib", "xla_plugin", "cudnn")
    out = [
        "# Results",
        "",
        "The full matrix (`benchmarks/suites/full.py`): every option set compiled by XLA:GPU for the named target without a",
        "GPU, nothing executed, nothing timed. Written by `benchmarks/matrix.py page` from `benchmarks/results/matrix`.",
        "",
        "; ".join(f"{k} {environment[k]}" for k in versions if environment.get(k)) + ".",
        f"Commits of this project that measured: {environment.get('commits', 'unknown')}.",
        "",
        "Memory is total device memory (arguments + outputs - aliased + temp, decimal GB). FLOPs are relative to the",
        "un-annotated step. `farrier-remat-XGB` is `farrier.optimize(memory_budget=X, passes=['remat'])` of the un-annotated",
        "step, `farrier-XGB` has every pass; each is compared with every `jax.checkpoint` policy that no other policy beats in",
        'both memory and FLOPs. "Planned" is the planner\'s estimate of the plan that was taken, before XLA measured it.',
        "Communication is simulated (`docs/collectives.md`), the step and its exposed part.",
        "",
        *_incomplete(cases, missing),
        "## In short",
        "",
        *summary(cases),
        "",
    ]
    for (case, target), results in sorted(cases.items(), key=lambda kv: (is_overlap(kv[1]), kv[0])):
        out += [f"## {case} on {target}", ""]
        overlap = is_overlap(results)
        if not any(r.options == "unannotated" for r in ok(results)):
            out += ["The un-annotated step did not compile: nothing to compare with.", ""]
            continue
        if plots is not None:
            name = re.sub(r"[^\w.\-]+", "_", f"{case}-{target}")
            for kind in ("frontier", "exposed"):
                if (plots / f"{name}-{kind}.png").exists():
                    out += [f"![{kind}]({_link(plots / f'{name}-{kind}.png', page)})", ""]
        out += _exposed(results) if overlap else [*_frontier(case, target, results), *_duels(results)]
        out.append("")
    return "\n".join(out)
