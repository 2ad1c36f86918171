"""Problem and answer of a partitioner: graph, devices, limits, and the plan that it finds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, slots=True)
class Node:
    """One operation, or several that must stay together."""

    name: str
    work: float = 0.0  # any unit, the same for all nodes: MACs, or ms on a device of speed 1
    memory: float = 0.0  # bytes that stay on the device that runs it (weights); adds up within a part
    peak: float = 0.0  # bytes beside these while it runs (activations); of a part the largest counts


@dataclass(frozen=True, slots=True)
class Tensor:
    """One value and who reads it. It is sent once to each part that reads it and does not make it."""

    name: str
    bytes: float  # as sent, per inference
    source: str | None  # node that makes it; None: an input of the network
    targets: tuple[str, ...]  # nodes that read it


@dataclass(frozen=True)
class Graph:
    """A directed acyclic graph of nodes joined by tensors.

    Args:
        nodes: in a topological order; stages are intervals of it.
        tensors: each made before it is read. What leaves the network is no tensor here.

    Raises:
        ValueError: no node; a name given twice or unknown; a figure that is negative or not finite; a tensor
            that is read before it is made, or by nobody.
    """

    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of_edges(
        cls,
        nodes: Iterable[Node],
        edges: Iterable[tuple[str, str, float]],
        inputs: Iterable[tuple[str, float]] = (),
    ) -> Graph:
        """The graph in which every node makes one tensor.

        Args:
            nodes: in a topological order.
            edges: (from, to, bytes); all edges from one node are the same tensor.
            inputs: (to, bytes), every one a tensor of its own.

        Raises:
            ValueError: edges from one node differ in bytes; and as for :class:`Graph`.
        """
        sizes: dict[str, float] = {}
        readers: dict[str, list[str]] = {}
        for source, target, size in edges:
            if sizes.setdefault(source, size) != size:
                raise ValueError(
                    f"edges from {source!r} carry {sizes[source]:g} and {size:g} bytes, but a node makes one "
                    "tensor here; for several give `Graph(nodes, tensors)`"
                )
            readers.setdefault(source, []).append(target)
        tensors = [Tensor(f"input:{i}", size, None, (to,)) for i, (to, size) in enumerate(inputs)]
        tensors += [Tensor(s, sizes[s], s, tuple(dict.fromkeys(to))) for s, to in readers.items()]
        return cls(tuple(nodes), tuple(tensors))

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ValueError("a graph needs at least one node, got none")
        for what, names in (
            ("node", [n.name for n in self.nodes]),
            ("tensor", [t.name for t in self.tensors]),
        ):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"two {what}s are called {twice!r}; give every {what} a name of its own")
        for node in self.nodes:
            _check_figure(f"work of node {node.name!r}", node.work)
            _check_figure(f"memory of node {node.name!r}", node.memory)
            _check_figure(f"peak of node {node.name!r}", node.peak)
        for tensor in self.tensors:
            _check_figure(f"bytes of tensor {tensor.name!r}", tensor.bytes)
            if not tensor.targets:
                raise ValueError(f"nobody reads tensor {tensor.name!r}; leave it out")
            if len(set(tensor.targets)) < len(tensor.targets):
                raise ValueError(f"tensor {tensor.name!r} names a reader twice: {list(tensor.targets)}")
            source = -1 if tensor.source is None else self.position(tensor.source)
            for name in tensor.targets:
                if self.position(name) <= source:
                    raise ValueError(
                        f"nodes must be in topological order: {name!r} reads what {tensor.source!r} makes, "
                        "but does not come after it"
                    )

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {node.name: i for i, node in enumerate(self.nodes)}

    def position(self, name: str) -> int:
        """Place of a node in the order.

        Raises:
            ValueError: there is none of this name.
        """
        try:
            return self._positions[name]
        except KeyError:
            known = ", ".join(repr(n.name) for n in self.nodes[:3])
            raise ValueError(f"the graph has no node {name!r}; its nodes are {known}, ...") from None

    @cached_property
    def work(self) -> np.ndarray:
        """float64 [nodes]."""
        return np.array([node.work for node in self.nodes], dtype=np.float64)

    @cached_property
    def memory(self) -> np.ndarray:
        """float64 [nodes], bytes."""
        return np.array([node.memory for node in self.nodes], dtype=np.float64)

    @cached_property
    def peaks(self) -> np.ndarray:
        """float64 [nodes], bytes."""
        return np.array([node.peak for node in self.nodes], dtype=np.float64)

    @cached_property
    def links(self) -> tuple[tuple[float, int, tuple[int, ...]], ...]:
        """Every tensor as (bytes, position of its source or -1, positions of its readers, rising)."""
        return tuple(
            (
                float(t.bytes),
                -1 if t.source is None else self.position(t.source),
                tuple(sorted(self.position(name) for name in t.targets)),
            )
            for t in self.tensors
        )

    @cached_property
    def crossing(self) -> np.ndarray:
        """float64 [nodes + 1]: bytes of the tensors made before node ``i`` (or given) and read from it on.

        Entry 0 is what the inputs weigh, the last one 0.
        """
        change = np.zeros(len(self) + 2)
        for size, source, targets in self.links:
            change[source + 1] += size
            change[targets[-1] + 1] -= size
        live = np.cumsum(change)[: len(self) + 1]
        live[-1] = 0.0  # nothing is read after the last node; leaves no rounding
        return np.maximum(live, 0.0)


def _check_figure(what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{what} must be a finite number, 0 or more, got {value!r}")


# -- What runs parts of a network, as the partitioners see it -------------------------------------------


@dataclass(frozen=True)
class CostedDevice:
    """What runs a part: a :class:`devices.Device` reduced to the times of a graph's nodes.

    Raises:
        ValueError: a speed that is not positive, a negative memory limit.
    """

    name: str
    speed: float = 1.0  # units of work per ms
    memory_limit: float = math.inf  # bytes, for the sum of its nodes' memory
    profile: Mapping[str, float] | None = None  # ms of every node by name, measured; instead of work / speed

    def __post_init__(self) -> None:
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ValueError(f"device {self.name!r}: speed must be above 0, got {self.speed!r}")
        if not self.memory_limit >= 0:
            raise ValueError(
                f"device {self.name!r}: memory limit must be 0 or more, got {self.memory_limit!r}"
            )

    def milliseconds(self, graph: Graph) -> np.ndarray:
        """float64 [nodes]: time of every node on this device.

        Raises:
            ValueError: the profile lacks nodes, or holds a time that is negative or not finite.
        """
        if self.profile is None:
            return graph.work / self.speed
        missing = [node.name for node in graph.nodes if node.name not in self.profile]
        if missing:
            raise ValueError(
                f"the profile of device {self.name!r} lacks {len(missing)} of {len(graph)} nodes: "
                f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; profile this network anew"
            )
        times = np.array([self.profile[node.name] for node in graph.nodes], dtype=np.float64)
        if not (np.isfinite(times) & (times >= 0)).all():
            at = int(np.argmin(np.isfinite(times) & (times >= 0)))
            raise ValueError(
                f"the profile of device {self.name!r} says {times[at]} ms for {graph.nodes[at].name!r}; "
                "times are finite and 0 or more"
            )
        return times


def check_memory(graph: Graph, devices: Sequence[CostedDevice]) -> None:
    """Refuse what no placement of any kind can meet.

    Raises:
        ValueError: no device; two of the same name; all together hold too little; a node fits on none.
    """
    if not devices:
        raise ValueError("a partition needs at least one device, got none")
    names = [device.name for device in devices]
    if len(set(names)) < len(names):
        raise ValueError(f"devices must have distinct names, got {names}")
    needed, held = float(graph.memory.sum()), sum(device.memory_limit for device in devices)
    if needed > held:
        raise ValueError(
            f"the network needs {needed:,.0f} bytes, its devices hold {held:,.0f} together: "
            f"{needed - held:,.0f} are missing; raise a memory limit, add a device, or prune first"
        )
    largest = max(graph.nodes, key=lambda node: node.memory + node.peak)
    roomiest = max(devices, key=lambda device: device.memory_limit)
    needs = largest.memory + largest.peak
    if needs > roomiest.memory_limit:
        raise ValueError(
            f"node {largest.name!r} needs {needs:,.0f} bytes, the largest device {roomiest.name!r} "
            f"holds {roomiest.memory_limit:,.0f}: {needs - roomiest.memory_limit:,.0f} are missing"
        )


# -- A partition with what is known about how good it is, and the figures of any partition --------------

SAME = 1e-9  # relative difference that rounding may make


@dataclass(frozen=True, slots=True)
class Plan:
    """Which part every node belongs to, with a certificate: no partition has less than ``bound``."""

    parts: tuple[int, ...]  # [nodes], each in [0, number of parts)
    value: float  # of the objective, to minimise, in its unit (ms, bytes)
    bound: float  # proven lower bound on the objective, <= value
    method: str  # what found it
    visited: int = 0  # nodes of a search tree, 0 where there was none

    @property
    def gap(self) -> float:
        """(value - bound) / value in [0, 1]; 0 for an optimal plan."""
        return 0.0 if self.optimal else (self.value - self.bound) / self.value

    @property
    def optimal(self) -> bool:
        return self.value - self.bound <= SAME * abs(self.value)

    def names(self, graph: Graph, part: int) -> tuple[str, ...]:
        """The nodes of one part, in order."""
        return tuple(node.name for node, p in zip(graph.nodes, self.parts, strict=True) if p == part)


def parts_of(boundaries: Sequence[int] | np.ndarray, nodes: int) -> np.ndarray:
    """int64 [nodes]: intervals of the order that begin at 0 and at each boundary.

    Args:
        boundaries: rising; a boundary that repeats leaves a part without nodes.
    """
    return np.searchsorted(np.asarray(boundaries, dtype=np.int64), np.arange(nodes), side="right")


def traffic(graph: Graph, parts: Sequence[int] | np.ndarray, *, origin: int | None = None) -> float:
    """Bytes that parts send each other for one inference, each tensor once per receiving part.

    Args:
        parts: [nodes].
        origin: the part that has the inputs, which it sends like tensors of its own; None: inputs are free.
    """
    total = 0.0
    for size, source, targets in graph.links:
        if source < 0 and origin is None:
            continue
        home = origin if source < 0 else int(parts[source])
        total += size * len({int(parts[t]) for t in targets} - {home})
    return total


def per_part(figures: np.ndarray, parts: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """float64 [count]: sums of a figure of the nodes (work, memory, ms) over each part."""
    return np.bincount(np.asarray(parts, dtype=np.int64), weights=figures, minlength=count)


# -- What each part may hold: work (balance) and memory -------------------------------------------------

ROUNDING = 1e-9  # of a limit; sums in another order differ


@dataclass(frozen=True)
class Limits:
    """Upper limits on the parts' loads; a load is a sum over a part's nodes."""

    weights: np.ndarray  # float64 [nodes, 2]: work, memory
    caps: np.ndarray  # float64 [parts, 2], inf where there is no limit

    @property
    def parts(self) -> int:
        return len(self.caps)

    def loads(self, parts: Sequence[int] | np.ndarray) -> np.ndarray:
        """float64 [parts, 2]."""
        columns = [per_part(column, parts, self.parts) for column in self.weights.T]
        return np.stack(columns, axis=1)

    @property
    def slack(self) -> np.ndarray:
        """``caps`` with room for rounding."""
        return self.caps * (1 + ROUNDING)

    def fits(self, parts: Sequence[int] | np.ndarray) -> bool:
        return bool((self.loads(parts) <= self.slack).all())


def limits(graph: Graph, parts: int | Sequence[CostedDevice], imbalance: float | None) -> Limits:
    """Limits from devices: work in proportion to their speeds, memory as they say.

    Args:
        parts: how many equal parts, or the devices.
        imbalance: a part's work is at most (1 + imbalance) times its share; None: any.

    Raises:
        ValueError: fewer than one part, a negative imbalance, memory that nothing fits.
    """
    if isinstance(parts, int):
        if parts < 1:
            raise ValueError(f"a partition needs at least one part, got {parts}")
        devices: Sequence[CostedDevice] = [CostedDevice(f"part {k}") for k in range(parts)]
    else:
        devices = parts
    check_memory(graph, devices)
    if imbalance is not None and not imbalance >= 0:
        raise ValueError(f"imbalance must be 0 or more (0.1 is 10 % above the share), got {imbalance!r}")
    speeds = np.array([device.speed for device in devices], dtype=np.float64)
    caps = np.full((len(devices), 2), np.inf)
    if imbalance is not None:
        caps[:, 0] = (1 + imbalance) * graph.work.sum() * speeds / speeds.sum()
    caps[:, 1] = [device.memory_limit for device in devices]
    bound = Limits(np.stack([graph.work, graph.memory], axis=1), caps)
    heaviest = int(np.argmax(graph.work))
    if graph.work[heaviest] > bound.slack[:, 0].max():
        over = graph.work[heaviest] / (caps[:, 0].max() / (1 + (imbalance or 0.0))) - 1
        raise ValueError(
            f"node {graph.nodes[heaviest].name!r} alone is more work than a part may have; "
            f"it needs imbalance={over:.3g} or more, or fewer parts, got {imbalance:g}"
        )
    return bound
