"""What each part may hold: work (balance) and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .graph import Graph
from .hosts import Host, check_memory
from .plan import per_part

ROUNDING = 1e-9  # of a limit; sums in another order differ


@dataclass(frozen=True)
class Limits:
    """Upper limits on the parts' loads; a load is a sum over a part's nodes."""

    weights: np.ndarray  # float64 [nodes, 2]: work, memory
    caps: np.ndarray  # float64 [parts, 2], inf where there is no limit

    @property
    def parts(self) -> int:
        return len(self.caps)

    def loads(self, parts: Sequence[int] | np.ndarray) -> np.ndarray:
        """float64 [parts, 2]."""
        columns = [per_part(column, parts, self.parts) for column in self.weights.T]
        return np.stack(columns, axis=1)

    @property
    def slack(self) -> np.ndarray:
        """``caps`` with room for rounding."""
        return self.caps * (1 + ROUNDING)

    def fits(self, parts: Sequence[int] | np.ndarray) -> bool:
        return bool((self.loads(parts) <= self.slack).all())


def limits(graph: Graph, parts: int | Sequence[Host], imbalance: float | None) -> Limits:
    """Limits from devices: work in proportion to their speeds, memory as they say.

    Args:
        parts: how many equal parts, or the devices.
        imbalance: a part's work is at most (1 + imbalance) times its share; None: any.

    Raises:
        ValueError: fewer than one part, a negative imbalance, memory that nothing fits.
    """
    if isinstance(parts, int):
        if parts < 1:
            raise ValueError(f"a partition needs at least one part, got {parts}")
        devices: Sequence[Host] = [Host(f"part {k}") for k in range(parts)]
    else:
        devices = parts
    check_memory(graph, devices)
    if imbalance is not None and not imbalance >= 0:
        raise ValueError(f"imbalance must be 0 or more (0.1 is 10 % above the share), got {imbalance!r}")
    speeds = np.array([device.speed for device in devices], dtype=np.float64)
    caps = np.full((len(devices), 2), np.inf)
    if imbalance is not None:
        caps[:, 0] = (1 + imbalance) * graph.work.sum() * speeds / speeds.sum()
    caps[:, 1] = [device.memory_limit for device in devices]
    bound = Limits(np.stack([graph.work, graph.memory], axis=1), caps)
    heaviest = int(np.argmax(graph.work))
    if graph.work[heaviest] > bound.slack[:, 0].max():
        over = graph.work[heaviest] / (caps[:, 0].max() / (1 + (imbalance or 0.0))) - 1
        raise ValueError(
            f"node {graph.nodes[heaviest].name!r} alone is more work than a part may have; "
            f"it needs imbalance={over:.3g} or more, or fewer parts, got {imbalance:g}"
        )
    return bound
