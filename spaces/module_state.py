"""What a module holds besides its tensors' numbers, remembered and put back."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

_CONTAINERS = (dict, OrderedDict, list, set)


class ModuleState:
    """The attributes of one module, and what its containers (parameters, children, hooks) hold."""

    __slots__ = ("_attributes", "_class", "_containers", "_module")

    def __init__(self, module: nn.Module) -> None:
        self._module, self._class = module, type(module)
        self._attributes = dict(module.__dict__)
        self._containers = [(v, v.copy()) for v in self._attributes.values() if type(v) in _CONTAINERS]

    def reset(self) -> None:
        if type(self._module) is not self._class:  # as parametrisation does
            self._module.__class__ = self._class
        self._module.__dict__.clear()
        self._module.__dict__.update(self._attributes)
        for container, held in self._containers:
            if container or held:
                container.clear()
                container.extend(held) if type(container) is list else container.update(held)
