"""Pools that evaluate candidates: the job, its outcome, their protocol, and the pool of this process."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from ..results.fidelity import FULL, Fidelity, Proposal
from ..spaces import Candidate, Space
from ..spaces.choice import unsplit
from .base import Evaluator, as_evaluators, detail_of
from .seeding import seeded

if TYPE_CHECKING:
    from torch import nn

    from ..spaces.kinds.splits.staged import PlacedStage
    from .task import Task

REPEATABLE = 1e-5  # of a score: what two runs may differ by, since some devices sum in any order
Repair = Callable[[Any, Any], None]  # (model, calibration batches): mends a cut model in place


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of evaluating one candidate: ``scores`` or ``error``, never both."""

    number: int
    scores: dict[str, float] | None = None  # metric name -> finite value
    error: str | None = None  # traceback text, the reason in its last line
    seconds: float = 0.0  # wall time
    worker: str = ""
    detail: dict[str, Any] = field(default_factory=dict)  # what evaluators keep beside scores, plain JSON


@dataclass(frozen=True, slots=True)
class Job:
    """How to evaluate a candidate; the same in every worker, and picklable.

    Args:
        task: ``None`` for a space without a model.
        space: builds the candidates. Without a model, evaluators are called with ``model=None``.
        evaluators: called in this order with ``(task, model, candidate)``; their scores are joined. Functions
            of that form are taken too.
        repair: called in this order with ``(model, calibration batches)`` before the evaluators, on every
            network but the unchanged one; ``None`` re-estimates BatchNorm where the space's own repair has
            not moved its statistics, and keeps what brings the outputs nearer to the original's.
        repeats: how often a candidate is scored; more than once, its scores are the means, with
            ``detail["spread"]``, their standard deviations. Once, the unchanged model is still scored twice,
            and ``detail["differs"]`` holds both values of what does not come out alike.
        rungs: fidelities on which candidates may be judged, the most thorough first.
    """

    task: Task | None
    space: Space
    evaluators: Sequence[Evaluator]
    repair: Sequence[Repair] | None = None
    repeats: int = 1
    rungs: tuple[Fidelity, ...] = (FULL,)
    _parts: dict[float, Task] = field(default_factory=dict, init=False, repr=False)  # by share of the data

    def __post_init__(self) -> None:
        object.__setattr__(self, "evaluators", as_evaluators(self.evaluators))

    def evaluate(self, number: int, candidate: Candidate, fidelity: str | None = None) -> Outcome:
        """Switch or build, repair, score, on one thread, with generators seeded from the candidate.

        Never raises, but for an interruption: what goes wrong is the outcome.

        Args:
            fidelity: name of one of the rungs; by default the first.
        """
        start = time.perf_counter()
        scores: dict[str, float] | None = None
        error: str | None = None
        detail: dict[str, Any] = {}
        try:
            on = self._rung(fidelity)
            with seeded(self._seed(unsplit(candidate), on)), self._one_thread():
                scores, detail = self._score(number, candidate, on)
        except (Exception, SystemExit):  # a user's metric may call sys.exit
            error = traceback.format_exc()
        return Outcome(number, scores, error, time.perf_counter() - start, worker_name(), detail)

    def build(self, candidate: Candidate, fidelity: str | None = None) -> Any:
        """The model as it is scored, in one piece, in eval mode; ``None`` for a space without a model."""
        if self.space.model is None:
            return None
        whole, on = unsplit(candidate), self._rung(fidelity)
        return self._repaired(self.space.build(whole, repair=on.repair).eval(), whole, on)

    def stages(self, candidate: Candidate) -> list[PlacedStage]:
        """The repaired model cut into its stages, each with its device.

        Raises:
            ValueError: the space has no splits, or the model cannot be cut there.
        """
        return self.space.side.cut(self.build(candidate), candidate)

    @contextmanager
    def lend(self, candidate: Candidate, fidelity: str | None = None) -> Iterator[Any]:
        """The repaired model for as long as the context lasts: this process's resident network, switched.

        What is done to it is undone afterwards. A model is built where none can be switched, where that is
        in use, and in the latency lane. Where the candidate is cut makes no difference. The unchanged one is
        the task's model itself, or a copy where evaluators do more than run it.
        """
        candidate = unsplit(candidate)
        only_run = all(evaluator.only_runs for evaluator in self.evaluators)
        if only_run and self.task is not None and self._unchanged(candidate):
            from ..model.capture import state_kept

            with state_kept(self.task.model):
                yield self.task.model
            return
        elastic = None if self._in_lane() else self.space.side.elastic(self.space.choices)
        usable = elastic is not None and elastic.free and elastic.switches(candidate)
        if elastic is None or not usable or self._unchanged(candidate):
            yield self.build(candidate, fidelity)
            return
        on = self._rung(fidelity)
        copies = bool(self.repair) or on.epochs > 0 or not only_run
        with elastic.lend(candidate, copies=copies, repair=on.repair) as model:
            yield self._repaired(model, candidate, on)

    def _in_lane(self) -> bool:
        return any(evaluator.lane for evaluator in self.evaluators)

    def _unchanged(self, candidate: Candidate) -> bool:
        """Is it the network that was given? The scores of that are those of the task's model, untouched."""
        return self.space.side.unchanged(candidate)

    def _repaired(self, model: nn.Module, candidate: Candidate, on: Fidelity) -> Any:
        if self.task is not None and not self._unchanged(candidate):
            if self.repair is None:
                self._settle(model, candidate, on)
            for mend in self.repair or ():
                mend(model, self.task.calibration_batches)
            if on.epochs:
                self._tune(model, candidate, on)
            if callable(refit := getattr(model, "refit", None)):  # heads that it was given (see Kind.wrap)
                refit(self.task.calibration_batches)
        return model

    def _settle(self, model: nn.Module, candidate: Candidate, on: Fidelity) -> None:
        """Let BatchNorm's statistics follow the change, where the space's own repair has not done so."""
        if not self.space.side.moves_statistics(candidate, on.repair):
            from .batchnorm import reestimate_if_better

            assert self.task is not None
            reestimate_if_better(model, self.task)

    def _tune(self, model: nn.Module, candidate: Candidate, on: Fidelity) -> None:
        from .finetuning import finetune

        assert self.task is not None
        loss, seed = self.task.judge.training_loss, self._seed(candidate, on)
        finetune(model, self.task.train, loss=loss, epochs=on.epochs, seed=seed)

    @property
    def tunes(self) -> bool:
        """Is training data needed on any rung?"""
        return any(rung.epochs for rung in self.rungs)

    def _rung(self, name: str | None) -> Fidelity:
        if name is None:
            return self.rungs[0]
        found = next((rung for rung in self.rungs if rung.name == name), None)
        if found is None:
            raise ValueError(f"unknown fidelity {name!r}; known: {', '.join(r.name for r in self.rungs)}")
        return found

    def _seed(self, candidate: Candidate, on: Fidelity) -> int:
        """Of a candidate's generators; where there are several rungs, each draws numbers of its own."""
        place = (self.rungs.index(on),) if len(self.rungs) > 1 else ()
        return int(np.random.SeedSequence((*candidate.indices, *place)).generate_state(1)[0])

    def _part(self, share: float) -> Task | None:
        """The task on a share of its validation data."""
        if self.task is None or share == 1.0:
            return self.task
        if share not in self._parts:
            self._parts[share] = self.task.part(share)
        return self._parts[share]

    def _score(
        self, number: int, candidate: Candidate, on: Fidelity
    ) -> tuple[dict[str, float], dict[str, Any]]:
        scores, detail = self._score_once(candidate, on)
        given = number == 0 and self.task is not None and not self._in_lane() and self._unchanged(candidate)
        again = self.repeats - 1 or int(given)
        others = [self._score_once(candidate, on)[0] for _ in range(again)]
        if self.repeats > 1:
            runs = {metric: [value, *(o[metric] for o in others)] for metric, value in scores.items()}
            detail["spread"] = {metric: statistics.stdev(values) for metric, values in runs.items()}
            scores = {metric: statistics.fmean(values) for metric, values in runs.items()}
        elif others and (differs := self._differing(scores, others[0])):
            detail["differs"] = differs
        return scores, detail

    def _score_once(self, candidate: Candidate, on: Fidelity) -> tuple[dict[str, float], dict[str, Any]]:
        scores: dict[str, float] = {}
        detail: dict[str, Any] = {}
        task = self._part(on.samples)
        with self.lend(candidate, on.name) as model:
            for evaluator in self.evaluators:
                given = evaluator(task, model, candidate)
                _check(given, scores, evaluator.name or type(evaluator).__name__)
                scores.update({metric: float(value) for metric, value in given.items()})
                detail.update(detail_of(given))
        try:
            json.dumps(detail, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"what evaluators keep beside their scores must be plain JSON: {error}") from None
        return scores, detail

    def _differing(self, scores: Mapping[str, float], again: Mapping[str, float]) -> dict[str, list[float]]:
        """By metric, both values of what differs by more than the order of summation and the tolerance."""
        assert self.task is not None
        tolerance = {self.task.metric_name: self.task.tolerance}
        return {
            metric: [value, again[metric]]
            for metric, value in scores.items()
            if not math.isclose(value, again[metric], rel_tol=REPEATABLE, abs_tol=tolerance.get(metric, 0.0))
        }

    def _one_thread(self) -> Any:
        if self.space.model is None:
            return nullcontext()
        from ..model.threads import one_thread

        return one_thread()


