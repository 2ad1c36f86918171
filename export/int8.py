"""``model.int8.onnx``: the ONNX graph with weights and activations of 8 bits. Loading it needs onnxruntime.

Static quantisation: the range of every activation is what calibration data show; weights have a scale for
each output channel. It answers something else than the model, so that no equality is demanded: the receipt
states how far it is off, and its own accuracy.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .source import Source

FILE = "model.int8.onnx"
NEEDS = "onnxruntime"
STANDALONE = True
EXACT = False


def require(describe: Mapping[str, Any]) -> None:
    from . import onnx

    onnx.require(describe)


def write(source: Source, folder: Path) -> tuple[str, ...]:
    from onnxruntime.quantization import QuantFormat, quantize_static  # type: ignore[import-untyped]
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

    from . import onnx
    from .process import FileCalls

    calls = FileCalls.of(source.calibration)
    with tempfile.TemporaryDirectory(dir=folder) as place, _without_advice():
        scratch = Path(place)
        onnx.write(source, scratch)
        quant_pre_process(str(scratch / onnx.FILE), str(scratch / "prepared.onnx"))
        names = onnx.inputs_of(scratch / "prepared.onnx")
        feeds = iter([dict(zip(names, call.values(), strict=True)) for call in calls.arrays])
        quantize_static(
            str(scratch / "prepared.onnx"),
            str(folder / FILE),
            _reader()(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            use_external_data_format=source.bytes > onnx.ONE_FILE_BYTES,
        )
    return tuple(sorted(path.name for path in folder.glob(f"{FILE}*")))


def load(folder: Path, structure: str, threads: int) -> Callable[[list[Any]], list[Any]]:
    # This file is loaded by its path; so is its neighbour, which knows how to run a graph.
    spec = importlib.util.spec_from_file_location("onnx_format", Path(__file__).with_name("onnx.py"))
    assert spec is not None
    assert spec.loader is not None
    neighbour = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(neighbour)
    run: Callable[[list[Any]], list[Any]] = neighbour.run_file(folder / FILE, threads)
    return run


def _reader() -> Any:
    """The quantiser asks for its own class."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self, feeds: Any) -> None:
            self.feeds = feeds

        def get_next(self) -> Any:
            return next(self.feeds, None)

    return Reader


@contextmanager
def _without_advice() -> Iterator[None]:
    """The quantiser gives its advice on the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
