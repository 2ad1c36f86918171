"""Figures of devices and links, as people give them."""

from __future__ import annotations

from numbers import Real
from typing import Any


def number(value: Any, what: str) -> float:
    """
    Raises:
        ValueError: it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{what} must be a number, got {value!r}")
    return float(value)
