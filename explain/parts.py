"""Parts: the worth of each part of a network, taken away alone and together with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ..evaluators.batches import Batch
from ..evaluators.task import Task
from ..model.capture import tensors_of
from .graphs import LayerGraph, find_place, place_of
from .section import Section, SectionFigure, Skipped, clipped, pairs_figure, series
from .shapley import MOST_EXACT, Values, shapley
from .subject import Judged, Subject, samples_of

PERMUTATIONS = 8  # where there are too many parts for all coalitions
MOST = 32  # parts
OTHERS = 16  # layers at most, where there are no residual blocks


@dataclass(frozen=True)
class Worths(Judged):
    """What each part is worth, in the original and in the subnetwork."""

    names: list[str]  # of the parts
    what: str  # they are
    gone: int  # how many the subnetwork does not have
    was: Values
    now: Values


def parts_section(subject: Subject) -> Section:
    """Ablation and Shapley values of residual blocks (of layers, where there are none), before and after.

    Raises:
        Skipped: see :func:`worths`.
    """
    found = worths(subject)
    count = len(found.names)
    how = "exact" if found.was.exact else f"from {PERMUTATIONS} permutations in antithetic pairs"
    before = f"{_leader(found.names, found.was, found.percent)} in the original"
    return Section(
        "parts",
        "What each part is worth",
        f"{before}, {_leader(found.names, found.now, found.percent)} in the subnetwork"
        if found.gone < count
        else f"{before}; the subnetwork's cannot be told apart",
        f"{samples_of(found.task)} of {samples_of(subject.whole)} validation samples, {count} {found.what}, "
        f"{found.gone} of which the subnetwork does not have; "
        f"a part that is taken away gives its mean; Shapley values {how}",
        _pictures(found),
        {"parts": found.names, "original": _data(found.was), "subnetwork": _data(found.now)},
    )


def worths(subject: Subject) -> Worths:
    """The worth of the parts. One is taken away by giving its mean over the samples instead of its output.

    Raises:
        Skipped: no graph, or a chain, through which nothing passes without any one of its layers.
    """
    before, after = subject.graphs
    parts, what = _parts(subject)
    exact = len(parts) <= MOST_EXACT
    task = subject.affordable(2 * (2 ** len(parts) if exact else PERMUTATIONS * len(parts)))
    nodes = [_nodes(graph, parts, what, before) for graph in (before, after)]
    if what == "layers" and _is_chain(task, before, [node for node in nodes[0] if node is not None]):
        raise Skipped("the network is a chain: without any one of its layers nothing passes")
    was, now = (
        _values(subject, task, graph, found, which)
        for graph, found, which in zip((before, after), nodes, ("original", "subnetwork"), strict=True)
    )
    return Worths(task, list(parts), what, sum(node is None for node in nodes[1]), was, now)


def _pictures(found: Worths) -> tuple[SectionFigure, ...]:
    was, now, label = found.was, found.now, found.label
    both = {"labels": found.names, "percent": found.percent}
    worth = SectionFigure(
        "bars",
        f"What each part adds to {label}",
        f"The longer a bar, the more of the network's {label} is owed to that part; the bars of one network "
        "add up to what its parts achieve together.",
        both
        | {
            "series": series(original=clipped(was.values), subnetwork=clipped(now.values)),
            "axis": f"Shapley value, {label}",
        },
    )
    lost = SectionFigure(
        "bars",
        f"{label[:1].upper()}{label[1:]} lost without one part",
        "Each bar is the loss when this part alone is taken away; where it is short and the Shapley value "
        "long, other parts can stand in.",
        both
        | {
            "series": series(original=clipped(was.last), subnetwork=clipped(now.last)),
            "axis": f"loss of {label}",
        },
    )
    pairs = [
        figure
        for values, which in ((was, "original"), (now, "subnetwork"))
        for figure in pairs_figure(
            f"Pairs of parts in the {which}",
            "Blue pairs do more together than apart, orange pairs do the same work twice.",
            found.names,
            values.interactions,
            percent=found.percent,
        )
    ]
    return worth, lost, *pairs


def _parts(subject: Subject) -> tuple[dict[str, Any], str]:
    """Name -> what tells the part in the original's graph, and what they are."""
    blocks = subject.space.side.blocks
    if 2 <= len(blocks) <= MOST:
        return {b.name: b for b in blocks}, "residual blocks"
    if len(blocks) > MOST:
        raise Skipped(f"{len(blocks)} residual blocks: more than {MOST} take too long")
    names = list(subject.graphs[0].layers)[:-1]  # without the last there are no answers
    if not 2 <= len(names) <= OTHERS:
        raise Skipped(f"there are no two residual blocks, and {len(names)} layers besides the last")
    return dict.fromkeys(names), "layers"


