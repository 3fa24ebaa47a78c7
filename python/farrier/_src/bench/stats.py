"""Robust statistics for few and noisy samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# Expected range of n standard normal samples, in standard deviations: the
# control-chart constant d2 (ASTM E2587, table of factors). With so few samples
# the median absolute deviation is far too small, the range is not.
_RANGE_PER_SIGMA = {2: 1.128, 3: 1.693, 4: 2.059, 5: 2.326, 6: 2.534, 7: 2.704, 8: 2.847, 9: 2.970}

# Median absolute deviation to standard deviation for a normal distribution:
# 1 / Phi^-1(3/4).
_MAD_TO_SIGMA = 1.4826


def median(samples: Sequence[float]) -> float:
    """Returns the median of ``samples`` (same unit as the samples).

    Raises:
      ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("the median of no samples is not defined")
    return statistics.median(samples)


def spread(samples: Sequence[float]) -> float | None:
    """Estimates one standard deviation of ``samples``, in their unit.

    Uses the range for fewer than ten samples and the median absolute deviation
    for more; one outlier among many then changes nothing. ``None`` when one
    sample or none leaves it unknown.
    """
    n = len(samples)
    if n < 2:
        return None
    if n in _RANGE_PER_SIGMA:
        return (max(samples) - min(samples)) / _RANGE_PER_SIGMA[n]
    centre = statistics.median(samples)
    return _MAD_TO_SIGMA * statistics.median(abs(x - centre) for x in samples)


def noise(baseline: Sequence[float], current: Sequence[float], *, sigmas: float = 3.0) -> float | None:
    """Returns the difference of medians that chance alone explains, in the samples' unit.

    Args:
      baseline, current: samples of the two runs.
      sigmas: how many standard deviations count as chance.

    Returns ``None`` if neither run has two samples, so that nothing is known.
    """
    known = [s for s in (spread(baseline), spread(current)) if s is not None]
    if not known:
        return None
    # A run with one sample is taken to be as noisy as the other one.
    pair = known if len(known) == 2 else known * 2
    return sigmas * math.hypot(*pair)
