"""``samples.safetensors``: a few calls with their answers, for a check wherever the files are.

They are samples of the data that the export was checked on. An export without them is checked by its hashes,
and by the task where that is at hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..standalone.limits import open_regular
from .error import ExportError
from .process import Arrays, FileCalls

SAMPLES = "samples.safetensors"
MOST = 4  # samples in a call that is kept, where the model takes such short batches


@dataclass(frozen=True)
class Samples:
    """Calls, and what the module in memory answered."""

    calls: FileCalls
    expected: Arrays

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        tensors = {f"{n}.in.{p}": a for n, call in enumerate(self.calls.arrays) for p, a in call.items()}
        tensors |= {f"{n}.out.{p}": a for n, given in enumerate(self.expected) for p, a in enumerate(given)}
        about = {
            "structure": self.calls.structure,
            "constants": self.calls.constants,
            "outputs": [len(given) for given in self.expected],
        }
        save_file(
            {key: array.copy(order="C") for key, array in tensors.items()},
            str(folder / SAMPLES),
            metadata={"netcarve": json.dumps(about)},
        )

    @classmethod
    def load(cls, folder: Path) -> Samples:
        """
        Raises:
            ExportError: no such file, or not one of ours.
        """
        from safetensors import SafetensorError, safe_open

        try:
            open_regular(folder / SAMPLES).close()
            with safe_open(str(folder / SAMPLES), framework="numpy") as file:
                about: dict[str, Any] = json.loads(file.metadata()["netcarve"])
                names = set(file.keys())
                tensors = [p for p, constant in enumerate(about["constants"]) if constant is None]
                count = range(len(about["outputs"]))
                if names != {f"{n}.in.{p}" for n in count for p in tensors} | {
                    f"{n}.out.{p}" for n in count for p in range(int(about["outputs"][n]))
                }:
                    raise ValueError("tensors are missing")
                calls = [{p: file.get_tensor(f"{n}.in.{p}") for p in tensors} for n in count]
                answers = [
                    [file.get_tensor(f"{n}.out.{p}") for p in range(int(about["outputs"][n]))] for n in count
                ]
            return cls(FileCalls(str(about["structure"]), list(about["constants"]), calls), answers)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ExportError(
                f"{folder / SAMPLES} holds no samples of an export ({type(error).__name__}: {error})"
            ) from error
