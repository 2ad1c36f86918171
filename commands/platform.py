"""Devices and links on the command line, for spaces that split networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ..devices import Device, Link
    from ..engine.read_settings import SweepSettings
    from ..evaluators import Task
    from ..spaces import Blueprint

PLACEMENTS = ("ordered", "free")
ONE_BY_ONE = ("greedy-merge", "greedy-split")  # searchers that merge and split stages at single places


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
        from ..engine.platform import as_stored
        from ..evaluators.profiling import with_profiles

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


def platform_of(asked: SweepSettings) -> Platform:
    """What the settings of devices mean, checked before any work.

    Raises:
        ValueError: devices or links that cannot be.
        typer.BadParameter: options that do not go together.
    """
    from ..devices import devices_of, links_of, read_platform

    given = {
        "--device": asked.devices,
        "--link": asked.links,
        "--devices": asked.platform,
        "--placement": asked.placement,
        "--parts": asked.parts,
        "--force": asked.forced,
        "--forbid": asked.forbidden,
    }
    named = [name for name, value in given.items() if value]
    if named and "splits" not in asked.space:
        raise typer.BadParameter(
            f"{named[0]} is for networks that are split; add splits to --space: "
            f"--space {','.join([*asked.space, 'splits'])}"
        )
    placement, searcher = asked.placement, asked.searcher
    if placement is not None and placement not in PLACEMENTS:
        raise typer.BadParameter(f"--placement is {' or '.join(PLACEMENTS)}, got {placement!r}")
    if searcher in ONE_BY_ONE and (placement or asked.parts):
        raise typer.BadParameter(
            f"{searcher} puts any number of stages on the devices in turn; leave out "
            f"{'--placement' if placement else '--parts'}, and give --limit 'stages<=3', say"
        )
    if asked.platform is not None and (asked.devices or asked.links):
        raise typer.BadParameter("give --devices FILE, or --device and --link, not both")
    if asked.links and not asked.devices:
        raise typer.BadParameter("--link needs devices that it joins: --device edge=0.2x --device server=1x")
    devices, links = read_platform(asked.platform) if asked.platform is not None else ((), ())
    if asked.devices:
        try:
            devices = devices_of(asked.devices)
            links = links_of(asked.links, devices)
        except TypeError as error:  # a table with a key that is not of a device or link
            raise ValueError(f"devices and links of the recipe: {error}") from None
    return Platform(devices, links, placement, asked.parts, asked.forced, asked.forbidden)
