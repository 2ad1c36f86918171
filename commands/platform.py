"""Devices and links on the command line, for spaces that split networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..evaluators import Task
    from ..spaces import Blueprint
    from ..spaces.devices import Device, Link

PLACEMENTS = ("ordered", "free")
ONE_BY_ONE = ("greedy-merge", "greedy-split")  # searchers that merge and split stages at single places

DeviceTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME=SPEED",
        help="runs a stage: edge=0.2x, edge=profile.json, edge=1x,memory=64mb,power=5w; repeat",
    ),
]
LinkTexts = Annotated[
    list[str] | None,
    typer.Option("--link", metavar="RATE", help="20mbps,5ms: for all, or repeat: from each to the next"),
]
DevicesFile = Annotated[Path | None, typer.Option(metavar="FILE", help="devices and links in a TOML file")]
PlacementName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="ordered: stage k on device k; free: any [default: ordered]"),
]
Parts = Annotated[
    int | None, typer.Option(metavar="N", min=2, help="stages at most [default: as many as devices]")
]
Forced = Annotated[
    list[str] | None, typer.Option("--force", metavar="MODULE", help="a stage ends after it; repeat")
]
Forbidden = Annotated[
    list[str] | None, typer.Option("--forbid", metavar="MODULE", help="it is never cut inside; repeat")
]


@dataclass(frozen=True)
class Platform:
    """What was asked for on the command line; empty where nothing was."""

    devices: tuple[Device, ...] = ()
    links: tuple[Link, ...] = ()
    placement: str | None = None
    parts: int | None = None
    forced: tuple[str, ...] = ()  # modules after which a stage ends
    forbidden: tuple[str, ...] = ()  # modules that stay whole

    def options(
        self,
        task: Task,
        blueprint: Blueprint,
        searcher: str,
        *,
        wanted: Collection[str] = (),
        stored: Sequence[Device] = (),
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """The options of the kind ``splits``. Measures this machine where a device's speed refers to it.

        Args:
            wanted: metrics that are objectives or limited.
            stored: of a run that is resumed.
        """
        from ..evaluators.profiling import with_profiles
        from ..search.devices import as_stored

        devices, links = (self.devices, self.links) if self.devices else (task.devices, task.links)
        options: dict[str, Any] = {}
        if devices:
            devices = with_profiles(as_stored(devices, stored), task, blueprint, say=say)
            options = {"devices": devices, "links": links}
        if self.placement is not None:
            options["placement"] = self.placement
        if self.parts is not None:
            options["parts"] = self.parts
        options |= {k: v for k in ("forced", "forbidden") if (v := getattr(self, k))}
        if {"latency_change", "throughput_change"} & set(wanted):
            options["sensitivity"] = True
        if searcher in ONE_BY_ONE:
            options["encoding"] = "each"
        return options


def platform_of(
    kinds: Sequence[str],
    device: Sequence[str] | None,
    link: Sequence[str] | None,
    file: Path | None,
    placement: str | None,
    parts: int | None,
    force: Sequence[str] | None,
    forbid: Sequence[str] | None,
    searcher: str = "auto",
) -> Platform:
    """What the options mean, checked before any work.

    Raises:
        ValueError: devices or links that cannot be.
        typer.BadParameter: options that do not go together.
    """
    from ..spaces.devices import devices_of, links_of, read_platform

    given = {
        "--device": device,
        "--link": link,
        "--devices": file,
        "--placement": placement,
        "--parts": parts,
        "--force": force,
        "--forbid": forbid,
    }
    named = [name for name, value in given.items() if value]
    if named and "splits" not in kinds:
        raise typer.BadParameter(
            f"{named[0]} is for networks that are split; add splits to --space: "
            f"--space {','.join([*kinds, 'splits'])}"
        )
    if placement is not None and placement not in PLACEMENTS:
        raise typer.BadParameter(f"--placement is {' or '.join(PLACEMENTS)}, got {placement!r}")
    if searcher in ONE_BY_ONE and (placement or parts):
        raise typer.BadParameter(
            f"{searcher} puts any number of stages on the devices in turn; leave out "
            f"{'--placement' if placement else '--parts'}, and give --limit 'stages<=3', say"
        )
    if file is not None and (device or link):
        raise typer.BadParameter("give --devices FILE, or --device and --link, not both")
    if link and not device:
        raise typer.BadParameter("--link needs devices that it joins: --device edge=0.2x --device server=1x")
    devices, links = read_platform(file) if file is not None else ((), ())
    if device:
        devices = devices_of(device)
        links = links_of(link or (), devices)
    return Platform(devices, links, placement, parts, tuple(force or ()), tuple(forbid or ()))
