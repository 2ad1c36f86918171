"""Multiply-accumulates of a call by torch's counter, fused operators included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def unfused() -> Iterator[None]:
    """Within: attention and LSTMs run as the products that they are made of; fused they count nothing."""
    (enabled, *_) = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=enabled, _fp32_precision=None)


def counted(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """What ``call`` returns, and the multiply-accumulates that it took."""
    with torch.no_grad(), unfused(), FlopCounterMode(display=False) as counter:
        out = call(*args, **kwargs)
    return out, counter.get_total_flops() / 2
