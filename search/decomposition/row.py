"""What is known of each stage of a decomposition."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .refining import Measured
from .setting import Setting


@dataclass(frozen=True, slots=True)
class Row:
    """One stage, for one batch."""

    stage: int  # from 1
    device: str
    first: str  # deepest module of its first call, "" for the model itself
    last: str
    ms: float  # on its device
    timed: bool  # the stage was timed here (and divided by the device's speed); else by the device's profile
    macs: float
    macs_share: float  # of the network's, in [0, 1]
    weights_mb: float  # parameters and buffers, 10^6 bytes
    memory_mb: float  # weights, and activations at their most
    sent_kb: float  # to the next stage, 1000 bytes; of the last 0
    send_ms: float  # of that, link latency included
    tensors: tuple[str, ...]  # what is sent

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rows_of(measured: Measured, asked: Setting) -> tuple[Row, ...]:
    layout = measured.layout
    network, costs = layout.network, layout.costs
    total = float(network.macs.sum())
    rows = []
    for k, (begin, end) in enumerate(zip([0, *layout.ends], layout.ends, strict=False)):
        calls, at = network.calls[begin:end], layout.on[k]
        held = measured.stages[k].module.state_dict().values()
        weights = sum({t.data_ptr(): t.numel() * t.element_size() for t in held}.values())
        macs = float(network.macs[begin:end].sum())
        last = k == len(layout.cuts)
        hops = slice(at, at if last else layout.on[k + 1])  # devices between that only pass on
        rows.append(
            Row(
                stage=k + 1,
                device=asked.devices[at].name,
                first=_module(calls),
                last=_module(calls[::-1]),
                ms=float(costs.compute[at]),
                timed=asked.devices[at].profile is None,
                macs=macs,
                macs_share=macs / total if total else 0.0,
                weights_mb=weights / 1e6,
                memory_mb=(weights + max(call.alive for call in calls)) / 1e6,
                sent_kb=0.0 if last else layout.cuts[k].bytes * network.batch / 1000,
                send_ms=float(np.sum(costs.transfer[hops]) + np.sum(costs.delay[hops])),
                tensors=() if last else layout.cuts[k].tensors,
            )
        )
    return tuple(rows)


def _module(calls: Any) -> str:
    return next((call.modules[-1] for call in calls if call.modules), "")
