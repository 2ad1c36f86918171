"""The format ``stages``: every stage of a decomposition as files of its own, and what runs them.

``stage-1.pt2``, ``stage-1.onnx``, ...; ``manifest.json`` with their order, hashes, ports and devices; and
``stage.py`` with the files that it imports, which run one stage over pipes or TCP where there is no netcarve.

Use: ``python stage.py stage-1.pt2 < frames | python stage.py stage-2.onnx > answers``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx

    from ..model.stages import Port, Stage
    from .source import Source

MANIFEST = "manifest.json"
SCRIPTS = ("stage.py", "wire.py", "limits.py", "pt2_check.py", "pt2_texts.py")
SCHEMA = 1
NEEDS = "torch, or onnxruntime"
STANDALONE = True
TOLERANCE = 1e-4  # between the two runtimes, relative to the largest output
_ONE_FILE_BYTES = 1_900_000_000  # a protobuf message ends at 2 GiB


def require(describe: Mapping[str, Any]) -> None:
    from importlib.util import find_spec

    from .error import ExportError

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ExportError(f"the stages format needs {', '.join(missing)}; pip install {' '.join(missing)}")


def write(source: Source, folder: Path) -> tuple[str, ...]:
    """
    Raises:
        ExportError: no stages were given.
    """
    from torch.fx import _pytree as fx_pytree
    from torch.utils import _pytree as pytree

    from .error import ExportError

    if not source.stages:
        raise ExportError("no stages were given; the stages format is for trials of a space with splits")
    stages = [placed.stage for placed in source.stages]
    leaves, structure = pytree.tree_flatten(source.example)
    numbered = pytree.tree_unflatten(list(range(len(leaves))), structure)
    flat = fx_pytree.tree_flatten_spec(numbered, stages[0].module._in_spec)
    order = [int(i) for i in flat if hasattr(leaves[i], "dtype")]
    return write_stages(stages, folder, devices=[placed.device for placed in source.stages], leaves=order)


def load(folder: Path, structure: str, threads: int) -> Callable[[list[Any]], list[Any]]:
    """All stages one after the other in this process: the pt2 files, which those of onnx must equal."""
    import sys

    import numpy as np

    sys.dont_write_bytecode = True  # nothing may be left in the folder
    # Ours, not those of the folder: a check runs no code that an export brings along.
    sys.path.insert(0, str(Path(__file__).parents[1] / "standalone"))
    import limits  # type: ignore[import-not-found]
    import stage as script  # type: ignore[import-not-found]
    import wire  # type: ignore[import-not-found]

    manifest = json.loads(limits.read_text(folder / MANIFEST))
    if strays := [n for one in manifest["stages"] for n in (one["pt2"], one["onnx"]) if Path(n).name != n]:
        raise ValueError(f"{strays[0]!r} is not the name of a file in the folder")
    chains = {
        kind: [script.RunningStage(folder / one[kind], threads) for one in manifest["stages"]]
        for kind in ("pt2", "onnx")
    }

    def answer(chain: list[Any], samples: int, body: list[Any]) -> list[Any]:
        frame = wire.Frame(wire.DATA, 0, samples, body)
        for one in chain:
            frame = one(frame)
            if frame.kind == wire.ERROR:
                raise RuntimeError(frame.json()["error"])
        ports = chain[-1].gives.ports
        return [
            np.frombuffer(part, dtype=port.dtype).reshape(port.shape(samples))
            for part, port in zip(frame.body, ports, strict=True)
        ]

    def run(leaves: list[Any]) -> list[Any]:
        tensors = [np.ascontiguousarray(leaves[i]) for i in manifest["leaves"]]
        samples = chains["pt2"][0].takes.samples([t.shape for t in tensors])
        body = [bytearray(t.tobytes()) for t in tensors]
        outputs = answer(chains["pt2"], samples, body)
        if samples not in compared:
            compared.add(samples)
            for a, b in zip(outputs, answer(chains["onnx"], samples, body), strict=True):
                scale = float(np.abs(a).max(initial=0))
                if not np.allclose(a, b, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
                    raise RuntimeError("the stages answer otherwise as onnx than as pt2")
        return outputs

    compared: set[int] = set()
    return run


def write_stages(
    stages: Sequence[Stage],
    folder: Path,
    *,
    formats: Sequence[str] = ("pt2", "onnx"),
    devices: Sequence[str | None] = (),
    leaves: Sequence[int] = (),
) -> tuple[str, ...]:
    """Write stages, their manifest and the scripts into an existing folder; the names of the files.

    Args:
        formats: ``pt2``, ``onnx`` or both.
        devices: of each stage, for the manifest.
        leaves: which of the flat leaves of ``(args, kwargs)`` go into the ports of the first stage.
    """
    from .. import standalone

    described = []
    for k, stage in enumerate(stages, start=1):
        about = describe(stage)
        if devices and devices[k - 1]:
            about["device"] = str(devices[k - 1])
        program = program_of(stage)
        for kind in formats:
            about[kind] = f"stage-{k}.{kind}"
            (_save_pt2 if kind == "pt2" else _save_onnx)(program, stage, folder / about[kind])
        described.append(about)
    here = Path(standalone.__file__).parent
    for script in SCRIPTS:
        shutil.copyfile(here / script, folder / script)
    names = sorted(
        path.name for path in folder.iterdir() if path.is_file() and path.name.startswith("stage-")
    )
    manifest = {
        "schema": SCHEMA,
        "stages": described,
        "leaves": list(leaves) or list(range(len(stages[0].inputs))),
        "sha256": {name: _digest(folder / name) for name in [*names, *SCRIPTS]},
        "versions": {name: metadata.version(name) for name in ("netcarve", "torch", "onnx")},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return (*names, *SCRIPTS, MANIFEST)


def describe(stage: Stage) -> dict[str, Any]:
    """What the manifest says of a stage: its ports and how many samples it takes."""
    _, (least, most) = entry(stage)
    return {
        "name": stage.name,
        "samples": [least, most],
        "inputs": [_port(port) for port in stage.inputs],
        "outputs": [_port(port) for port in stage.outputs],
    }


def entry(stage: Stage) -> tuple[tuple[tuple[Any, ...], ...], tuple[int, int | None]]:
    """What a stage checks of what it is given, see :func:`model.stages.build.check_entry`:
    ``(name, dtype, sizes)`` or ``(name, constant)`` of each input, and the least and most samples."""
    from ..model.stages.build import check_entry

    check = next(n for n in stage.module.graph.nodes if n.target is check_entry)
    _, _, expected, batches = check.args
    return expected, batches


def program_of(stage: Stage) -> torch.export.ExportedProgram:
    """The stage as a program from flat tensors to flat tensors, in the order of its ports.

    Its own check of what comes in becomes the program's guards: the axes are declared as the ports have them.
    """
    import torch

    from ..model.recurrent_shapes import recurrent_shapes
    from .error import quiet

    batch = torch.export.Dim("batch", min=1)
    shapes = tuple(
        {axis: _axis(batch, k, c) for axis, (k, c) in enumerate(port.sizes) if k} for port in stage.inputs
    )
    _, (least, _) = entry(stage)
    samples = max(2, least)  # 1 would be taken for a constant
    example = tuple(torch.zeros(port.shape(samples), dtype=port.dtype) for port in stage.inputs)
    with quiet(), recurrent_shapes(), torch.no_grad():
        program = torch.export.export(flat_module(stage), example, dynamic_shapes=shapes, strict=False)
    program.example_inputs = None
    return program


def flat_module(stage: Stage) -> fx.GraphModule:
    """The module of a stage, from its tensors to its tensors: constants filled in, no containers."""
    import torch
    from torch import fx
    from torch.utils import _pytree as pytree

    from ..model.stages.build import check_entry

    expected, _ = entry(stage)
    constants = iter(what[1:] if len(what) == 2 else None for what in expected)
    graph = fx.Graph()
    made: dict[fx.Node, Any] = {}
    for n in stage.module.graph.nodes:
        if n.op == "placeholder" and (constant := next(constants)) is not None:
            made[n] = constant[0]
        elif n.op == "output":
            nodes = [leaf for leaf in pytree.tree_leaves(n.args[0]) if isinstance(leaf, fx.Node)]
            graph.output(tuple(made[v] for v in nodes if isinstance(v.meta.get("val"), torch.Tensor)))
        elif n.target is not check_entry:
            made[n] = graph.node_copy(n, made.__getitem__)
    return fx.GraphModule(stage.module, graph)


def _axis(batch: Any, k: int, c: int) -> Any:
    axis = batch if k == 1 else k * batch
    return axis + c if c else axis


def _port(port: Port) -> dict[str, Any]:
    kind = str(port.dtype).removeprefix("torch.")
    return {"name": port.name, "dtype": kind, "itemsize": port.dtype.itemsize, "sizes": port.sizes}


def _save_pt2(program: torch.export.ExportedProgram, stage: Stage, path: Path) -> None:
    import torch

    torch.export.save(program, path)


def _save_onnx(program: torch.export.ExportedProgram, stage: Stage, path: Path) -> None:
    import torch

    from .error import quiet

    size = sum(t.numel() * t.element_size() for t in stage.module.state_dict().values())
    with quiet():
        made = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True)
    assert made is not None
    made.save(path, external_data=size > _ONE_FILE_BYTES)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
