"""Suites for ``farrier bench`` and ``farrier gate``.

A suite is a Python file with a function ``cases()`` that yields :class:`Case`
objects or ``(name, function, args)`` tuples, and optionally ``TARGETS``,
``OPTION_SETS`` and ``REFERENCE``.
"""

from farrier._src.bench.metric import Metric as Metric
from farrier._src.bench.metric import exact as exact
from farrier._src.bench.metric import sampled as sampled
from farrier._src.bench.result import Result as Result
from farrier._src.bench.result import Run as Run
from farrier._src.bench.result import load as load
from farrier._src.bench.result import with_reference as with_reference
from farrier._src.bench.runner import run_suite as run_suite
from farrier._src.bench.suite import Case as Case
from farrier._src.bench.suite import OptionSet as OptionSet
from farrier._src.bench.suite import Unsupported as Unsupported
from farrier._src.bench.timing import Clock as Clock
