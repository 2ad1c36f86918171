"""Width: into how many parallel branches the units of a coupled group fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ....model.capture import Captured, flat_inputs, fresh, state_kept, tensors_of
from ....model.captured_module import CapturedModule
from ....model.modules import relative_difference
from ....model.proof import no_constant_parameters
from ....model.surgery import Surgeon
from ...choice import Choice
from ..base import Context, Found, Kind, Making, Many, Taken, check_rising
from .divide import Divider
from .regions import Region, find_regions

if TYPE_CHECKING:
    from ....model.cost_tables import Tables
    from ....model.facts import Facts

COUNT = 3  # branches of the networks that are run to prove regions: sizes that differ


@dataclass(frozen=True, kw_only=True)
class WidthKind(Kind):
    """A choice ``width:<group>`` for every proven group whose units can be computed apart.

    Options: 1 (unchanged), then numbers of parallel branches whose partial sums add; ``macs`` and ``params``
    stay as they are. About a choice: its :class:`Region`.
    """

    parallel: Sequence[int] = (2, 4)

    done: ClassVar[str] = "divided into branches"
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rising("parallel", self.parallel)

    def find(self, facts: Facts, making: Making) -> Found:
        regions, reasons = find_regions(facts.captured.graph_module.graph, facts.coupling)
        proven = {g.name: g for g in facts.groups}
        regions = {name: region for name, region in regions.items() if name in proven}
        reasons |= prove_regions(facts.captured, facts.surgeon, regions)
        choices = [
            Choice(f"width:{name}", (1, *(b for b in self.parallel if b <= proven[name].size)), self, region)
            for name, region in regions.items()
            if name not in reasons
        ]
        return Found(choices, {f"width:{k}": v for k, v in reasons.items() if k in proven})

    def costs(self, many: Many, costs: dict[str, np.ndarray], tables: Tables) -> None:
        """Add ``branch_macs``, along the largest branches, if branches run side by side.

        Every call between the makers and the readers of a divided group counts with its largest branch's
        share of units (of the product, where a call is between those of two groups); everything else counts
        whole. Of a layer that is grouped too, each branch is taken to hold the same share of the groups.
        """
        largest: dict[str, np.ndarray] = {}  # call -> share [n]
        n = len(tables.widths)
        for choice, column in many:
            region: Region = choice.about
            kept = np.maximum(tables.count(region.labels), 1)
            share = np.ceil(kept / np.minimum(np.asarray(choice.options)[column], kept)) / kept
            for call in region.inside | region.readers:
                largest[call] = largest.get(call, np.ones(n)) * share
        saved = np.zeros(n)
        for call in {name for name, _ in tables.coupling.macs} & largest.keys():
            thinned = tables.share(call)
            saved += tables.macs(call) * thinned * (1 - largest[call])
        costs["branch_macs"] = costs["macs"] - saved

    def edit(self, network: CapturedModule, taken: Taken, context: Context) -> None:
        surgeon = context.facts.surgeon
        divider = Divider(network, surgeon, context.alive, context.marks, context.reads)
        for choice, index in taken:
            if index:
                divider.divide(choice.about, int(choice.options[index]))


def prove_regions(captured: Captured, surgeon: Surgeon, regions: Mapping[str, Region]) -> dict[str, str]:
    """Run the network with every region divided at once; where that differs, one by one.

    Returns:
        Why some may not be divided, by group.
    """
    left_out: dict[str, str] = {}
    graph = captured.graph_module
    with torch.no_grad(), no_constant_parameters(graph, surgeon.coupling, 0):
        with state_kept(graph):
            expected = tensors_of(graph(*fresh(captured.args), **fresh(captured.kwargs)))
        bench = _Bench(captured, surgeon, expected)
        if bench.differs(list(regions.values())):
            together: list[Region] = []
            for name, region in regions.items():
                if reason := bench.differs([*together, region]):
                    left_out[name] = reason
                else:
                    together.append(region)
    return left_out


class _Bench:
    def __init__(self, captured: Captured, surgeon: Surgeon, expected: list[Any]) -> None:
        self._captured, self._surgeon, self._expected = captured, surgeon, expected

    def differs(self, regions: list[Region]) -> str:
        if not regions:
            return ""
        alive = np.ones(self._surgeon.coupling.units + 1, dtype=bool)
        try:
            divider = Divider(self._surgeon.graph(alive), self._surgeon, alive)
            for region in regions:
                divider.divide(region, COUNT)
            divider.made.recompile()
            inputs = flat_inputs(self._captured.graph_module, self._captured.args, self._captured.kwargs)
            got = tensors_of(torch.fx.Interpreter(divider.made).run(*inputs, enable_io_processing=False))
        except Exception as error:
            return f"divided it does not run: {(str(error).splitlines() or [type(error).__name__])[0][:200]}"
        off, allowed = relative_difference(got, self._expected)
        return "" if off <= allowed else f"divided it changes the output by {off:.1e} (relative)"
