"""Proof by execution: pruning a unit must equal zeroing what its consumers read of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from .capture import Captured
from .coupling import Coupling
from .coupling.walk import bind, get_attribute
from .surgery import Alive, Surgeon

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # largest difference / largest output
LOOSE = 1e-2  # half precision


@dataclass(frozen=True)
class Proof:
    """What execution showed."""

    left_out: dict[str, str]  # group -> why it may not be pruned
    own: bool  # the user's own module, sliced, agrees with the captured graph
    own_reason: str  # why not
    largest_difference: float  # over all accepted groups, relative


class Reference(fx.Interpreter):
    """The unpruned network, with removed units masked wherever an operator sums over them."""

    def __init__(self, module: fx.GraphModule, coupling: Coupling, alive: Alive) -> None:
        super().__init__(module)
        self._coupling = coupling
        self._alive = torch.from_numpy(alive)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        for argument, axis in self._coupling.reads.get(n.name, ()):
            operand = bind(n)[argument]
            vector = self._labels(operand, axis)
            if vector is None:
                continue
            names = [a.name for a in n.target._schema.arguments]  # type: ignore[union-attr]
            at = names.index(argument)
            x = args[at]
            mask = self._alive[torch.from_numpy(vector)].to(x.dtype)
            shape = [1] * x.dim()
            shape[axis] = -1
            args = (*args[:at], x * mask.reshape(shape), *args[at + 1 :])
        return args, kwargs

    def _labels(self, operand: fx.Node, axis: int) -> np.ndarray | None:
        if operand.op == "get_attr":
            return self._coupling.parameters.get(self._coupling.canonical[str(operand.target)], ())[axis]
        return self._coupling.tensors[operand.name][axis][1]


def prove(
    captured: Captured,
    coupling: Coupling,
    surgeon: Surgeon,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Proof:
    """Prune each group by one unit, then all together by half and at random, and compare.

    Constant parameters are randomised meanwhile: a zero-initialised head would make every check pass.

    Args:
        progress: called with (groups done, groups).
    """
    rng = np.random.default_rng(seed)
    left_out: dict[str, str] = {}
    with torch.no_grad(), _no_constant_parameters(captured.graph_module, coupling, seed):
        bench = _Bench(captured, coupling, surgeon)
        for done, group in enumerate(coupling.groups):
            # A unit without any effect on the output proves nothing: try others.
            for unit in rng.permutation(group.size)[:3]:
                alive = np.ones(coupling.units + 1, dtype=bool)
                alive[group.labels[unit]] = False
                reason, effect = bench.check(alive)
                if reason:
                    left_out[group.name] = reason
                if reason or effect:
                    break
            if progress is not None:
                progress(done + 1, len(coupling.groups))
        for fractions in (np.full(len(coupling.groups), 0.5), rng.uniform(0.1, 0.9, len(coupling.groups))):
            _joint(coupling, left_out, fractions, bench)
    return Proof(left_out, not bench.own_reason, bench.own_reason, bench.worst)


class _Bench:
    """Compares pruned artifacts with the masked reference, and keeps what was learned."""

    def __init__(self, captured: Captured, coupling: Coupling, surgeon: Surgeon) -> None:
        self._captured, self._coupling, self._surgeon = captured, coupling, surgeon
        graph = captured.graph_module
        self._inputs = graph.graph._codegen.process_inputs(*captured.args, **captured.kwargs)
        self._full = self._run(graph)
        self.own_reason = ""
        self.worst = 0.0

    def check(self, alive: Alive) -> tuple[str, bool]:
        """Why pruning to ``alive`` is wrong ("" when right), and whether it changes the output at all."""
        reference = Reference(self._captured.graph_module, self._coupling, alive)
        expected = pytree.tree_leaves(reference.run(*self._inputs, enable_io_processing=False))
        try:
            got = self._run(self._surgeon.graph(alive))
        except Exception as error:
            return f"the pruned graph does not run: {_line(error)}", False
        difference, allowed = relative_difference(got, expected)
        if not difference <= allowed:
            return f"pruning it changes the output by {difference:.1e} (relative)", True
        self.worst = max(self.worst, difference)
        if not self.own_reason:
            self.own_reason = self._check_own(alive, got)
        return "", relative_difference(got, self._full)[0] > 0

    def _check_own(self, alive: Alive, expected: list[Any]) -> str:
        try:
            off, allowed = relative_difference(self._run(self._surgeon.own(alive)), expected)
        except Exception as error:
            return f"its forward does not run pruned: {_line(error)}"
        return (
            ""
            if off <= allowed
            else f"its forward, pruned, differs from the captured graph by {off:.1e} (relative)"
        )

    def _run(self, module: nn.Module) -> list[Any]:
        return pytree.tree_leaves(module(*self._captured.args, **self._captured.kwargs))


def _joint(coupling: Coupling, left_out: dict[str, str], fractions: np.ndarray, bench: _Bench) -> None:
    """Prune all accepted groups at once; groups that cannot join the others are left out one by one."""

    def alive_for(names: list[str]) -> Alive:
        alive = np.ones(coupling.units + 1, dtype=bool)
        for group, fraction in zip(coupling.groups, fractions, strict=True):
            if group.name in names:
                alive[group.labels[: min(group.size - 1, max(1, int(group.size * fraction)))]] = False
        return alive

    accepted = [g.name for g in coupling.groups if g.name not in left_out]
    if not bench.check(alive_for(accepted))[0]:
        return
    together: list[str] = []
    for name in accepted:
        reason, _ = bench.check(alive_for([*together, name]))
        if reason:
            left_out[name] = f"together with others: {reason}"
        else:
            together.append(name)


def relative_difference(got: list[Any], expected: list[Any]) -> tuple[float, float]:
    """Largest absolute difference over the largest absolute output, and what its type allows."""
    worst, allowed = 0.0, 0.0
    pairs = [(g, e) for g, e in zip(got, expected, strict=True) if isinstance(e, torch.Tensor)]
    for g, e in pairs:
        if g.shape != e.shape:
            return float("inf"), 0.0
        if not e.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(g, e) else float("inf"))
            continue
        scale = float(e.abs().max()) or 1.0
        worst = max(worst, float((g - e).abs().max()) / scale)
        allowed = max(allowed, TOLERANCE.get(e.dtype, LOOSE))
    return worst, allowed


@contextmanager
def _no_constant_parameters(graph: fx.GraphModule, coupling: Coupling, seed: int) -> Iterator[None]:
    """Add noise to parameters and statistics whose entries are all equal; undone on leaving."""
    generator = torch.Generator().manual_seed(seed)
    saved: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for name in dict.fromkeys(coupling.canonical.values()):
            tensor = get_attribute(graph, name)
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            if bool((tensor == tensor.flatten()[0]).all()):
                saved.append((tensor, tensor.detach().clone()))
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.detach().add_(noise.mul(0.2).to(tensor.dtype))
        yield
    finally:
        for tensor, old in saved:
            tensor.detach().copy_(old)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
