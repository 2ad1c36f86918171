"""Whole compact networks as published, from torch's layers and the stages of the operators.

Counts of parameters and multiply-accumulates are those of the papers, or of reference implementations where a
paper gives none; weights are random. Inputs are [batch, 3, 224, 224] unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .connected import regular
from .stages import Cat, Gather, Masked, Shift, Sum, shuffle

CHANNELS = -3  # axis of the channels of a picture, counted from the end


def norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    active: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution without bias, batch norm, and what is given behind them."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), *([] if active is None else [active]))


def head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


# -- SqueezeNet: Iandola et al. 2016, arXiv 1602.07360 --------------------------------------------------


def fire(inputs: int, between: int, each: int) -> nn.Sequential:
    """1x1 to ``between`` channels, ReLU, then ``each`` outputs by 1x1 and as many by 3x3, ReLU."""
    expand = Cat(nn.Conv2d(between, each, 1), nn.Conv2d(between, each, 3, padding=1), axis=CHANNELS)
    return nn.Sequential(nn.Conv2d(inputs, between, 1), nn.ReLU(), expand, nn.ReLU())


_FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))


def squeezenet(version: str = "1.0", classes: int = 1000) -> nn.Sequential:
    """
    Args:
        version: ``"1.0"`` or ``"1.1"`` (a smaller stem, and pools earlier).

    Raises:
        ValueError: another version.
    """
    if version not in ("1.0", "1.1"):
        raise ValueError(f"versions of SqueezeNet are '1.0' and '1.1', got {version!r}")
    first = version == "1.0"
    width, pools = (96, {0, 3, 7}) if first else (64, {0, 2, 4})
    stem = nn.Conv2d(3, width, 7 if first else 3, 2)
    layers: list[nn.Module] = [stem, nn.ReLU()]
    for number, (between, each) in enumerate(_FIRES):
        if number in pools:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        layers.append(fire(width, between, each))
        width = 2 * each
    layers += [nn.Dropout(), nn.Conv2d(width, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


# -- MobileNet: Howard et al. 2017, arXiv 1704.04861; X-MobileNet: Prabhu et al. 2018, arXiv 1711.08757 --

_MOBILE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def expanded(layer: nn.Conv2d, expand: int, *, seed: int = 0) -> nn.Module:
    """A layer whose outputs read each ``1 / expand`` of the inputs, a regular random graph, as a mask."""
    degree = max(1, layer.in_channels // expand)
    index = torch.from_numpy(regular(layer.out_channels, layer.in_channels, degree, seed=seed))
    mask = torch.zeros(layer.out_channels, layer.in_channels).scatter_(1, index, 1.0)
    return Masked(layer, mask)


def mobilenet(alpha: float = 1.0, classes: int = 1000, *, expand: int = 1) -> nn.Sequential:
    """
    Args:
        alpha: multiplies all widths.
        expand: of X-MobileNet: every 1x1 layer but the first reads this fraction of its inputs, by masks.
    """
    width = int(32 * alpha)
    layers = [norm(3, width, 3, 2, active=nn.ReLU())]
    for number, (wide, stride) in enumerate(_MOBILE):
        wide = int(wide * alpha)
        layers.append(norm(width, width, 3, stride, width, nn.ReLU()))
        point = norm(width, wide, active=nn.ReLU())
        if expand > 1 and number:
            point[0] = expanded(point[0], expand, seed=number)  # type: ignore[arg-type]
        layers.append(point)
        width = wide
    return nn.Sequential(*layers, *head(width, classes))


# -- MobileNetV2: Sandler et al. 2018, arXiv 1801.04381 -------------------------------------------------

# expansion, width, blocks, stride of the first
_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def inverted_residual(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
    """1x1, 3x3 depthwise, linear 1x1; a shortcut where shapes allow."""
    inner = inputs * expansion
    layers = [norm(inputs, inner, active=nn.ReLU6())] if expansion > 1 else []
    layers += [norm(inner, inner, 3, stride, inner, nn.ReLU6()), norm(inner, outputs)]
    block = nn.Sequential(*layers)
    return Sum(nn.Identity(), block) if stride == 1 and inputs == outputs else block


def mobilenet_v2(classes: int = 1000) -> nn.Sequential:
    width = 32
    layers: list[nn.Module] = [norm(3, width, 3, 2, active=nn.ReLU6())]
    for expansion, wide, blocks, first in _V2:
        for number in range(blocks):
            layers.append(inverted_residual(width, wide, 1 if number else first, expansion))
            width = wide
    layers.append(norm(width, 1280, active=nn.ReLU6()))
    pool, flat, linear = head(1280, classes)
    return nn.Sequential(*layers, pool, flat, nn.Dropout(0.2), linear)


# -- ShuffleNet: Zhang et al. 2018, arXiv 1707.01083 ----------------------------------------------------

SHUFFLE_WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # of the first stage, by groups


def shuffle_unit(inputs: int, outputs: int, groups: int, stride: int, first: int | None = None) -> nn.Module:
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, beside a shortcut; with stride 2 beside a pool.

    Args:
        first: groups of the first layer, where it has others.
    """
    branch = outputs - inputs if stride == 2 else outputs
    between = outputs // 4
    inner = nn.Sequential(
        norm(inputs, between, groups=groups if first is None else first, active=nn.ReLU()),
        Gather(shuffle(between, groups), CHANNELS),
        norm(between, between, 3, stride, between),
        norm(between, branch, groups=groups),
    )
    if stride == 2:
        return nn.Sequential(Cat(nn.AvgPool2d(3, 2, 1), inner, axis=CHANNELS), nn.ReLU())
    return nn.Sequential(Sum(nn.Identity(), inner), nn.ReLU())


