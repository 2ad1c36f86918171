"""What each part of a network is worth: it is taken away, alone and together with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ...results.explaining.section import Figure, Section, Skipped, clipped, series
from ...results.explaining.shapley import MOST_EXACT, Values, shapley
from ...results.table import HEADINGS
from .graphs import Graph, find_place, place_of
from .subject import Subject

PERMUTATIONS = 8  # where there are too many parts for all coalitions
MOST = 32  # parts
OTHERS = 16  # layers at most, where there are no residual blocks


def parts_section(subject: Subject) -> Section:
    """Ablation and Shapley values of residual blocks (of layers, where there are none), before and after.

    A part is taken away by giving its mean over the samples in place of what it computes.

    Raises:
        Skipped: no graph, or a chain, through which nothing passes without any one of its layers.
    """
    before, after = subject.graphs
    parts, what = _parts(subject)
    found = []
    for which, graph in (("original", before), ("subnetwork", after)):
        nodes = {name: node for name, node in zip(parts, _nodes(graph, parts, what, before), strict=True)}
        found.append(_values(subject, graph, nodes, which))
    metric = subject.task.metric_name
    label, percent = HEADINGS.get(metric, metric), metric == "accuracy"
    if all(np.ptp(v.last) == 0 and not np.any(v.alone) for v in found):
        raise Skipped("the network is a chain: without any one of its layers nothing passes")
    gained = found[1].values - found[0].values
    names = list(parts)
    figures = [
        Figure(
            "bars",
            f"What each part adds to {label}",
            f"The longer a bar, the more of the network's {label} is owed to that part; bars of one network add up "
            "to all that its parts achieve together.",
            {"labels": names, "series": series(original=clipped(found[0].values), subnetwork=clipped(found[1].values)),
             "percent": percent, "axis": f"Shapley value, {label}"},
        ),
        Figure(
            "bars",
            f"{label[0].upper()}{label[1:]} lost without one part",
            "Each bar is the loss when this part alone is taken away; short bars beside long Shapley values are "
            "parts that others can stand in for.",
            {"labels": names, "series": series(original=clipped(found[0].last), subnetwork=clipped(found[1].last)),
             "percent": percent, "axis": f"loss of {label}"},
        ),
    ]  # fmt: skip
    if found[1].interactions is not None and len(names) > 1:
        figures.append(
            Figure(
                "heat",
                "Pairs of parts in the subnetwork",
                "Blue pairs do more together than apart, orange pairs do the same work twice.",
                {"across": names, "down": names, "values": clipped(found[1].interactions), "signed": True,
                 "percent": percent, "axis": "interaction index"},
            )
        )  # fmt: skip
    most = int(np.argmax(found[1].values))
    sampled = "exact" if found[1].exact else f"{PERMUTATIONS} sampled permutations in antithetic pairs"
    return Section(
        "parts",
        "What each part is worth",
        f"{names[most]} adds most to the subnetwork's {label}, {_text(found[1].values[most], percent)}; the largest "
        f"change is at {names[int(np.argmax(np.abs(gained)))]}, {_text(gained[np.argmax(np.abs(gained))], percent)}",
        f"{subject.count} validation samples, {len(names)} {what}; a part that is taken away gives its mean; Shapley "
        f"values {sampled}",
        tuple(figures),
        {"parts": names, "original": _data(found[0]), "subnetwork": _data(found[1])},
    )


def _parts(subject: Subject) -> tuple[dict[str, Any], str]:
    """Name -> what tells the part in the original's graph, and what they are."""
    blocks = getattr(subject.space.model, "blocks", ())
    if 2 <= len(blocks) <= MOST:
        return {b.name: b for b in blocks}, "residual blocks"
    if len(blocks) > MOST:
        raise Skipped(f"{len(blocks)} residual blocks: more than {MOST} take too long")
    names = list(subject.graphs[0].layers)[:-1]  # without the last there are no answers
    if not 2 <= len(names) <= OTHERS:
        raise Skipped(f"there are no two residual blocks, and {len(names)} layers besides the last")
    return dict.fromkeys(names), "layers"


def _nodes(graph: Graph, parts: Mapping[str, Any], what: str, original: Graph) -> list[fx.Node | None]:
    """The node that each part ends in; None where the subnetwork does not have it."""
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


def _values(subject: Subject, graph: Graph, nodes: Mapping[str, fx.Node | None], which: str) -> Values:
    there = [node for node in nodes.values() if node is not None]
    subject.say(f"means of the parts of the {which}")
    means = _means(subject, graph, there)
    everything = list(nodes.values())

    def worth(members: np.ndarray) -> float:
        gone = {n: means[n] for n, stays in zip(everything, members, strict=True) if not stays and n in means}

        def ablate(node: fx.Node, value: Any) -> Any:
            return gone[node].expand_as(value).clone() if node in gone else value

        with torch.no_grad():
            outputs = [graph.run((args, kwargs), ablate) for args, kwargs, _ in subject.task.batches]
        return float(subject.task.measure(outputs)[subject.task.metric_name])

    exact = len(everything) <= MOST_EXACT
    return shapley(
        worth,
        len(everything),
        permutations=PERMUTATIONS,
        seed=subject.seed,
        progress=subject.counter(f"{'all' if exact else 'sampled'} coalitions of the {which}'s parts"),
    )


def _means(subject: Subject, graph: Graph, nodes: list[fx.Node]) -> dict[fx.Node, Tensor]:
    """Mean [1, ...] over the samples of what some nodes give."""
    totals: dict[fx.Node, Tensor] = {}
    counts: dict[fx.Node, int] = dict.fromkeys(nodes, 0)

    def add(node: fx.Node, value: Any) -> Any:
        if node in counts and isinstance(value, Tensor):
            totals[node] = totals.get(node, torch.zeros(())) + value.sum(dim=0, keepdim=True)
            counts[node] += len(value)
        return value

    with torch.no_grad():
        for args, kwargs, _ in subject.task.batches:
            graph.run((args, kwargs), add)
    return {node: total / counts[node] for node, total in totals.items()}


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


def _text(value: float, percent: bool) -> str:
    return f"{100 * value:+.1f} points" if percent else f"{value:+.3g}"
