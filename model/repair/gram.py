"""Second moments of what every repairable layer reads, gathered in one pass over calibration data."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..capture import Captured, batch_length, describe_example, flat_inputs, lengths_of
from ..coupling import Coupling
from ..coupling.walk import bind
from .consumers import Consumer, find_consumers
from .least_squares import RIDGE, Changes
from .recurrent import Stack, outputs
from .sources import OUTPUT, MomentSource, draw, places, take

log = logging.getLogger(__name__)

COLUMNS = 4096  # of one Gram matrix; wider ones fall apart into blocks
BYTES = 256 * 2**20  # of all Gram matrices
WINDOW_COLUMNS = 1024  # of one that tells the taps of a kernel apart
ROWS = 8192  # samples taken of one tensor and batch, or eight a column; more are drawn at random
CHUNK = 2**22  # elements turned into float64 at once

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class MomentBlock:
    """Second moments of some columns of a source."""

    columns: np.ndarray  # [n] int64, ascending within one convolution group
    gram: np.ndarray  # [n + 1, n + 1] float64: sum over samples of z z^T, z = (columns, 1)


@dataclass(frozen=True)
class Calibration:
    """All that repair and the reconstruction order need to know about a model's activations."""

    consumers: tuple[Consumer, ...]
    sources: tuple[MomentSource, ...]
    blocks: tuple[tuple[MomentBlock, ...], ...]  # per source
    notices: tuple[str, ...]  # where memory forced a coarser form
    ridge: float = RIDGE
    changes: Changes = field(default_factory=Changes, init=False, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Memory of the Gram matrices."""
        return sum(b.gram.nbytes for blocks in self.blocks for b in blocks)


def gather(
    captured: Captured,
    coupling: Coupling,
    batches: Sequence[Inputs],
    *,
    columns: int = COLUMNS,
    max_bytes: int = BYTES,
    windows: bool = True,
    seed: int = 0,
) -> Calibration:
    """Run the captured network over ``batches`` and sum up the moments.

    Layers that read the same tensor share one Gram. A 3x3 convolution is measured over its windows, taps
    apart, up to 1024 columns; beyond, per channel. An axis of more than ``columns`` positions, or of more
    than memory holds, falls apart into blocks with one position of each unit (a flattened linear: one
    block per place on the map), which are mended independently; a notice says so.

    Args:
        batches: ``(args, kwargs)`` each, like the example but for the length of the batch axis.
        max_bytes: bound on the memory of all Grams.
        seed: of the choice of samples where a tensor has more than needed.

    Raises:
        ValueError: no batches, or one that differs from the example in another axis than the batch.
    """
    if not batches:
        raise ValueError("calibration needs at least one batch of inputs, got none")
    for number, (args, kwargs) in enumerate(batches):
        if lengths_of((args, kwargs)) != lengths_of((captured.args, captured.kwargs)):
            raise ValueError(
                f"calibration batch {number} has inputs {describe_example(args, kwargs)}, but the graph was "
                f"captured with {describe_example(captured.args, captured.kwargs)}, and all lengths but the "
                "batch's are fixed in it; give calibration batches of the example's length (pad or cut them)"
            )
    graph = captured.graph_module
    consumers, sources = find_consumers(graph.graph, coupling, patches=windows)
    sources, cuts, notices = _plan(sources, columns, max_bytes)
    for notice in notices:
        log.warning(notice)
    sums = [[np.zeros((len(c) + 1, len(c) + 1)) for c in cut] for cut in cuts]
    gatherer = _Gatherer(graph, sources, cuts, sums, seed)
    with torch.no_grad():
        for args, kwargs in batches:
            for part in _parts(captured, (args, kwargs)):
                gatherer.run(*flat_inputs(graph, *part), enable_io_processing=False)
    blocks = tuple(
        tuple(MomentBlock(c, g) for c, g in zip(cut, grams, strict=True))
        for cut, grams in zip(cuts, sums, strict=True)
    )
    return Calibration(tuple(consumers), tuple(sources), blocks, tuple(notices))


class _Gatherer(fx.Interpreter):
    """Runs the network and adds up the moments of what passes by."""

    def __init__(
        self,
        module: fx.GraphModule,
        sources: Sequence[MomentSource],
        cuts: Sequence[Sequence[np.ndarray]],
        sums: list[list[np.ndarray]],
        seed: int,
    ) -> None:
        super().__init__(module)
        self._at: dict[str, list[tuple[int, str]]] = {}
        inside = {node for s in sources for node, name in s.calls if name.startswith(OUTPUT)}
        self._stacks = {n.name: Stack(n) for n in module.graph.nodes if n.name in inside}
        for i, source in enumerate(sources):
            for node, name in source.calls:
                self._at.setdefault(node, []).append((i, name))
        self._sources, self._cuts, self._sums = sources, cuts, sums
        self._generator = torch.Generator().manual_seed(seed)

    def run_node(self, n: fx.Node) -> Any:
        reads = self._at.get(n.name, ())
        for i, name in reads:
            if not name.startswith(OUTPUT):  # before the call, which may overwrite it
                self._add(i, self.env[bind(n)[name]])
        if n.name not in self._stacks:
            return super().run_node(n)
        stack = self._stacks[n.name]
        x, states, params = stack.values(self.env)
        out, seen = outputs(stack, x, states, params)
        for i, name in reads:
            if name.startswith(OUTPUT):
                self._add(i, seen[name])
        return out

    def _add(self, i: int, x: torch.Tensor) -> None:
        for rows in _rows(x, self._sources[i], self._generator):
            for cut, total in zip(self._cuts[i], self._sums[i], strict=True):
                z = rows if len(cut) == rows.shape[1] else rows[:, torch.from_numpy(cut)]
                z = torch.cat([z, z.new_ones(len(z), 1)], 1)
                total += (z.T @ z).numpy()


def _rows(x: torch.Tensor, source: MomentSource, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Samples of the source's columns, float64 [at most CHUNK / columns, columns] at a time."""
    width = len(source.columns)
    at = draw(math.prod(places(x, source)), max(ROWS, 8 * width), generator)
    for part in at.split(max(1, CHUNK // width)):
        yield take(x, source, part).double()


def _plan(
    sources: Sequence[MomentSource], columns: int, max_bytes: int
) -> tuple[list[MomentSource], list[list[np.ndarray]], list[str]]:
    """The finest form of every source that memory allows, and its blocks of columns."""
    window = WINDOW_COLUMNS
    while True:
        made = [s if len(s.columns) // s.groups <= window else replace(s, patch=None) for s in sources]
        cuts = [_blocks(s, columns) for s in made]
        if sum(8 * (len(c) + 1) ** 2 for cut in cuts for c in cut) <= max_bytes or columns <= 1:
            break
        window, columns = (window // 2, columns) if window >= 32 else (0, columns // 2)
    notices = [
        f"the {len(s.labels)} inputs of {s.calls[0][0]} are mended in {len(cut)} blocks of at most "
        f"{max(map(len, cut), default=0)}: a Gram matrix over all would be too large"
        for s, cut in zip(made, cuts, strict=True)
        if len(cut) > s.groups
    ]
    return made, cuts, notices


def _blocks(source: MomentSource, columns: int) -> list[np.ndarray]:
    """Columns of each block: the convolution's groups, or, if too wide, one position of each unit a block."""
    cut: list[np.ndarray] = []
    for part in np.arange(len(source.columns)).reshape(source.groups, -1):
        if len(part) <= columns:
            cut.append(part)
            continue
        labels = source.columns[part]
        for rank in _ranks(labels):
            pieces = -(-len(rank) // columns)
            cut += [part[piece] for piece in np.array_split(rank, pieces)]
    return cut


def _ranks(labels: np.ndarray) -> list[np.ndarray]:
    """First position of every unit, second of every unit, and so on; fixed positions left out."""
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] > 0]
    ordered = labels[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    return [np.sort(order[rank == r]) for r in range(int(rank.max(initial=-1)) + 1)]


def _parts(captured: Captured, inputs: Inputs) -> Iterator[Inputs]:
    """The batch as it is; where the capture fixed the batch length, pieces of that length (rows repeat)."""
    have = batch_length(*inputs)
    if captured.dynamic_batch or have is None or have == captured.batch:
        yield inputs
        return
    for start in range(0, max(1, have - captured.batch + 1), captured.batch):
        rows = torch.arange(start, start + captured.batch) % have
        yield pytree.tree_map(
            lambda leaf, rows=rows: leaf[rows] if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf,
            inputs,
        )
