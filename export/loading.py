"""The module of an export, back in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .receipt import Receipt

if TYPE_CHECKING:
    from torch import nn

    from ..evaluators.task import Task

LOADABLE = ("pt2", "state")  # by preference


def load_export(
    directory: str | Path, *, task: Task | str | None = None, format: str | None = None
) -> nn.Module:
    """The module of an exported folder, ready to be called.

    ``pt2`` needs torch alone and gives the captured graph as a module on parameters with the user's names;
    ``state`` needs the task and gives the user's class. Both are in eval mode and can be trained further.
    In the graph all batch-norms and dropouts follow ``train()``; dropout inside attention, which a program
    does not hold, is left out. Nothing is unpickled; see ``pt2_check``.

    Args:
        directory: of an export.
        task: what ``state`` is rebuilt from: a Task, or the text that names one. Prefers ``state``.
        format: ``"pt2"`` or ``"state"``; by default ``pt2`` where it is there.

    Raises:
        ValueError: no export; none of these formats in it; a file that is not the one that was exported; code
            that is not trusted (see :func:`load_state`).
    """
    receipt = Receipt.load(directory)
    preferred = LOADABLE if task is None else LOADABLE[::-1]
    wanted = preferred if format is None else (format,)
    name = next((n for n in wanted if n in LOADABLE and n in receipt.formats), None)
    if name is None:
        what = "pt2 or state" if format is None else repr(format)
        hint = "; open model.onnx with onnxruntime.InferenceSession" if "onnx" in receipt.formats else ""
        raise ValueError(f"{directory} holds {', '.join(receipt.formats)}, not {what}{hint}")
    for file in receipt.formats[name].files:
        path = receipt.directory / file
        status = receipt.files[file].status(path)
        if status == "missing":
            raise ValueError(f"{path} is missing; export again")
        if status != "same":
            raise ValueError(f"{path} is not the file that was exported; see netcarve verify {directory}")
    if name == "state":
        from .state import load_state

        return load_state(receipt.directory, task=task)
    return _program(receipt.directory / receipt.formats[name].files[0])


def _program(path: Path) -> nn.Module:
    from torch import fx

    from ..model.captured_module import trainable
    from ..standalone.pt2_check import Pt2Error, load_pt2

    try:
        module = load_pt2(path).module()
    except Pt2Error as error:
        raise ValueError(f"{error}; if you trust it, open it with torch.export.load") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of torch, which raises whatever it stumbles over
        first = str(error).strip().partition("\n")[0][:200]
        raise ValueError(
            f"{path} is not a program that torch can open ({type(error).__name__}: {first}); export it again"
        ) from error
    assert isinstance(module, fx.GraphModule)
    return trainable(module)
