"""Gradients of single samples with respect to a captured network's weights, for the criteria that use them.

**What to take gradients of.** A network that fits its training data has a loss, and gradients, of almost
nothing there, and scores from them rank badly: give ``batches`` that it has not been trained on, or augmented
ones. Without a loss, the targets are the network's own outputs, each moved by independent noise e ~ N(0, 1):
the gradient of 1/2 ||z - (z0 + e)||^2 at z = z0 is that of -<e, z>, whose square averages to the squared change
of all outputs (the Gauss-Newton matrix, Martens 2020, arXiv 1412.1193, section 8). It needs no labels, no
knowledge of what the outputs mean, and does not vanish where the network is sure. The outputs as they are, not
moved, are of no use as targets: every gradient is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..capture import Captured, batch_length, flat_inputs
from ..coupling import Group
from ..coupling.groups import Member
from ..repair.gram import Inputs

SAMPLES = 128  # whose gradients are taken, evenly spaced over the data; each is one pass forth and back

Batch = tuple[tuple[Any, ...], dict[str, Any], Any]  # (args, kwargs, targets)
Loss = Callable[[Any, Any], torch.Tensor]  # (outputs, targets) -> scalar; outputs as the network returns them
Gradients = Mapping[str, torch.Tensor]  # canonical name -> gradient, in the weight's shape


@dataclass(frozen=True)
class Data:
    """What gradients are taken on: batches with targets and their loss, or the network's own outputs."""

    batches: Sequence[Batch] | None = None
    loss: Loss | None = None
    samples: int = SAMPLES
    seed: int = 0  # of the noise, without a loss

    def __post_init__(self) -> None:
        if (self.batches is None) != (self.loss is None):
            raise ValueError(
                "gradients need both batches=[(args, kwargs, targets), ...] and loss(outputs, targets), or "
                "neither, to use the calibration inputs and the network's own outputs"
            )
        if self.batches is not None and not self.batches:
            raise ValueError("gradients need at least one batch, got none")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def gradients(
        self, captured: Captured, names: Sequence[str], calibration: Sequence[Inputs] | None
    ) -> Iterator[dict[str, torch.Tensor]]:
        """One mapping per sample, in eval mode; per captured batch where that has a fixed length.

        Weights that do not reach the loss are left out. Nothing of the model is changed.

        Raises:
            ValueError: neither batches nor calibration, or a loss that is no finite scalar.
        """
        if self.batches is None and not calibration:
            raise ValueError(needs_calibration("gradients"))
        batches = self.batches or [(*inputs, None) for inputs in calibration or ()]
        loss = self.loss or OwnOutputs(seed=self.seed)
        module = captured.graph_module
        leaves = {name: _leaf(module, name) for name in names}
        network = _Network(captured, leaves)
        pieces = [piece for batch in batches for piece in _pieces(captured, batch)]
        picked = np.unique(np.linspace(0, len(pieces) - 1, min(self.samples, len(pieces))).round().astype(int))
        wanted = [name for name in names if leaves[name].requires_grad]
        for i in picked:
            args, kwargs, targets = pieces[i]()
            with torch.enable_grad():
                value = loss(network(args, kwargs), targets)
                if not isinstance(value, torch.Tensor) or value.numel() != 1 or not bool(value.isfinite()):
                    raise ValueError(f"the loss must be one finite number in a tensor, got {value!r}")
                found = torch.autograd.grad(
                    value.reshape(()), [leaves[name] for name in wanted], allow_unused=True
                )
            yield {n: g for n, g in zip(wanted, found, strict=True) if g is not None}


class OwnOutputs:
    """The loss whose targets are the network's own outputs moved by noise (see the module's text)."""

    def __init__(self, *, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, outputs: Any, targets: Any) -> torch.Tensor:
        """<e, z> over all floating outputs; ``targets`` are not looked at."""
        total = torch.zeros(())
        for z in pytree.tree_leaves(outputs):
            if isinstance(z, torch.Tensor) and z.is_floating_point() and z.requires_grad:
                e = torch.randn(z.shape, generator=self._generator, dtype=torch.float32)
                total = total + (e.to(z) * z).sum()
        return total


class GradientCriterion(Protocol):
    """What a criterion made of :class:`Data` does with the weights' gradients."""

    def measure(
        self, captured: Captured, names: Sequence[str], calibration: Sequence[Inputs] | None
    ) -> Callable[[Group, Mapping[str, torch.Tensor]], np.ndarray]: ...


def needs_calibration(what: str) -> str:
    """The message where data is missing."""
    return (
        f"importance by {what} needs calibration data: give space(..., calibration=batches) with "
        "batches = [(args, kwargs), ...], or another importance such as 'l1'"
    )


def readers(group: Group) -> list[Member]:
    """Weights whose entries for a unit vanish when the unit goes: those that read it, else that make it."""
    return [m for m in group.members if m.role == "in"] or group.makers()


def per_unit(values: torch.Tensor, member: Member) -> np.ndarray:
    """Sum of a weight-shaped tensor over each unit's positions and all other axes, float64 [units]."""
    along = values.detach().double().movedim(member.axis, 0).flatten(1).sum(1).numpy()
    return along[member.positions].sum(axis=1)


class _Network(fx.Interpreter):
    """The captured graph with other tensors in place of some weights."""

    def __init__(self, captured: Captured, leaves: Mapping[str, torch.Tensor]) -> None:
        super().__init__(captured.graph_module)
        self._leaves = {id(_attribute(captured.graph_module, name)): leaf for name, leaf in leaves.items()}

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Outputs in the structure that the user's network gives them."""
        flat = self.run(*flat_inputs(self.module, args, kwargs), enable_io_processing=False)
        return self.module.graph.process_outputs(flat)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self._leaves.get(id(value), value)


def _attribute(module: torch.nn.Module, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _leaf(module: torch.nn.Module, name: str) -> torch.Tensor:
    """The weight's values as a tensor of its own, so that frozen weights have gradients too."""
    weight = _attribute(module, name).detach()
    return weight.requires_grad_() if weight.is_floating_point() else weight


def _pieces(captured: Captured, batch: Batch) -> Iterator[Callable[[], Batch]]:
    """Single samples of a batch, or runs of the captured length where the capture fixed it."""
    have = batch_length(batch[0], batch[1])
    if have is None:
        yield lambda: batch
        return
    length = 1 if captured.dynamic_batch else captured.batch
    for start in range(0, max(1, have - length + 1), length):
        rows = torch.arange(start, start + length) % have

        def piece(rows: torch.Tensor = rows) -> Batch:
            return pytree.tree_map(
                lambda t: t[rows] if isinstance(t, torch.Tensor) and t.dim() and len(t) == have else t, batch
            )

        yield piece
