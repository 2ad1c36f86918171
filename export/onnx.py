"""``model.onnx``: an ONNX graph with a dynamic batch axis named ``batch``. Loading it needs onnxruntime.

Use: ``onnxruntime.InferenceSession("model.onnx").run(None, {"x": x})``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .source import Source

FILE = "model.onnx"
NEEDS = "onnxruntime"
STANDALONE = True

# A protobuf message ends at 2 GiB; larger weights go to a file beside the graph.
ONE_FILE_BYTES = 1_900_000_000


def require(describe: Mapping[str, Any]) -> None:
    from importlib.util import find_spec

    from .error import ExportError

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ExportError(f"the onnx format needs {', '.join(missing)}; pip install {' '.join(missing)}")


def write(source: Source, folder: Path) -> tuple[str, ...]:
    import torch

    program = torch.onnx.export(
        source.program,
        dynamo=True,
        verbose=False,
        optimize=True,
        output_names=source.output_names,
        dynamic_shapes=source.dynamic_shapes,  # the program has them already; this carries their names over
    )
    assert program is not None
    program.save(folder / FILE, external_data=source.bytes > ONE_FILE_BYTES)
    return tuple(sorted(path.name for path in folder.glob(f"{FILE}*")))


def load(folder: Path, structure: str, threads: int) -> Callable[[list[Any]], list[Any]]:
    return run_file(folder / FILE, threads)


def run_file(path: Path, threads: int) -> Callable[[list[Any]], list[Any]]:
    """A graph as a function of flat leaves."""
    session = _session(path, threads)
    names = [node.name for node in session.get_inputs()]

    def run(leaves: list[Any]) -> list[Any]:
        # Constants (flags, None) are part of the graph; only tensors are fed.
        arrays = [leaf for leaf in leaves if hasattr(leaf, "dtype")]
        return list(session.run(None, dict(zip(names, arrays, strict=True))))

    return run


def inputs_of(path: Path) -> list[str]:
    """Names of a graph's inputs, in order."""
    return [node.name for node in _session(path, 1).get_inputs()]


def _session(path: Path, threads: int) -> Any:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
