"""The proof: every exported file answers real inputs, in a fresh process, as the module does in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from .batches import Inputs
from .error import ExportError
from .formats import Format, is_exact
from .fresh import as_array
from .process import SECONDS, Arrays, Calls, ask, relative_difference
from .source import Source

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
        self._calls = Calls.of(batches)
        self._with_test = Calls.of([*batches, *test]) if test else self._calls

    @property
    def outputs(self) -> list[Any]:
        """The module's own outputs on the real batches."""
        return self.expected_outputs[-len(self.source.inputs) :]

    def verify(self, name: str, format_file: Format, folder: Path) -> Answers:
        """Run the format's files on all batches in a fresh process and compare.

        Raises:
            ExportError: they do not load, do not run, or answer something else.
        """
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


def _arrays(output: Any) -> list[np.ndarray]:
    return [as_array(leaf) for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


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
