"""Write, prove, then publish: the order of an export."""

from __future__ import annotations

import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .error import ExportError, first_line
from .folder import check_target, partial_folder
from .formats import format_file, known_formats
from .quiet import quiet
from .receipt import FileRecord, FormatRecord, Receipt

if TYPE_CHECKING:
    from torch import nn

    from .source import Source
    from .verify import Verifier

_PACKAGES = ("netcarve", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "safetensors")


def export(
    model: nn.Module,
    *,
    example_args: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    inputs: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]],
    score: Callable[[list[Any]], float] | None = None,
    metric_name: str = "accuracy",
    directory: str | Path,
    formats: Sequence[str] = ("pt2", "onnx", "state"),
    describe: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Receipt:
    """Export a finished module and prove every file in a fresh process.

    Each file must answer batches of 1, 3 and the example's number of samples, and all of ``inputs``, within
    1e-4 of the largest absolute output. A module that takes only one batch length is exported with it.

    Args:
        model: is copied, put in eval mode on the CPU, and not changed.
        example_args, example_kwargs: one batch of inputs, the batch along the first axis.
        inputs: real batches, each ``(args, kwargs)``; axes whose length differs between them become
            dynamic.
        score: from the outputs on ``inputs``, one per batch as the model returns them, to the metric.
        metric_name: of that score.
        directory: missing or empty; receives the files and ``receipt.json``.
        formats: of :data:`FORMATS`: ``"pt2"``, ``"onnx"``, ``"state"``.
        describe: JSON for the receipt and the description: ``candidate``, ``choices``, ``costs``, ``task``,
            fingerprints, and for ``"state"`` ``rebuild``: ``{"function": "package.module:function",
            "arguments": {...}}``, which must return the module with weights of any value.
        overwrite: replace an earlier export in ``directory`` (and nothing else).
        progress: told in a word or two what is being done.

    Raises:
        ExportError: an unknown format, a folder that is taken, not writable or full, inputs that do not fit,
            or files that do not load or do not reproduce. ``directory`` is then as it was.
    """
    names = known_formats(formats)
    target = Path(directory).expanduser().resolve()
    check_target(target, overwrite)
    describe = _as_json(describe or {})
    for name in names:
        format_file(name).require(describe)
    if len(inputs) == 0:
        raise ExportError("inputs is empty; give at least one batch of real inputs to check the files on")

    from .batches import samples  # torch, only now
    from .source import Source
    from .verify import Verifier

    source = Source(model, tuple(example_args), example_kwargs or {}, inputs, describe)
    with partial_folder(target, needed_bytes=_room(source, len(names))) as folder:
        scratch = folder / ".check"
        scratch.mkdir()
        verifier = Verifier(source, scratch)
        records = {
            name: _export_one(name, source, verifier, folder, score, progress or (lambda _: None))
            for name in names
        }
        shutil.rmtree(scratch)
        receipt = Receipt(
            directory=target,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            describe=describe,
            metric=metric_name,
            score=_scored(score, verifier.outputs),
            samples=samples(source.inputs),
            batches=source.lengths,
            macs=source.macs,
            params=source.params,
            formats=records,
            files={path.name: FileRecord.of(path) for path in sorted(folder.iterdir())},
            versions=_versions(),
            machine=f"{platform.system()} {platform.machine()}",
        )
        receipt.save(folder)
    return receipt


def _export_one(
    name: str,
    source: Source,
    verifier: Verifier,
    folder: Path,
    score: Callable[[list[Any]], float] | None,
    progress: Callable[[str], None],
) -> FormatRecord:
    code = format_file(name)
    progress(f"{name}: writing")
    start = time.perf_counter()
    try:
        with quiet():
            files = code.write(source, folder)
    except (ExportError, OSError):
        raise
    except Exception as error:
        raise ExportError(f"{name}: cannot be written: {first_line(error)}", str(error)) from error
    written = time.perf_counter()
    progress(f"{name}: checking in a fresh process")
    answers = verifier.verify(name, code, folder)
    return FormatRecord(
        files=files,
        needs=code.NEEDS,
        max_relative_difference=answers.difference,
        score=_scored(score, answers.outputs),
        write_seconds=round(written - start, 3),
        check_seconds=round(time.perf_counter() - written, 3),
    )


def _scored(score: Callable[[list[Any]], float] | None, outputs: list[Any]) -> float | None:
    if score is None:
        return None
    value = float(score(outputs))
    if not math.isfinite(value):
        raise ExportError(f"the score of the exported model is {value}; it must be a finite number")
    return value


def _as_json(describe: Mapping[str, Any]) -> dict[str, Any]:
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(describe), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ExportError(f"describe must be JSON (names, finite numbers, lists): {error}") from error
    return copy


def _room(source: Source, formats: int) -> int:
    """Bytes to be free: the weights once per format, inputs and outputs of the checks, the graphs."""
    return int(1.2 * formats * source.bytes) + 3 * source.input_bytes + 16_000_000


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
