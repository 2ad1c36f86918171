"""Substitution: which operators take layers' places in one candidate, and their weights there."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import fx

from ..capture import fresh
from ..captured_module import CapturedModule
from ..coupling import Coupling
from ..coupling.walk import bind, operator_name
from ..surgery import Alive, Surgeon
from .counting import Count, count
from .initialise import ROWS, Targets, columns_of, refit, regress
from .site import Operator, Site, operator
from .stages import Substitute

BYTES = 128 * 2**20  # of all started substitutes kept
REGRESSED = 256  # samples that curved operators are regressed on, at most, and
ELEMENTS = 2**21  # numbers of them

_DIMS = {"linear": 0, "conv1d": 1, "conv2d": 2}
# Calls that give nothing below zero, and those that hand on their input's sign.
_NONNEGATIVE = frozenset(["relu", "relu6", "sigmoid", "softmax", "hardsigmoid"])
_POOLS = ("max_pool1d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
_KEEPS_SIGN = frozenset([*_POOLS, "dropout", "flatten", "view", "reshape", "mean"])


@dataclass(frozen=True, slots=True)
class Place:
    """A dense layer of a captured graph that its own call alone reads, without its weights; hashable.

    Attributes:
        name: of the module, or of the weight where that has none.
        node: the call.
        weight, bias: canonical names.
        size: see :class:`Site`.
        calls: how often one sample goes through it, where the batch axis holds more than samples.
    """

    name: str
    node: str
    weight: str
    bias: str | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    size: tuple[int, ...]
    nonnegative: bool
    followed_by_relu: bool
    calls: float = 1.0

    @property
    def axis(self) -> int:
        """Of the channels, counted from the end."""
        return -1 - len(self.stride)

    def site(
        self, weight: torch.Tensor, bias: torch.Tensor | None, inputs_seen: torch.Tensor | None = None
    ) -> Site:
        """With weights."""
        return Site(
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            size=self.size,
            nonnegative=self.nonnegative,
            followed_by_relu=self.followed_by_relu,
            inputs_seen=inputs_seen,
            name=self.name,
        )


@dataclass(frozen=True, slots=True)
class Substitution:
    """An operator of one size in a layer's place."""

    place: Place
    operator: str
    option: float

    @property
    def anonymous(self) -> Substitution:
        """The same without names: equal for layers of one form."""
        bias = None if self.place.bias is None else ""
        return replace(self, place=replace(self.place, name="", node="", weight="", bias=bias))


