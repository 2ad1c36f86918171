"""Stages of compact operators: the modules that substitutes are made of, beside torch's own layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def exporting() -> bool:
    """Whether a call is being written to a file: then by operations that all runtimes know."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


class Gather(nn.Module):
    """Channels in another order, some of them, or some of them several times.

    Args:
        index: [outputs] int64, which channel of the input each one of the output is.
        axis: of the channels, counted from the end.
    """

    index: torch.Tensor

    def __init__(self, index: torch.Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("index", index.to(torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_select(self.axis, self.index)


def shuffle(channels: int, groups: int) -> torch.Tensor:
    """Index of a channel shuffle: view as (groups, channels / groups), transpose, flatten (Zhang et al. 2018,
    arXiv 1707.01083, section 3.1). Its inverse is ``shuffle(channels, channels // groups)``.
    """
    if channels % groups:
        raise ValueError(f"{channels} channels do not fall into {groups} equal groups")
    return torch.arange(channels).view(groups, -1).T.reshape(-1)


class Shift(nn.Module):
    """Every channel moved by whole pixels, zeros where nothing moves in: no weights, no multiplications.

    Wu et al. 2018, arXiv 1711.08141, section 3. ``y[c, i, j] = x[c, i + a_c, j + b_c]``, as a depthwise
    convolution whose kernel is one at ``(a_c, b_c)`` from its centre.

    Args:
        displacements: one ``(a, b)`` for each channel, or ``(a,)`` for one spatial axis. Neighbours of equal
            displacement move together, so sorted ones are fastest.
        reach: the farthest that any moves along each axis; default: as far as any does.

    Attributes:
        moves: the displacements as int16 [channels, axes], for the state; loading one moves the channels.
    """

    moves: torch.Tensor

    def __init__(self, displacements: Sequence[Sequence[int]], reach: Sequence[int] | None = None) -> None:
        super().__init__()
        self._reach: list[int] = [] if reach is None else list(reach)
        self.register_buffer("moves", torch.tensor(displacements, dtype=torch.int16))
        self.move(displacements)

    def move(self, displacements: Sequence[Sequence[int]]) -> None:
        """Set other displacements of as many channels."""
        self.displacements = [tuple(int(d) for d in one) for one in displacements]
        self._runs = [(moved, len(list(run))) for moved, run in groupby(self.displacements)]
        if not self._reach:
            self._reach = [max(abs(d[i]) for d in self.displacements) for i in range(self.dims)]
        self.moves.copy_(torch.tensor(self.displacements, dtype=torch.int16))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state, prefix, *others)
        self.move(self.moves.tolist())

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return len(self.displacements[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(x, [reach for reach in reversed(self._reach) for _ in range(2)])
        moved, at = [], 0
        for displacement, channels in self._runs:
            part = padded.narrow(1, at, channels)
            for axis, (by, reach) in enumerate(zip(displacement, self._reach, strict=True), start=2):
                stop = by - reach
                part = part[(slice(None),) * axis + (slice(reach + by, stop if stop else None),)]
            moved.append(part)
            at += channels
        return torch.cat(moved, 1)


class Masked(nn.Module):
    """A layer whose weight is multiplied by a fixed mask of its shape, or of its leading axes.

    It multiplies as many numbers as the layer does: masks save nothing until something skips what they clear.
    """

    mask: torch.Tensor

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Linear, mask: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        weight = layer.weight
        if mask.shape != weight.shape[: mask.dim()]:
            raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit {tuple(weight.shape)}")
        shaped = mask.reshape(*mask.shape, *[1] * (weight.dim() - mask.dim())).expand_as(weight)
        self.register_buffer("mask", shaped.to(weight.dtype).clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.layer.weight * self.mask
        if isinstance(self.layer, nn.Linear):
            return functional.linear(x, weight, self.layer.bias)
        return self.layer._conv_forward(x, weight, self.layer.bias)


class Cat(nn.Module):
    """Branches that read one input, their outputs one after the other."""

    def __init__(self, *branches: nn.Module, axis: int) -> None:
        super().__init__()
        self.branches, self.axis = nn.ModuleList(branches), axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = [branch(x) for branch in self.branches]
        return made[0] if len(made) == 1 else torch.cat(made, self.axis)


class Sum(nn.Module):
    """Branches that read one input, their outputs added up."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total


class Gated(nn.Module):
    """A layer's outputs times those of a gate that reads the same input."""

    def __init__(self, layer: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.layer, self.gate = layer, gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.gate(x)


class GroupLinear(nn.Module):
    """A linear layer in groups that do not mix: what a grouped 1x1 convolution is, over the last axis.

    Attributes:
        weight: [outputs, inputs / groups, 1].
    """

    def __init__(self, inputs: int, outputs: int, groups: int, *, bias: bool = True) -> None:
        super().__init__()
        if inputs % groups or outputs % groups:
            raise ValueError(f"{groups} groups do not divide {inputs} inputs and {outputs} outputs")
        self.in_features, self.out_features, self.groups = inputs, outputs, groups
        self.weight = nn.Parameter(torch.zeros(outputs, inputs // groups, 1))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.in_features, 1)
        y = functional.conv1d(flat, self.weight, self.bias, groups=self.groups)
        return y.reshape(*x.shape[:-1], self.out_features)


Layer = nn.Conv1d | nn.Conv2d | nn.Linear | GroupLinear


class Tail(nn.Module):
    """The last, linear stage of a substitute, or one of several: refitting solves for its weights.

    Args:
        layer: dense or grouped.
        before: picks what it reads.
    """

    def __init__(self, layer: Layer, before: Gather | None = None) -> None:
        super().__init__()
        self.before, self.layer = before, layer

    def reads(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer reads, from what the front gives."""
        return x if self.before is None else self.before(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.reads(x))


class Computed(nn.Module):
    """A layer whose weight is made from fewer numbers at every call: it saves bytes, not multiplications.

    Args:
        layer: of its form; the weight goes.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.out_features, self.bias = len(layer.weight), layer.bias
        self._form: tuple[tuple[int, ...], ...] = ()
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            around: tuple[int, ...] = layer.padding  # type: ignore[assignment]  # never a word here
            self._form = (layer.stride, around, layer.dilation)

    def weight(self) -> torch.Tensor:
        """In the layer's shape."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._form:
            return functional.linear(x, self.weight(), self.bias)
        call = functional.conv2d if len(self._form[0]) == 2 else functional.conv1d
        stride, padding, dilation = self._form
        return call(x, self.weight(), self.bias, stride, padding, dilation)


class Substitute(nn.Module):
    """A compact operator in a layer's place: a front, then tails side by side, their outputs in order.

    Attributes:
        tails: of :class:`Tail` where weights may be refitted; other modules stay as they are.
        order: of the outputs, where the tails do not give them as the layer did.
    """

    def __init__(self, front: nn.Module, *tails: nn.Module, axis: int, order: Gather | None = None) -> None:
        super().__init__()
        self.front, self.tails, self.order, self.axis = front, nn.ModuleList(tails), order, axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        read = self.front(x)
        made = [tail(read) for tail in self.tails]
        whole = made[0] if len(made) == 1 else torch.cat(made, self.axis)
        return whole if self.order is None else self.order(whole)

    @property
    def layers(self) -> list[Layer]:
        """Its convolutions and linear layers as they were put in: those of the front, then of the tails."""
        return [m for m in self.modules() if isinstance(m, Layer)]

    def outputs(self) -> list[torch.Tensor]:
        """By tail, which outputs of the layer it gives, int64; -1 for those that nobody takes."""
        sizes = [outputs_of(tail) for tail in self.tails]
        place = torch.arange(sum(sizes))
        if self.order is not None:
            index = self.order.index.cpu()
            place.fill_(-1)[index] = torch.arange(len(index))
        return list(place.split(sizes))


def outputs_of(tail: nn.Module) -> int:
    """Channels that a tail gives; one that is none of ours says so in ``out_features``."""
    if isinstance(tail, Gather):
        return len(tail.index)
    layer = tail.layer if isinstance(tail, Tail) else tail
    return int(layer.out_channels if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else layer.out_features)  # type: ignore[arg-type]


ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardtanh": nn.Hardtanh}


class Bypass(nn.Module):
    """A substitute beside a shortcut: ``act(x + g(x))``."""

    def __init__(self, beside: Substitute, activation: Sequence[Any] = ()) -> None:
        super().__init__()
        self.beside = beside
        self.activation = ACTIVATIONS[activation[0]](*activation[1:]) if activation else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x + self.beside(x))
