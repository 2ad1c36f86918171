"""Weights on a grid of few levels, packed in as many bits as they need; read with torch alone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

LEVELS = 255  # above the least
NEAR = 1e-3  # of a step: what is off by more lies on no such grid
PACKED = "packed"  # in the metadata of a safetensors file: name -> (bits, group, shape, axis of the outputs)

Form = tuple[int, int, list[int], int]


def unpacked(codes, scale, zero, bits, group, shape, axis):  # type: ignore[no-untyped-def]
    """Weights from packed whole numbers: scale (q - zero), one scale for each output, or group of its inputs.

    Bits lie one number after the other, the lowest first, outputs along the first axis.
    """
    moved = [shape[axis], *[n for i, n in enumerate(shape) if i != axis]]
    count = 1
    for n in moved:
        count *= n
    flags = (codes[:, None].to(torch.int64) >> torch.arange(8)) & 1
    numbers = flags.reshape(-1)[: count * bits].reshape(count, bits)
    q = (numbers << torch.arange(bits)).sum(1).reshape(moved[0], -1)
    step, low = (t.double().repeat_interleave(group or q.shape[1], 1)[:, : q.shape[1]] for t in (scale, zero))
    return (step * (q - low)).float().reshape(moved).movedim(0, axis).contiguous()


def source() -> str:
    """The text of :func:`unpacked`."""
    return inspect.getsource(unpacked).replace("  # type: ignore[no-untyped-def]", "")


def pack(weight: torch.Tensor, groups: Sequence[int] = (0,)) -> tuple[Form, dict[str, torch.Tensor]] | None:
    """Codes, scales and zero points that stand for exactly these numbers, where that takes less space.

    Args:
        weight: float32, at least two axes.
        groups: sizes that may share a scale, 0 for a whole output.
    """
    if weight.dtype != torch.float32 or weight.dim() < 2 or not weight.numel():
        return None
    for axis in (0, 1):
        flat = weight.detach().movedim(axis, 0).flatten(1)
        for group in groups:
            if (found := _levels(flat, group)) is None:
                continue
            q, scale, zero = found
            bits = max(int(q.max()).bit_length(), 1)
            flags = ((q.reshape(-1, 1) >> torch.arange(bits)) & 1).to(torch.uint8).reshape(-1)
            flags = torch.nn.functional.pad(flags, (0, -len(flags) % 8)).view(-1, 8)
            codes = (flags << torch.arange(8, dtype=torch.uint8)).sum(1).to(torch.uint8)
            parts = {"codes": codes, "scale": scale, "zero": zero.to(torch.uint8)}
            form: Form = (bits, group, list(weight.shape), axis)
            if sum(p.numel() * p.element_size() for p in parts.values()) < weight.numel() * 4:
                assert torch.equal(unpacked(codes, scale, parts["zero"], *form), weight.detach())
                return form, parts
    return None


def _levels(flat: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Whole numbers [outputs, columns], scales and zero points [outputs, groups] of exactly these numbers."""
    outputs, columns = flat.shape
    size = group or columns
    parts = torch.nn.functional.pad(flat, (0, -columns % size)).view(outputs, -1, size).double()
    least = parts.abs().masked_fill(parts == 0, torch.inf).amin(2)
    least = torch.where(least.isfinite(), least, 1.0)  # all zero: any scale will do
    scale = torch.zeros_like(least)
    for steps in range(1, LEVELS + 1):  # that the smallest number may be from zero
        left = scale == 0
        if not left.any():
            break
        about = (least[left] / steps).float()
        for tried in (about, about.nextafter(torch.tensor(0.0)), about.nextafter(torch.tensor(torch.inf))):
            ratio = parts[left] / tried.double()[..., None]
            whole = ratio.round()
            on = ((ratio - whole).abs().amax(1) < NEAR) & (whole.amax(1) - whole.amin(1) <= LEVELS)
            on &= ((whole * tried.double()[..., None]).float().double() == parts[left]).all(1)
            fresh = scale[left]
            scale[left] = torch.where((fresh == 0) & on, tried.double(), fresh)
        if steps == 1 and outputs > 8 and (scale == 0).all() and not _plausible(parts, least):
            return None
    if (scale == 0).any():
        return None
    whole = (parts / scale[..., None]).round()
    zero = -whole.amin(2).clamp_max(0)
    q = (whole + zero[..., None]).view(outputs, -1)[:, :columns]
    if q.max() > LEVELS:
        return None
    return q.to(torch.int64), scale.float(), zero


def _plausible(parts: torch.Tensor, least: torch.Tensor) -> bool:
    """Whether numbers repeat as those of a grid do; spares the search where they do not."""
    return len(parts[0, 0].unique()) <= LEVELS + 1 and bool(
        (parts.abs().amax(2) <= LEVELS * LEVELS * least).all()
    )


def pack_file(path: Path, groups: Sequence[int]) -> dict[str, Form]:
    """Pack what can be packed of a safetensors file, in place; the forms by name."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(str(path), "pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    forms: dict[str, Form] = {}
    for name, value in list(tensors.items()):
        if (found := pack(value, groups)) is not None:
            forms[name] = found[0]
            del tensors[name]
            tensors |= {f"{name}.{part}": part_value for part, part_value in found[1].items()}
    if forms:
        save_file(tensors, str(path), {**metadata, PACKED: json.dumps(forms)})
    return forms


def load_into(module: nn.Module, path: Path) -> None:
    """Load a file of :func:`pack_file`, or one that was not packed, into a module.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, load_model

    with safe_open(str(path), "pt") as file:
        metadata: Mapping[str, str] = file.metadata() or {}
    if PACKED not in metadata:
        load_model(module, str(path))
        return
    state = load_file(str(path))
    for name, form in json.loads(metadata[PACKED]).items():
        state[name] = unpacked(*(state.pop(f"{name}.{part}") for part in ("codes", "scale", "zero")), *form)
    missing, unexpected = module.load_state_dict(state, strict=False)
    lacking = set(missing) - set(metadata)  # of a tensor with two names the file holds one
    if unexpected or lacking:
        raise RuntimeError(f"missing {sorted(lacking)[:3]}, unexpected {sorted(unexpected)[:3]}")
