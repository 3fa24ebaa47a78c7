"""pytest fixtures: ``assert_fits`` fails a test whose step outgrows its memory budget.

.. code-block:: python

    def test_step_fits(assert_fits):
        assert_fits(train_step, (state, batch), "72GiB", target="h100")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest


@pytest.fixture(scope="session")
def assert_fits(pytestconfig: pytest.Config) -> Callable[..., Any]:
    """Returns ``assert_fits(step, args, budget, **options)``.

    It compiles ``step`` for the target, which needs no GPU, and fails the test with the
    lines that hold the memory if arguments + outputs - aliased + temp is above
    ``budget`` (bytes or ``"72GiB"``). Options, as :func:`farrier._src.bench.fits.fit` takes them:
    ``target`` (default "h100"), ``kwargs`` of the step, ``compiler_options``. Returns the
    ``farrier.Measurement``.
    """

    def check(step: Callable[..., Any], args: Sequence[Any], budget: int | str, **options: Any) -> Any:
        __tracebackhide__ = True
        # Here, not above: every pytest run loads this module, few use the fixture.
        from farrier._src.bench.fits import fit

        result = fit(step, args, budget, **{"root": pytestconfig.rootpath, **options})
        if not result.fits:
            name = getattr(step, "__name__", type(step).__name__)
            pytest.fail(f"{name} does not fit: {result.describe()}", pytrace=False)
        return result.measurement

    return check
