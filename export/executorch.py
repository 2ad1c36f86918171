"""``model.pte``: a program for ExecuTorch, on phones and boards. Making and loading it needs ``executorch``.

Lowered to XNNPACK, the float kernels that run on any of their processors. ExecuTorch plans memory ahead, so
that a batch is at most as large as the largest that was checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .source import Source

FILE = "model.pte"
NEEDS = "executorch"
STANDALONE = True


def require(describe: Mapping[str, Any]) -> None:
    from importlib.util import find_spec

    from .error import ExportError

    if find_spec("executorch") is None:
        raise ExportError(
            "the executorch format needs the package executorch, which is not installed; "
            "pip install executorch"
        )


def write(source: Source, folder: Path) -> tuple[str, ...]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # type: ignore[import-not-found]
        XnnpackPartitioner,
    )
    from executorch.exir import to_edge_transform_and_lower  # type: ignore[import-not-found]

    lowered = to_edge_transform_and_lower(source.bounded_program, partitioner=[XnnpackPartitioner()])
    (folder / FILE).write_bytes(lowered.to_executorch().buffer)
    return (FILE,)


def load(folder: Path, structure: str, threads: int) -> Callable[[list[Any]], list[Any]]:
    import torch
    from executorch.runtime import Runtime  # type: ignore[import-not-found]

    torch.set_num_threads(threads)
    program = Runtime.get().load_program(folder / FILE)
    method = program.load_method("forward")

    def run(leaves: list[Any]) -> list[Any]:
        tensors = [torch.from_numpy(leaf) for leaf in leaves if hasattr(leaf, "dtype")]
        # The runtime plans one buffer for its answers and hands out the same at the next call.
        return [output.clone() for output in method.execute(tensors) if isinstance(output, torch.Tensor)]

    return run
