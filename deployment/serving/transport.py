"""Transport of frames through stages: the seam between a stream of inputs and TCP or Ray, and its errors."""

from __future__ import annotations

import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import fx
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from ...evaluators.batches import call_of
from ...evaluators.errors import first_line
from ...export.stages import describe, entry
from ...model.capture import Example
from ...model.stages import Stage
from ...model.stages.build import check_entry
from ...standalone.stage import tensor_bytes
from ...standalone.wire import DATA, Expected, Frame


class ServeError(RuntimeError):
    """Stages cannot be started, or something is wrong with what they were asked.

    Attributes:
        stage: name of the stage that it is about, if of one.
    """

    def __init__(self, message: str, stage: str | None = None) -> None:
        super().__init__(message)
        self.stage = stage


class InputError(ServeError):
    """One input has no answer: it was refused before it was sent, or a stage raised. Others are not touched.

    Attributes:
        number: of the input, from 0.
    """

    def __init__(self, message: str, stage: str | None, number: int) -> None:
        super().__init__(message, stage)
        self.number = number


class StageError(ServeError):
    """A stage died, hangs or cannot be reached; all were stopped."""


# -- What carries frames through stages: the seam between a stream of inputs and TCP or Ray -------------


@dataclass(frozen=True)
class Answer:
    frame: Frame  # data, or an error
    at: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Lost:
    stage: int  # the one that was seen to fail; another may be to blame
    why: str


class Transport(ABC):
    """Stages that are running. A session is one stream through them.

    Attributes:
        names: of the stages.
        events: :class:`Answer` and :class:`Lost` of the present session, in the order of their arrival.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @abstractmethod
    def open(self) -> None:
        """Begin a session with empty stages; what is left of another one is dropped.

        Raises:
            StageError: a stage does not answer.
        """

    @abstractmethod
    def send(self, frame: Frame) -> None:
        """Hand one frame to the first stage. Does not wait."""

    @abstractmethod
    def end(self) -> None:
        """End the session. May be called twice."""

    @abstractmethod
    def blame(self, lost: Lost) -> Lost:
        """The stage that died and how, told of one that was seen to fail."""

    @abstractmethod
    def hung(self, seconds: float) -> Lost:
        """The stage to blame when nothing was answered for so long."""

    @abstractmethod
    def restart(self, stage: int) -> None:
        """A new one in its place; ends the session.

        Raises:
            StageError: it cannot be started.
        """

    @abstractmethod
    def status(self) -> list[dict[str, Any] | None]:
        """Of each stage in this session ``inputs``, ``busy_s``, ``slept_s``, ``payload``, ``bytes``;
        ``None`` for one that does not answer."""

    @abstractmethod
    def sent(self) -> tuple[int, int | None]:
        """Payload and bytes that were sent to the first stage in this session."""

    @abstractmethod
    def close(self) -> None:
        """Stop the stages. May be called twice."""


# -- From calls of the user's model to tensors on the wire, and back ------------------------------------


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

    def frame(self, number: int, inputs: Example) -> Frame:
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
