"""Cutting of one captured network: legal cuts and cost tables of its parts, made when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from ..blocks import Block
from ..capture import Captured
from ..costs import Costs
from ..coupling import Coupling
from .cuts import Cut, Order, find_cuts, macs
from .functional import CutError, Functional, functionalise
from .provenance import Provenance
from .staging import Staging


class Cutting:
    """Cuts of the unchanged network. A copy that travels keeps the cost tables alone."""

    def __init__(self, captured: Captured, coupling: Coupling, blocks: Sequence[Block], costs: Costs) -> None:
        self._captured: Captured | None = captured
        self._coupling, self._blocks, self._costs = coupling, tuple(blocks), costs
        self._stagings: dict[tuple[int, ...], Staging] = {}

    @cached_property
    def network(self) -> Functional:
        """
        Raises:
            CutError: the model has state between calls, or effects whose order matters, or torch cannot
                write it without them.
        """
        if self._captured is None:
            raise RuntimeError("this copy of the blueprint holds no captured graph; use the original")
        with _telling(self._captured):
            return functionalise(self._captured)

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """All legal cuts, in the graph's order."""
        return find_cuts(self.network, work=self._work)

    @cached_property
    def followed(self) -> tuple[Cut, ...]:
        """The legal cuts where the bytes that cross are known for every width.

        Raises:
            CutError: there is none, and why.
        """
        found = tuple(_followed(self.network, self._coupling, self.cuts))
        if not found:
            assert self._captured is not None
            name = type(self._captured.source).__name__
            why = (
                f"of its {len(self.cuts)} legal cuts none has tensors whose sizes are known for every width"
                if self.cuts
                else "after none of its calls is all that later ones need a tensor of known size; or nothing "
                "is computed before or behind it"
            )
            raise CutError(f"{name} has no place to cut: {why}; search it without splits")
        return found

    @cached_property
    def _work(self) -> dict[str, float]:
        with _telling(self.network.captured):
            return macs(self.network)

    def staging(self, indices: Sequence[int]) -> Staging:
        """Cost tables between the cuts of these indices; made once."""
        key = tuple(indices)
        if key not in self._stagings:
            by_index = {c.index: c for c in self.cuts}
            places = [by_index[i] for i in key]
            self._stagings[key] = Staging(
                self.network, self._coupling, self._blocks, self._costs, self._work, places
            )
        return self._stagings[key]

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_coupling", "_blocks", "_costs", "_stagings")
        return {"_captured": None, **{name: self.__dict__[name] for name in kept}}


@contextmanager
def _telling(captured: Captured) -> Iterator[None]:
    """Within: whatever torch cannot do with a network's calls means that it cannot be cut."""
    try:
        yield
    except CutError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "no message")
        raise CutError(
            f"{type(captured.source).__name__} cannot be cut: {type(error).__name__}: {first}; "
            "search it without splits"
        ) from error


def _followed(network: Functional, coupling: Coupling, cuts: Sequence[Cut]) -> list[Cut]:
    """The cuts where the bytes of all that crosses can be told for every width.

    Of several with nothing but views between them one, where a module ends.
    """
    origin, order = Provenance(network, coupling), Order(network)
    nodes = {n.name: n for n in network.graph.nodes}
    solid = np.cumsum([not order.is_view(n) for n in order.calls])
    out: dict[int, Cut] = {}  # calls before it that are no views -> cut
    for c in cuts:
        if all(origin.bytes(nodes[name]) is not None for name in c.tensors):
            before = int(solid[c.index])
            if before not in out or (c.ends and not out[before].ends):
                out[before] = c
    return list(out.values())
