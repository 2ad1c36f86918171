"""The proof: every exported file answers real inputs, in a fresh process, as the module does in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from . import fresh
from .batches import Inputs
from .error import ExportError
from .formats import Format
from .fresh import as_array
from .source import Source

# Relative to the largest absolute output. Float32 kernels of two runtimes differ by about 1e-6.
TOLERANCE = 1e-4

Arrays = list[list[np.ndarray]]  # [batch][output leaf]


@dataclass(frozen=True)
class Answers:
    """What one exported file answered."""

    difference: float  # largest, relative to the largest absolute output; at most TOLERANCE
    outputs: list[Any]  # one per real batch, built like the module's own outputs


class Verifier:
    """Holds the module's own answers and the inputs on disk, to be asked once per format.

    Args:
        source: the module.
        scratch: an existing folder for the inputs and outputs of the check processes.
    """

    def __init__(self, source: Source, scratch: Path) -> None:
        self.source = source
        self.scratch = scratch
        batches = [*source.checks(), *source.inputs]
        self.expected_outputs = [source.answer(batch) for batch in batches]
        self.expected: Arrays = [
            [as_array(leaf) for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
            for output in self.expected_outputs
        ]
        self._save_inputs(batches)

    @property
    def outputs(self) -> list[Any]:
        """The module's own outputs on the real batches."""
        return self.expected_outputs[-len(self.source.inputs) :]

    def verify(self, name: str, format_file: Format, folder: Path) -> Answers:
        """Run the format's files on all batches in a fresh process and compare.

        Raises:
            ExportError: they do not load, do not run, or answer something else.
        """
        got = self._run(name, format_file, folder)
        difference = relative_difference(name, got, self.expected)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{name}: the exported file does not reproduce the model: outputs differ by "
                f"{difference:.2g} of the largest output, {TOLERANCE:g} is allowed. Nothing was exported"
            )
        first = len(got) - len(self.source.inputs)
        outputs = [
            _built_like(output, arrays)
            for output, arrays in zip(self.expected_outputs[first:], got[first:], strict=True)
        ]
        return Answers(difference, outputs)

    def _save_inputs(self, batches: Sequence[Inputs]) -> None:
        arrays: dict[str, np.ndarray] = {}
        for number, batch in enumerate(batches):
            for position, leaf in enumerate(pytree.tree_leaves(batch)):
                if isinstance(leaf, torch.Tensor):
                    arrays[f"{number}.{position}"] = as_array(leaf)
        np.savez(self.scratch / "inputs.npz", **arrays)  # type: ignore[arg-type]

    def _run(self, name: str, format_file: Format, folder: Path) -> Arrays:
        leaves, structure = pytree.tree_flatten(self.source.example)
        outputs, report = self.scratch / f"{name}.npz", self.scratch / f"{name}.report.json"
        job = {
            "code": str(Path(format_file.__file__).resolve()),
            "folder": str(folder),
            "inputs": str(self.scratch / "inputs.npz"),
            "batches": len(self.expected),
            "constants": [None if isinstance(leaf, torch.Tensor) else [leaf] for leaf in leaves],
            "structure": pytree.treespec_dumps(structure),
            "threads": torch.get_num_threads(),
            # A format that is rebuilt by code may need the code beside the user's script.
            "search_path": [] if format_file.STANDALONE else [path or "." for path in sys.path],
            "outputs": str(outputs),
            "report": str(report),
        }
        job_file = self.scratch / f"{name}.job.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        # -P: this folder holds an onnx.py that must not be taken for the package.
        command = [sys.executable, "-P", "-W", "ignore", str(Path(fresh.__file__).resolve()), str(job_file)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ExportError(f"{name}: the exported file fails in a fresh process: {last}", done.stderr)
        if format_file.STANDALONE and "netcarve" in json.loads(report.read_text(encoding="utf-8"))["modules"]:
            raise ExportError(f"{name}: the exported file needs netcarve to load, and should not")
        with np.load(outputs, allow_pickle=False) as arrays:
            answers: Arrays = [[] for _ in self.expected]
            for key in arrays.files:  # in the order of their writing
                answers[int(key.partition(".")[0])].append(arrays[key])
        return answers


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


def _built_like(output: Any, arrays: list[np.ndarray]) -> Any:
    """``output`` with its tensors replaced, in order, by ``arrays``."""
    leaves, structure = pytree.tree_flatten(output)
    fresh_arrays = iter(arrays)
    return pytree.tree_unflatten(
        [
            torch.from_numpy(next(fresh_arrays)).to(leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
            for leaf in leaves
        ],
        structure,
    )
