"""Trials as processes that are running: deployed, streamed through, measured beside what was predicted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .exporting import stages_of
from .settings import RunError

if TYPE_CHECKING:
    from torch import nn

    from ..deployment.serving import Deployment
    from ..deployment.serving.stream import Record
    from ..model.stages import Stage
    from .run import Run

PREDICTED = ("latency_ms", "throughput_per_s", "traffic_kb")
WARM_UP = 4  # inputs that are not counted
ALONE = 32  # inputs at most that go through one by one, for the latency


def deploy(run: Run, number: int, *, simulate: bool = True, **options: Any) -> Deployment:
    """See :meth:`Run.deploy`."""
    from ..model.threads import one_thread

    run.scored(number)
    with one_thread():
        model = run.model(number)
        stages, on = _stages(run, model, number)
    return _deployment(run, stages, on, simulate, options)


def serve(
    run: Run,
    number: int,
    *,
    inputs: int = 64,
    batch: int = 1,
    simulate: bool = True,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> dict[str, Any]:
    """Stream validation inputs through the stages of one trial and measure.

    Args:
        inputs: how many; fewer where the validation data have fewer.
        batch: samples of each.
        simulate, options: see :meth:`Run.deploy`.

    Returns:
        Plain JSON: ``stages``, ``boundaries``, ``measured``, ``predicted`` (of the candidate's costs; empty
        where the space has no splits, the links are others than the run's, or a batch is not 1), ``score`` of
        what came back and ``whole_score`` of the network in one process on the same samples, ``difference``
        between the two (largest, relative to the largest output), ``samples`` of them, and the trial's own
        score, on ``all_samples``.

    Raises:
        RunError: no such trial, or one that failed.
        ServeError: see :class:`Deployment`.
    """
    if inputs < 1 or batch < 1:
        raise ValueError(f"need at least 1 input of 1 sample, got {inputs} of {batch}")
    from ..evaluators.batches import recut
    from ..explain.subject import samples_of
    from ..model.capture import lengths_of
    from ..model.threads import one_thread

    trial = run.scored(number)
    say("reading the task of the run")
    task = copy.copy(run.task)
    alike = [one for one in task.batches if lengths_of(one[:2]) == lengths_of(task.example)]
    if not alike:
        raise RunError(
            "stages are captured graphs, which take inputs as long as the task's example, and no validation "
            "batch is: make one of them the example"
        )
    task.batches = recut(alike, batch)[:inputs]
    stream = [(args, kwargs) for args, kwargs, _ in task.batches]
    with one_thread():
        say(f"building trial {number}")
        model = run.model(number)
        stages, on = _stages(run, model, number)
        deployment = _deployment(run, stages, on, simulate, options)
        say(f"starting {len(stages)} stage{'s' if len(stages) > 1 else ''}")
        outputs, alone, record = _streamed(deployment, stream, say)
        whole = _whole(model, stream)
    return {
        "run": str(run.path),
        "trial": number,
        "transport": options.get("transport", "tcp"),
        "batch": batch,
        "simulated": _simulated(deployment),
        **_figures(alone, record, on),
        "predicted": _predicted(run, number) if simulate and batch == 1 and "link" not in options else {},
        "metric": task.metric_name,
        "samples": samples_of(task),
        "all_samples": samples_of(run.task),
        "score": task.measure(outputs)[task.metric_name],
        "whole_score": task.measure(whole)[task.metric_name],
        "trial_score": trial.scores.get(task.metric_name),
        "difference": _difference(outputs, whole),
    }


def _streamed(
    deployment: Deployment, stream: list[Any], say: Callable[[str], None]
) -> tuple[list[Any], Record, Record]:
    """The outputs, and what was measured: one input at a time for the latency, then all for the rest."""
    with deployment:
        say(f"sending {len(stream)} inputs")
        list(deployment.run(stream[:WARM_UP]))
        list(deployment.run(stream[:ALONE], inflight=1))
        alone = deployment.record
        outputs = list(deployment.run(stream))
        record = deployment.record
    assert alone is not None
    assert record is not None
    return outputs, alone, record


def _figures(alone: Record, record: Record, on: list[str | None]) -> dict[str, Any]:
    return {
        "inputs": record.inputs,
        "inflight": record.inflight,
        "restarts": record.restarts + alone.restarts,
        "stages": [
            {"name": s.name, "device": device, "busy_ms": s.busy_ms, "slept_ms": s.slept_ms}
            for s, device in zip(record.stages, on, strict=True)
        ],
        "boundaries": record.to_json()["boundaries"],
        "measured": {
            "latency_ms": alone.latency_ms,
            "latency_q25_ms": alone.latency_q25_ms,
            "latency_q75_ms": alone.latency_q75_ms,
            "throughput_per_s": record.throughput_per_s,
            "traffic_kb": record.traffic_kb,
        },
    }


def _stages(run: Run, model: nn.Module, number: int) -> tuple[list[Stage], list[str | None]]:
    """Stages of a built model and their devices; a model of a space without splits is one stage."""
    from ..spaces.kinds.splits.plan import plan_of

    if plan_of(run.space.choices) is not None:
        placed = stages_of(run, model, number)
        return [p.stage for p in placed], [p.device for p in placed]
    from ..model.capture import capture
    from ..model.stages import split

    return split(capture(model, run.task.example), []), [None]


def _deployment(
    run: Run, stages: list[Stage], on: list[str | None], simulate: bool, options: dict[str, Any]
) -> Deployment:
    from ..deployment.serving import Deployment
    from ..deployment.serving.deployment import simulated
    from ..spaces.kinds.splits.plan import plan_of

    plan = plan_of(run.space.choices)
    named = [name for name in on if name is not None]
    if simulate and plan is not None and named:
        options = simulated(named, plan.devices, plan.links) | options
    return Deployment(stages, **options)


def _simulated(deployment: Deployment) -> dict[str, Any]:
    return {
        "links": [[link.to_json() for link in route] for route in deployment.routes],
        "speeds": list(deployment.speeds),
    }


def _predicted(run: Run, number: int) -> dict[str, float]:
    candidate = run.space.from_values(run[number].candidate.values)
    costs = run.space.costs([candidate])
    return {name: float(costs[name].iloc[0]) for name in PREDICTED if name in costs}


def _whole(model: nn.Module, stream: list[Any]) -> list[Any]:
    import torch

    with torch.inference_mode():
        return [model(*args, **kwargs) for args, kwargs in stream]


def _difference(outputs: list[Any], whole: list[Any]) -> float:
    from ..model.capture import tensors_of

    worst = largest = 0.0
    for got, want in zip(outputs, whole, strict=True):
        for a, b in zip(tensors_of(got), tensors_of(want), strict=True):
            if b.numel():
                worst = max(worst, float((a.double() - b.double()).abs().max()))
                largest = max(largest, float(b.double().abs().max()))
    return worst / largest if largest else worst
