"""Private copy of a user's model, whatever it holds, with computed weights folded.

``copy.deepcopy`` refuses a model that keeps a computed tensor, a lock or an open file, and leaves functions
that close over the model, and weak references to it, pointing at the original. A weight that is computed from
parameters alone (weight norm, spectral norm, other parametrisations, masks of ``torch.nn.utils.prune``)
becomes an ordinary parameter that holds its value.
"""

from __future__ import annotations

import copy
import functools
import re
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from .modules import ModuleState, relative_difference, skeleton

# Stateless from one process or copy to the next: a new one stands in. Type -> what makes one.
LOCKS: dict[type, Callable[[], Any]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
}
_TORCH = ("_parameters", "_buffers", "_modules")  # attributes of a module that hold what is copied anyway


@dataclass(frozen=True)
class PrivateCopy:
    """A copy in eval mode, and in what it differs from what ``copy.deepcopy`` would have made."""

    model: nn.Module
    folded: dict[str, str]  # parameter that holds a computed weight -> what computed it
    keeps: bool  # a call leaves something in its attributes
    bound: str = ""  # why copies of the copy would not be independent: what it holds that cannot be copied


def plain_copy(model: nn.Module) -> nn.Module:
    """An independent copy in the model's own mode, its computed weights folded; the original stays as it is.

    Raises:
        Exception: what copying an attribute raised that has no stand-in.
    """
    made = _Copier(model).copied()
    fold(made)
    return made


def private_copy(model: nn.Module, run: Callable[[nn.Module], Any]) -> PrivateCopy:
    """A copy in eval mode that computes what ``model`` does.

    Weights are folded, and what an earlier call left in caches is forgotten, where the outputs on the example
    stay the same; else the copy holds what the model holds, computed tensors as constants.

    Args:
        run: calls a model on the example and gives its outputs.

    Raises:
        Exception: what copying an attribute raised that has no stand-in, or what ``run`` raised.
    """
    copier = _Copier(model)
    as_it_is = copier.copied().eval()
    output, keeps = _tried(run, as_it_is)
    expected = [t.clone() for t in _tensors(output)]
    for forgetting in (True, False):
        made = copier.copied().eval()
        folded = fold(made)
        forgotten = forgetting and copier.forget(made)
        if not folded and not forgotten:
            continue
        try:
            got, keeps_too = _tried(run, made)
        except Exception:  # a forward that needs what was forgotten
            continue
        if _agree(_tensors(got), expected):
            return PrivateCopy(made, folded, keeps_too, copier.bound)
    return PrivateCopy(as_it_is, {}, keeps, copier.bound)


def fold(model: nn.Module) -> dict[str, str]:
    """Make ordinary parameters, in place, of weights that are computed from parameters alone.

    Returns:
        What computed each, by path of the parameter. Values are bitwise those that an eval-mode call takes.
    """
    folded: dict[str, str] = {}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # spectral norm takes a step of its iteration otherwise
    with torch.no_grad():
        for path, child in list(model.named_modules()):
            folded |= {f"{path}.{name}" if path else name: kind for name, kind in _undone(child)}
    for module, mode in modes:
        module.training = mode
    return folded


