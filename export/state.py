"""``weights.safetensors``, ``model.py`` and ``description.json``: weights, and what they are loaded into.

``model.py`` is the network as plain PyTorch; the description says how netcarve rebuilds the user's class.
Use: ``from model import load`` in the folder, which needs torch and safetensors alone, or
``netcarve.export.load_state("folder")``, which does not run ``model.py``. The description holds all
that the exporter was given (candidate, choices, task, ...) and under ``rebuild``, where there is one, the
function that makes the module: ``{"function": "package.module:function", "arguments": {...}}``. The weights
are then loaded over whatever that function gives. A network that cannot be printed (see :mod:`.model_code`)
goes without ``model.py``; ``constants.safetensors`` holds tensors that it needs and that are not weights.
Weights that the kind ``bits`` has rounded are packed (:mod:`.packing`).
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import nn

    from .source import Source

WEIGHTS = "weights.safetensors"
DESCRIPTION = "description.json"
MODEL = "model.py"
CONSTANTS = "constants.safetensors"
NEEDS = "torch and safetensors"
TOLERANCE = 1e-4  # between model.py and what is rebuilt, relative to the largest output
STANDALONE = False
TASK: str | None = None  # text of the task to rebuild from; by default the one that the description names
REBUILD = "netcarve.engine.rebuild:rebuild"  # makes the model from a task
REBUILD_OF_0_1 = "netcarve.search.rebuild:rebuild"  # its name in exports of that version


def needs(files: tuple[str, ...]) -> str:
    return NEEDS if MODEL in files else "netcarve"


def require(describe: Mapping[str, Any]) -> None:
    from .error import ExportError

    rebuild = describe.get("rebuild")
    if rebuild is not None and (
        not isinstance(rebuild, Mapping)
        or not isinstance(rebuild.get("arguments", {}), Mapping)
        or str(rebuild.get("function")).count(":") != 1
    ):
        raise ExportError(
            "describe's 'rebuild' must be {'function': 'package.module:function', 'arguments': {...}} with a "
            f"function that returns the module; got {rebuild!r}"
        )


def write(source: Source, folder: Path) -> tuple[str, ...]:
    from safetensors.torch import save_file, save_model

    from .error import ExportError
    from .model_code import ModelCode, UnprintableError
    from .packing import pack_file

    save_model(source.model, str(folder / WEIGHTS))  # unlike save_file, takes tied weights
    packed = pack_file(folder / WEIGHTS, groups) if (groups := _groups(source.describe)) else {}
    text = json.dumps(dict(source.describe), indent=2, allow_nan=False)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    about = source.describe
    title = f"{about.get('task') or 'network'}, trial {about['trial']}" if "trial" in about else "network"
    try:
        code = ModelCode(source.model, source.program, source.captured_module, title, packed)
        if code.constants:
            save_file(code.constants, str(folder / CONSTANTS))
    except (ExportError, UnprintableError, SafetensorError) as error:
        if "rebuild" in about:
            return WEIGHTS, DESCRIPTION
        raise ExportError(
            f"the state format cannot print this network as a module of its own ({error}), and the export "
            "does not say what to rebuild it from: describe needs 'rebuild': {'function': "
            "'package.module:function', 'arguments': {...}}. Or export to other formats"
        ) from error
    (folder / MODEL).write_text(code.text, encoding="utf-8")
    return (WEIGHTS, MODEL, *((CONSTANTS,) if code.constants else ()), DESCRIPTION)


def _groups(describe: Mapping[str, Any]) -> tuple[int, ...]:
    """How many inputs may share a scale where weights were rounded to few bits; else nothing."""
    try:
        space = describe["rebuild"]["arguments"]["space"]
        return tuple({0, int(space["options"]["bits_group"])}) if "bits" in space["kinds"] else ()
    except (KeyError, TypeError):
        return ()


def load(folder: Path, structure: str, threads: int) -> Callable[[list[Any]], list[Any]]:
    """The module of ``model.py`` and the one that is rebuilt, whose answers must be the same.

    They are of an export that the waiting process made a moment ago. With :data:`TASK`, the latter alone.
    """
    import torch
    from torch.utils import _pytree as pytree

    torch.set_num_threads(threads)
    modules = []
    if TASK is None and (folder / MODEL).is_file():
        modules.append(_printed(folder))  # first: all that follows may import netcarve
    description = _description(folder)
    if TASK is not None:
        modules.append(load_state(folder, task=TASK))
    elif "rebuild" in description:
        modules.append(_rebuilt(folder, description))
    inputs = pytree.treespec_loads(structure)
    compared: set[Any] = set()

    def run(leaves: list[Any]) -> list[Any]:
        tensors = [torch.from_numpy(leaf) if hasattr(leaf, "dtype") else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(tensors, inputs)

        def answer(module: nn.Module) -> list[torch.Tensor]:
            with torch.inference_mode():
                outputs = module(*args, **kwargs)
            return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]

        outputs = answer(modules[0])
        shapes = tuple(getattr(leaf, "shape", None) for leaf in leaves)
        if len(modules) > 1 and shapes not in compared:
            compared.add(shapes)
            for a, b in zip(outputs, answer(modules[1]), strict=True):
                scale = float(b.abs().max()) if b.numel() else 0.0
                if not torch.allclose(a, b, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
                    raise RuntimeError(f"what {DESCRIPTION} says to rebuild answers otherwise than {MODEL}")
        return outputs

    return run


def _printed(folder: Path) -> nn.Module:
    """The module of ``model.py``, with nothing of netcarve."""
    import importlib.util
    import sys

    sys.dont_write_bytecode = True  # nothing may be left in the folder
    spec = importlib.util.spec_from_file_location("exported_model", folder / MODEL)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    module: nn.Module = code.load()
    if "netcarve" in sys.modules:
        raise RuntimeError(f"{MODEL} needs netcarve, and should not")
    return module


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
    from netcarve.standalone.limits import open_regular
    from safetensors import SafetensorError

    folder = Path(folder)
    try:
        if os.path.lexists(folder / WEIGHTS):
            open_regular(folder / WEIGHTS).close()
        description = _description(folder)
        if "rebuild" not in description and (folder / MODEL).is_file():
            raise ValueError(_by_hand(folder))
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
        from ..results.trust import trusted

        if not trusted(spec):
            raise ValueError(
                f"{folder / DESCRIPTION} asks to run {spec!r}, which makes the model's class; "
                f"if you trust it, or have it elsewhere, say so: task={spec!r}"
                + (f". Or {_by_hand(folder)}" if (folder / MODEL).is_file() else "")
            )
    try:
        return _rebuilt(folder, description, task)
    except OSError as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {error.strerror or error}") from error
    except (RuntimeError, SafetensorError) as error:  # of torch, for other names and shapes
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder / WEIGHTS} does not fit the model: {reason}") from error


def _by_hand(folder: Path) -> str:
    """Netcarve runs no code that an export brings along; whoever trusts it can."""
    return f"if you trust {folder / MODEL}, which is code, run it there yourself: from model import load"


def _description(folder: Path) -> dict[str, Any]:
    from netcarve.standalone.limits import read_text

    description: dict[str, Any] = json.loads(read_text(folder / DESCRIPTION))
    if "rebuild" in description and description["rebuild"]["function"] == REBUILD_OF_0_1:
        description["rebuild"]["function"] = REBUILD
    return description


def _rebuilt(folder: Path, description: Mapping[str, Any], task: Any = None) -> nn.Module:
    from netcarve.export.packing import load_into  # by its full name, as above
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
    load_into(module, folder / WEIGHTS)
    return module.eval()
