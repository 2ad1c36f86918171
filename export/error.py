"""The one error of exporting, and how other people's errors are told in a line."""

from __future__ import annotations


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