def _undone(child: nn.Module) -> Iterator[tuple[str, str]]:
    """Make the computed weights of one module ordinary parameters; their names, and what computed each.

    They train where what they were made of did.
    """
    if parametrize.is_parametrized(child):
        yield from _unparametrised(child)
    for hook in list(child._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            name, kind = hook.name, "weight norm"
            remove: Callable[[Any, str], Any] = nn.utils.remove_weight_norm
        elif isinstance(hook, SpectralNorm):
            name, kind, remove = hook.name, "spectral norm", nn.utils.remove_spectral_norm
        elif isinstance(hook, prune.BasePruningMethod):
            name, kind, remove = hook._tensor_name, "mask", prune.remove
        else:
            continue
        made_of = [p for key, p in child._parameters.items() if p is not None and key.startswith(f"{name}_")]
        remove(child, name)
        getattr(child, name).requires_grad_(any(p.requires_grad for p in made_of))
        yield name, kind


def _unparametrised(child: nn.Module) -> Iterator[tuple[str, str]]:
    """Not by torch's ``remove_parametrizations``.

    That takes the property off the class, which the original shares, and writes on the original tensor, which
    other modules may share.
    """
    made: dict[str, torch.Tensor] = {}
    lists: Any = child.parametrizations
    for name, steps in lists.items():
        value = getattr(child, name).detach().clone()
        buffer = hasattr(steps, "original") and not isinstance(steps.original, nn.Parameter)
        trained = any(p.requires_grad for p in steps.parameters())
        made[name] = value if buffer else nn.Parameter(value, requires_grad=trained)
        yield name, " and ".join(_spoken(type(step).__name__) for step in steps)
    child.__class__ = type(child).__bases__[0]
    del child._modules["parametrizations"]
    for name, value in made.items():
        if isinstance(value, nn.Parameter):
            setattr(child, name, value)  # a recurrent layer keeps a list of its own
        else:
            child.register_buffer(name, value)


def _spoken(name: str) -> str:
    """``_WeightNorm`` as "weight norm"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip("_")).lower()


class _Copier:
    """Copies one model as often as asked; finds once what needs a stand-in.

    Attributes:
        bound: the first thing that copies share with the original, or that a copy of a copy would share.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stuck: list[Any] = []  # what copy.deepcopy refuses
        self._computed: set[int] = set()  # ids of constants in the last copy that stand for computed tensors
        self.bound = ""

    def copied(self) -> nn.Module:
        while True:
            self._computed = set()
            memo = {id(thing): self._stand_in(thing) for thing in self._stuck}
            for tensor in (*self._model.parameters(), *self._model.buffers()):
                if tensor.grad_fn is not None:
                    memo[id(tensor)] = self._stand_in(tensor)
            try:
                made = skeleton(self._model, memo)
                break
            except Exception as error:
                thing, where = _refused(error)
                if thing is None or any(thing is known for known in self._stuck):
                    raise
                self._stuck.append(thing)
                if not isinstance(thing, torch.Tensor):
                    self._note(f"{where} holds a {type(thing).__name__}, which cannot be copied")
        for module in made.modules():
            for name, value in list(module.__dict__.items()):
                if name not in _TORCH and (new := _rebound(value, memo, set())) is not value:
                    module.__dict__[name] = new
                    what = "a hook" if name.endswith("_hooks") else repr(name)
                    self._note(f"{what} of {type(module).__name__} refers to the model from outside it")
        return made

    def _note(self, reason: str) -> None:
        self.bound = self.bound or f"{reason}, so that a copy of the class would not be independent"

    def forget(self, made: nn.Module) -> bool:
        """Delete, from the last copy, computed tensors and those kept in dicts; was there any?"""
        found = False
        for module in made.modules():
            for name, value in list(module.__dict__.items()):
                if name in _TORCH or name.endswith("_hooks"):
                    continue
                if id(value) in self._computed:
                    del module.__dict__[name]
                    found = True
                elif type(value) in (dict, OrderedDict):
                    for key in [k for k, held in value.items() if _tensors(held)]:
                        del value[key]
                        found = True
        return found

    def _stand_in(self, thing: object) -> Any:
        if isinstance(thing, torch.Tensor):
            constant = thing.detach().clone()
            self._computed.add(id(constant))
            return constant
        if type(thing) in LOCKS:
            return LOCKS[type(thing)]()
        return thing  # shared: an open file, a generator, a connection


def _refused(error: BaseException) -> tuple[Any, str]:
    """What ``copy.deepcopy`` could not copy, and which attribute holds it, from the frames of its failure."""
    thing, where, trace = None, "", error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code is copy.deepcopy.__code__:
            thing = frame.f_locals.get("x")
        elif frame.f_code is skeleton.__code__ and thing is None:
            where = f"{frame.f_locals.get('name')!r} of {type(frame.f_locals['module']).__name__}"
        trace = trace.tb_next
    return thing, where


def _rebound(value: Any, memo: dict[int, Any], seen: set[int]) -> Any:
    """``value`` with functions and weak references inside it pointing at copies, where they exist.

    Containers, which are copies already, are changed in place; the new value differs from ``value`` by
    identity where anything in it had to be replaced.
    """
    if id(value) in seen:
        return value
    seen.add(id(value))
    inner = functools.partial(_rebound, memo=memo, seen=seen)
    if isinstance(value, weakref.ref):
        target = memo.get(id(value())) if isinstance(value(), nn.Module) else None
        return value if target is None else weakref.ref(target)
    if isinstance(value, types.FunctionType):
        return _rebound_function(value, memo, seen)
    if type(value) is functools.partial:
        func = inner(value.func)
        return value if func is value.func else functools.partial(func, *value.args, **value.keywords)
    if type(value) in (list, tuple, dict, OrderedDict):
        old = list(value.values() if isinstance(value, dict) else value)
        new = [inner(v) for v in old]
        if all(a is b for a, b in zip(new, old, strict=True)):
            return value
        return type(value)(zip(value, new, strict=True) if isinstance(value, dict) else new)
    return value


def _rebound_function(function: types.FunctionType, memo: dict[int, Any], seen: set[int]) -> Any:
    def moved(held: object) -> Any:
        if id(held) in memo:
            return memo[id(held)]
        if type(held) in (list, dict, OrderedDict):  # what a hook collects into
            return copy.copy(held)
        if isinstance(held, types.MethodType) and id(held.__self__) in memo:
            return types.MethodType(held.__func__, memo[id(held.__self__)])
        return _rebound(held, memo, seen)

    cells = function.__closure__ or ()
    full = [c for c in cells if _full(c)]
    held = [*(c.cell_contents for c in full), *(function.__defaults__ or ())]
    held += (function.__kwdefaults__ or {}).values()
    if all(moved(h) is h for h in held):
        return function
    closure = tuple(types.CellType(moved(c.cell_contents)) if _full(c) else c for c in cells)
    defaults = function.__defaults__ and tuple(map(moved, function.__defaults__))
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure)
    named = function.__kwdefaults__
    made.__kwdefaults__ = named and {k: moved(v) for k, v in named.items()}
    made.__dict__.update(function.__dict__)
    return made


def _full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # nothing assigned yet
        return False


def _tried(run: Callable[[nn.Module], Any], model: nn.Module) -> tuple[Any, bool]:
    """``run(model)``, and whether it changed the model's attributes, which are then put back."""
    held = [ModuleState(m) for m in model.modules()]
    try:
        return run(model), any(state.changed() for state in held)
    finally:
        for state in held:
            state.reset()


def _tensors(value: object) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _agree(got: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    if [t.shape for t in got] != [t.shape for t in expected]:
        return False
    difference, allowed = relative_difference(got, expected)
    return difference <= allowed
