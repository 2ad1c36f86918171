"""Proof by execution: a pruned network must equal the unpruned one whose consumers ignore the removed units.

Two routes, both run on the example with constant parameters randomised:

1. *Each operator*: with every group cut by one unit, by half, at random and to one unit, each operator is
   run on the kept positions of its true inputs. It must give the kept positions of its true output, or,
   where it sums over a pruned axis, of its output on masked inputs. By induction over the graph the pruned
   network is exact; an operator that fails names the groups that it breaks. Where only a single unit is too
   few (a squeeze takes the axis away, an unbiased deviation divides by nothing), the group keeps two.
2. *End to end*: the built artifacts against the masked network, cut by half and at random; the user's own
   module also on meta tensors, cut so that every two groups differ at least once (a forward may rely on two
   widths being equal), and in train mode (it may take other paths there). A forward may branch on a width:
   :func:`own_differs` runs it at the widths that a space offers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from .capture import Captured, flat_inputs, fresh, state_kept, tensors_of
from .coupling import Coupling
from .coupling.groups import Lengths
from .coupling.walk import bind, get_attribute, operator_name, schema
from .modules import relative_difference
from .statistics import over_kept
from .surgery import Alive, Surgeon, rewrite

STEP = 10.0  # one operator may round that much worse than the whole network, relative to its own result


@dataclass(frozen=True)
class Proof:
    """What execution showed."""

    left_out: dict[str, str]  # group -> why it may not be pruned
    own: bool  # the user's own module, sliced, agrees with the captured graph
    own_reason: str  # why not
    largest_difference: float  # end to end, over all accepted groups, relative
    least: dict[str, int] = field(default_factory=dict)  # group -> fewest units that may stay, if not 1


def prove(
    captured: Captured,
    coupling: Coupling,
    surgeon: Surgeon,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Proof:
    """Check every group (see the module's docstring).

    Args:
        progress: called with (operators checked, operators).
    """
    left_out: dict[str, str] = {}
    graph = captured.graph_module
    with torch.no_grad(), no_constant_parameters(graph, coupling, seed):
        inputs = flat_inputs(graph, captured.args, captured.kwargs)
        operators = _Operators(captured, coupling, surgeon, left_out, seed, progress)
        with state_kept(graph):
            operators.run(*inputs, enable_io_processing=False)
        bench = Artifacts(captured, coupling, surgeon)
        for cut in ("half", "random"):
            _joint(coupling, left_out, operators.cuts[cut], bench)
        for part in separating(len(coupling.groups)):
            bench.check_shapes(alive_without(coupling, {g: operators.cuts["one"][g] for g in part}, left_out))
        bench.check_training(alive_without(coupling, operators.cuts["one"], left_out))
    return Proof(left_out, not bench.own_reason, bench.own_reason, bench.worst, operators.least)


def own_differs(
    captured: Captured, coupling: Coupling, surgeon: Surgeon, cuts: Sequence[Alive], *, seed: int = 0
) -> str:
    """Why the user's own module, cut to one of ``cuts``, is not what the captured graph is, or ""."""
    with torch.no_grad(), no_constant_parameters(captured.graph_module, coupling, seed):
        bench = Artifacts(captured, coupling, surgeon)
        return next(filter(None, map(bench.check_own, cuts)), "")


class _Masked(fx.Interpreter):
    """The unpruned network, with removed units masked wherever an operator sums over them.

    Args:
        zeroed: additions of which an operand is multiplied by zero, and which.
    """

    def __init__(
        self, module: fx.GraphModule, coupling: Coupling, alive: Alive, zeroed: Mapping[str, int]
    ) -> None:
        super().__init__(module)
        self._coupling, self._alive, self._zeroed = coupling, alive, zeroed

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._zeroed:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            branch = self._zeroed[n.name]
            args = (*args[:branch], torch.zeros_like(args[branch]), *args[branch + 1 :])
            return n.target(*args, **kwargs)  # type: ignore[operator]
        if n.name in self._coupling.statistics:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            return over_kept(n, args, kwargs, _labels(n.args[0], self._coupling), self._alive)
        return super().run_node(n)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return _masked(n, args, self._coupling, self._alive), kwargs


def _masked(n: fx.Node, args: tuple[Any, ...], coupling: Coupling, alive: Alive) -> tuple[Any, ...]:
    """``args`` of ``n`` with removed positions zeroed along the axes that it sums over."""
    names = [a.name for a in schema(n)]
    for argument, axis in coupling.reads.get(n.name, ()):
        name, _, element = argument.partition(".")
        operand = bind(n)[name][int(element)] if element else bind(n)[name]
        vector = _labels(operand, coupling)[axis]
        if vector is None:
            continue
        at = names.index(name)
        whole = list(args[at]) if element else [args[at]]
        x = whole[int(element or 0)]
        shape = [1] * x.dim()
        shape[axis] = -1
        whole[int(element or 0)] = x * torch.from_numpy(alive[vector]).to(x.dtype).reshape(shape)
        args = (*args[:at], whole if element else whole[0], *args[at + 1 :])
    return args


def _labels(operand: Any, coupling: Coupling) -> tuple[np.ndarray | None, ...]:
    """Labels per axis of a tensor that a node reads."""
    if operand.op == "get_attr":
        return coupling.parameters.get(coupling.canonical[str(operand.target)], ())
    return tuple(v for _, v in coupling.tensors.get(operand.name, ()))


class _Operators(fx.Interpreter):
    """Route 1: runs the network and checks each operator as its true inputs pass by."""

    def __init__(
        self,
        captured: Captured,
        coupling: Coupling,
        surgeon: Surgeon,
        left_out: dict[str, str],
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        super().__init__(captured.graph_module)
        self._coupling, self._constants, self._left_out = coupling, surgeon.constants, left_out
        self._progress, self._done, self._total = progress, 0, len(captured.graph_module.graph.nodes)
        self._group_of = np.full(coupling.units + 1, -1)
        for i, group in enumerate(coupling.groups):
            self._group_of[group.labels] = i
        rng = np.random.default_rng(seed)
        self.cuts = {
            "one": [rng.permutation(g.labels)[:1] for g in coupling.groups],
            "half": [rng.permutation(g.labels)[: max(1, g.size // 2)] for g in coupling.groups],
            "random": [
                rng.permutation(g.labels)[: rng.integers(1, max(g.size - 1, 2))] for g in coupling.groups
            ],
            "last": [rng.permutation(g.labels)[1:] for g in coupling.groups],
        }
        self.least: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
        touched = self._touching(n)
        if n.op != "call_function" or not touched:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if operator_name(n.target)[1]:  # the operator overwrites its first input
            args = (args[0].clone(), *args[1:])
        out = super().run_node(n)
        for kind, cut in self.cuts.items():
            alive = alive_without(self._coupling, cut, self._left_out)
            if not (reason := self._check(n, args, kwargs, out, alive)):
                continue
            blamed = [
                g
                for g in touched
                if self._check(n, args, kwargs, out, alive_without(self._coupling, {g: cut[g]}))
            ]
            for group in (self._coupling.groups[g] for g in blamed or touched):
                if kind == "last" and group.size > 2:
                    self.least[group.name] = 2
                else:
                    self._left_out.setdefault(group.name, reason)
        return out

    def _touching(self, n: fx.Node) -> list[int]:
        """Groups with labels on the node's operands or result."""
        axes = [v for operand in n.all_input_nodes for v in _labels(operand, self._coupling)]
        axes += [v for one in self._results(n) for _, v in one]
        found = {int(g) for v in axes if v is not None for g in np.unique(self._group_of[v])}
        return sorted(found - {-1})

    def _results(self, n: fx.Node) -> list[Lengths]:
        return self._coupling.pieces.get(n.name) or [self._coupling.tensors.get(n.name, ())]

    def _check(
        self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, alive: Alive
    ) -> str:
        """Why the operator is wrong on the kept positions, or ""."""
        if not isinstance(n.target, torch._ops.OpOverload):
            return ""  # reads one of several results; checked where they were made
        if n.name in self._coupling.statistics:
            out = over_kept(n, args, kwargs, _labels(n.args[0], self._coupling), alive)
        masked = _masked(n, args, self._coupling, alive)
        if any(a is not b for a, b in zip(masked, args, strict=True)):
            out = n.target(*masked, **kwargs)
        several = list(out) if isinstance(out, (tuple, list)) else [out]
        expected = [
            _kept(t, tuple(v for _, v in axes), alive) if isinstance(t, torch.Tensor) else t
            for t, axes in zip(several, self._results(n), strict=True)
        ]

        def small(operand: fx.Node) -> Any:
            value = self.env[operand]
            if operator_name(n.target)[1] and operand is n.args[0]:
                value = args[0].clone()
            return (
                _kept(value, _labels(operand, self._coupling), alive)
                if isinstance(value, torch.Tensor)
                else value
            )

        cut_args, cut_kwargs = rewrite(n, self._constants.get(n.name, ()), alive)
        try:
            got = n.target(*fx.node.map_arg(cut_args, small), **fx.node.map_arg(cut_kwargs, small))
        except Exception as error:
            return f"{n.name} does not run on the kept positions: {_line(error)}"
        difference, allowed = relative_difference(
            list(got) if isinstance(got, (tuple, list)) else [got], expected
        )
        return (
            ""
            if difference <= STEP * allowed
            else f"{n.name} differs by {difference:.1e} (relative) once cut"
        )


class Artifacts:
    """Route 2: compares built networks with the masked one."""

    def __init__(self, captured: Captured, coupling: Coupling, surgeon: Surgeon) -> None:
        self._captured, self._coupling, self._surgeon = captured, coupling, surgeon
        self.own_reason = captured.copied.bound
        self.worst = 0.0

    def check(self, alive: Alive, *, own: bool = True) -> str:
        """Why the networks pruned to ``alive`` are wrong, or ""; the user's module only where ``own``."""
        dropped = zip(self._surgeon.blocks, self._surgeon.dropped(alive), strict=True)
        zeroed = {b.add: b.branch for b, is_dropped in dropped if is_dropped}
        masked = _Masked(self._captured.graph_module, self._coupling, alive, zeroed)
        inputs = flat_inputs(self._captured.graph_module, self._captured.args, self._captured.kwargs)
        with state_kept(self._captured.graph_module):
            expected = tensors_of(masked.run(*inputs, enable_io_processing=False))
        try:
            got = self._run(self._surgeon.graph(alive))
        except Exception as error:
            return f"the pruned graph does not run: {_line(error)}"
        difference, allowed = relative_difference(got, expected)
        if not difference <= allowed:
            return f"pruning it changes the output by {difference:.1e} (relative)"
        self.worst = max(self.worst, difference)
        if own and not self.own_reason:
            self.own_reason = self.check_own(alive, got)
        return ""

    def check_own(self, alive: Alive, expected: list[Any] | None = None) -> str:
        """Why the user's own module, pruned to ``alive``, differs from the graph (``expected``), or ""."""
        if expected is None:
            expected = self._run(self._surgeon.graph(alive))
        try:
            off, allowed = relative_difference(self._run(self._surgeon.own(alive)), expected)
        except Exception as error:
            return f"its forward does not run pruned: {_line(error)}"
        return (
            "" if off <= allowed else f"its forward, pruned, differs from the capture by {off:.1e} (relative)"
        )

    def check_shapes(self, alive: Alive) -> None:
        """Run the user's own module, pruned to ``alive``, without computing; settle doubts by computing."""
        if self.own_reason:
            return
        try:
            self._on_meta(self._surgeon.own(alive))
        except Exception:
            self.own_reason = self.check_own(alive)

    def check_training(self, alive: Alive) -> None:
        """Run the user's own module in train mode too, where it may take other paths (auxiliary heads)."""
        if self.own_reason:
            return
        try:
            self._on_meta(self._surgeon.own(np.ones_like(alive)).train())
        except Exception:
            return  # neither does the original, on this example
        try:
            self._on_meta(self._surgeon.own(alive).train())
        except Exception as error:
            self.own_reason = f"its forward does not run pruned in train mode: {_line(error)}"

    def _on_meta(self, module: nn.Module) -> None:
        to_meta = lambda leaf: leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf  # noqa: E731
        args, kwargs = pytree.tree_map(to_meta, (self._captured.args, self._captured.kwargs))
        module.to("meta")(*args, **kwargs)

    def _run(self, module: nn.Module) -> list[Any]:
        args, kwargs = fresh((self._captured.args, self._captured.kwargs))
        return tensors_of(module(*args, **kwargs))


def separating(n: int) -> Iterator[list[int]]:
    """Subsets of range(n) such that for every two members one subset holds the first but not the second."""
    for bit in range(max(n - 1, 1).bit_length()):
        for value in (0, 1):
            yield [g for g in range(n) if (g >> bit) & 1 == value]


def _joint(coupling: Coupling, left_out: dict[str, str], cut: list[np.ndarray], bench: Artifacts) -> None:
    """Cut all accepted groups at once; groups that cannot join the others are left out one by one."""
    if not bench.check(alive_without(coupling, cut, left_out)):
        return
    together: dict[int, np.ndarray] = {}
    for g, labels in enumerate(cut):
        name = coupling.groups[g].name
        if name in left_out:
            continue
        reason = bench.check(alive_without(coupling, {**together, g: labels}))
        if reason:
            left_out[name] = f"together with others: {reason}"
        else:
            together[g] = labels


def alive_without(
    coupling: Coupling, cut: list[np.ndarray] | dict[int, np.ndarray], left_out: dict[str, str] | None = None
) -> Alive:
    """All units but those in ``cut`` (labels by group)."""
    alive = np.ones(coupling.units + 1, dtype=bool)
    for g, labels in cut.items() if isinstance(cut, dict) else enumerate(cut):
        if coupling.groups[g].name not in (left_out or {}):
            alive[labels] = False
    return alive


def _kept(t: torch.Tensor, axes: tuple[np.ndarray | None, ...], alive: Alive) -> torch.Tensor:
    for axis, v in enumerate(axes):
        if v is not None and not alive[v].all():
            t = t.index_select(axis, torch.from_numpy(np.flatnonzero(alive[v])))
    return t


@contextmanager
def no_constant_parameters(graph: fx.GraphModule, coupling: Coupling, seed: int) -> Iterator[None]:
    """Add noise to parameters and statistics whose entries are all equal; undone on leaving.

    A zero-initialised head would make every comparison pass.
    """
    generator = torch.Generator().manual_seed(seed)
    saved: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for name in dict.fromkeys(coupling.canonical.values()):
            tensor = get_attribute(graph, name)
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or not tensor.numel():
                continue
            # A scale of one number is left as it is, but a zero would switch off what it scales.
            if bool((tensor == tensor.flatten()[0]).all()) and (tensor.numel() > 1 or not tensor.any()):
                saved.append((tensor, tensor.detach().clone()))
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.detach().add_(noise.mul(0.2).to(tensor.dtype))
        yield
    finally:
        for tensor, old in saved:
            tensor.detach().copy_(old)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
