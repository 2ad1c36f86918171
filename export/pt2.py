"""``model.pt2``: a ``torch.export`` program with a dynamic batch axis. Loading it needs torch alone.

Use: ``torch.export.load("model.pt2").module()(x)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .source import Source

FILE = "model.pt2"
NEEDS = "torch"
STANDALONE = True


def require(describe: Mapping[str, Any]) -> None:
    """Torch is all it takes."""


def write(source: Source, folder: Path) -> tuple[str, ...]:
    import torch

    from ..standalone.pt2_check import Pt2Error, check_pt2
    from .error import ExportError

    torch.export.save(source.program, folder / FILE)
    try:
        check_pt2(folder / FILE)  # what we write, we must also be ready to open
    except Pt2Error as error:
        raise ExportError(f"pt2 cannot hold this model without code: {error}") from None
    return (FILE,)


def load(folder: Path, structure: str, threads: int) -> Callable[[list[Any]], list[Any]]:
    import sys

    import torch
    from torch.utils import _pytree as pytree

    torch.set_num_threads(threads)
    # This file is loaded by its path; so is its neighbour, which opens no more than a graph and numbers.
    sys.path.insert(0, str(Path(__file__).parents[1] / "standalone"))
    import pt2_check  # type: ignore[import-not-found]

    program = pt2_check.load_pt2(folder / FILE)
    module = program.module()
    own_structure = program.call_spec.in_spec
    assert own_structure is not None

    def run(leaves: list[Any]) -> list[Any]:
        tensors = [torch.from_numpy(leaf) if hasattr(leaf, "dtype") else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(tensors, own_structure)
        with torch.inference_mode():
            outputs = module(*args, **kwargs)
        return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]

    return run
