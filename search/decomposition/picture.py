"""The boxes of the picture of a layout."""

from __future__ import annotations

from collections.abc import Sequence

from ...results.plot_graph import Box, GraphPicture, size_text
from .network import Network
from .refining import Measured
from .setting import Setting

MOST = 40  # boxes


def picture_of(measured: Measured, asked: Setting) -> GraphPicture:
    """Calls gathered by the deepest modules that leave at most 40 boxes, never across a cut."""
    layout = measured.layout
    network, ends = layout.network, layout.ends
    spans = list(zip([0, *ends], ends, strict=False))
    stage_of = [k for k, (a, b) in enumerate(spans) for _ in range(a, b)]
    depths = range(max((len(call.modules) for call in network.calls), default=0), 0, -1)
    runs = next(
        (found for found in (_runs(network, stage_of, depth) for depth in depths) if len(found) <= MOST),
        _runs(network, stage_of, 0),
    )
    scale = [measured.here_ms[k] / max(network.ms[a:b].sum(), 1e-9) for k, (a, b) in enumerate(spans)]
    boxes = tuple(
        Box(
            label or network.name,
            stage_of[a],
            float(network.ms[a:b].sum() * scale[stage_of[a]]),
            network.crossing_bytes(a - 1),
            network.crossing_bytes(b - 1),
        )
        for label, a, b in runs
    )
    lines = []
    for k, at in enumerate(layout.on):
        line = f"stage {k + 1} on {asked.devices[at].name}: {layout.costs.compute[at]:.4g} ms"
        sent = layout.cuts[k].bytes * network.batch if k < len(layout.cuts) else 0.0
        lines.append(line + (f", sends {size_text(sent)}" if sent else ""))
    return GraphPicture(
        f"{network.name} in {len(layout.on)} stage{'s' * (len(layout.on) != 1)}",
        f"{len(network.calls)} calls in {len(boxes)} boxes; width: root of the bytes that cross; ms: here",
        boxes,
        tuple(lines),
        _skips(network, runs),
    )


def _runs(network: Network, stage_of: Sequence[int], depth: int) -> list[tuple[str, int, int]]:
    """Label, first call and call after the last, of consecutive calls that share modules and stage."""
    runs: list[tuple[str, int, int]] = []
    for i, call in enumerate(network.calls):
        label = call.modules[min(depth, len(call.modules)) - 1] if depth and call.modules else ""
        if runs and runs[-1][0] == label and stage_of[i] == stage_of[i - 1]:
            runs[-1] = (label, runs[-1][1], i + 1)
        else:
            runs.append((label, i, i + 1))
    return runs


def _skips(network: Network, runs: Sequence[tuple[str, int, int]]) -> tuple[tuple[int, int], ...]:
    box_of = {i: number for number, (_, a, b) in enumerate(runs) for i in range(a, b)}
    order = network.order
    pairs = {
        (box_of[at], box_of[order.at[user]])
        for n, at in order.at.items()
        for user in n.users
        if at >= 0 and user in order.at
    }
    return tuple(sorted(pair for pair in pairs if pair[1] > pair[0] + 1))
