"""Threads of the linear algebra behind numpy.

OpenBLAS threads wait for each other by spinning. For matrices of a few hundred rows that gains little on an idle
machine, and where other work wants the cores it multiplies the time: 3 to 5 times were seen.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from threadpoolctl import threadpool_limits

LARGE = 2048
"""Matrices of so many rows are worth all threads."""


def few_threads(rows: int) -> AbstractContextManager[Any]:
    """One thread for the linear algebra of the whole process, unless its matrices have `LARGE` rows or more."""
    return nullcontext() if rows >= LARGE else threadpool_limits(1, user_api="blas")
