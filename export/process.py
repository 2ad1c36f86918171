"""Asking an exported file in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import fresh
from .error import ExportError
from .formats import Format
from .fresh import as_array

if TYPE_CHECKING:
    from .source import Inputs

Arrays = list[list[np.ndarray]]  # [batch][output leaf]
SECONDS = 300.0  # to import torch and load the file, on a busy machine, and to answer
_LAST_BYTES = 1 << 16  # of what a process says


@dataclass(frozen=True)
class FileCalls:
    """Calls of a model, flat: what a process can be given that imports nothing of netcarve."""

    structure: str  # tree spec of (args, kwargs), as torch.utils._pytree writes it
    constants: list[
        list[Any] | None
    ]  # per leaf: None for a tensor, [value] for what is the same in all calls
    arrays: list[dict[int, np.ndarray]]  # per call: tensor leaves by their position

    @classmethod
    def of(cls, batches: Sequence[Inputs]) -> FileCalls:
        import torch
        from torch.utils import _pytree as pytree

        leaves, structure = pytree.tree_flatten(batches[0])
        return cls(
            pytree.treespec_dumps(structure),
            [None if isinstance(leaf, torch.Tensor) else [leaf] for leaf in leaves],
            [
                {
                    position: as_array(leaf)
                    for position, leaf in enumerate(pytree.tree_leaves(batch))
                    if isinstance(leaf, torch.Tensor)
                }
                for batch in batches
            ],
        )


@dataclass(frozen=True)
class Given:
    """What a file answered, and how fast."""

    outputs: Arrays
    latency: dict[str, Any] | None  # of the first call: median_ms, q25_ms, q75_ms, repeats, threads


def ask(
    name: str,
    code: Format,
    folder: Path,
    calls: FileCalls,
    scratch: Path,
    *,
    threads: int = 1,
    task: str | None = None,
    seconds: float = SECONDS,
) -> Given:
    """Load one format's files in a fresh process and call them; the first call is timed afterwards.

    The process ends with this one, however this one ends, and has a limited amount of memory.

    Args:
        folder: of the files.
        seconds: after which it is ended.
        scratch: an existing folder for what is passed to and fro.
        task: what to rebuild from, where that is not what the files say.

    Raises:
        ExportError: they do not load or do not run, take too long or too much memory, or need netcarve and
            should not.
    """
    inputs, outputs, report = (scratch / f"{name}.{end}" for end in ("in.npz", "out.npz", "report.json"))
    np.savez(
        inputs,
        **{  # type: ignore[arg-type]
            f"{number}.{position}": array
            for number, call in enumerate(calls.arrays)
            for position, array in call.items()
        },
    )
    job = {
        "code": str(Path(code.__file__).resolve()),
        "folder": str(folder),
        "inputs": str(inputs),
        "batches": len(calls.arrays),
        "constants": calls.constants,
        "structure": calls.structure,
        "threads": threads,
        "task": task,
        # A format that is rebuilt by code may need the code beside the user's script.
        "search_path": [] if code.STANDALONE else [path or "." for path in sys.path],
        "outputs": str(outputs),
        "report": str(report),
        "cpu_seconds": int(seconds * (os.cpu_count() or 1)) + 1,
        "memory_bytes": memory_limit(folder),
    }
    job_file = scratch / f"{name}.job.json"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    # -P: this folder holds an onnx.py that must not be taken for the package.
    command = [sys.executable, "-P", "-W", "ignore", str(Path(fresh.__file__).resolve()), str(job_file)]
    code_of_exit, said = _run(command, scratch / f"{name}.log", seconds)
    if code_of_exit is None:
        raise ExportError(
            f"{name}: the exported file has not answered in a fresh process for {seconds:.0f} s"
        )
    if code_of_exit != 0:
        last = (said.strip().splitlines() or [f"exit code {code_of_exit}"])[-1]
        raise ExportError(f"{name}: the exported file fails in a fresh process: {last}", said)
    told = json.loads(report.read_text(encoding="utf-8"))
    if code.STANDALONE and "netcarve" in told["modules"]:
        raise ExportError(f"{name}: the exported file needs netcarve to load, and should not")
    answers: Arrays = [[] for _ in calls.arrays]
    with np.load(outputs, allow_pickle=False) as arrays:
        for key in arrays.files:  # in the order of their writing
            answers[int(key.partition(".")[0])].append(arrays[key])
    inputs.unlink()
    return Given(answers, told["latency"])


def _run(command: list[str], log: Path, seconds: float) -> tuple[int | None, str]:
    """Exit code of a command, ``None`` where it was ended for its time, and the end of what it said."""
    theirs, ours = os.pipe()  # nothing is sent: it is closed when this process ends
    try:
        with log.open("w+b") as file:
            try:
                out = {"stdin": theirs, "stdout": subprocess.DEVNULL, "stderr": file}
                code: int | None = subprocess.run(command, check=False, timeout=seconds, **out).returncode  # type: ignore[call-overload]
            except subprocess.TimeoutExpired:
                code = None
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            return code, file.read().decode(errors="replace")
    finally:
        os.close(theirs)
        os.close(ours)


def memory_limit(folder: Path) -> int:
    """Bytes that a process may take to open the files of a folder: half of the machine's memory or more.

    A program that asks for more ends alone; without a limit it would take others with it.
    """
    files = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return max(physical // 2, 4 << 30) + 4 * files


def relative_difference(name: str, got: Arrays, expected: Arrays) -> float:
    """Largest absolute difference, per output relative to its largest absolute expected value.

    Equal values, infinities and NaN among them, differ by 0; a NaN in the place of a number by infinity.

    Raises:
        ExportError: outputs are missing, or have other shapes.
    """
    worst = 0.0
    for position in range(len(expected[0])):
        largest, difference = 0.0, 0.0
        for got_leaves, leaves in zip(got, expected, strict=True):
            if len(got_leaves) != len(leaves):
                raise ExportError(
                    f"{name}: the exported file has {len(got_leaves)} outputs, not {len(leaves)}"
                )
            a, b = got_leaves[position], leaves[position]
            if a.shape != b.shape:
                raise ExportError(f"{name}: output {position} has shape {a.shape}, the model's has {b.shape}")
            if a.size == 0:
                continue
            wide = np.complex128 if np.iscomplexobj(b) else np.float64
            a, b = a.astype(wide), b.astype(wide)
            finite = np.abs(b[np.isfinite(b)])
            largest = max(largest, float(finite.max(initial=0.0)))
            equal = (a == b) | (np.isnan(a) & np.isnan(b))
            with np.errstate(invalid="ignore"):
                apart = np.nan_to_num(np.abs(a - b)[~equal], nan=np.inf, posinf=np.inf)
            difference = max(difference, float(apart.max(initial=0.0)))
        if difference > 0:
            worst = max(worst, difference / largest if largest > 0 else np.inf)
    return worst
