"""Figures as people read them."""

from __future__ import annotations

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Bytes in binary units with three significant digits.

    >>> size(1536), size(80 * 2**30), size(-2**20)
    ('1.5 KiB', '80 GiB', '-1 MiB')
    """
    sign, count = ("-" if count < 0 else ""), abs(count)
    unit, scale = binary_unit(count)
    return f"{sign}{count:.0f} B" if scale == 1 else f"{sign}{_short(count / scale)} {unit}"


def binary_unit(largest: float) -> tuple[str, int]:
    """The unit that `size` would give a value, and its bytes: for an axis.

    >>> binary_unit(3 * 2**20), binary_unit(80 * 2**30)
    (('MiB', 1048576), ('GiB', 1073741824))
    """
    k = 0
    while largest >= 1024 and k + 1 < len(_BINARY):
        largest, k = largest / 1024, k + 1
    return _BINARY[k], 1024**k


def time(ns: float) -> str:
    """Nanoseconds as us, ms or s.

    >>> time(2500), time(3.2e6)
    ('2.5 us', '3.2 ms')
    """
    for scale, unit in ((1e9, "s"), (1e6, "ms")):
        if abs(ns) >= scale:
            return f"{_short(ns / scale)} {unit}"
    return f"{_short(ns / 1e3)} us"


def rate(value: float, unit: str) -> str:
    """A large count with a decimal prefix.

    >>> rate(2.5e12, "FLOP")
    '2.5 TFLOP'
    """
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{_short(value / scale)} {prefix}{unit}"
    return f"{_short(value)} {unit}"


def short_source(source: str, parts: int = 2) -> str:
    """A source location with the last few parts of its path.

    >>> short_source("/project/model/layers.py:12")
    'model/layers.py:12'
    """
    return "/".join(source.split("/")[-parts:])


def _short(value: float) -> str:
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text
