"""Record of a deployment: measurements taken while inputs went through its stages."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StageRecord:
    """One stage, since the session began (the stream, or the last restart in it)."""

    name: str
    inputs: int  # answered
    busy_ms: float  # of computing, per input
    slept_ms: float  # per input, to be as slow as the simulated device


@dataclass(frozen=True)
class Boundary:
    """What was sent from one stage to the next; the first boundary is from the driver, the last one to it."""

    sender: str
    receiver: str
    payload_bytes: int  # of tensors
    wire_bytes: int | None  # with the headers of frames, without those of TCP; None: not known (Ray)
    crossings: int  # links on the route; 0: both ends are on one device


@dataclass(frozen=True)
class Record:
    """One stream of inputs."""

    inputs: int  # answered
    samples: int  # in them
    failed: int  # refused, or a stage raised
    seconds: float  # from the first input sent to the last answer
    latency_ms: float  # from sending an input to its answer, waiting in queues included; median
    latency_q25_ms: float
    latency_q75_ms: float
    inflight: int  # inputs between driver and driver at most: with 1 the latency is that of an idle pipeline
    restarts: int
    stages: tuple[StageRecord, ...]
    boundaries: tuple[Boundary, ...]

    @property
    def throughput_per_s(self) -> float:
        """Samples a second, filling and emptying of the pipeline included."""
        return self.samples / self.seconds if self.seconds else float("nan")

    @property
    def traffic_kb(self) -> float:
        """Tensor bytes per sample over all links, in 1000 bytes: the measured ``traffic_kb``."""
        sent = sum(b.payload_bytes * b.crossings for b in self.boundaries)
        return sent / 1000 / self.samples if self.samples else float("nan")

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "throughput_per_s": self.throughput_per_s,
            "traffic_kb": self.traffic_kb,
        }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """25 %, 50 %, 75 %; NaN of nothing."""
    if len(values) < 2:
        return (values[0],) * 3 if values else (float("nan"),) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
