"""Devices that run parts of a network, the links between them, and what a decomposition costs there."""

from .device import Device
from .link import Link, Routes, routes
from .pipeline import pipeline_costs, sensitivity
from .profile import Profile, ProfileError
from .reading import (
    devices_json,
    devices_of,
    links_of,
    parse_device,
    parse_link,
    platform_text,
    read_platform,
)

__all__ = [
    "Device",
    "Link",
    "Profile",
    "ProfileError",
    "Routes",
    "devices_json",
    "devices_of",
    "links_of",
    "parse_device",
    "parse_link",
    "pipeline_costs",
    "platform_text",
    "read_platform",
    "routes",
    "sensitivity",
]