def place_of(node: fx.Node, name: str, coupling: Coupling, batch: int) -> Place | str:
    """The place of a dense call whose weights are parameters, or why nothing can stand for it."""
    bound = bind(node)
    kind = operator_name(node.target)[0]
    if kind not in _DIMS:
        return f"is a {kind}: operators stand for conv1d, conv2d and linear"
    held = [bound["weight"], bound.get("bias")]
    names = [coupling.canonical[str(t.target)] if isinstance(t, fx.Node) else None for t in held]
    assert names[0] is not None
    if bound["input"].name not in coupling.tensors:
        return "reads something whose shape is not followed"
    shape = [length for length, _ in coupling.tensors[bound["input"].name]]  # at the example's batch
    dims = _DIMS[kind]
    if dims and len(shape) != dims + 2:
        return "is called on inputs without a batch axis"
    if not bound["weight"].meta["val"].is_floating_point():
        return "holds no real numbers"
    stride, dilation = (_sizes(bound.get(argument, 1), dims) for argument in ("stride", "dilation"))
    padding = bound.get("padding", 0)
    if padding == "same":
        kernel = bound["weight"].meta["val"].shape[2:]
        span = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(s % 2 for s in span):
            return "pads more on one side than on the other"
        padding = [s // 2 for s in span]
    rows = math.prod(shape[:-1]) // batch
    return Place(
        name,
        node.name,
        names[0],
        names[1],
        stride,
        _sizes(0 if padding == "valid" else padding, dims),
        dilation,
        tuple(shape[2:]) if dims else (max(rows, 1),),
        _nonnegative(bound["input"]),
        _followed_by_relu(node),
        shape[0] / batch if dims else 1.0,
    )


def _sizes(value: Any, dims: int) -> tuple[int, ...]:
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(int(v) for v in (listed * dims if len(listed) == 1 else listed)[:dims])


def _nonnegative(n: fx.Node) -> bool:
    """Whether no number that ``n`` gives is below zero, as far as the graph tells."""
    while isinstance(n, fx.Node) and n.op == "call_function":
        kind = operator_name(n.target)[0].rstrip("_")
        if kind in _NONNEGATIVE or (kind == "hardtanh" and len(n.args) > 1 and n.args[1] == 0):
            return True
        if kind not in _KEEPS_SIGN:
            return False
        n = n.args[0]  # type: ignore[assignment]
    return False


def _followed_by_relu(node: fx.Node) -> bool:
    kinds = [(operator_name(u.target)[0].rstrip("_"), u) for u in node.users if u.op == "call_function"]
    if len(kinds) != len(node.users) or not kinds:
        return False
    return all(kind == "relu" or (kind == "batch_norm" and _followed_by_relu(user)) for kind, user in kinds)


@lru_cache(maxsize=65536)
def counted(substitution: Substitution, shape: tuple[int, ...], kind: torch.dtype) -> Count:
    """Costs on one sample at some widths, counted from what the operator builds.

    Args:
        substitution: without names (:attr:`Substitution.anonymous`), so that equal layers are counted once.
        shape: of the layer's weight.
        kind: its type.
    """
    place = substitution.place
    weight = torch.empty(shape, dtype=kind, device="meta")
    site = place.site(weight, None if place.bias is None else weight.new_empty(shape[0]))
    return count(operator(substitution.operator).build(site, substitution.option), site.example())


class Substitutions:
    """Weights of the substitutes of one space: started once for every set of kept channels, fitted for each
    candidate.

    Args:
        inputs: placeholders' values of one batch of the original, on which layers' outputs are fitted;
            ``None`` without calibration data: weights start in closed form and stay so.
    """

    def __init__(self, surgeon: Surgeon, places: Collection[Place], inputs: Sequence[Any] | None) -> None:
        self._surgeon, self._inputs = surgeon, inputs
        self._places = {place.node: place for place in places}
        self._recorded: _Recorder | None = None
        self._started: OrderedDict[Any, Substitute] = OrderedDict()
        self._held = 0

    def covers(self, nodes: Collection[str]) -> bool:
        """Whether these are among its places."""
        return all(node in self._places for node in nodes)

    def recorded(self) -> _Recorder:
        """What the original read and gave at the places."""
        assert self._inputs is not None
        assert self._surgeon.module is not None
        if self._recorded is None:
            recorder = _Recorder(self._surgeon.module, self._places)
            with torch.no_grad():
                recorder.run(*fresh(self._inputs), enable_io_processing=False)
            self._recorded = recorder
        return self._recorded

    def started(
        self,
        wanted: Substitution,
        alive: Alive,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        repair: Hashable,
    ) -> Substitute:
        """A substitute of its own, not fitted to its inputs yet.

        Args:
            weight, bias: of the kept channels, after ``repair``, but for the run layer by layer.
        """
        labels = self._surgeon.coupling.parameters.get(wanted.place.weight, (None, None))
        kept = [None if v is None else np.flatnonzero(alive[v]) for v in labels[:2]]
        # The weights follow from what was kept and how it was repaired.
        key = (wanted, repair, *(None if k is None else k.tobytes() for k in kept))
        if key in self._started:
            self._started.move_to_end(key)
            return copy.deepcopy(self._started[key])
        made = self._start(operator(wanted.operator), wanted, kept, weight.detach(), bias)
        self._started[key] = made
        self._held += _nbytes(made)
        while self._held > BYTES and len(self._started) > 1:
            self._held -= _nbytes(self._started.popitem(last=False)[1])
        return copy.deepcopy(made)

    def _start(
        self,
        op: Operator,
        wanted: Substitution,
        kept: Sequence[np.ndarray | None],
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> Substitute:
        place, x = wanted.place, None
        if self._inputs is not None:
            x = self.recorded().inputs[place.node]
            if kept[1] is not None:
                x = x.index_select(place.axis, torch.from_numpy(kept[1]).to(x.device))
        site = place.site(weight, None if bias is None else bias.detach(), x)
        with torch.no_grad():
            new = op.build(site, wanted.option)
            op.start(new, site, wanted.option)
        if op.curved and x is not None:
            regress(new, x, site(x))
        return new.eval()


class Planting:
    """The substitutes of one candidate's network, as they come to be.

    Args:
        repair: how its sliced weights are repaired.

    Attributes:
        wanted: by node of the captured graph.
        made: by node.
    """

    def __init__(self, store: Substitutions, wanted: Mapping[str, Substitution], repair: Hashable) -> None:
        self._store, self.wanted, self._repair = store, dict(wanted), repair
        self.made: dict[str, Substitute] = {}

    def call(self, node: str, x: torch.Tensor, alive: Alive, made: Mapping[str, Any]) -> torch.Tensor:
        """In the repair's run over the smaller network: fit the substitute for ``node`` to what the original
        gave there, from the inputs ``x`` that it gets now, and call it.
        """
        wanted = self.wanted[node]
        new, place = self._begin(wanted, alive, made), wanted.place
        labels = self._store._surgeon.coupling.parameters[place.weight][0]
        targets = self._store.recorded().targets[node]
        if labels is not None:
            targets = targets.kept(torch.from_numpy(np.flatnonzero(alive[labels])))
        rows = max(ROWS, 4 * columns_of(new))
        # A batch norm behind a layer without bias takes its mean from the run.
        refit(new, x, targets.first(rows), intercept=True)
        self.made[node] = new
        return new(x)

    def finish(self, alive: Alive, made: Mapping[str, Any]) -> None:
        """Start those that no run has fitted; a repair step, see :data:`.surgery.Mend`."""
        for node, wanted in self.wanted.items():
            if node not in self.made:
                self.made[node] = self._begin(wanted, alive, made)

    def _begin(self, wanted: Substitution, alive: Alive, made: Mapping[str, Any]) -> Substitute:
        place = wanted.place
        bias = None if place.bias is None else made[place.bias]
        return self._store.started(wanted, alive, made[place.weight], bias, self._repair)

    def install(self, network: CapturedModule) -> None:
        """Put them in the places of their calls in a built network; dropped blocks' calls have gone."""
        graph = network.graph
        for node in list(graph.nodes):
            if node.name not in self.wanted:
                continue
            wanted = self.wanted[node.name]
            path = str(bind(node)["weight"].target).rpartition(".")[0] or wanted.place.name
            target = f"{path}.{wanted.operator.replace('-', '_')}"
            network.add_submodule(target, self.made[node.name])
            with graph.inserting_before(node):
                new = graph.call_module(target, (node.args[0],))
            new.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
            node.replace_all_uses_with(new)
            graph.erase_node(node)


def _nbytes(module: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


class _Recorder(fx.Interpreter):
    """Runs the original; keeps some inputs of the layers at the places, and some of their outputs."""

    def __init__(self, module: fx.GraphModule, places: Mapping[str, Place]) -> None:
        super().__init__(module)
        self._places = places
        self.inputs: dict[str, torch.Tensor] = {}
        self.targets: dict[str, Targets] = {}

    def run_node(self, n: fx.Node) -> Any:
        place = self._places.get(n.name)
        if place is not None:  # before the call, behind which its input may be overwritten
            x = self.env[n.args[0]]  # type: ignore[index]
            self.inputs[n.name] = x[: max(1, min(REGRESSED, ELEMENTS * len(x) // x.numel()))].clone()
        out = super().run_node(n)
        if place is not None:
            weight = self.env[bind(n)["weight"]]
            rows = max(ROWS, 4 * weight[0].numel())
            self.targets[n.name] = Targets.of(out, place.axis, rows=rows)
        return out
