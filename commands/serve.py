"""The stages of one trial, as processes that are running."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import typer

from ..engine.read_settings import shown
from .arguments import AsJson, RunPath, TrialName
from .options import options_of, with_options
from .terminal import busy, tell
from .views import print_json, print_table

DAILY, STAGES, PLACE = "Options", "The processes", "Other machines"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The options of ``netcarve serve``."""

    inputs: int = field(default=64, metadata=shown(DAILY, "validation inputs to send", "N", least=1))
    batch: int = field(default=1, metadata=shown(DAILY, "samples of each input", "B", least=1))
    link: str | None = field(
        default=None,
        metadata=shown(DAILY, "simulated between stages", "MBPS,MS", default="the run's links"),
    )
    real: bool = field(default=False, metadata=shown(DAILY, "simulate no devices and no links"))
    task: str | None = field(
        default=None, metadata=shown(DAILY, "of the run, if it lies elsewhere or is not yours", "TASK")
    )
    transport: str = field(default="tcp", metadata=shown(STAGES, "processes, or Ray actors", "tcp|ray"))
    runtime: str = field(default="pt2", metadata=shown(STAGES, "what runs the stages", "pt2|onnx"))
    threads: int = field(default=1, metadata=shown(STAGES, "of each stage", "T", least=1))
    timeout: float = field(
        default=60.0, metadata=shown(STAGES, "seconds without an answer: a stage hangs", "S")
    )
    restart: bool = field(default=False, metadata=shown(STAGES, "start a stage that dies or hangs again"))
    hosts: tuple[str, ...] = field(
        default=(),
        metadata=shown(PLACE, "where exported stages listen, in order", "HOST:PORT,...", commas=True),
    )
    address: str | None = field(
        default=None, metadata=shown(PLACE, "of a Ray cluster", "ADDR", default="a private one")
    )


@with_options(_Asked)
def serve(run: RunPath, trial: TrialName, *, as_json: AsJson = False, **given: Any) -> None:
    """Run the stages of one trial as processes and measure latency, throughput and bytes on the wire."""
    asked = options_of(_Asked, given)
    if asked.real and asked.link is not None:
        raise typer.BadParameter("--real simulates nothing; leave out --link")
    for what, value, known in (
        ("--transport", asked.transport, ("tcp", "ray")),
        ("--runtime", asked.runtime, ("pt2", "onnx")),
    ):
        if value not in known:
            raise typer.BadParameter(f"{what} must be one of {', '.join(known)}, got {value!r}")
    from ..devices import parse_link
    from ..engine import load
    from ..engine.deploying import serve as served
    from ..evaluators.ray_session import check_reachable

    if asked.address is not None and asked.transport == "ray":
        check_reachable(asked.address)
    options: dict[str, Any] = {} if asked.link is None else {"link": parse_link(asked.link)}
    loaded = load(run, asked.task)
    with busy() as say:
        found = served(
            loaded,
            loaded.number(trial),
            inputs=asked.inputs,
            batch=asked.batch,
            simulate=not asked.real,
            say=say,
            transport=asked.transport,
            restart=asked.restart,
            timeout=asked.timeout,
            threads=asked.threads,
            runtime=asked.runtime,
            hosts=asked.hosts,
            address=asked.address,
            **options,
        )
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    kind = {"tcp": "processes over TCP", "ray": "Ray actors"}[found["transport"]]
    samples = f"{found['batch']} sample{'s' if found['batch'] > 1 else ''}"
    if len(found["stages"]) > 1:
        tell(
            f"trial {found['trial']} as {len(found['stages'])} {kind}, {found['inputs']} inputs of {samples}"
        )
    else:
        tell(f"trial {found['trial']} has no cut: one stage, {found['inputs']} inputs of {samples}")
    rows = [
        (
            s["name"],
            s["device"] or "",
            f"{s['busy_ms']:.2f}",
            f"{s['slept_ms']:.2f}" if s["slept_ms"] > 0.01 else "",
        )
        for s in found["stages"]
    ]
    print_table("", ("stage", "device", "computes, ms", "slowed down, ms"), rows)
    total = found["inputs"] * found["batch"]
    sent = [
        (
            f"{b['sender']} > {b['receiver']}",
            f"{b['payload_bytes'] / total / 1000:.2f}",
            "" if b["wire_bytes"] is None else f"{b['wire_bytes'] / total / 1000:.2f}",
        )
        for b in found["boundaries"]
    ]
    print_table("", ("boundary", "kB a sample", "with headers"), sent)
    measured, predicted = found["measured"], found["predicted"]
    figures = []
    for name in ("latency_ms", "throughput_per_s", "traffic_kb"):
        was = predicted.get(name)
        ratio = f"{measured[name] / was:.2f}x" if was else ""
        figures.append((name, f"{measured[name]:.3f}", "-" if was is None else f"{was:.3f}", ratio))
    print_table("", ("", "measured", "predicted", "ratio"), figures)
    spread = f"{measured['latency_q25_ms']:.2f} to {measured['latency_q75_ms']:.2f}"
    tell(f"Latency: one input at a time, middle half {spread} ms; throughput: {found['inflight']} under way")
    held = any(k["bandwidth_mbps"] or k.get("latency_ms") for way in found["simulated"]["links"] for k in way)
    if held or any(s < 1 for s in found["simulated"]["speeds"]):
        tell("Links and slower devices are simulated on this machine by waiting")
    if found["restarts"]:
        tell(f"Stages started again: {found['restarts']}")
    count, every = found["samples"], found["all_samples"]
    on_all = (
        ""
        if found["trial_score"] is None or count == every
        else f" (trial: {found['trial_score']:.4f} on all {every})"
    )
    tell(
        f"{found['metric']} of what came back {found['score']:.4f}, in one process "
        f"{found['whole_score']:.4f}, on {count} samples{on_all}"
    )
    tell(f"Outputs differ by {found['difference']:.1e} of the largest")
