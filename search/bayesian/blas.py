"""Linear algebra on one thread: the same sums whatever the machine's number of cores, and faster for small
matrices, in which threads mostly wait for each other (a hundred times, on a busy machine)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any


def one_thread() -> AbstractContextManager[Any]:
    """A context in which NumPy's and SciPy's linear algebra uses one thread; does without torch."""
    return _libraries().limit(limits=1, user_api="blas")


@cache
def _libraries() -> Any:
    """Control over the linear algebra libraries that are loaded; looking for them takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
