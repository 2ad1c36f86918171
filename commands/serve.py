"""The stages of one trial, as processes that are running."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .arguments import names_in
from .terminal import busy, tell
from .types import AsJson, RunPath, RunTask, TrialName
from .views import print_json, print_table


def serve(
    run: RunPath,
    trial: TrialName,
    transport: Annotated[
        str, typer.Option("--transport", metavar="tcp|ray", help="processes, or Ray actors")
    ] = "tcp",
    inputs: Annotated[
        int, typer.Option("--inputs", metavar="N", min=1, help="validation inputs to send")
    ] = 64,
    batch: Annotated[int, typer.Option("--batch", metavar="B", min=1, help="samples of each input")] = 1,
    link: Annotated[
        str | None,
        typer.Option("--link", metavar="MBPS,MS", help="simulated between stages [default: the run's links]"),
    ] = None,
    real: Annotated[bool, typer.Option("--real", help="simulate no devices and no links")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="start a stage that dies or hangs again")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", help="seconds without an answer: a stage hangs")
    ] = 60.0,
    threads: Annotated[int, typer.Option("--threads", metavar="T", min=1, help="of each stage")] = 1,
    runtime: Annotated[
        str, typer.Option("--runtime", metavar="pt2|onnx", help="what runs the stages")
    ] = "pt2",
    hosts: Annotated[
        str, typer.Option("--hosts", metavar="HOST:PORT,...", help="where exported stages listen, in order")
    ] = "",
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="ADDR", help="of a Ray cluster [default: a private one]"),
    ] = None,
    task: RunTask = None,
    as_json: AsJson = False,
) -> None:
    """Run the stages of one trial as processes and measure latency, throughput and bytes on the wire."""
    if real and link is not None:
        raise typer.BadParameter("--real simulates nothing; leave out --link")
    for what, value, known in (
        ("--transport", transport, ("tcp", "ray")),
        ("--runtime", runtime, ("pt2", "onnx")),
    ):
        if value not in known:
            raise typer.BadParameter(f"{what} must be one of {', '.join(known)}, got {value!r}")
    from ..evaluators.ray_session import check_reachable
    from ..search import load
    from ..search.deploying import serve as served
    from ..spaces.devices import parse_link

    if address is not None and transport == "ray":
        check_reachable(address)
    options: dict[str, Any] = {} if link is None else {"link": parse_link(link)}
    loaded = load(run, task)
    with busy() as say:
        found = served(
            loaded,
            loaded.number(trial),
            inputs=inputs,
            batch=batch,
            simulate=not real,
            say=say,
            transport=transport,
            restart=restart,
            timeout=timeout,
            threads=threads,
            runtime=runtime,
            hosts=tuple(names_in(hosts)),
            address=address,
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
