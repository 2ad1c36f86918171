"""Settings of a decomposition: the question asked, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..devices import Device, Link
from ..devices.reading import devices_of, links_of
from .partitioners.chain import GOALS

METHODS = ("exact", "greedy-merge", "greedy-split", "spectral", "kernighan-lin", "gcn")
SLACK = 0.01  # where no link is given: no real one is free, and times are not known better


@dataclass(frozen=True)
class PartitionSettings:
    """A question to the partitioners. Made by :func:`partition_settings`."""

    devices: tuple[Device, ...]  # one a stage, in the order of the stages
    links: tuple[Link, ...]  # from each device to the next
    minimise: str = "throughput"
    alike: bool = False  # the devices were not named: equal ones, each of which gets a stage
    forced: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    slack: float = 0.0  # share of the least time that may be given up for fewer bytes
    imbalance: float = 0.25
    method: str = "exact"
    input_bytes: float | None = None  # of a batch of inputs on the wire; None: of the tensors
    seed: int = 0

    @property
    def two(self) -> bool:
        """Two devices, one of which has the inputs: every placement is a choice, also all on one."""
        return len(self.devices) == 2 and not self.alike


def partition_settings(
    parts: int | None = None,
    minimise: str = "throughput",
    devices: Iterable[Device | str] | None = None,
    links: Iterable[Link | str] | Link | str | None = None,
    *,
    forced: Iterable[str] = (),
    forbidden: Iterable[str] = (),
    imbalance: float = 0.25,
    method: str = "exact",
    input_kb: float | None = None,
    seed: int = 0,
) -> PartitionSettings:
    """
    Raises:
        ValueError: what cannot be, with what to give instead.
    """
    if minimise not in GOALS:
        raise ValueError(f"minimise is one of {', '.join(GOALS)}, got {minimise!r}")
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, got {method!r}")
    if parts is not None and (not isinstance(parts, int) or parts < 1):
        raise ValueError(f"a network has one part or more, got parts={parts!r}")
    if not imbalance >= 0:
        raise ValueError(f"imbalance must be 0 or more (0.25 is 25 % above the least), got {imbalance!r}")
    if input_kb is not None and not input_kb >= 0:
        raise ValueError(f"the inputs weigh 0 kB or more, got {input_kb!r}")
    alike = devices is None
    made = devices_of(devices) if devices is not None else _alike(parts or 2)
    if parts is not None and parts != len(made):
        raise ValueError(
            f"{parts} parts run on {parts} devices, but {len(made)} are given: "
            + ", ".join(device.name for device in made)
        )
    given = Link() if links is None else links
    alone = isinstance(given, str | Link)  # then every two devices have such a link
    joined = _neighbours(made, links_of(given, made[:2] if alone else made))
    if minimise == "latency" and method == "exact" and alike and all(j == Link() for j in joined):
        raise ValueError(
            "on equal devices with free links every cut has the same latency; give devices and a link, such "
            "as edge=0.2x, server=1x and 20mbps,5ms, or minimise throughput or traffic"
        )
    return PartitionSettings(
        made,
        joined,
        minimise,
        alike,
        tuple(_names(forced, "forced")),
        tuple(_names(forbidden, "forbidden")),
        slack=SLACK if links is None else 0.0,
        imbalance=imbalance,
        method=method,
        input_bytes=None if input_kb is None else 1000 * input_kb,
        seed=seed,
    )


def _alike(parts: int) -> tuple[Device, ...]:
    return tuple(Device(f"device{k}") for k in range(1, parts + 1))


def _names(given: Iterable[str], what: str) -> list[str]:
    if isinstance(given, str):
        raise ValueError(f"{what} is a list of module names, got the text {given!r}")
    return list(given)


def _neighbours(devices: Sequence[Device], links: Sequence[Link]) -> tuple[Link, ...]:
    """The link from each device to the next."""
    named = {frozenset(link.between): link for link in links if link.between is not None}
    if not named:
        return tuple(links if len(links) == len(devices) - 1 else list(links[:1]) * (len(devices) - 1))
    out = []
    for one, other in pairwise(devices):
        link = named.get(frozenset((one.name, other.name)))
        if link is None:
            raise ValueError(
                f"stages run on the devices in their order, but no link joins {one.name!r} and "
                f"{other.name!r}; give one, or name the devices in another order"
            )
        out.append(link)
    return tuple(out)
