"""From calls of the user's model to tensors on the wire, and back."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import fx
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from ...evaluators.batches import call_of
from ...evaluators.errors import first_line
from ...export.stages import describe, entry
from ...model.stages import Stage
from ...model.stages.build import check_entry
from ...standalone.stage import tensor_bytes
from ...standalone.wire import DATA, Expected, Frame
from .transport import InputError, ServeError


class Calls:
    """The outer sides of a chain of stages.

    Raises:
        ServeError: no stages, stages that do not follow each other, or an output that is a number computed
            from the batch length, which is not sent.
    """

    def __init__(self, stages: list[Stage]) -> None:
        if not stages:
            raise ServeError("there are no stages; netcarve.model.stages.split gives some")
        for before, after in pairwise(stages):
            if [(p.dtype, p.sizes) for p in before.outputs] != [(p.dtype, p.sizes) for p in after.inputs]:
                raise ServeError(
                    f"stage {before.name} gives {', '.join(map(str, before.outputs))}, but {after.name} "
                    f"takes {', '.join(map(str, after.inputs))}; give the stages of one split, in order",
                    after.name,
                )
        self.first = stages[0].name
        self.takes = Expected.read(describe(stages[0]), "inputs")
        self.gives = Expected.read(describe(stages[-1]), "outputs")
        self._expected, self._samples = entry(stages[0])
        self._structure = stages[0].module._in_spec
        self._types = [port.dtype for port in stages[-1].outputs]
        output = next(n for n in stages[-1].module.graph.nodes if n.op == "output")
        self._leaves = pytree.tree_leaves(output.args[0])
        self._built_as: Any = stages[-1].module._out_spec
        for leaf in self._leaves:
            if isinstance(leaf, fx.Node) and not isinstance(leaf.meta.get("val"), torch.Tensor):
                raise ServeError(
                    f"the model returns {leaf.name}, a number that depends on the batch length; only tensors "
                    "are sent back, so return it as a tensor or leave it out",
                    stages[-1].name,
                )

    def frame(self, number: int, inputs: Any) -> Frame:
        """One call as a frame: a tensor, a tuple of inputs, a dict of keyword inputs or (args, kwargs).

        Raises:
            InputError: the first stage does not take it.
        """
        try:
            args, kwargs = call_of(inputs)
            try:
                values = tuple(fx_pytree.tree_flatten_spec((args, kwargs), self._structure))
            except Exception as error:
                raise ValueError(
                    f"{self.first}: the inputs are not built like the example of the capture: "
                    f"{first_line(error)}"
                ) from error
            if len(values) != len(self._expected):
                raise ValueError(
                    f"{self.first}: it takes {len(self._expected)} inputs, got {len(values)}; call it as in "
                    "the example of the capture"
                )
            check_entry(self.first, values, self._expected, self._samples)
        except (ValueError, TypeError) as error:
            raise InputError(f"input {number} is refused: {error}", self.first, number) from error
        tensors = [v for v in values if isinstance(v, torch.Tensor)]
        samples = self.takes.samples([t.shape for t in tensors])
        return Frame(DATA, number, samples, [tensor_bytes(t) for t in tensors])

    def output(self, frame: Frame) -> Any:
        """What the whole model would have returned."""
        tensors = iter(
            torch.frombuffer(part, dtype=kind).reshape(port.shape(frame.samples))
            if len(part)
            else torch.empty(port.shape(frame.samples), dtype=kind)
            for part, kind, port in zip(frame.body, self._types, self.gives.ports, strict=True)
        )
        leaves = [next(tensors) if isinstance(leaf, fx.Node) else leaf for leaf in self._leaves]
        return pytree.tree_unflatten(leaves, self._built_as)