def shufflenet(groups: int = 3, classes: int = 1000) -> nn.Sequential:
    """
    Args:
        groups: 1, 2, 3, 4 or 8.

    Raises:
        ValueError: another number of groups.
    """
    if groups not in SHUFFLE_WIDTHS:
        raise ValueError(f"ShuffleNet has 1, 2, 3, 4 or 8 groups, got {groups}")
    width = 24
    layers: list[nn.Module] = [norm(3, width, 3, 2, active=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    for stage, units in enumerate((4, 8, 4)):
        wide = SHUFFLE_WIDTHS[groups] * 2**stage
        for number in range(units):
            first = 1 if stage == number == 0 else None
            layers.append(shuffle_unit(width, wide, groups, 1 if number else 2, first))
            width = wide
    return nn.Sequential(*layers, *head(width, classes))


# -- ShuffleNetV2: Ma et al. 2018, arXiv 1807.11164 -----------------------------------------------------

V2_WIDTHS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


def shuffle_unit_v2(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Half of the channels as they are, the other half by 1x1, depthwise 3x3, 1x1; then a shuffle.

    With stride 2 both halves are of all inputs, the first by depthwise 3x3 and 1x1.
    """
    half = outputs // 2
    read = inputs if stride == 2 else half
    right = [norm(read, half, active=nn.ReLU()), norm(half, half, 3, stride, half)]
    right.append(norm(half, half, active=nn.ReLU()))
    if stride == 2:
        left: list[nn.Module] = [norm(inputs, inputs, 3, 2, inputs), norm(inputs, half, active=nn.ReLU())]
        branches = Cat(nn.Sequential(*left), nn.Sequential(*right), axis=CHANNELS)
    else:
        low, high = torch.arange(half), torch.arange(half, outputs)
        branches = Cat(Gather(low, CHANNELS), nn.Sequential(Gather(high, CHANNELS), *right), axis=CHANNELS)
    return nn.Sequential(branches, Gather(shuffle(outputs, 2), CHANNELS))


def shufflenet_v2(scale: float = 1.0, classes: int = 1000) -> nn.Sequential:
    """
    Args:
        scale: 0.5, 1, 1.5 or 2.

    Raises:
        ValueError: another scale.
    """
    if scale not in V2_WIDTHS:
        raise ValueError(f"scales of ShuffleNetV2 are {', '.join(map(str, V2_WIDTHS))}, got {scale}")
    *stages, last = V2_WIDTHS[scale]
    width = 24
    layers: list[nn.Module] = [norm(3, width, 3, 2, active=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    for wide, units in zip(stages, (4, 8, 4), strict=True):
        for number in range(units):
            layers.append(shuffle_unit_v2(width, wide, 1 if number else 2))
            width = wide
    layers.append(norm(width, last, active=nn.ReLU()))
    return nn.Sequential(*layers, *head(last, classes))


# -- ShiftResNet: Wu et al. 2018, arXiv 1711.08141; pictures are [batch, 3, 32, 32] ----------------------


def shifts(channels: int, kernel: int = 3) -> list[tuple[int, int]]:
    """Displacements of as many channels: equal shares of the kernel's places, the rest at the centre."""
    half = kernel // 2
    places = [(i - half, j - half) for i in range(kernel) for j in range(kernel)]
    each = channels // len(places)
    return [place for place in places for _ in range(each)] + [(0, 0)] * (channels - each * len(places))


def shift_block(inputs: int, outputs: int, stride: int, expansion: float) -> nn.Module:
    """Batch norm, ReLU, 1x1, batch norm, ReLU, shift, 1x1, beside a shortcut."""
    inner = int(outputs * expansion)
    block = nn.Sequential(
        nn.Conv2d(inputs, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        Shift(shifts(inner)),
        nn.Conv2d(inner, outputs, 1, stride, bias=False),
        nn.BatchNorm2d(outputs),
    )
    shortcut: nn.Module = nn.Identity()
    if stride > 1 or inputs != outputs:
        shortcut = norm(inputs, outputs, stride=stride)
    return nn.Sequential(Sum(shortcut, block), nn.ReLU())


def shift_resnet(depth: int = 20, expansion: float = 1, classes: int = 10) -> nn.Sequential:
    """
    Args:
        depth: 6 n + 2.
        expansion: channels between the 1x1 layers, as a multiple of the outputs.

    Raises:
        ValueError: another depth.
    """
    if (depth - 2) % 6:
        raise ValueError(f"the depth of a ShiftResNet is 6 n + 2, got {depth}")
    layers: list[nn.Module] = [norm(3, 16, 3, active=nn.ReLU())]
    width = 16
    for stage, wide in enumerate((16, 32, 64)):
        for number in range((depth - 2) // 6):
            layers.append(shift_block(width, wide, 2 if stage and not number else 1, expansion))
            width = wide
    return nn.Sequential(*layers, *head(width, classes))


# -- IGC: Zhang et al. 2017, arXiv 1707.02725; pictures are [batch, 3, 32, 32] ---------------------------


def interleaved_block(groups: int, each: int) -> nn.Sequential:
    """A 3x3 layer in ``groups`` groups of ``each`` channels, a 1x1 layer across them, batch norm, ReLU."""
    width = groups * each
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False),
        Gather(shuffle(width, groups), CHANNELS),
        nn.Conv2d(width, width, 1, groups=each, bias=False),
        Gather(shuffle(width, each), CHANNELS),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def interleaved_net(
    groups: int, each: int, blocks: Sequence[int] = (6, 6, 6), classes: int = 10
) -> nn.Sequential:
    """IGC-L``groups``M``each``: blocks at three scales, averaged down between them."""
    layers: list[nn.Module] = [norm(3, groups * each, 3, active=nn.ReLU())]
    for stage, count in enumerate(blocks):
        layers += [nn.AvgPool2d(2)] if stage else []
        layers += [interleaved_block(groups, each) for _ in range(count)]
    return nn.Sequential(*layers, *head(groups * each, classes))
