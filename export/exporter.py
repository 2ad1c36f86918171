"""Write, prove, then publish: the order of an export."""

from __future__ import annotations

import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results.significance import Figure
from .card import CARD, card, snippet
from .error import ExportError, first_line, quiet
from .folder import check_target, partial_folder
from .formats import USUAL, format_file, is_exact, known_formats, needs_of, require
from .receipt import FileRecord, FormatRecord, Receipt, versions
from .samples import MOST, Samples

if TYPE_CHECKING:
    from torch import nn

    from ..spaces.kinds.splits.staged import PlacedStage
    from .source import Source
    from .verify import Verifier

Score = Callable[[list[Any]], float]  # from the outputs, one per batch as the model returns them
Batches = Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]  # each (args, kwargs)


@dataclass(frozen=True)
class Test:
    """Data that neither training nor the search has seen, and what is stated of them."""

    inputs: Batches
    score: Score
    figure: Callable[[list[Any]], Figure]  # the score with its interval


def export(
    model: nn.Module,
    *,
    example_args: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    inputs: Batches,
    score: Score | None = None,
    figure: Callable[[list[Any]], Figure] | None = None,
    metric_name: str = "accuracy",
    test: Test | None = None,
    calibration: Batches = (),
    stages: Sequence[PlacedStage] = (),
    directory: str | Path,
    formats: Sequence[str] = USUAL,
    describe: Mapping[str, Any] | None = None,
    samples: bool = True,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Receipt:
    """Export a finished module and prove every file in a fresh process.

    Each file must answer batches of 1, 3 and the example's number of samples, and all of ``inputs``, within
    1e-4 of the largest absolute output; ``int8`` need not, its difference is stated. A module that takes only
    one batch length is exported with it. Beside the files come ``receipt.json`` and a model card, README.md.

    Args:
        model: is copied, put in eval mode on the CPU, and not changed.
        example_args, example_kwargs: one batch of inputs, the batch along the first axis.
        inputs: real batches, each ``(args, kwargs)``; axes whose length differs between them become
            dynamic.
        score: from the outputs on ``inputs``, one per batch as the model returns them, to the metric.
        figure: from the same to the metric with its interval.
        metric_name: of that score.
        test: the same on other data, which is stated beside it.
        calibration: batches that show ``int8`` the ranges of activations; by default ``inputs``.
        stages: of the same model, for the format ``stages``.
        directory: missing or empty; receives the files.
        formats: of :data:`FORMATS`: ``"pt2"``, ``"onnx"``, ``"state"``, ``"int8"``, ``"executorch"``, ...
        describe: JSON for the receipt and the description: ``candidate``, ``choices``, ``costs``, ``task``,
            fingerprints, and for ``"state"``, where the user's class is to be had again, ``rebuild``:
            ``{"function": "package.module:function", "arguments": {...}}``, which must return the module with
            weights of any value; ``baseline``:
            scores of the unchanged model, for the card.
        samples: keep a few of ``inputs`` with their answers, so that whoever has the folder can check it.
        overwrite: replace an earlier export in ``directory``; a folder with anything else in it is refused.
        progress: told in a word or two what is being done.

    Raises:
        ExportError: an unknown format, a folder that is taken, not writable or full, inputs that do not fit,
            or files that do not load or do not reproduce. ``directory`` is then as it was.
    """
    names = known_formats(formats)
    check_target(Path(directory).expanduser(), overwrite)
    target = Path(directory).expanduser().resolve()
    describe = _as_json(describe or {})
    require(names, describe)
    if len(inputs) == 0:
        raise ExportError("inputs is empty; give at least one batch of real inputs to check the files on")

    from .process import FileCalls
    from .source import (
        Source,
        on_cpu,  # torch, only now
    )
    from .source import samples as count
    from .verify import Verifier

    source = Source(model, tuple(example_args), example_kwargs or {}, inputs, describe, calibration, stages)
    with partial_folder(target, needed_bytes=_room(source, len(names))) as folder:
        scratch = folder / ".check"
        scratch.mkdir()
        verifier = Verifier(source, scratch, [] if test is None else [on_cpu(one) for one in test.inputs])
        records = {
            name: _export_one(name, source, verifier, folder, score, test, progress or (lambda _: None))
            for name in names
        }
        shutil.rmtree(scratch)
        if samples:
            short = sum(n <= MOST for n in source.lengths) or 1
            Samples(FileCalls.of(verifier.checks[:short]), verifier.expected[:short]).save(folder)
        receipt = Receipt(
            directory=target,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            describe=describe,
            metric=metric_name,
            score=_scored(score, verifier.outputs),
            figure=None if figure is None else figure(verifier.outputs),
            test=None if test is None else test.figure(verifier.test_outputs),
            samples=count(source.inputs),
            batches=source.lengths,
            macs=source.macs,
            params=source.params,
            formats=records,
            files={path.name: FileRecord.of(path) for path in sorted(folder.iterdir())},
            versions=versions(),
            machine=f"{platform.system()} {platform.machine()}",
        )
        (folder / CARD).write_text(card(receipt, snippet(receipt, source.one())), encoding="utf-8")
        receipt = replace(receipt, files={**receipt.files, CARD: FileRecord.of(folder / CARD)})
        receipt.save(folder)
        for path in folder.iterdir():  # safetensors writes files that nobody else may read
            path.chmod((folder / CARD).stat().st_mode)
    return receipt


def _export_one(
    name: str,
    source: Source,
    verifier: Verifier,
    folder: Path,
    score: Score | None,
    test: Test | None,
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
        needs=needs_of(code, files),
        exact=is_exact(code),
        max_relative_difference=answers.difference,
        score=_scored(score, answers.outputs),
        test=_scored(test.score, answers.test) if test is not None and answers.test else None,
        latency=answers.latency,
        write_seconds=round(written - start, 3),
        check_seconds=round(time.perf_counter() - written, 3),
    )


def _scored(score: Score | None, outputs: list[Any]) -> float | None:
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
