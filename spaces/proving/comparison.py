"""When two outputs are the same network's: the largest difference against what their type allows."""

from __future__ import annotations

import math
from typing import Any

import torch

TOLERANCE = {  # largest difference / largest output
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
}
LOOSE = 1e-2  # half precision


def relative_difference(got: list[Any], expected: list[Any]) -> tuple[float, float]:
    """Largest absolute difference over the largest absolute output, and what its type allows."""
    worst, allowed = 0.0, 0.0
    pairs = [(g, e) for g, e in zip(got, expected, strict=True) if isinstance(e, torch.Tensor)]
    for g, e in pairs:
        if g.shape != e.shape:
            return float("inf"), 0.0
        if not e.is_floating_point() and not e.is_complex():
            worst = max(worst, 0.0 if torch.equal(g, e) else float("inf"))
        elif e.numel():
            scale = float(e.abs().max()) or 1.0
            difference = float((g - e).abs().max()) / scale
            worst = max(worst, difference) if math.isfinite(difference) else math.inf
            allowed = max(allowed, TOLERANCE.get(e.dtype, LOOSE))
    return worst, allowed
