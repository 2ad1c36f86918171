"""Subject of an explanation: the original and a subnetwork of it, on part of the validation data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluators.batches import Outputs, batch_size
from ..evaluators.errors import TaskError
from ..evaluators.metrics import right
from ..evaluators.quality import Quality
from ..evaluators.task import Task
from ..model.capture import lengths_of
from ..results.fidelity import FULL, Fidelity
from ..results.table import HEADINGS
from ..spaces import Candidate, Space
from .graphs import LayerGraph, graph_of
from .section import Skipped

BUDGET = 2e12  # multiply-accumulates that one analysis may spend; minutes on one core
FEWEST = 50  # samples on which an accuracy still says something
SECONDS = 1.0  # between two words on a long part


@dataclass(frozen=True)
class Subject:
    """The original, the subnetwork, and the data that both are looked at with."""

    whole: Task
    space: Space
    candidate: Candidate
    network: nn.Module  # the subnetwork, eval mode
    samples: int  # of the validation data, at most, for what looks at representations
    seed: int = 0
    rungs: tuple[Fidelity, ...] = (FULL,)  # of the run, the most thorough first
    say: Callable[[str], None] = field(default=lambda _: None)

    @cached_property
    def task(self) -> Task:
        """The task on the samples whose representations are looked at: drawn once, the same for all."""
        return self._part(self.samples)

    @cached_property
    def macs(self) -> float:
        """Of the original, for one sample."""
        return float(self.space.cost_arrays([self.space.baseline]).get("macs", [1.0])[0])

    def affordable(self, networks: int) -> Task:
        """The task on all of its samples, as the run scored it; on fewer where too much is to be run."""
        most = int(BUDGET / max(1.0, self.macs * networks))
        return self.whole if most >= samples_of(self.whole) else self._part(max(FEWEST, most))

    def change(self) -> float:
        """The subnetwork's metric less the original's on all samples, as the run has them."""
        before, after = (
            Quality()(self.whole, model, self.candidate)[self.whole.metric_name]
            for model in (self.original, self.network)
        )
        return after - before

    def _part(self, samples: int) -> Task:
        return self.whole.part(min(1.0, samples / samples_of(self.whole)))

    @property
    def original(self) -> nn.Module:
        return self.whole.model

    @property
    def count(self) -> int:
        """Samples that are looked at."""
        return samples_of(self.task)

    @cached_property
    def graphs(self) -> tuple[LayerGraph, LayerGraph]:
        """The original's and the subnetwork's.

        Raises:
            Skipped: one of them cannot be had.
        """
        example = self.whole.example
        if {lengths_of(batch[:2]) for batch in self.whole.batches} != {lengths_of(example)}:
            raise Skipped(
                "its layers cannot be watched: the validation data have several lengths, and a captured "
                "graph takes one"
            )
        self.say("capturing both networks")
        return graph_of(self.original, example), graph_of(self.network, example)

    def common(self) -> list[str]:
        """Layers that both networks have, in network order.

        Raises:
            Skipped: fewer than two, or no graph.
        """
        before, after = self.graphs
        names = [name for name in before.layers if name in after.layers]
        if len(names) < 2:
            raise Skipped("the networks have fewer than two layers in common")
        return names

    def classes(self) -> Tensor:
        """Class of each sample, int64 [samples].

        Raises:
            Skipped: the targets are not one class a sample.
        """
        targets = [t for _, _, t in self.task.batches]
        if not all(isinstance(t, Tensor) and t.dim() == 1 and not t.is_floating_point() for t in targets):
            raise Skipped("the targets are not one class a sample")
        return torch.cat(targets).long()

    def hits(self, model: nn.Module) -> Tensor:
        """Which targets of the whole validation data a network gets right, bool.

        Raises:
            Skipped: outputs are not class scores, or targets no classes.
        """
        found = []
        with torch.inference_mode():
            for args, kwargs, targets in self.whole.batches:
                try:
                    scores = self.whole.judge.class_scores(model(*args, **kwargs), targets)
                except TaskError as error:
                    raise Skipped(str(error)) from None
                found.append(right(scores, targets))
        return torch.cat(found)

    def counter(self, what: str) -> Callable[[int, int], None]:
        """Tells of a long part now and then: how far it is, and how long it will still take."""
        started = told = time.perf_counter()

        def progress(done: int, total: int) -> None:
            nonlocal told
            now = time.perf_counter()
            if done and now - told >= SECONDS:
                told = now
                left = (now - started) / done * (total - done)
                self.say(f"{what}: {done} of {total}, {left:.0f} s left")

        return progress

    def only_input(self) -> Tensor:
        """The input tensor [samples, ...] of a network that has one, of floats.

        Raises:
            Skipped: other inputs.
        """
        columns: list[Any] = []
        for args, kwargs, _ in self.task.batches:
            values = [*args, *kwargs.values()]
            if len(values) != 1 or not isinstance(values[0], Tensor) or not values[0].is_floating_point():
                raise Skipped("the network's input is not one tensor of floats")
            columns.append(values[0])
        if len({c.shape[1:] for c in columns}) != 1:
            raise Skipped("the inputs differ in shape")
        return torch.cat(columns)

    def call(self, model: nn.Module, x: Tensor) -> Tensor:
        """The tensor that is judged of what a network with one input gives for it.

        Raises:
            Skipped: the networks give several tensors, and the task names none.
        """
        args, kwargs = self.whole.example
        return self.judged(model(x) if args else model(**{next(iter(kwargs)): x}))

    def judged(self, outputs: Outputs) -> Tensor:
        """The tensor that is judged of a network's outputs.

        Raises:
            Skipped: there are several, and the task names none.
        """
        try:
            return self.whole.judge.judged(outputs)
        except TaskError as error:
            raise Skipped(str(error)) from None


@dataclass(frozen=True)
class Judged:
    """Something that is told in the task's metric."""

    task: Task  # with the samples that were used

    @property
    def label(self) -> str:
        """The metric's name for people."""
        return HEADINGS.get(self.task.metric_name, self.task.metric_name)

    @property
    def percent(self) -> bool:
        return self.task.metric_name == "accuracy"


def samples_of(task: Task) -> int:
    """How many samples its validation data has; of batches without a batch axis, how many batches."""
    return sum(batch_size(batch[:2]) or 1 for batch in task.batches)
