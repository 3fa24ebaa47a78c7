"""What was decided for a function, as text, HTML and JSON."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from farrier._src import errors, remarks
from farrier._src.stages import Decision

if TYPE_CHECKING:
    from farrier._src.report import Report

__all__ = ["Explanation"]


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What was decided: ``rich.print`` or ``print`` it, show it in a notebook, or take ``to_json()``.

    Attributes:
      function: the function's name.
      decision: what was decided, or None when no pass applies.
      lowered: the optimized function, lowered for its target; what `report` compiles.
      original: lowers the function as it was written.
    """

    function: str
    decision: Decision | None
    lowered: Any = dataclasses.field(default=None, compare=False, repr=False)
    original: Callable[[], Any] | None = dataclasses.field(default=None, compare=False, repr=False)

    def report(self, *, before: Any = True, **options: Any) -> Report:
        """Memory over time, schedule and kernels of the compiled step; compiles it once more to see them.

        Args:
          before: what to lay beside it: True the function as it was written, where a pass changed it (one more
            compile); False nothing; or a lowered function or report.
          **options: as `farrier._src.report.explain` takes them; target, budget and remarks are filled in.

        Raises:
          farrier.CompileError: XLA refuses the program.
          farrier.OptionError: there is nothing to compile.
        """
        from farrier._src import report

        if self.lowered is None:
            raise errors.OptionError("this explanation has no program", hint="get it from step.explain(...)")
        if self.decision is not None:
            run = self.decision.run
            options = {
                "target": run.target if run.platform != "cpu" else None,
                "budget_bytes": run.budget_bytes,
                "remarks": self.decision.remarks,
                **options,
            }
        if before is True:
            changed = self.decision is not None and self.decision.changed and self.original is not None
            before = self.original() if changed else None
        return report.explain(
            self.lowered, before=before or None, title=options.pop("title", self.function), **options
        )

    def to_json(self) -> dict[str, Any]:
        """Everything that the text says, as JSON data."""
        if self.decision is None:
            return {"function": self.function, "decided": False}
        decision = self.decision
        return {
            "function": self.function,
            "decided": True,
            "changed": decision.changed,
            "source": decision.source,
            "platform": decision.run.platform,
            "target": None if decision.run.target is None else repr(decision.run.target),
            "budget_bytes": decision.run.budget_bytes,
            "budget_binding": decision.run.budget_binding,
            "planning_seconds": decision.seconds,
            "compiles": decision.compiles,
            "notes": list(decision.notes),
            "remarks": list(decision.remarks),
            "plan": decision.plan.to_json(),
        }

    def _lines(self) -> list[tuple[str, str]]:
        if self.decision is None:
            return [("result", "runs as it was written: no pass applies")]
        decision = self.decision
        run, plan = decision.run, decision.plan
        if plan.fallback:
            result = f"runs as it was written, because {plan.fallback}"
        elif decision.changed:
            result = f"changed by {', '.join(plan.passes)}"
        else:
            result = "runs as it was written: nothing to gain"
        lines = [
            ("result", result),
            ("planned for", repr(run.target) if run.target is not None else run.platform),
            (
                "decided by",
                f"{decision.source} in {decision.seconds:.2f} s with {decision.compiles} compiles",
            ),
        ]
        if run.budget_bytes is not None:
            promised = "" if run.budget_binding else " (not promised here)"
            lines.append(("budget", f"{_size(run.budget_bytes)} per device{promised}"))
        for moment, measured in plan.measured.items():
            if isinstance(measured, dict) and "argument_bytes" in measured:
                lines.append((moment, _measured(measured)))
        lines.extend(("note", note) for note in decision.notes)
        return lines

    def _remarks(self) -> tuple[Any, ...]:
        return () if self.decision is None else self.decision.remarks

    def __str__(self) -> str:
        lines = self._lines()
        for said in self._remarks():
            rule = f" {said['name']}" if said.get("name") else ""
            known = remarks.figures(said["args"])
            known = f" ({known})" if known else ""
            at = f" [{said['location']}]" if said["location"] else ""
            lines.append((f"{said['pass']}{rule}, {said['kind']}", said["message"] + known + at))
        width = max(len(name) for name, _ in lines)
        return "\n".join([self.function, *(f"  {name:<{width}}  {text}" for name, text in lines)])

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from farrier._src.report import text

        facts = Table(box=None, pad_edge=False, show_header=False)
        facts.add_column(style="bold", no_wrap=True)
        facts.add_column(overflow="fold")
        for name, said in self._lines():
            facts.add_row(Text(name), Text(said))
        found = self._remarks()
        return Group(Text(self.function, style="bold"), facts, *([text.remarks(found)] if found else []))

    def _repr_html_(self) -> str:
        def row(cells: Any, tag: str = "td") -> str:
            return "<tr>" + "".join(f"<{tag} style='text-align:left'>{c}</{tag}>" for c in cells) + "</tr>"

        rows = "".join(
            f"<tr><th scope='row' style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._lines()
        )
        made = f"<table><caption>{html.escape(self.function)}</caption>{rows}</table>"
        if found := self._remarks():
            body = "".join(
                row(
                    html.escape(str(cell))
                    for cell in (
                        f"{r['pass']} {r.get('name', '')}", r["kind"], r["message"],
                        remarks.figures(r["args"]), r["location"],
                    )
                )
                for r in found
            )  # fmt: skip
            head = row(("pass", "kind", "what", "figures", "where"), "th")
            made += f"<table><caption>Remarks</caption>{head}{body}</table>"
        return made


def _measured(value: dict[str, Any]) -> str:
    total = value["argument_bytes"] + value["output_bytes"] - value["alias_bytes"] + value["temp_bytes"]
    text = f"{_size(total)} in total, {_size(value['temp_bytes'])} of it temporary"
    if value.get("flops"):
        text += f"; {value['flops'] / 1e12:.3g} TFLOP of matrix work"
    return text
