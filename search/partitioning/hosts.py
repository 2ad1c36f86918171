"""What runs parts of a network, as the partitioners see it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .graph import Graph


@dataclass(frozen=True)
class Host:
    """What runs a part: a :class:`spaces.devices.Device` reduced to the times of a graph's nodes.

    Raises:
        ValueError: a speed that is not positive, a negative memory limit.
    """

    name: str
    speed: float = 1.0  # units of work per ms
    memory_limit: float = math.inf  # bytes, for the sum of its nodes' memory
    profile: Mapping[str, float] | None = None  # ms of every node by name, measured; instead of work / speed

    def __post_init__(self) -> None:
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ValueError(f"device {self.name!r}: speed must be above 0, got {self.speed!r}")
        if not self.memory_limit >= 0:
            raise ValueError(
                f"device {self.name!r}: memory limit must be 0 or more, got {self.memory_limit!r}"
            )

    def milliseconds(self, graph: Graph) -> np.ndarray:
        """float64 [nodes]: time of every node on this device.

        Raises:
            ValueError: the profile lacks nodes, or holds a time that is negative or not finite.
        """
        if self.profile is None:
            return graph.work / self.speed
        missing = [node.name for node in graph.nodes if node.name not in self.profile]
        if missing:
            raise ValueError(
                f"the profile of device {self.name!r} lacks {len(missing)} of {len(graph)} nodes: "
                f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; profile this network anew"
            )
        times = np.array([self.profile[node.name] for node in graph.nodes], dtype=np.float64)
        if not (np.isfinite(times) & (times >= 0)).all():
            at = int(np.argmin(np.isfinite(times) & (times >= 0)))
            raise ValueError(
                f"the profile of device {self.name!r} says {times[at]} ms for {graph.nodes[at].name!r}; "
                "times are finite and 0 or more"
            )
        return times


def check_memory(graph: Graph, devices: Sequence[Host]) -> None:
    """Refuse what no placement of any kind can meet.

    Raises:
        ValueError: no device; two of the same name; all together hold too little; a node fits on none.
    """
    if not devices:
        raise ValueError("a partition needs at least one device, got none")
    names = [device.name for device in devices]
    if len(set(names)) < len(names):
        raise ValueError(f"devices must have distinct names, got {names}")
    needed, held = float(graph.memory.sum()), sum(device.memory_limit for device in devices)
    if needed > held:
        raise ValueError(
            f"the network needs {needed:,.0f} bytes, its devices hold {held:,.0f} together: "
            f"{needed - held:,.0f} are missing; raise a memory limit, add a device, or prune first"
        )
    largest = max(graph.nodes, key=lambda node: node.memory + node.peak)
    roomiest = max(devices, key=lambda device: device.memory_limit)
    needs = largest.memory + largest.peak
    if needs > roomiest.memory_limit:
        raise ValueError(
            f"node {largest.name!r} needs {needs:,.0f} bytes, the largest device {roomiest.name!r} "
            f"holds {roomiest.memory_limit:,.0f}: {needs - roomiest.memory_limit:,.0f} are missing"
        )
