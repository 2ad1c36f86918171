"""Substitution: which operators take layers' places in one candidate, and their weights there."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import fx

from ..capture import fresh
from ..captured_module import CapturedModule
from ..coupling.walk import bind
from ..surgery import Alive, Surgeon
from .counting import Count, count
from .initialise import ROWS, Targets, closest_map, columns_of, refit, regress
from .place import Place, Substitution
from .site import Operator, operator
from .stages import Substitute

BYTES = 128 * 2**20  # of all started substitutes kept
REGRESSED = 256  # samples that curved operators are regressed on, at most, and
ELEMENTS = 2**21  # numbers of them


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
    made = operator(substitution.operator).build(site, substitution.option)
    return count(substitution.standing(made), site.example())


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
        self._maps: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # of branches, by node
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

    def kept(self, place: Place, alive: Alive) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Which of its outputs and inputs stay, int64; ``None``: all, whatever is cut."""
        coupling = self._surgeon.coupling
        if place.around is None:
            labels = coupling.parameters.get(place.weight, (None, None))[:2]
        else:
            labels = (coupling.tensors[place.around.keep][place.axis][1],) * 2
        outputs, inputs = (None if v is None else torch.from_numpy(np.flatnonzero(alive[v])) for v in labels)
        return outputs, inputs

    def weights(
        self, place: Place, alive: Alive, made: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the kept channels: the layer's own, repaired, or of the one linear map that is
        closest to the branch.
        """
        if place.around is None:
            return made[place.weight], None if place.bias is None else made[place.bias]
        if place.node not in self._maps:
            seen = self.recorded()
            self._maps[place.node] = closest_map(
                seen.inputs[place.node], seen.branches[place.node], place.around.kernel
            )
        weight, bias = self._maps[place.node]
        for axis, index in enumerate(self.kept(place, alive)):
            if index is not None:
                weight = weight.index_select(axis, index.to(weight.device))
                bias = bias if axis else bias[index.to(bias.device)]
        return weight, bias

    def started(
        self, wanted: Substitution, alive: Alive, made: Mapping[str, Any], repair: Hashable
    ) -> Substitute:
        """A substitute of its own, not fitted to its inputs yet.

        Args:
            made: weights of the kept channels, after ``repair``, but for the run layer by layer.
        """
        kept = self.kept(wanted.place, alive)
        # The weights follow from what was kept and how it was repaired.
        key = (wanted, repair, *(None if k is None else k.numpy().tobytes() for k in kept))
        if key in self._started:
            self._started.move_to_end(key)
            return copy.deepcopy(self._started[key])
        weight, bias = self.weights(wanted.place, alive, made)
        new = self._start(operator(wanted.operator), wanted, kept, weight.detach(), bias)
        self._started[key] = new
        self._held += _nbytes(new)
        while self._held > BYTES and len(self._started) > 1:
            self._held -= _nbytes(self._started.popitem(last=False)[1])
        return copy.deepcopy(new)

    def _start(
        self,
        op: Operator,
        wanted: Substitution,
        kept: Sequence[torch.Tensor | None],
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> Substitute:
        place, x, through = wanted.place, None, None
        if self._inputs is not None:
            x = self.recorded().inputs[place.node]
            if kept[1] is not None:
                x = x.index_select(place.axis, kept[1].to(x.device))
            through = self.recorded().through.get(place.node)
            if through is not None and kept[0] is not None:
                through = through.index_select(place.axis, kept[0].to(through.device))
        site = place.site(weight, None if bias is None else bias.detach(), x, through)
        with torch.no_grad():
            new = op.build(site, wanted.option)
            op.start(new, site, wanted.option)
        if op.curved and x is not None:
            y = self.recorded().branches.get(place.node)
            if y is not None and kept[0] is not None:
                y = y.index_select(place.axis, kept[0].to(y.device))
            regress(new, x, site(x) if y is None else y)
        return new.eval()


class Planting:
    """The substitutes of one candidate's network, as they come to be.

    Args:
        repair: how its sliced weights are repaired.

    Attributes:
        wanted: by node of the captured graph.
        made: by node.
        installed: calls of them in a built network, by node.
    """

    def __init__(self, store: Substitutions, wanted: Mapping[str, Substitution], repair: Hashable) -> None:
        self._store, self.wanted, self._repair = store, dict(wanted), repair
        self.made: dict[str, Substitute] = {}
        self.installed: dict[str, fx.Node] = {}

    def call(self, node: str, x: torch.Tensor, alive: Alive, made: Mapping[str, Any]) -> torch.Tensor:
        """In the repair's run over the smaller network: fit the substitute for ``node`` to what the original
        gave there, from the inputs ``x`` that it gets now, and call it.

        Beside a branch that is what is missing from what the original's block gave (He et al. 2017, residual
        blocks): ``x + f(x)`` of the original less the ``x`` of now.
        """
        wanted = self.wanted[node]
        place, store = wanted.place, self._store
        new = self._store.started(wanted, alive, made, self._repair)
        outputs = store.kept(place, alive)[0]
        targets = store.recorded().targets[node]
        if outputs is not None:
            targets = targets.kept(outputs)
        targets = targets.first(max(ROWS, 4 * columns_of(new)))
        if place.around is not None:
            targets = replace(targets, values=targets.values - x.movedim(place.axis, -1)[targets.at])
        # A batch norm behind a layer without bias takes its mean from the run.
        refit(new, x, targets, intercept=True)
        self.made[node] = new
        return wanted.standing(new)(x)

    def finish(self, alive: Alive, made: Mapping[str, Any]) -> None:
        """Start those that no run has fitted; a repair step, see :data:`.surgery.Mend`."""
        for node, wanted in self.wanted.items():
            if node not in self.made:
                self.made[node] = self._store.started(wanted, alive, made, self._repair)

    def install(self, network: CapturedModule) -> None:
        """Put them in the places of their calls in a built network; dropped blocks' calls have gone."""
        graph = network.graph
        for node in list(graph.nodes):
            if node.name not in self.wanted:
                continue
            wanted = self.wanted[node.name]
            path = wanted.place.name
            if wanted.place.around is None:
                path = str(bind(node)["weight"].target).rpartition(".")[0] or path
            target = f"{path}.{wanted.operator.replace('-', '_')}"
            network.add_submodule(target, wanted.standing(self.made[node.name]))
            with graph.inserting_before(node):
                new = graph.call_module(target, (node.args[0],))
            new.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
            node.replace_all_uses_with(new)
            self.installed[node.name] = new
            graph.erase_node(node)


