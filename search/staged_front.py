"""Real stages of a run's best candidates, timed beside what was modelled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..results.front import Front
from ..results.ledger import Ledger
from ..results.settings import RunSettings
from ..spaces import Candidate, Space
from ..spaces.devices import Device, pipeline_costs
from ..spaces.kinds.splits.plan import Plan, plan_of
from .devices import sensitivities

if TYPE_CHECKING:
    from ..evaluators.task import Task


def measure_stages(ledger: Ledger, task: Task, space: Space) -> None:
    """Time the stages of the unchanged model and of the front, and keep ``detail["measured"]`` of each trial.

    Also ``detail["sensitivity"]``, of :func:`sensitivities`. Scores stay as modelled, so that all trials
    compare. What is known already is left alone; nothing is timed where a device's profile is of another
    machine. Nothing else may run meanwhile.
    """
    from ..spaces.stages import CutError

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
    from ..spaces.threads import one_thread

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


def _pipeline(plan: Plan, ms: list[float], sent: list[float], on: list[int]) -> dict[str, float]:
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
