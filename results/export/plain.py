"""Outputs in plain containers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree


def plain(output: Any) -> Any:
    """``output`` with dicts, lists and tuples in the place of containers that a library made up.

    Those need that library wherever the program is loaded, plain ones nothing.
    """
    if isinstance(output, Mapping):
        return {key: plain(value) for key, value in output.items()}
    if isinstance(output, list):
        return [plain(value) for value in output]
    return tuple(plain(value) for value in output) if isinstance(output, tuple) else output


def is_plain(output: Any) -> bool:
    return pytree.tree_structure(output) == pytree.tree_structure(plain(output))


class PlainOutput(nn.Module):
    """A model whose output is made :func:`plain`, called as the model is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

        def forward(*args: Any, **kwargs: Any) -> Any:
            return plain(self.model(*args, **kwargs))

        # Exporters name the inputs after the parameters of forward.
        forward.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]
        self.forward = forward