class Pool(Protocol):
    """Evaluates candidates somewhere; results come back by number, in any order."""

    def room(self) -> int:
        """How many more candidates it would take now to stay busy."""

    def submit(self, jobs: Sequence[tuple[int, Proposal]]) -> None:
        """Take ``(number, proposal)`` pairs; more than :meth:`room` are queued."""

    def finished(self, timeout: float | None = None) -> list[Outcome]:
        """What has finished since the last call.

        Waits for at least one outcome, at most ``timeout`` seconds; empty when time is up or nothing
        is in flight.
        """

    def close(self) -> None:
        """Give up what is in flight and leave nothing behind. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class InProcessPool(Pool):
    """Evaluates one candidate at a time in this process; the simplest pool, and the others' yardstick."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._queue: deque[tuple[int, Proposal]] = deque()

    def room(self) -> int:
        return max(0, 1 - len(self._queue))

    def submit(self, jobs: Sequence[tuple[int, Proposal]]) -> None:
        self._queue.extend(jobs)

    def finished(self, timeout: float | None = None) -> list[Outcome]:
        """One outcome, however long it takes: there is nobody else to wait."""
        if not self._queue:
            return []
        number, proposal = self._queue.popleft()
        return [self.job.evaluate(number, proposal.candidate, proposal.fidelity)]

    def close(self) -> None:
        self._queue.clear()


def worker_name() -> str:
    """``host:pid`` of this process."""
    return f"{platform.node()}:{os.getpid()}"


def _check(given: object, scores: Mapping[str, float], name: str) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"evaluator {name!r} must return {{metric: number}}, got {type(given).__name__}")
    for metric, value in given.items():
        if metric in scores:
            raise ValueError(f"two evaluators give the metric {metric!r}, the second is {name!r}")
        if not math.isfinite(value):
            raise ValueError(f"{metric} is {value}: evaluator {name!r} gave no finite number")
