"""One thread for thousands of small operations, in which threads mostly wait for each other.

All that netcarve computes runs on one thread; candidates run beside each other. So results do not depend on
the number of threads either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside, in torch and in NumPy's linear algebra; the former numbers after.

    Measured while other programs ran, four threads against one: 0.5 s and 0.005 s to invert the 600x600
    matrix of a layer; 87 s and 1.1 s for the space of the digits task, calibrated.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


def one_thread_from_now_on() -> None:
    """The same without an end."""
    torch.set_num_threads(1)
    _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> Any:
    """Control over the linear algebra libraries that are loaded; looking for them takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
