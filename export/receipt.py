"""``receipt.json``: what was exported, with which versions, and how well each file was seen to reproduce."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from ..results.significance import Figure
from ..standalone.limits import open_regular, read_text

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


# -- ``receipt.json``: what was exported, with which versions, and how well each file was seen to reproduce

RECEIPT = "receipt.json"
SCHEMA = 2


@dataclass(frozen=True)
class FileRecord:
    """One file of the export."""

    bytes: int
    sha256: str  # hex

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """
        Raises:
            OSError: it cannot be read, or is a pipe or a device, where reading may never end.
        """
        with open_regular(path) as file:
            return cls(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())

    def status(self, path: Path) -> str:
        """``"same"``; ``"missing"``; else ``"changed"``, as is what cannot be read, a pipe or a device."""
        try:
            # The size first: a file of another one may be too large to be read through.
            return "same" if path.stat().st_size == self.bytes and self.of(path) == self else "changed"
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "changed"


@dataclass(frozen=True)
class FormatRecord:
    """One format, as its files answered in a fresh process."""

    files: tuple[str, ...]  # names within the folder
    needs: str  # what must be installed to load them
    exact: bool  # it must answer as the module does; else the difference is stated, and no more
    max_relative_difference: float  # to the module in memory, relative to the largest absolute output
    score: float | None  # the task's metric, measured again from these files; None: no metric given
    test: float | None  # the same on the test data, where the format is not exact
    latency: Mapping[str, Any] | None  # there, of the shortest checked batch: median_ms, q25_ms, q75_ms, ...
    write_seconds: float
    check_seconds: float


@dataclass(frozen=True)
class Receipt:
    """The record of one export."""

    directory: Path  # where the files are; not written into the file, which may be moved
    created: str  # ISO 8601, UTC
    describe: Mapping[
        str, Any
    ]  # as given by the exporter's caller: candidate, costs, task, fingerprints, ...
    metric: str  # name of the score
    score: float | None  # of the module in memory, on the same samples
    figure: Figure | None  # the same with its interval
    test: Figure | None  # on data that neither training nor the search has seen
    samples: int  # real samples that every format answered
    batches: tuple[int, ...]  # further batch lengths tried; one alone: the module has a fixed batch
    macs: int  # multiply-accumulates of one sample, counted on the module
    params: int  # counted on the module
    formats: Mapping[str, FormatRecord]
    files: Mapping[str, FileRecord]  # of every file but the receipt
    versions: Mapping[str, str]  # netcarve, python and the packages that took part
    machine: str  # platform of the exporting machine

    @property
    def candidate(self) -> Mapping[str, Any]:
        """Option chosen for each choice; empty when none was described."""
        candidate: Mapping[str, Any] = self.describe.get("candidate", {})
        return candidate

    def to_json(self) -> dict[str, Any]:
        """The object of ``receipt.json``."""
        return {"schema": SCHEMA, **{k: v for k, v in asdict(self).items() if k != "directory"}}

    def save(self, directory: Path) -> None:
        text = json.dumps(self.to_json(), indent=2, allow_nan=False)
        (directory / RECEIPT).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> Receipt:
        """The receipt of an exported folder.

        Raises:
            ValueError: the folder has no receipt, or one of another version, or one that is damaged.
        """
        directory = Path(directory)
        if not (directory / RECEIPT).exists():
            raise ValueError(
                f"{directory} is not an export (there is no {RECEIPT} in it); give a folder that netcarve "
                "export has made"
            )
        try:
            text = read_text(directory / RECEIPT)
            data = json.loads(text, parse_constant=_no_number)
            if (schema := data.pop("schema")) != SCHEMA:
                newer = isinstance(schema, int) and schema > SCHEMA
                cure = "upgrade with: pip install --upgrade netcarve" if newer else "export again"
                raise ValueError(f"its schema is {schema!r:.20}, this one reads {SCHEMA}; {cure}")
            data["files"] = {_plain(name): FileRecord(**record) for name, record in data["files"].items()}
            data["formats"] = {
                str(name): FormatRecord(**{**record, "files": tuple(map(_plain, record["files"]))})
                for name, record in data["formats"].items()
            }
            if strays := {f for r in data["formats"].values() for f in r.files} - data["files"].keys():
                raise ValueError(f"no hash of {min(strays)}")
            data["batches"] = tuple(data["batches"])
            for name in ("figure", "test"):
                data[name] = None if data[name] is None else Figure.from_json(data[name])
            if not isinstance(data["describe"], dict) or not isinstance(data["versions"], dict):
                raise TypeError("describe and versions must be objects")
            return cls(
                directory=directory, **{f.name: data[f.name] for f in fields(cls) if f.name != "directory"}
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = error if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
            if isinstance(error, OSError):
                what = error.strerror or what
            raise ValueError(f"{directory / RECEIPT} cannot be read by this netcarve: {what}") from error

    def changed(self) -> list[str]:
        """Names of the files that are missing or no longer those that were checked."""
        return [name for name, record in self.files.items() if record.status(self.directory / name) != "same"]


def _plain(name: str) -> str:
    """A file of the folder itself: a receipt from elsewhere must not have others read."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in the folder")
    return name


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
