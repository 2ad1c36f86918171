"""Errors and noise of exporting: its one error, others' errors in a line, log lines kept back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_CHATTY = ("torch", "torch.onnx", "torch.export", "torch._export", "torch._dynamo", "onnxscript", "onnx_ir")


class ExportError(RuntimeError):
    """Nothing was exported; the message says why and how to mend it.

    Attributes:
        detail: the longer story (the output of a failed check process), or ``""``.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


def first_line(error: BaseException, *, limit: int = 240) -> str:
    """``"TypeName: first line of the message"`` of the error's first cause, at most ``limit`` characters.

    Exporters wrap the reason in pages of their own; the innermost cause is what a reader can act on.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines of torch, onnxscript and onnx_ir inside the block; errors still rise."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
