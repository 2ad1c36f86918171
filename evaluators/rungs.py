"""Scoring on rungs: less data for candidates that still have to show that they deserve more."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..spaces import Candidate
from ..spaces.rung import on_rung, rung_of, rungs_of
from .base import Evaluator, Measured, detail_of
from .task import Task


class OnRung(Evaluator):
    """Another evaluator, on the share of the validation data that the candidate's rung tells.

    Below the first rung its metrics are called ``accuracy@quick`` and so on, since they are no results: no
    front mixes them with those of the first rung.
    """

    def __init__(self, inner: Evaluator) -> None:
        self.inner = inner
        self.name, self.metrics, self.declared = inner.name, inner.metrics, inner.declared
        self.only_runs, self.of_network = inner.only_runs, inner.of_network
        self._parts: dict[float, Task] = {}  # by share of the data, of the task seen last
        self._task: Task | None = None

    def gives(self, task: Task | None) -> tuple[str, ...]:
        return self.inner.gives(task)

    def __call__(self, task: Task | None, model: nn.Module | None, candidate: Candidate) -> dict[str, float]:
        rung = rung_of(candidate)
        if task is None or rung is None:
            raise ValueError(f"{self.name} on rungs needs a task, and a candidate of a space with rungs")
        given = self.inner(self._part(task, rung.samples), model, candidate)
        rungs = rungs_of(candidate)
        scores = {on_rung(metric, rung, rungs): value for metric, value in given.items()}
        return Measured(scores, detail=detail_of(given))

    def _part(self, task: Task, share: float) -> Task:
        if task is not self._task:
            self._task, self._parts = task, {}
        if share not in self._parts:
            self._parts[share] = task.part(share)
        return self._parts[share]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_task": None, "_parts": {}}
