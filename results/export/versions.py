"""The versions that take part in an export."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = ("netcarve", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "executorch", "safetensors")


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
