"""Standalone code that runs an exported stage, copied beside it: standard library, torch or onnxruntime."""

from collections.abc import Mapping, Sequence

# JSON as it comes from elsewhere: readers say what does not fit.
Json = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