def _nodes(
    graph: LayerGraph, parts: Mapping[str, Any], what: str, original: LayerGraph
) -> list[fx.Node | None]:
    """The node that gives what each part computes; None where the subnetwork does not have it."""
    if what == "layers":
        return [graph.ends.get(name) for name in parts]
    adds = {n.name: n for n in original.module.graph.nodes}
    found: list[fx.Node | None] = []
    for block in parts.values():
        add = adds.get(block.add)
        here = add if graph is original or add is None else find_place(graph, place_of(add))
        node = None if here is None else here.args[block.branch]
        found.append(node if isinstance(node, fx.Node) else None)
    return found


def _values(
    subject: Subject, task: Task, graph: LayerGraph, nodes: Sequence[fx.Node | None], which: str
) -> Values:
    means = _means(task, graph, [node for node in nodes if node is not None])

    def worth(members: np.ndarray) -> float:
        gone = {n: means[n] for n, stays in zip(nodes, members, strict=True) if not stays and n in means}
        outputs = [_without(graph, batch, gone) for batch in task.batches]
        return float(task.measure(outputs)[task.metric_name])

    return shapley(
        worth,
        len(nodes),
        permutations=PERMUTATIONS,
        seed=subject.seed,
        progress=subject.counter(f"coalitions of the {which}'s parts"),
    )


def _without(graph: LayerGraph, batch: Batch, gone: Mapping[fx.Node | None, Tensor]) -> Any:
    """The output where some nodes give their means."""

    def ablate(node: fx.Node, value: Any) -> Any:
        return gone[node].expand_as(value).clone() if node in gone else value

    with torch.no_grad():
        return graph.run(batch[:2], ablate)


def _is_chain(task: Task, graph: LayerGraph, nodes: Sequence[fx.Node]) -> bool:
    """Whether the output is the same for all samples without any one of some nodes."""
    means = _means(task, graph, nodes)
    outputs = (tensors_of(_without(graph, task.batches[0], {node: means[node]})) for node in nodes)
    return all(
        torch.allclose(output, output[:1].expand_as(output), atol=1e-6)
        for given in outputs
        for output in given
        if output.dim()
    )


def _means(task: Task, graph: LayerGraph, nodes: Sequence[fx.Node]) -> dict[fx.Node | None, Tensor]:
    """Mean [1, ...] over the samples of what some nodes give."""
    totals: dict[fx.Node | None, Tensor] = {}
    counts: dict[fx.Node | None, int] = dict.fromkeys(nodes, 0)

    def add(node: fx.Node, value: object) -> Any:
        if node in counts and isinstance(value, Tensor):
            totals[node] = totals.get(node, torch.zeros(())) + value.sum(dim=0, keepdim=True)
            counts[node] += len(value)
        return value

    with torch.no_grad():
        for args, kwargs, _ in task.batches:
            graph.run((args, kwargs), add)
    return {node: total / counts[node] for node, total in totals.items()}


def _leader(names: Sequence[str], values: Values, percent: bool) -> str:
    most = int(np.argmax(values.values))
    added = f"{100 * values.values[most]:+.1f} points" if percent else f"{values.values[most]:+.3g}"
    return f"{names[most]} adds most ({added})"


def _data(values: Values) -> dict[str, Any]:
    return {
        "shapley": values.values,
        "errors": values.errors,
        "lost_without": values.last,
        "alone": values.alone,
        "interactions": values.interactions,
        "none": values.none,
        "all": values.all,
        "exact": values.exact,
    }
