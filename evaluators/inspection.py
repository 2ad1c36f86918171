"""What there is to change in a task's model, and where the model spends its work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..spaces import Blueprint
from ..spaces.stages import Cut, CutError
from .batches import Inputs, batch_size, resize
from .task import Task


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one module does and holds itself, its children not included."""

    name: str  # path in the model; "" is the model itself
    kind: str  # class name
    macs: float  # multiply-accumulates per sample
    params: int


def inspection(
    task: Task, blueprint: Blueprint, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """The model's proven groups and blocks, what stays as it is and why, and its cost by layer: plain JSON.

    Returns:
        ``{"task", "metric", "model", "macs", "params",
        "groups": [{"name", "kind", "units", "modules": [path]}],
        "blocks": [{"name", "macs", "params"}], "left_out": {name: reason},
        "graph": {"prune" or "drop": why built networks are the captured graph, not the user's class},
        "cuts": [{"name", "bytes", "macs": [before, after], "module_ends"}], "no_cuts": why there are none,
        "layers": [{"name", "kind", "macs", "params"}]}``; a block's costs are those of dropping it alone, a
        cut's ``bytes`` those of one sample that cross it.
    """
    blueprint.prove(progress=progress)
    blueprint.prove_blocks(progress=progress)
    layers = layer_costs(task.model, task.example)
    cuts, no_cuts = _cuts(blueprint)
    return {
        "task": task.name,
        "metric": task.metric_name,
        "model": type(task.model).__name__,
        "macs": sum(layer.macs for layer in layers),
        "params": sum(layer.params for layer in layers),
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "units": group.size,
                # "stem.0.weight" is of "stem.0"; a parameter of the model itself stands for itself
                "modules": list(
                    dict.fromkeys(m.parameter.rpartition(".")[0] or m.parameter for m in group.members)
                ),
            }
            for group in blueprint.groups
        ],
        "blocks": [{"name": b.name, "macs": b.macs, "params": b.params} for b in blueprint.blocks],
        "left_out": blueprint.left_out,
        "graph": blueprint.artifact_reasons,
        "cuts": [
            {"name": c.name, "bytes": c.bytes, "macs": list(c.macs), "module_ends": bool(c.ends)}
            for c in cuts
        ],
        "no_cuts": no_cuts,
        "layers": [asdict(layer) for layer in layers],
    }


def _cuts(blueprint: Blueprint) -> tuple[Sequence[Cut], str]:
    """Where the network may be cut, or why nowhere."""
    try:
        return blueprint.cutting.followed, ""
    except CutError as error:
        return (), str(error)


def layer_costs(model: nn.Module, example: Inputs) -> list[LayerCost]:
    """Cost of every module that computes or holds parameters itself, in the model's order.

    Counted by running the model once under torch's own counter, so that the sum of ``macs`` is the
    model's. Parameters shared by several modules count where they appear first.

    Args:
        example: ``(args, kwargs)`` of one batch.
    """
    args, kwargs = resize(example, 1)
    samples = batch_size((args, kwargs)) or 1
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    root = type(model).__name__
    totals = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}

    def total(path: str) -> int:
        return totals.get(f"{root}.{path}" if path else "Global", 0)

    costs = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        children = [f"{path}.{name}".lstrip(".") for name, _ in module.named_children()]
        own = total(path) - sum(map(total, children))
        mine = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, mine))
        params = sum(p.numel() for p in mine)
        if own > 0 or params:
            costs.append(LayerCost(path, type(module).__name__, own / 2 / samples, params))
    return costs
