"""Measured front: what is measured of a run's best candidates once the search is over."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..devices import Device, pipeline_costs
from ..evaluators.pool import Job
from ..results.fidelity import FULL, Fidelity
from ..results.front import Front
from ..results.ledger import Ledger
from ..results.settings import RunSettings
from ..results.trial import Trial, in_full
from ..spaces import Candidate, Space
from ..spaces.kinds.splits.plan import SplitPlan, plan_of
from .known import SAME
from .platform import sensitivities

if TYPE_CHECKING:
    from ..evaluators.base import Evaluator
    from ..evaluators.task import Task


def confirm_front(
    ledger: Ledger,
    task: Task,
    space: Space,
    scorers: Sequence[Evaluator],
    say: Callable[[str], None],
    rungs: Sequence[Fidelity] = (FULL,),
) -> None:
    """Score the unchanged model, the front and the uniform cuts on ``task.confirm_batches``, and keep it.

    Each network once: what is confirmed already, in an earlier session, is left alone. Nothing is told to the
    searcher. Where quality decides nothing in this run, or the task has nothing to confirm with, nothing is
    done. A network that fails here stays unconfirmed.
    """
    settings = RunSettings.from_json(ledger.settings)
    decided = {o.name for o in settings.objectives} | {m.metric for m in settings.limits}
    if not task.confirm_batches or not decided & set(task.metrics) or not _scores_quality(scorers):
        return
    from ..evaluators.batches import count_samples
    from ..evaluators.quality import Quality

    trials = in_full(ledger.trials(space))
    rows = set(settings.uniform)
    front = Front(trials, settings.objectives, limits=settings.limits)
    numbers = {t.number for t in (front.baseline, *front) if t is not None}
    wanted = [t for t in trials if t.number in numbers or t.candidate.indices in rows]
    wanted = [t for t in wanted if not t.failed and not t.confirmed]
    samples = count_samples(task.confirm_batches)
    levels = tuple(replace(rung, samples=1.0) for rung in rungs)  # of all data, repaired as in the search
    job = Job(task.to_confirm(), space, [Quality(each=True)], rungs=levels)
    for done, trial in enumerate(wanted):
        say(f"confirming the front on {task.confirm_data}: {done + 1} of {len(wanted)}")
        outcome = job.evaluate(trial.number, trial.candidate, trial.fidelity)
        if outcome.scores is not None:
            right = outcome.detail.get("right")
            record = {"data": task.confirm_data, "samples": samples, "scores": outcome.scores}
            ledger.measure(trial.number, {}, {"confirmed": record | ({"right": right} if right else {})})


def _scores_quality(scorers: Sequence[Evaluator]) -> bool:
    """Are the run's scores the task's metric? A user's own evaluators may give others of the same name."""
    from ..evaluators.quality import Quality

    return any(isinstance(getattr(s, "inner", s), Quality) for s in scorers)


# -- Real stages of a run's best candidates, timed beside what was modelled -----------------------------


def measure_stages(ledger: Ledger, task: Task, space: Space) -> None:
    """Time the stages of the unchanged model and of the front, and keep ``detail["measured"]`` of each trial.

    Also ``detail["sensitivity"]``, of :func:`sensitivities`. Scores stay as modelled, so that all trials
    compare. What is known already is left alone; nothing is timed where a device's profile is of another
    machine. Nothing else may run meanwhile.
    """
    from ..model.stages import CutError

    plan = plan_of(space.choices)
    if plan is None:
        return
    settings = RunSettings.from_json(ledger.settings)
    front = Front(ledger.trials(space), settings.objectives, limits=settings.limits)
    wanted = {t.number: t for t in (front.baseline, *front) if t is not None}
    unknown = [t for _, t in sorted(wanted.items()) if "sensitivity" not in t.detail]
    for trial, changes in zip(unknown, sensitivities(space, [t.candidate for t in unknown]), strict=True):
        if changes:
            ledger.measure(trial.number, {}, {"sensitivity": changes})
    if not all(_is_here(device) for device in plan.devices):
        return
    for number, trial in sorted(wanted.items()):
        if "measured" in trial.detail:
            continue
        try:
            found = staged_times(task, space, trial.candidate)
        except CutError as error:
            found = {"error": str(error)}
        ledger.measure(number, {}, {"measured": found})


