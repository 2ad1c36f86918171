"""Site: a dense layer that a compact operator may take the place of, and the contract of such operators."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import entry_points
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from .stages import GroupLinear, Layer, Substitute

GROUP = "netcarve.operators"


class _Unset:
    """A layer that leaves out torch's initialisation, which a start would overwrite."""

    def reset_parameters(self) -> None:
        pass


class _BareConv1d(_Unset, nn.Conv1d): ...


class _BareConv2d(_Unset, nn.Conv2d): ...


class _BareLinear(_Unset, nn.Linear): ...


_BARE: dict[int, tuple[type, type]] = {1: (_BareConv1d, nn.Conv1d), 2: (_BareConv2d, nn.Conv2d)}


@dataclass(frozen=True, eq=False)
class Site:
    """A convolution over one or two axes, or a linear layer (over none), and what is known around it.

    Attributes:
        weight: [outputs, inputs / groups, *kernel].
        size: of the input, spatial axes; for a linear layer one number, the rows it is applied to.
        nonnegative: no input is ever below zero (it comes from a ReLU).
        followed_by_relu: all that reads the outputs, but for a batch norm between, is a ReLU.
        head: outputs of one head, where they are those of heads of attention, one after the other; else 0.
        inputs_seen: real inputs, for starts that depend on the data; ``None`` without calibration.
        through: bool, which outputs for these the ReLU behind lets through; ``None``: those above zero.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    size: tuple[int, ...] = (1,)
    nonnegative: bool = False
    followed_by_relu: bool = False
    inputs_seen: torch.Tensor | None = None
    name: str = ""
    through: torch.Tensor | None = None
    head: int = 0

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        return self.weight.shape[1] * self.groups

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def dims(self) -> int:
        """Number of spatial axes; 0 for a linear layer."""
        return len(self.kernel)

    @property
    def axis(self) -> int:
        """Of the channels, counted from the end."""
        return -1 - self.dims

    @property
    def same(self) -> bool:
        """Whether the output map is the input map's, place by place: stride 1, padded all around."""
        return all(s == 1 for s in self.stride) and self.centred

    @property
    def centred(self) -> bool:
        """Whether the kernel has a centre that padding puts on the input's first place."""
        sizes = zip(self.kernel, self.padding, self.dilation, strict=True)
        return all(k % 2 and p == d * (k // 2) for k, p, d in sizes)

    @cached_property
    def wide(self) -> torch.Tensor:
        """The weight as float64 [outputs, inputs / groups, taps], for closed forms."""
        return self.weight.detach().double().reshape(*self.weight.shape[:2], -1)

    @cached_property
    def variances(self) -> torch.Tensor:
        """Of its inputs' channels, float64 [inputs]; ones where no inputs are known."""
        if self.inputs_seen is None or not len(self.inputs_seen):
            return torch.ones(self.inputs, dtype=torch.float64, device=self.weight.device)
        return self.inputs_seen.movedim(self.axis, -1).flatten(0, -2).double().var(0, correction=0)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Of the output, as :attr:`size`."""
        if not self.dims:
            return self.size
        sides = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer on one sample."""
        return self.weight.numel() * math.prod(self.output_size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs of the layer itself."""
        if not self.dims:
            return functional.linear(x, self.weight, self.bias)
        call = functional.conv2d if self.dims == 2 else functional.conv1d
        return call(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def example(self, batch: int = 1) -> torch.Tensor:
        """Zeros in the shape of its inputs."""
        shape = (batch, self.inputs, *self.size) if self.dims else (batch, *self.size, self.inputs)
        return torch.zeros(shape, dtype=self.weight.dtype, device=self.weight.device)

    def resized(self, outputs: int, inputs: int) -> Site:
        """The same layer at other widths, without weights: for counting."""
        kind = self.weight.dtype
        weight = torch.empty((outputs, inputs // self.groups, *self.kernel), dtype=kind, device="meta")
        bias = None if self.bias is None else torch.empty(outputs, dtype=kind, device="meta")
        return replace(self, weight=weight, bias=bias, inputs_seen=None, through=None)

    # -- layers for substitutes, on the site's device and in its type -----------------------------------

    def pointwise(
        self, inputs: int, outputs: int, *, bias: bool = False, groups: int = 1, strided: bool = False
    ) -> Layer:
        """A 1x1 convolution or a linear layer.

        Args:
            strided: it has the site's stride.
        """
        if not self.dims:
            if groups > 1:
                return GroupLinear(inputs, outputs, groups, bias=bias).to(self.weight)
            made: nn.Linear = _BareLinear(
                inputs, outputs, bias, device=self.weight.device, dtype=self.weight.dtype
            )
            made.__class__ = nn.Linear
            return made
        stride = self.stride if strided else (1,) * self.dims
        return self._convolution(inputs, outputs, (1,) * self.dims, stride, None, None, groups, bias)

    def spatial(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = False,
        groups: int = 1,
        along: Sequence[int] | None = None,
        everywhere: bool = False,
    ) -> nn.Conv1d | nn.Conv2d:
        """A convolution with the site's kernel, padding, dilation and stride.

        Args:
            along: the spatial axes on which it has them; on the others its kernel is 1. Default: all.
            everywhere: it has the site's stride on the other axes too.
        """
        on = [along is None or axis in along for axis in range(self.dims)]

        def pick(values: tuple[int, ...], other: int) -> tuple[int, ...]:
            return tuple(v if here else other for v, here in zip(values, on, strict=True))

        stride = self.stride if everywhere else pick(self.stride, 1)
        return self._convolution(
            inputs,
            outputs,
            pick(self.kernel, 1),
            stride,
            pick(self.padding, 0),
            pick(self.dilation, 1),
            groups,
            bias,
        )

    def like(self, inputs: int, outputs: int, *, groups: int = 1, bias: bool = False) -> Layer:
        """A layer of the site's own form: its kernel, stride, padding and dilation, or a linear one."""
        make = self.spatial if self.dims else self.pointwise
        return make(inputs, outputs, groups=groups, bias=bias)

    def _convolution(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...] | None,
        dilation: tuple[int, ...] | None,
        groups: int,
        bias: bool,
    ) -> nn.Conv1d | nn.Conv2d:
        bare, plain = _BARE[self.dims]
        made = bare(
            inputs,
            outputs,
            kernel,
            stride,
            padding or (0,) * self.dims,
            dilation or (1,) * self.dims,
            groups,
            bias,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        made.__class__ = plain
        return made


class Operator(ABC):
    """A compact operator that can take a dense layer's place, of one published system.

    An operator has no state. It says where it applies, at which sizes, and how its weights start from the
    layer's; costs are counted from what it builds, and refitting and regression (:mod:`.initialise`) are the
    same for all. An entry point in ``netcarve.operators`` makes it known.

    Attributes:
        name: as users ask for it.
        source: the publication.
        curved: there is a non-linearity inside, or weights in many places for which least squares does not
            solve, so that regression comes before the refit.
        by_name: it is offered only where it is named, and then at all its sizes: what it saves shows
            neither in multiply-accumulates nor in bytes, or does not become time on most machines.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    curved: ClassVar[bool] = False
    by_name: ClassVar[bool] = False

    def refuses(self, site: Site) -> str:
        """Why it cannot take the layer's place, in words that follow the layer's name; empty where it can."""
        return ""

    @abstractmethod
    def options(self, site: Site) -> Sequence[float]:
        """Its sizes at this site: shares, multipliers or numbers, as the class says; maybe none."""

    @abstractmethod
    def build(self, site: Site, option: float) -> Substitute:
        """The modules, on the site's device and in its type; :meth:`start` sets their weights.

        Any option may be asked for at any width: sizes that a pruned site cannot have are made the nearest
        that it can. The site's weight may be on the device ``meta``: only its shape may be read.
        """

    @abstractmethod
    def start(self, new: Substitute, site: Site, option: float) -> None:
        """Set the weights of what :meth:`build` gave from the site's, in closed form, in place."""

    def exact(self, site: Site) -> float | None:
        """The option at which it computes what any layer does; ``None`` where there is none."""
        return None


def known_operators() -> list[str]:
    """Names of the installed operators, sorted."""
    return sorted(entry_points(group=GROUP).names)


@cache
def operator(name: str) -> Operator:
    """The operator that an installed package declares under ``name``.

    Raises:
        ValueError: no package declares it, or what it names cannot be imported.
    """
    for entry in entry_points(group=GROUP, name=name):
        try:
            return entry.load()()
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"the operator {name!r} is declared as {entry.value}, which cannot be imported ({error}); "
                "`pip install -e .` in its folder renews the entry points of a package just updated"
            ) from error
    raise ValueError(f"unknown operator {name!r}; known are {', '.join(known_operators())}")


def conv_reason(site: Site, *, kernel: bool = True) -> str:
    """Why an operator over the taps of a dense convolution cannot stand for this layer; empty where it can.

    Args:
        kernel: it needs more than one tap.
    """
    if site.groups > 1:
        return f"has {site.groups} groups already"
    if kernel and site.taps == 1:
        return "has one tap: there is nothing to separate in space"
    return ""


def map_reason(site: Site) -> str:
    """The same for one that reads places around the output's own: the kernel's padding must be centred."""
    if not site.dims:
        return "is linear: there is no map"
    return conv_reason(site) or ("" if site.centred else "has a kernel without a centre on its input")


def put(parameter: torch.Tensor | None, value: torch.Tensor | None) -> None:
    """Set a parameter of a started substitute, where there is one (a bias may be none)."""
    if parameter is not None and value is not None:
        parameter.data.copy_(value.reshape(parameter.shape))


def share_of(full: int, option: float) -> int:
    """A rank, at least 1, from a share of the full one."""
    return max(1, min(full, round(full * option)))
