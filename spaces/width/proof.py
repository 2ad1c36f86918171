"""Proof by execution that regions can be divided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..capture import Captured, flat_inputs, fresh, state_kept, tensors_of
from ..proving.comparison import relative_difference
from ..proving.proof import no_constant_parameters
from ..surgery import Surgeon
from .divide import Divider
from .regions import Region

COUNT = 3  # branches of the networks that are run: sizes that differ


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
