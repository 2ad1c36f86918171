"""Verification: the files of an export answer real inputs, in fresh processes, as the module in memory."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .error import ExportError
from .formats import FORMATS, Format, format_file, is_exact
from .fresh import as_array
from .process import SECONDS, Arrays, FileCalls, ask, relative_difference
from .receipt import RECEIPT, FormatRecord, Receipt, versions
from .samples import SAMPLES, Samples

if TYPE_CHECKING:
    from ..evaluators.batches import Outputs
    from .source import Inputs, Source

# Relative to the largest absolute output. Float32 kernels of two runtimes differ by about 1e-6.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Answers:
    """What one exported file answered."""

    difference: float  # largest, relative to the largest absolute output; exact formats: at most TOLERANCE
    outputs: list[Any]  # one per real batch, built like the module's own outputs
    test: list[Any]  # the same of the test batches, which only formats that are not exact are asked
    latency: dict[str, Any] | None


class Verifier:
    """Holds the module's own answers and the inputs, to be asked once per format.

    Args:
        source: the module.
        scratch: an existing folder for the inputs and outputs of the check processes.
        test: batches of which a format that is not exact is asked too.
    """

    def __init__(self, source: Source, scratch: Path, test: Sequence[Inputs] = ()) -> None:
        self.source = source
        self.scratch = scratch
        self.checks = source.checks()
        batches = [*self.checks, *source.inputs]
        start = time.monotonic()
        self.expected_outputs = [source.answer(batch) for batch in batches]
        self.test_outputs = [source.answer(batch) for batch in test]
        # A runtime may be far slower than the model in memory; one that takes longer still is stuck.
        self._seconds = SECONDS + 50 * (time.monotonic() - start)
        self.expected: Arrays = [_arrays(output) for output in self.expected_outputs]
        self._calls = FileCalls.of(batches)
        self._with_test = FileCalls.of([*batches, *test]) if test else self._calls

    @property
    def outputs(self) -> list[Any]:
        """The module's own outputs on the real batches."""
        return self.expected_outputs[-len(self.source.inputs) :]

    def verify(self, name: str, format_file: Format, folder: Path) -> Answers:
        """Run the format's files on all batches in a fresh process and compare.

        Raises:
            ExportError: they do not load, do not run, or answer something else.
        """
        import torch

        exact = is_exact(format_file)
        calls = self._calls if exact else self._with_test
        given = ask(
            name, format_file, folder, calls, self.scratch,
            threads=torch.get_num_threads(), seconds=self._seconds,
        )  # fmt: skip
        got, tested = given.outputs[: len(self.expected)], given.outputs[len(self.expected) :]
        difference = relative_difference(name, got, self.expected)
        if not difference <= (TOLERANCE if exact else np.finfo(np.float64).max):
            raise ExportError(
                f"{name}: the exported file does not reproduce the model: outputs differ by "
                f"{difference:.2g} of the largest output, {TOLERANCE:g} is allowed. Nothing was exported"
            )
        first = len(self.checks)
        return Answers(
            difference,
            [_built_like(o, a) for o, a in zip(self.expected_outputs[first:], got[first:], strict=True)],
            [_built_like(o, a) for o, a in zip(self.test_outputs, tested, strict=False)],
            None if given.latency is None else given.latency | {"batch": min(self.source.lengths)},
        )


