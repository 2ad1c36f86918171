"""``weights.safetensors`` and ``description.json``: weights, and in plain words what netcarve rebuilds.

Use: ``netcarve.results.export.load_state("folder")``. The description holds everything that the exporter
was told (candidate, choices, task, ...) and under ``rebuild`` the function that makes the module:
``{"function": "package.module:function", "arguments": {...}}``. The weights are then loaded over whatever
that function gives.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from .source import Source

WEIGHTS = "weights.safetensors"
DESCRIPTION = "description.json"
NEEDS = "netcarve"
STANDALONE = False
TASK: str | None = None  # text of the task to rebuild from; by default the one that the description names
REBUILD = "netcarve.search.rebuild:rebuild"  # makes the model from a task


def require(describe: Mapping[str, Any]) -> None:
    from .error import ExportError

    rebuild = describe.get("rebuild")
    if (
        not isinstance(rebuild, Mapping)
        or not isinstance(rebuild.get("arguments", {}), Mapping)
        or str(rebuild.get("function")).count(":") != 1
    ):
        raise ExportError(
            "the state format holds weights only and must know what to load them into: describe needs "
            "'rebuild': {'function': 'package.module:function', 'arguments': {...}} with a function that "
            f"returns the module; got {rebuild!r}. Or export to pt2 and onnx only"
        )


def write(source: Source, folder: Path) -> tuple[str, ...]:
    from safetensors.torch import save_model

    save_model(source.model, str(folder / WEIGHTS))  # unlike save_file, takes tied weights
    text = json.dumps(dict(source.describe), indent=2, allow_nan=False)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return WEIGHTS, DESCRIPTION


def load(folder: Path, structure: str, threads: int) -> Callable[[list[Any]], list[Any]]:
    import torch
    from torch.utils import _pytree as pytree

    torch.set_num_threads(threads)
    # Without a task: whoever exports named the function a moment ago, in the process that waits for this one.
    module = _rebuilt(folder, _description(folder)) if TASK is None else load_state(folder, task=TASK)
    inputs = pytree.treespec_loads(structure)

    def run(leaves: list[Any]) -> list[Any]:
        tensors = [torch.from_numpy(leaf) if hasattr(leaf, "dtype") else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(tensors, inputs)
        with torch.inference_mode():
            outputs = module(*args, **kwargs)
        return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]

    return run


def load_state(folder: str | Path, *, task: Any = None, trust: Iterable[str] = ()) -> nn.Module:
    """The module of an exported ``state``, in eval mode.

    The description names the function that rebuilds it and the task that it starts from, and a file from
    elsewhere could name any code there; so only netcarve's own function is called, and of tasks only those
    that are installed under a name, unless the caller says more.

    Args:
        folder: holds ``weights.safetensors`` and ``description.json``.
        task: the task, or the text that names it (``"my_task.py:task"``); its model is the user's class.
        trust: further packages whose functions may be called, e.g. ``["my_package"]``.

    Raises:
        ValueError: no such folder or files, a description that is not one, code that is not trusted, weights
            that do not fit the module.
    """
    # By its full name: this file is loaded by its path as well.
    from netcarve.results.export.standalone.limits import open_regular
    from safetensors import SafetensorError

    folder = Path(folder)
    try:
        open_regular(folder / WEIGHTS).close()
        description = _description(folder)
        function = str(description["rebuild"]["function"])
        spec = str(description["rebuild"].get("arguments", {}).get("spec", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{folder} holds no exported state ({type(error).__name__}: {error}); "
            "give the folder that netcarve export --format state made"
        ) from error
    module = function.partition(":")[0]
    if function != REBUILD and not any(module == name or module.startswith(f"{name}.") for name in trust):
        raise ValueError(
            f"{folder / DESCRIPTION} asks to call {function!r}; if you trust that package, "
            f"pass trust=[{module.partition('.')[0]!r}]"
        )
    if function == REBUILD and task is None and spec.rpartition(":")[0].partition(".")[0] not in trust:
        from ..trust import trusted

        if not trusted(spec):
            raise ValueError(
                f"{folder / DESCRIPTION} asks to run {spec!r}, which makes the model's class; "
                f"if you trust it, or have it elsewhere, say so: task={spec!r}"
            )
    try:
        return _rebuilt(folder, description, task)
    except (RuntimeError, SafetensorError) as error:  # of torch, for other names and shapes
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder / WEIGHTS} does not fit the model: {reason}") from error


def _description(folder: Path) -> dict[str, Any]:
    from netcarve.results.export.standalone.limits import read_text

    description: dict[str, Any] = json.loads(read_text(folder / DESCRIPTION))
    return description


def _rebuilt(folder: Path, description: Mapping[str, Any], task: Any = None) -> nn.Module:
    from safetensors.torch import load_model
    from torch import nn

    rebuild = description["rebuild"]
    module_name, _, name = rebuild["function"].partition(":")
    function = getattr(importlib.import_module(module_name), name)
    if getattr(function, "__module__", None) != module_name:
        # An imported name (say, of os) would widen the trust in a package to all that it imports.
        raise ValueError(f"{module_name} does not itself define {name!r}")
    arguments = dict(rebuild.get("arguments", {}))
    if task is not None:
        arguments |= {"spec": task}
    module = function(**arguments)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{rebuild['function']} must return an nn.Module, got {type(module).__name__}")
    load_model(module, str(folder / WEIGHTS))
    return module.eval()
