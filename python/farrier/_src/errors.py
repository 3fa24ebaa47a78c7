"""The exceptions that farrier raises.

All derive from :class:`Error`, so ``except farrier.Error`` catches everything that farrier
itself has to say. Each message says what went wrong, where (the JAX source line, when one is
known) and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BudgetError",
    "CallbackError",
    "CompileError",
    "DistributedError",
    "Error",
    "InputError",
    "InternalError",
    "MissingPluginError",
    "OptionError",
    "PassError",
    "PlanError",
    "StalePlanError",
    "TargetError",
    "nearest",
]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The entry of ``known`` that ``name`` most likely meant, or None when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return close[0] if close else None


class Error(Exception):
    """Base of every exception that farrier raises.

    Attributes:
      what: one sentence, what went wrong.
      where: the source line or file that it concerns, or None.
      hint: what to do next, or None.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None):
        self.what = what
        self.where = where
        self.hint = hint
        lines = [what]
        if where:
            lines.append(f"  at: {where}")
        if hint:
            lines.append(f"  to do: {hint}")
        super().__init__("\n".join(lines))

    def __reduce__(self):
        # The default would call cls(message): keyword-only fields would be lost, and a child
        # process (the parsing of untrusted bytes) sends its errors back by pickle.
        return _rebuild, (type(self), dict(self.__dict__), self.args)


def _rebuild(cls, fields, args):
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(fields)
    return error


class OptionError(Error, TypeError):
    """An option that does not exist, or a value that an option does not take."""

    @classmethod
    def unknown(cls, name: str, known: Iterable[str], *, of: str) -> OptionError:
        """An unknown option ``name`` of ``of``, with the closest known one suggested."""
        known = sorted(known)
        guess = nearest(name, known)
        hint = f"did you mean {guess!r}?" if guess else f"known options: {', '.join(known)}"
        return cls(f"{of} has no option {name!r}", hint=hint)


class TargetError(Error, ValueError):
    """A target that is not known, or that cannot be what it is asked to be."""


class MissingPluginError(Error, ImportError):
    """The XLA compiler for the target is not installed; the hint names the extra that brings it."""


class CompileError(Error, RuntimeError):
    """XLA does not compile a program for the target; the message carries XLA's own."""


class InputError(Error, ValueError):
    """A file or module that cannot be read: broken, truncated, hostile or of an unknown form."""


class PassError(Error, RuntimeError):
    """A pass failed.

    Attributes:
      repro: a one-line command that reproduces the failure, or None when nothing was saved.
    """

    def __init__(
        self, what: str, *, where: str | None = None, hint: str | None = None, repro: str | None = None
    ):
        if repro:
            hint = f"{hint}; reproduce with: {repro}" if hint else f"reproduce with: {repro}"
        super().__init__(what, where=where, hint=hint)
        self.repro = repro


class InternalError(PassError):
    """farrier produced a module that XLA's own verifier refuses. Always farrier's fault."""


class BudgetError(Error, RuntimeError):
    """The memory budget cannot be met.

    Attributes:
      budget_bytes: what was asked for, in bytes of total device memory per device.
      smallest_bytes: the smallest total that farrier measured with XLA, in bytes, or None when
        nothing could be measured.
    """

    def __init__(
        self,
        what: str,
        *,
        budget_bytes: int,
        smallest_bytes: int | None = None,
        where: str | None = None,
        hint: str | None = None,
    ):
        super().__init__(what, where=where, hint=hint)
        self.budget_bytes = budget_bytes
        self.smallest_bytes = smallest_bytes


class CallbackError(Error, RuntimeError):
    """A host callback keeps the function from being optimized, and a budget had to be met."""


class PlanError(Error, ValueError):
    """A plan that cannot be read: not a plan, a version that this farrier does not know."""


class StalePlanError(PlanError):
    """A plan that was made for another program, or with other options.

    Attributes:
      differences: what differs, one line each.
      missing_keys: per-value keys of the plan that the program no longer has.
    """

    def __init__(
        self,
        what: str,
        *,
        differences: Iterable[str] = (),
        missing_keys: Iterable[str] = (),
        where: str | None = None,
        hint: str | None = None,
    ):
        self.differences = tuple(differences)
        self.missing_keys = tuple(missing_keys)
        listed = list(self.differences)
        if self.missing_keys:
            shown = ", ".join(self.missing_keys[:8])
            more = len(self.missing_keys) - 8
            listed.append(
                f"values that the program no longer has: {shown}" + (f" and {more} more" if more > 0 else "")
            )
        text = what + "".join(f"\n  - {line}" for line in listed)
        super().__init__(text, where=where, hint=hint)


class DistributedError(Error, RuntimeError):
    """The processes of a job do not agree on the program or the plan.

    Raised on every process before the executable runs, because processes that run different
    programs wait for each other for ever.
    """
