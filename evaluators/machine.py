"""Machine and library versions that a run is measured on."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib import metadata

PACKAGES = ("netcarve", "torch", "numpy", "ray", "optuna", "pymoo")


def environment() -> dict[str, str]:
    """Machine, system, interpreter and the versions of what decides a run's results, as short texts."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


@cache
def processor() -> str:
    """Name of this machine's processor, as its maker writes it where the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
