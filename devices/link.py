"""Links between devices, and the route that a message takes from one device to another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .device import number


@dataclass(frozen=True, slots=True)
class Link:
    """What carries tensors from one device to another, in both directions at once.

    Args:
        bandwidth_mbps: megabits (10^6 bit) per second, each way.
        latency_ms: until the first bit of a message has arrived; messages follow each other without it.
        energy_mj_per_mb: spent by sender and receiver together for every 10^6 bytes.
        between: names of the two devices that it joins; ``None``: by its place among the links.

    Raises:
        ValueError: a bandwidth that is not positive; a latency or an energy that is negative or not finite.
    """

    bandwidth_mbps: float = math.inf
    latency_ms: float = 0.0
    energy_mj_per_mb: float = 0.0
    between: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if not number(self.bandwidth_mbps, "a link's bandwidth in mbps") > 0:
            raise ValueError(
                f"a link needs a bandwidth above 0 mbps, got {self.bandwidth_mbps!r}; devices that cannot "
                "talk to each other cannot share a network"
            )
        for what, value in (("latency", self.latency_ms), ("energy", self.energy_mj_per_mb)):
            if not 0 <= number(value, f"a link's {what}") < math.inf:
                raise ValueError(f"a link's {what} must be a finite number, 0 or more, got {value!r}")
        if self.between is not None:
            ends = self.between
            if not isinstance(ends, list | tuple) or len(ends) != 2 or ends[0] == ends[1]:
                raise ValueError(f"a link joins two different devices, got between={ends!r}")
            object.__setattr__(self, "between", tuple(ends))

    @property
    def ms_per_byte(self) -> float:
        """How long a byte keeps the link busy: 8 / (bandwidth x 10^6) seconds."""
        return 8e-3 / self.bandwidth_mbps

    def milliseconds(self, size: float) -> float:
        """Until a message of ``size`` bytes has arrived."""
        return self.latency_ms + size * self.ms_per_byte

    def to_json(self) -> dict[str, Any]:
        """Plain data; an unlimited bandwidth is ``null``."""
        out = {k: v for k, v in asdict(self).items() if v not in (None, 0.0)}
        out["bandwidth_mbps"] = None if math.isinf(self.bandwidth_mbps) else self.bandwidth_mbps
        return out | ({"between": list(self.between)} if self.between else {})

    @classmethod
    def from_json(cls, made: dict[str, Any]) -> Link:
        given = dict(made)
        if given.get("bandwidth_mbps") is None:
            given["bandwidth_mbps"] = math.inf
        return cls(**given)


@dataclass(frozen=True)
class Routes:
    """Which directed links a message takes. L: links, each direction counted."""

    passes: np.ndarray  # bool [D, D, L]: the route from one device to another goes over this link
    ms_per_byte: np.ndarray  # float64 [L]
    latency_ms: np.ndarray  # float64 [L]
    mj_per_byte: np.ndarray  # float64 [L]


def routes(names: Sequence[str], links: Sequence[Link]) -> Routes:
    """The routes between devices: of all over the given links the one over the fewest.

    Args:
        names: of the devices.
        links: one joins every two devices with a link of that kind of their own; one fewer than devices
            joins neighbours in the order of ``names``; or every link says which two it joins. A message
            between devices that no link joins is received whole and sent on by those between.

    Raises:
        ValueError: another number of links; an unknown device; two links between the same devices; devices
            that no links join.
    """
    ends = _ends(list(names), links)
    both = [(a, b, k) for a, b, k in ends] + [(b, a, k) for a, b, k in ends]
    d = len(names)
    passes = np.zeros((d, d, len(both)), dtype=bool)
    for start in range(d):
        seen, reached = {start}, [start]
        for at in reached:  # breadth first
            for k, (a, b, _) in enumerate(both):
                if a == at and b not in seen:
                    passes[start, b] = passes[start, a]
                    passes[start, b, k] = True
                    seen.add(b)
                    reached.append(b)
        if len(seen) < d:
            alone = next(names[i] for i in range(d) if i not in seen)
            raise ValueError(f"no links join {names[start]!r} and {alone!r}; give one between them")
    used = [k for _, _, k in both]
    return Routes(
        passes,
        np.array([k.ms_per_byte for k in used], dtype=np.float64),
        np.array([k.latency_ms for k in used], dtype=np.float64),
        np.array([k.energy_mj_per_mb / 1e6 for k in used], dtype=np.float64),
    )


def _ends(names: list[str], links: Sequence[Link]) -> list[tuple[int, int, Link]]:
    d = len(names)
    if d == 1:
        return []
    if not links:
        raise ValueError(f"{d} devices need a link between them; give one, such as --link 20mbps,5ms")
    named = [k for k in links if k.between is not None]
    if len(named) == len(links):
        found: dict[tuple[int, int], Link] = {}
        for link in named:
            assert link.between is not None
            for name in link.between:
                if name not in names:
                    raise ValueError(f"a link joins {name!r}, but the devices are {', '.join(names)}")
            a, b = sorted(names.index(name) for name in link.between)
            if (a, b) in found:
                raise ValueError(f"two links join {names[a]!r} and {names[b]!r}; give one")
            found[a, b] = link
        return [(a, b, link) for (a, b), link in found.items()]
    if named:
        raise ValueError("some links say which devices they join and some do not; say it for all or for none")
    if len(links) == 1:
        return [(a, b, links[0]) for a in range(d) for b in range(a + 1, d)]
    if len(links) == d - 1:
        return [(i, i + 1, link) for i, link in enumerate(links)]
    raise ValueError(
        f"{len(links)} links for {d} devices: give one for all, or {d - 1}, from each device to the next "
        "in their order"
    )