def staged_times(task: Task, space: Space, candidate: Candidate) -> dict[str, Any]:
    """The stages of a candidate, each timed alone on one thread of this machine.

    Returns:
        ``stages`` (names), ``devices``, ``stage_ms``: measured and divided by the speed of each stage's
        device; ``latency_ms`` and ``throughput_per_s`` of the pipeline of these, links as modelled.

    Raises:
        CutError: the candidate cannot be cut there.
        ValueError: its space has no splits.
    """
    from ..evaluators.batches import resize
    from ..evaluators.stage_timing import stage_times
    from ..model.threads import one_thread

    plan = plan_of(candidate.choices)
    if plan is None:
        raise ValueError("this space has no splits; make one by space('prune', 'splits')")
    with one_thread():
        placed = space.side.stages(candidate)
        stages = [p.stage for p in placed]
        (clock,) = stage_times([stages], resize(task.example, 1))
    names = [d.name for d in plan.devices]
    on = [names.index(p.device) for p in placed]
    ms = [taken / plan.devices[d].speed for taken, d in zip(clock.tolist(), on, strict=True)]
    sent = [float(sum(port.bytes(1) for port in stage.inputs)) for stage in stages]
    costs = _pipeline(plan, ms, sent, on)
    return {
        "stages": [stage.name for stage in stages],
        "devices": [p.device for p in placed],
        "stage_ms": ms,
        "latency_ms": costs["latency_ms"],
        "throughput_per_s": costs["throughput_per_s"],
    }


def _pipeline(plan: SplitPlan, ms: list[float], sent: list[float], on: list[int]) -> dict[str, float]:
    """Costs of stages whose times are known, with all that they take."""
    k = len(ms)
    devices = [replace(d, profile=None) for d in plan.devices]  # what a stage takes beside its calls is in ms
    zeros = np.zeros((1, k))
    costs = pipeline_costs(
        np.tile(np.array(ms), (1, len(devices), 1)),
        np.array([[*sent, 0.0]]),
        zeros,
        zeros,
        np.arange(1, k)[None],
        np.array([on]),
        devices,
        plan.links,
    )
    return {name: float(values[0]) for name, values in costs.items()}


def _is_here(device: Device) -> bool:
    """Does this machine's clock say how long the device takes?"""
    from ..evaluators.machine import processor

    return device.profile is not None and (device.relative or device.profile.machine == processor())


# -- What is measured of a run's best candidates once the search is over --------------------------------

TOGETHER = 8  # networks that take turns, all held at once
MOST = 40  # networks in all, the front's first
SHARE = 0.03  # of the time that the run took, for the timing
LEAST_SECONDS = 1.0
IN_TURNS = "latency_in_turns"  # detail of a trial: its latency was measured beside its neighbours


def measure_front(ledger: Ledger, task: Task, space: Space, *, seconds: float = 0.0) -> None:
    """Measure the latency of the unchanged model and of the front, neighbours in turns, and keep it.

    Where latency is an objective, so are trials that may belong to the front, for all that is known of their
    latency. Nothing else may run meanwhile. All latencies are shares of one time of the unchanged model: the
    median of all that were seen here, or what is known of it. A model that fails here stays as it was.
    Nothing is measured again that was measured so before; where networks are split, their stages are timed
    instead (see :func:`.measured_front.measure_stages`).

    Args:
        seconds: that the run has taken; 3 % of it, and at least a second, are for timing (more where ten
            rounds take longer).
    """
    if plan_of(space.choices) is not None:
        pass

        measure_stages(ledger, task, space)
        return
    from ..evaluators.lane import compare, steadied

    settings = RunSettings.from_json(ledger.settings)
    trials = ledger.trials(space)
    front = Front(trials, settings.objectives, limits=settings.limits)
    wanted = {t.number: t for t in (front.baseline, *front.contenders()[:MOST]) if t is not None}
    if all(IN_TURNS in t.detail for t in wanted.values()):
        return
    groups = list(_neighbours(list(wanted.values())))
    each = max(LEAST_SECONDS, SHARE * seconds) / len(groups)
    known = front.baseline.scores.get("latency_ms") if front.baseline else None
    outcomes = [
        outcome
        for group in groups
        for outcome in compare(task, space, [(t.number, t.candidate) for t in group], seconds=each)
        if outcome.scores is not None
    ]
    if not outcomes:
        return
    reference = known or statistics.median(o.detail["baseline_ms"] for o in outcomes)
    same = [(t.detail.get(SAME), t.number) for t in trials]
    for outcome in outcomes:
        steady = steadied(outcome, reference)
        for number in (steady.number, *(copy for of, copy in same if of == steady.number)):
            ledger.measure(number, steady.scores or {}, {**steady.detail, IN_TURNS: True})


def _neighbours(trials: Sequence[Trial]) -> Iterator[list[Trial]]:
    """Trials in groups of nearly equal size, by latency as far as it is known, else by MACs."""
    metric = next((m for m in ("latency_ms", "macs") if all(m in t.scores for t in trials)), None)
    ordered = sorted(trials, key=lambda t: (t.scores[metric] if metric else 0.0, t.number))
    count = -(-len(ordered) // TOGETHER)
    for i in range(count):
        yield ordered[i * len(ordered) // count : (i + 1) * len(ordered) // count]