def _nbytes(module: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


class _Recorder(fx.Interpreter):
    """Runs the original; keeps some inputs of the layers at the places, and some of their outputs.

    Attributes:
        inputs, targets: by the place's node; of a branch what it reads, and the sum that it goes into.
        branches: what branches gave for ``inputs``.
        through: which outputs for ``inputs`` the ReLU behind a layer let through.
    """

    def __init__(self, module: fx.GraphModule, places: Mapping[str, Place]) -> None:
        super().__init__(module)
        self._places = {p.node if p.around is None else p.around.add: p for p in places.values()}
        self.inputs: dict[str, torch.Tensor] = {}
        self.targets: dict[str, Targets] = {}
        self.branches: dict[str, torch.Tensor] = {}
        self._relus = {p.relu: p.node for p in places.values() if p.relu}
        self.through: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._relus:
            out, behind = super().run_node(n), self._relus[n.name]
            self.through[behind] = out[: len(self.inputs[behind])] > 0
            return out
        place = self._places.get(n.name)
        if place is None:
            return super().run_node(n)
        read = n.args[0] if place.around is None else n.args[1 - place.around.branch]
        x = self.env[read]  # type: ignore[index]
        # Before the call, behind which its input may be overwritten.
        seen = x[: max(1, min(REGRESSED, ELEMENTS * len(x) // x.numel()))].clone()
        out = super().run_node(n)
        if place.around is None:
            rows = max(ROWS, 4 * self.env[bind(n)["weight"]][0].numel())
        else:
            rows = max(ROWS, 4 * place.around.kernel ** len(place.stride) * x.shape[place.axis])
            self.branches[place.node] = out[: len(seen)] - seen
        self.inputs[place.node] = seen
        self.targets[place.node] = Targets.of(out, place.axis, rows=rows)
        return out
