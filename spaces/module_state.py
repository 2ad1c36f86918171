"""What a module holds besides its tensors' numbers, remembered and put back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

_CONTAINERS = (dict, OrderedDict, list, set)


class ModuleState:
    """The attributes of one module, and what its containers (parameters, children, hooks) hold."""

    __slots__ = ("_attributes", "_class", "_containers", "_module")

    def __init__(self, module: nn.Module) -> None:
        self._module, self._class = module, type(module)
        self._attributes = dict(module.__dict__)
        self._containers = [(v, v.copy()) for v in self._attributes.values() if type(v) in _CONTAINERS]

    def changed(self) -> bool:
        """Does the module hold other objects than it did?"""
        now = self._module.__dict__
        if now.keys() != self._attributes.keys() or any(now[k] is not v for k, v in self._attributes.items()):
            return True
        return any(
            len(container) != len(held) or not _same(container, held) for container, held in self._containers
        )

    def reset(self) -> None:
        if type(self._module) is not self._class:  # as parametrisation does
            self._module.__class__ = self._class
        self._module.__dict__.clear()
        self._module.__dict__.update(self._attributes)
        for container, held in self._containers:
            if container or held:
                container.clear()
                container.extend(held) if type(container) is list else container.update(held)


def _same(container: Any, held: Any) -> bool:
    """Do two containers of one type hold the same objects?"""
    if isinstance(container, dict):
        return container.keys() == held.keys() and all(container[k] is v for k, v in held.items())
    if isinstance(container, set):
        return bool(container == held)
    return all(a is b for a, b in zip(container, held, strict=True))
