"""Module trees: copied around given tensors, their state put back, and their outputs compared."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

# Values that cannot change: shared between the copies.
_ATOMS = (type(None), bool, int, float, str, bytes, complex, type, torch.dtype, torch.device, torch.Size)

_CONTAINERS = (dict, OrderedDict, list, set)  # of hooks, mostly empty


def skeleton(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Independent copy of ``module``; what ``memo`` holds by ``id`` is taken instead of a copy.

    Does what ``copy.deepcopy(module, memo)`` does. Plain modules are copied attribute by attribute; classes
    with copy rules of their own, and attributes of other types, go through ``copy.deepcopy``.
    """
    if id(module) in memo:
        return memo[id(module)]
    cls = type(module)
    if _has_own_rules(cls):
        return copy.deepcopy(module, memo)
    new = cls.__new__(cls)
    memo[id(module)] = new
    state = new.__dict__
    for name, value in module.__dict__.items():
        if name == "_compiled_call_impl":
            state[name] = None  # compiled for the original's shapes
        elif name == "_modules":
            state[name] = {k: None if m is None else skeleton(m, memo) for k, m in value.items()}
        elif isinstance(value, _ATOMS):
            state[name] = value
        elif type(value) in _CONTAINERS and not value:
            state[name] = type(value)()
        elif name in ("_parameters", "_buffers"):
            state[name] = {
                k: memo[id(t)] if id(t) in memo else copy.deepcopy(t, memo) for k, t in value.items()
            }
        elif type(value) is tuple and all(isinstance(v, _ATOMS) for v in value):
            state[name] = value
        else:
            state[name] = copy.deepcopy(value, memo)
    return new


def _has_own_rules(cls: type) -> bool:
    """Does the class say how it is copied? What torch's own layers say only concerns old pickles."""
    hooks = (
        "__deepcopy__",
        "__copy__",
        "__reduce_ex__",
        "__reduce__",
        "__getstate__",
        "__setstate__",
        "__new__",
    )
    return any(
        hook in base.__dict__ and not base.__module__.startswith("torch.nn.modules")
        for base in cls.__mro__
        if base is not object
        for hook in hooks
    )


# -- What a module holds besides its tensors' numbers, remembered and put back --------------------------


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


# -- When two outputs are the same network's: the largest difference against what their type allows -----

TOLERANCE = {  # largest difference / largest output
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
}
LOOSE = 1e-2  # half precision


def relative_difference(got: list[Any], expected: list[Any]) -> tuple[float, float]:
    """Largest absolute difference over the largest absolute output, and what its type allows."""
    worst, allowed = 0.0, 0.0
    pairs = [(g, e) for g, e in zip(got, expected, strict=True) if isinstance(e, torch.Tensor)]
    for g, e in pairs:
        if g.shape != e.shape:
            return float("inf"), 0.0
        if not e.is_floating_point() and not e.is_complex():
            worst = max(worst, 0.0 if torch.equal(g, e) else float("inf"))
        elif e.numel():
            scale = float(e.abs().max()) or 1.0
            difference = float((g - e).abs().max()) / scale
            worst = max(worst, difference) if math.isfinite(difference) else math.inf
            allowed = max(allowed, TOLERANCE.get(e.dtype, LOOSE))
    return worst, allowed