def _arrays(output: Outputs) -> list[np.ndarray]:
    import torch
    from torch.utils import _pytree as pytree

    return [as_array(leaf) for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _built_like(output: Outputs, arrays: list[np.ndarray]) -> Any:
    """``output`` with its tensors replaced, in order, by ``arrays``."""
    import torch
    from torch.utils import _pytree as pytree

    leaves, structure = pytree.tree_flatten(output)
    fresh_arrays = iter(arrays)
    return pytree.tree_unflatten(
        [
            torch.from_numpy(next(fresh_arrays)).to(leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
            for leaf in leaves
        ],
        structure,
    )


# -- An export checked again, anywhere: its hashes, and what its files answer in fresh processes --------

SLOWER = 20  # times that this machine may take what the exporting one took
SCORE_TOLERANCE = 0.01  # of the metric, relative: near a tie another processor may decide otherwise


@dataclass(frozen=True)
class FormatVerdict:
    """What became of one format."""

    status: str  # "same", "differs", "fails", "changed" (its files are not those), "not checked"
    reason: str = ""
    difference: float | None = None  # from the answers of the model in memory, relative to the largest
    score: float | None = None  # the task's metric, measured here from the files; None without the task
    recorded_score: float | None = None
    latency: dict[str, Any] | None = None  # here


@dataclass(frozen=True)
class Verdict:
    """The check of one export."""

    directory: Path
    files: dict[str, str]  # name -> "same", "changed", "missing"; "unknown": not in the receipt
    formats: dict[str, FormatVerdict]
    versions: dict[
        str, tuple[str, str]
    ]  # package -> (when exported, here, "" where it is missing), if different
    metric: str

    @property
    def ok(self) -> bool:
        """No file that was exported is missing or changed, and none answers otherwise than it did."""
        files = all(status in ("same", "unknown") for status in self.files.values())
        return files and all(f.status in ("same", "not checked") for f in self.formats.values())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "directory": str(self.directory), "ok": self.ok}


def recheck(
    directory: str | Path,
    *,
    inputs: Sequence[Any] = (),
    score: Callable[[list[list[Any]]], float] | None = None,
    task: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Check an export against its receipt; nothing in it is unpickled, and no code that it names is run.

    Each format's files are loaded in a fresh process and called on the samples that the export keeps; the
    answers must be within 1e-4 of the largest one from those of the model that was exported (for int8: within
    twice what was seen then). Files whose hashes differ are not opened.

    Args:
        directory: of the export.
        inputs, score: of the task: its validation batches ``(args, kwargs)``, and from the outputs' tensors,
            flat, per batch to the metric, which is then measured again from every file.
        task: text of the task to rebuild ``state`` from; without it that format is not called.
        progress: told what is being done.

    Raises:
        ValueError: the folder has no receipt that this version can read.
    """
    receipt = Receipt.load(Path(directory).expanduser())
    folder = receipt.directory.resolve()
    files = {name: record.status(folder / name) for name, record in receipt.files.items()}
    seen = {path.name for path in folder.iterdir()} - {RECEIPT}
    files |= dict.fromkeys(sorted(seen - files.keys()), "unknown")
    here = versions()
    formats = {}
    for name, record in receipt.formats.items():
        (progress or (lambda _: None))(f"{name}: checking in a fresh process")
        formats[name] = _checked(name, record, receipt, folder, files, inputs, score, task)
    return Verdict(
        directory=folder,
        files=files,
        formats=formats,
        versions={
            name: (str(then), here.get(name, ""))
            for name, then in receipt.versions.items()
            if then != here.get(name, "")
        },
        metric=receipt.metric,
    )


def _installed(needs: str) -> bool:
    """Is one of the packages there that a format can be loaded with?"""
    return any(find_spec(name) is not None for name in re.findall(r"\w+", needs) if name != "or")


def _checked(
    name: str,
    record: FormatRecord,
    receipt: Receipt,
    folder: Path,
    files: dict[str, str],
    inputs: Sequence[Any],
    score: Callable[[list[list[Any]]], float] | None,
    task: str | None,
) -> FormatVerdict:
    broken = [file for file in record.files if files[file] != "same"]
    if broken:
        return FormatVerdict("changed", f"{broken[0]} is {files[broken[0]]}; not opened")
    if name not in FORMATS:
        return FormatVerdict("not checked", "this netcarve does not know the format")
    if not _installed(record.needs):
        return FormatVerdict("not checked", f"needs {record.needs}; pip install {record.needs}")
    code = format_file(name)
    if not code.STANDALONE and task is None:
        return FormatVerdict(
            "not checked", "it is checked by the code of its task, not by code in the folder; give the task"
        )
    kept = files.get(SAMPLES) == "same"
    try:
        with tempfile.TemporaryDirectory() as place:
            return _asked(name, code, record, folder, kept, Path(place), inputs, score, task)
    except ExportError as error:
        return FormatVerdict("fails", str(error))


def _asked(
    name: str,
    code: Format,
    record: FormatRecord,
    folder: Path,
    kept: bool,
    scratch: Path,
    inputs: Sequence[Any],
    score: Callable[[list[list[Any]]], float] | None,
    task: str | None,
) -> FormatVerdict:
    import torch

    difference, measured, reasons = None, None, []
    allowed = TOLERANCE if record.exact else TOLERANCE + 2 * record.max_relative_difference
    samples = Samples.load(folder) if kept else None
    calls = samples.calls if samples else FileCalls("", [], [])
    count = len(calls.arrays)
    if score is not None and inputs:
        more = FileCalls.of(inputs)
        calls = FileCalls(more.structure, more.constants, [*calls.arrays, *more.arrays])
    seconds = min(max(SECONDS, SLOWER * record.check_seconds), 3600.0)
    given = ask(name, code, folder, calls, scratch, task=task, seconds=seconds)
    if samples is not None:
        difference = relative_difference(name, given.outputs[:count], samples.expected)
        if not difference <= allowed:
            reasons.append(f"answers differ by {difference:.2g} of the largest, {allowed:.2g} is allowed")
    if score is not None and inputs:
        import torch

        measured = score([[torch.from_numpy(array) for array in leaves] for leaves in given.outputs[count:]])
        was = record.score
        if was is not None and not abs(measured - was) <= SCORE_TOLERANCE * max(1.0, abs(was)):
            reasons.append(f"the metric is {measured:.4g}, was {was:.4g}")
    if reasons:
        status, reason = "differs", "; ".join(reasons)
    else:
        status = "same" if samples is not None or measured is not None else "not checked"
        reason = "" if status == "same" else "it loads; without samples or the task its answers are not known"
    latency = given.latency
    return FormatVerdict(status, reason, difference, measured, record.score, latency)
