"""Recurrent layers in repair: stacks taken apart, as consumers of what is cut, and fitted cell by cell.

A stack of LSTM or GRU layers is one node of the captured graph. Here it runs layer by layer and direction by
direction (a *cell*), so that what each cell reads is seen: the input of layer k + 1 is what layer k gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from ..coupling import Coupling
from ..coupling.walk import bind, operator_name
from .sources import OUTPUT, MomentSource

Found = tuple[str, fx.Node, tuple[str, float] | None, Any, MomentSource]  # weight, call, offset, key, source
Visit = Callable[[int, torch.Tensor, torch.Tensor], None]


class Stack:
    """An LSTM or GRU node as single layers that run in one direction, numbered as their parameters are.

    Attributes:
        joint: gates whose two products, of input and of state, only meet as a sum; they come first. The new
            gate of a GRU scales that of the state.
    """

    def __init__(self, n: fx.Node) -> None:
        bound = bind(n)
        self.node = n
        self.input: fx.Node = bound["input"]
        self.states: list[fx.Node] = list(bound["hx"]) if _is_lstm(n) else [bound["hx"]]
        self.params: list[fx.Node] = list(bound["params"])
        self.gates, self.joint = (4, 4) if _is_lstm(n) else (3, 2)
        self.biased, self.batch_first = bool(bound["has_biases"]), bool(bound["batch_first"])
        self.each = 4 if self.biased else 2
        self.directions = 2 if bound["bidirectional"] else 1
        self.cells = bound["num_layers"] * self.directions

    def names(self, coupling: Coupling, cell: int) -> list[str]:
        """Canonical names of a cell's parameters: W_ih, W_hh and, where it has them, b_ih, b_hh."""
        mine = self.params[cell * self.each : (cell + 1) * self.each]
        return [coupling.canonical[str(p.target)] for p in mine]

    def values(
        self, env: Mapping[fx.Node, Any]
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Input, states and parameters of the running network."""
        return env[self.input], [env[s] for s in self.states], [env[p] for p in self.params]

    def run(
        self,
        x: torch.Tensor,
        states: Sequence[torch.Tensor],
        params: Sequence[torch.Tensor],
        *,
        before: Visit | None = None,
        after: Visit | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """What the node returns.

        Args:
            x: [steps, batch, inputs], or [batch, steps, inputs] where the batch is first.
            states: h, and c of an LSTM, each [cells, batch, units].
            before: gets each cell's number, input and first state h [1, batch, units] before it runs, and may
                change ``params`` in place.
            after: gets each cell's number, input and output.
        """
        finals: list[tuple[torch.Tensor, ...]] = []
        for layer in range(0, self.cells, self.directions):
            made = []
            for cell in range(layer, layer + self.directions):
                first = [s[cell : cell + 1] for s in states]
                if before is not None:
                    before(cell, x, first[0])
                out, *last = self.one(cell, x, first, params)
                if after is not None:
                    after(cell, x, out)
                made.append(out)
                finals.append(tuple(last))
            x = torch.cat(made, -1)
        return x, *(torch.cat(one) for one in zip(*finals, strict=True))

    def one(
        self, cell: int, x: torch.Tensor, states: Sequence[torch.Tensor], params: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Output and last states of one cell; one that runs backwards has its output in the input's order."""
        back = cell % self.directions
        hx = tuple(states) if self.gates == 4 else states[0]
        mine = list(params[cell * self.each : (cell + 1) * self.each])
        told = mine, self.biased, 1, 0.0, False, False, self.batch_first
        out, *last = self.node.target(x.flip(self.time) if back else x, hx, *told)  # type: ignore[operator]
        return (out.flip(self.time) if back else out), *last

    @property
    def time(self) -> int:
        """Axis of the steps."""
        return 1 if self.batch_first else 0

    def previous(self, cell: int, out: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """What each step of a cell read of the state, shaped as its output; ``first`` [1, batch, units]."""
        h = first.transpose(0, 1) if self.batch_first else first
        steps = out.shape[self.time]
        if cell % self.directions:
            return torch.cat([out.narrow(self.time, 1, steps - 1), h], self.time)
        return torch.cat([h, out.narrow(self.time, 0, steps - 1)], self.time)


def stack_of(n: fx.Node, coupling: Coupling) -> Stack | None:
    """The node taken apart, if it is a recurrent layer whose units are followed."""
    if n.op != "call_function" or operator_name(n.target)[0] not in ("lstm", "gru"):
        return None
    bound = bind(n)
    if n.name not in coupling.reads or bound["input"].name not in coupling.tensors:
        return None
    held = all(str(p.target) in coupling.canonical for p in bound.get("params", ()))
    return Stack(n) if held else None


def recurrent(graph: fx.Graph, coupling: Coupling, users: dict[str, set[fx.Node]]) -> Iterator[Found]:
    """Weights of LSTM and GRU nodes that sum over removable units.

    W_ih reads the node's input or the layer below, and its constant goes into b_ih. W_hh reads the state of
    its own cell: h_t stands for h_{t-1}, and without an intercept, since h_0 is zero.
    """
    for n in graph.nodes:
        stack = stack_of(n, coupling)
        if stack is None:
            continue
        axes = coupling.tensors[stack.input.name]
        for cell in range(stack.cells):
            w_ih, w_hh, *biases = stack.names(coupling, cell)
            layer, direction = divmod(cell, stack.directions)
            labels = coupling.parameters[w_ih][1]
            if layer:
                read, key = f"{OUTPUT}.{layer - 1}", (n.name, f"{OUTPUT}.{layer - 1}")
            else:
                read, key = "input", (stack.input.name, len(axes) - 1, 1, None)  # type: ignore[assignment]
            if labels is not None and users[w_ih] == {n} and (layer or axes[-1][1] is not None):
                bias = biases[0] if biases and users[biases[0]] == {n} else None
                source = MomentSource(((n.name, read),), -1, 1, None, np.asarray(labels))
                yield w_ih, n, None if bias is None else (bias, 1.0), key, source
            labels = coupling.parameters[w_hh][1]
            if labels is not None and users[w_hh] == {n}:
                read = f"{OUTPUT}.{layer}.{direction}"
                source = MomentSource(((n.name, read),), -1, 1, None, np.asarray(labels))
                yield w_hh, n, None, (n.name, read), source


def outputs(
    stack: Stack, x: torch.Tensor, states: Sequence[torch.Tensor], params: Sequence[torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """What the node returns, and by the name that sources have for it what its layers and cells give."""
    seen: dict[str, torch.Tensor] = {}

    def after(cell: int, x: torch.Tensor, out: torch.Tensor) -> None:
        layer, direction = divmod(cell, stack.directions)
        seen[f"{OUTPUT}.{layer}.{direction}"] = out
        if direction == 0 and layer:
            seen[f"{OUTPUT}.{layer - 1}"] = x

    return stack.run(x, states, params, after=after), seen


def _is_lstm(n: fx.Node) -> bool:
    return operator_name(n.target)[0] == "lstm"
