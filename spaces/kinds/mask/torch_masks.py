"""Masks as ``torch.nn.utils.prune`` keeps them: ``weight_orig``, ``weight_mask``, a computed ``weight``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune


def read_masks(module: nn.Module) -> dict[str, Tensor]:
    """Masks of a module that ``torch.nn.utils.prune`` has pruned, by path of the parameter.

    Returns:
        Bool tensors, True where a weight stays; empty where nothing is masked.
    """
    return {
        f"{path}.{name}" if path else name: getattr(child, f"{name}_mask") != 0
        for path, child, name in _masked(module)
    }


def write_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Put masks on parameters in place, so that torch keeps them zero in training and can remove them.

    Args:
        masks: by path of the parameter, 0 or False where a weight goes. On a masked parameter both hold.

    Raises:
        ValueError: no such parameter, or another shape.
    """
    for path, mask in masks.items():
        owner, _, name = path.rpartition(".")
        child, weight = _owner(module, owner, name, path)
        if weight.shape != mask.shape:
            raise ValueError(f"{path} has shape {list(weight.shape)}, its mask {list(mask.shape)}")
        prune.custom_from_mask(child, name, mask.to(weight.dtype))


def apply_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set to zero, in place, what the masks do not keep; nothing else of the module changes.

    Raises:
        ValueError: as :func:`write_masks`.
    """
    for path, mask in masks.items():
        owner, _, name = path.rpartition(".")
        _, weight = _owner(module, owner, name, path)
        if weight.shape != mask.shape:
            raise ValueError(f"{path} has shape {list(weight.shape)}, its mask {list(mask.shape)}")
        weight.detach().mul_(mask.to(weight.dtype))


def semi_structured(module: nn.Module) -> dict[str, str]:
    """Let linear layers whose weights hold 2:4 run on sparse tensor cores, in place.

    ``torch.sparse.to_sparse_semi_structured``: an NVIDIA GPU of compute capability 8 or more, weights in half
    precision with sides that its kernels take (multiples of 32 and 64).

    Returns:
        Path of each linear layer that keeps its dense weight -> why.

    Raises:
        ValueError: the module is on a device without such kernels.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8:
        raise ValueError(
            f"there are no 2:4 kernels on {device}: they need an NVIDIA GPU of compute capability 8 or more; "
            "elsewhere the masked network keeps its dense weights and computes the same"
        )
    left: dict[str, str] = {}
    for path, child in module.named_modules():
        if not isinstance(child, nn.Linear):
            continue
        weight = child.weight.detach()
        if weight.shape[1] % 4 or bool(((weight.unflatten(1, (-1, 4)) != 0).sum(-1) > 2).any()):
            left[path] = "holds more than two of four numbers somewhere"
            continue
        try:
            packed = torch.sparse.to_sparse_semi_structured(weight)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # its type or its sides
            left[path] = str(error).splitlines()[0]
            continue
        child.weight = nn.Parameter(packed, requires_grad=False)
    return left


def _masked(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Path and owner of every masked parameter, with its name there."""
    for path, child in module.named_modules():
        for key in child._buffers:
            name = key.removesuffix("_mask")
            if name != key and f"{name}_orig" in child._parameters:
                yield path, child, name


def _owner(module: nn.Module, owner: str, name: str, path: str) -> tuple[nn.Module, Tensor]:
    try:
        child = module.get_submodule(owner)
        weight = getattr(child, name)
    except AttributeError:
        weight = None
    if not isinstance(weight, torch.Tensor):
        known = [n for n, p in module.named_parameters() if p.dim() > 1]
        raise ValueError(f"there is no parameter {path!r} to mask; there are {', '.join(known[:5])}, ...")
    return child, weight
