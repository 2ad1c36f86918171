"""Devices and links as people write them: on the command line, in a TOML file, in a task."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .device import Device
from .link import Link, routes

_QUANTITY = re.compile(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*([A-Za-z]+)\s*")
_BANDWIDTH = {"kbps": 1e-3, "mbps": 1.0, "gbps": 1e3}
_TIME = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SIZE = {"kb": 1e-3, "mb": 1.0, "gb": 1e3}  # to 10^6 bytes
_POWER = {"mw": 1e-3, "w": 1.0}
_DEVICE_KEYS = {"name", "profile", "speed", "memory_mb", "power_w"}
_LINK_KEYS = {"bandwidth_mbps", "latency_ms", "energy_mj_per_mb", "between"}


def parse_device(text: str) -> Device:
    """``"edge=0.2x"``, ``"edge=profile.json"``, ``"edge=0.2x,memory=64mb,power=5w"``.

    Raises:
        ValueError: another form, an unknown unit, or a number that cannot be.
    """
    name, equals, rest = text.partition("=")
    first, *more = (part.strip() for part in rest.split(","))
    if not equals or not first:
        raise ValueError(
            f"cannot read the device {text!r}; write it like edge=0.2x (a fifth of this machine's speed), "
            "edge=profile.json (made by `netcarve profile`) or edge=0.2x,memory=64mb,power=5w"
        )
    given: dict[str, Any] = {}
    for part in more:
        key, _, value = part.partition("=")
        if key == "memory":
            given["memory_limit_mb"] = _quantity(value, _SIZE, f"memory of device {name!r}")
        elif key == "power":
            given["power_w"] = _quantity(value, _POWER, f"power of device {name!r}")
        else:
            raise ValueError(f"device {name!r}: unknown {part!r}; known are memory=64mb and power=5w")
    return Device(name.strip(), first, **given)


def parse_link(text: str) -> Link:
    """``"20mbps,5ms"`` or ``"1gbps"``.

    Raises:
        ValueError: another form, an unknown unit, or a number that cannot be.
    """
    first, *more = text.split(",")
    if len(more) > 1:
        raise ValueError(f"cannot read the link {text!r}; write it like 20mbps,5ms")
    bandwidth = _quantity(first, _BANDWIDTH, f"bandwidth of the link {text!r}")
    latency = _quantity(more[0], _TIME, f"latency of the link {text!r}") if more else 0.0
    return Link(bandwidth, latency)


def read_platform(path: str | Path) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
    """Devices and links from a TOML file with ``[[device]]`` and ``[[link]]`` tables.

    A profile's path is relative to the file.

    Raises:
        ValueError: no such file, no TOML, or tables that say something else.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the devices in {str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no TOML file: {error}") from None
    if unknown := sorted(set(tables) - {"device", "link"}):
        raise ValueError(f"{str(path)!r} has {unknown[0]!r}; known are [[device]] and [[link]]")
    devices = [_device_table(table, path.parent) for table in _tables(tables, "device", path)]
    links = [_link_table(table) for table in _tables(tables, "link", path)]
    return devices_of(devices), links_of(links, devices)


def devices_of(given: Iterable[Device | str | Mapping[str, Any]]) -> tuple[Device, ...]:
    """Devices from what may stand for them: themselves, texts, their JSON.

    Raises:
        ValueError: none, two of the same name, or one that cannot be read.
    """
    if isinstance(given, str | Device | Mapping):
        raise ValueError(f"give a list of devices, got {given!r}")
    made: list[Device] = []
    for d in given:
        if isinstance(d, Mapping):
            d = _from_json(d, made)
        made.append(parse_device(d) if isinstance(d, str) else d)
    if not made:
        raise ValueError("a decomposition needs at least one device, got none")
    names = [device.name for device in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two devices are called {twice[0]!r}; give every device a name of its own")
    return tuple(made)


def devices_json(devices: Sequence[Device]) -> list[dict[str, Any]]:
    """Plain data for :func:`devices_of`; for a profile that an earlier device has too, that one's name."""
    made: list[dict[str, Any]] = []
    for device in devices:
        one = device.to_json()
        same = [d["name"] for d in made if "profile" in one and d.get("profile") == one["profile"]]
        made.append({**one, "profile": same[0]} if same else one)
    return made


def links_of(
    given: Iterable[Link | str | Mapping[str, Any]] | Link | str, devices: Sequence[Device]
) -> tuple[Link, ...]:
    """Links from what may stand for them, checked against the devices.

    Raises:
        ValueError: one that cannot be read, or links that do not join these devices (see :func:`routes`).
    """
    listed = [given] if isinstance(given, Link | str | Mapping) else list(given)
    made = tuple(
        k if isinstance(k, Link) else parse_link(k) if isinstance(k, str) else Link.from_json(dict(k))
        for k in listed
    )
    routes([device.name for device in devices], made)
    return made


def platform_text(devices: Sequence[Device], links: Sequence[Link]) -> str:
    """``"edge (0.2x this machine), server (1x this machine) over 20 mbps, 5 ms"``."""
    shown = ", ".join(f"{d.name} ({_speed(d)})" for d in devices)
    ways = " and ".join(f"{k.bandwidth_mbps:g} mbps, {k.latency_ms:g} ms" for k in dict.fromkeys(links))
    return f"{shown} over {ways}" if links else shown


def _speed(device: Device) -> str:
    if device.relative:
        return f"{device.speed:g}x this machine"
    own = device.profile.machine if device.profile is not None and device.profile.machine else "profile"
    return own if device.speed == 1 else f"{device.speed:g}x {own}"


def _from_json(made: Mapping[str, Any], before: Sequence[Device]) -> Device:
    of = made.get("profile")
    if not isinstance(of, str):
        return Device.from_json(dict(made))
    known = next((d.profile for d in before if d.name == of), None)
    if known is None:
        raise ValueError(
            f"device {made.get('name')!r} has the profile of {of!r}, which is no device before it"
        )
    return Device(**{**made, "profile": known})


def _tables(tables: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    found = tables.get(key, [])
    if not isinstance(found, list) or not all(isinstance(t, dict) for t in found):
        raise ValueError(f"{str(path)!r}: write [[{key}]], with two brackets, once for each {key}")
    return found


def _device_table(table: dict[str, Any], folder: Path) -> Device:
    _known(table, _DEVICE_KEYS, "device")
    given = dict(table)
    if "name" not in given:
        raise ValueError(f"a [[device]] needs a name, got {given}")
    if "memory_mb" in given:
        given["memory_limit_mb"] = given.pop("memory_mb")
    profile = given.get("profile")
    if isinstance(profile, str) and profile.endswith(".json"):
        given["profile"] = folder / profile
    return Device(given.pop("name"), given.pop("profile", None), **given)


def _link_table(table: dict[str, Any]) -> Link:
    _known(table, _LINK_KEYS, "link")
    if "bandwidth_mbps" not in table:
        raise ValueError(f"a [[link]] needs a bandwidth_mbps, got {table}")
    return Link.from_json(table)


def _known(table: dict[str, Any], keys: set[str], what: str) -> None:
    if unknown := sorted(set(table) - keys):
        raise ValueError(f"a [[{what}]] has no {unknown[0]!r}; known are {', '.join(sorted(keys))}")


def _quantity(text: str, units: Mapping[str, float], what: str) -> float:
    match = _QUANTITY.fullmatch(text)
    unit = match[2].lower() if match else ""
    if match is None or unit not in units:
        raise ValueError(f"{what}: cannot read {text!r}; give a number with {', '.join(units)}")
    return float(match[1]) * units[unit]
