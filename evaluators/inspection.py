"""Inspection of a task's model: what may change in it, and where it spends its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..model.stages import Cut, CutError
from ..spaces import Blueprint
from .batchnorm import misfit
from .task import Task


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one module does and holds itself, its children not included."""

    name: str  # path in the model; "" is the model itself
    kind: str  # class name
    macs: float  # multiply-accumulates per sample
    params: int


def inspection(
    task: Task,
    blueprint: Blueprint,
    kinds: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The model's proven groups and blocks, what stays as it is and why, and its cost by layer: plain JSON.

    Args:
        kinds, options: of a space whose choices are told too, and what they leave alone.

    Returns:
        ``{"task", "metric", "model", "macs", "params", "choices": [{"name", "options"}],
        "groups": [{"name", "kind", "units", "modules": [path]}],
        "blocks": [{"name", "macs", "params"}], "left_out": {name: reason},
        "graph": {"prune" or "drop": why built networks are the captured graph, not the user's class},
        "folded": {weight: what computes it; built networks hold its value as an ordinary parameter},
        "cuts": [{"name", "bytes", "macs": [before, after], "module_ends"}], "no_cuts": why there are none,
        "misfit": what to say where the calibration data do not fit the model's BatchNorm,
        "layers": [{"name", "kind", "macs", "params"}]}``; a block's costs are those of dropping it alone, a
        cut's ``bytes`` those of one sample that cross it.
    """
    blueprint.prove(progress=progress)
    blueprint.prove_blocks(progress=progress)
    layers = layer_costs(blueprint)
    cuts, no_cuts = _cuts(blueprint)
    data = task.calibration_batches or None
    space = blueprint.space(*kinds, calibration=data, **(options or {})) if kinds else None
    return {
        "choices": [] if space is None else [{"name": c.name, "options": c.options} for c in space.choices],
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
        "left_out": blueprint.left_out if space is None else space.side.left_out,
        "graph": blueprint.artifact_reasons,
        "folded": blueprint.folded,
        "cuts": [
            {"name": c.name, "bytes": c.bytes, "macs": list(c.macs), "module_ends": bool(c.ends)}
            for c in cuts
        ],
        "no_cuts": no_cuts,
        "misfit": misfit(task),
        "layers": [asdict(layer) for layer in layers],
    }


def _cuts(blueprint: Blueprint) -> tuple[Sequence[Cut], str]:
    """Where the network may be cut, or why nowhere."""
    try:
        return blueprint.cutting.followed, ""
    except CutError as error:
        return (), str(error)


def layer_costs(blueprint: Blueprint) -> list[LayerCost]:
    """Cost of every module that computes or holds parameters itself, in the model's order.

    The operators' costs are those of the search, so that the sum of ``macs`` is the unchanged candidate's.
    Each belongs to the innermost module whose forward called it, in all its calls together. Parameters
    shared by several modules count where they appear first.

    Args:
        blueprint: of the model, with its captured graph.
    """
    modules = dict(blueprint.captured.source.named_modules())
    caller = {
        n.name: next(reversed(n.meta.get("nn_module_stack", {}).values()), ("",))[0]
        for n in blueprint.captured.graph_module.graph.nodes
    }
    macs = dict.fromkeys(modules, 0.0)
    for (node, _), term in blueprint.coupling.macs.items():
        macs[caller[node] if caller[node] in macs else ""] += term.whole
    costs = []
    seen: set[int] = set()
    for path, module in modules.items():
        mine = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, mine))
        params = sum(p.numel() for p in mine)
        if macs[path] or params:
            costs.append(LayerCost(path, type(module).__name__, macs[path], params))
    return costs
