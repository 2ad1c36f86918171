"""Cut a model into stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .front import PICTURES
from .terminal import busy, tell
from .types import AsJson, TaskName
from .views import print_json, print_table

if TYPE_CHECKING:
    from ..search.decompose import Decomposition
    from ..search.decomposition.placements import Placement
    from ..search.decomposition.robustness import Scene


def partition(
    task: TaskName,
    parts: Annotated[
        int | None, typer.Option(metavar="K", min=1, help="stages [default: one a device, or 2]")
    ] = None,
    minimise: Annotated[
        str, typer.Option(metavar="GOAL", help="throughput, latency, traffic")
    ] = "throughput",
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SPEED", help="edge=0.2x, edge=profile.json, edge=1x,memory=64mb; repeat"),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(metavar="RATE", help="20mbps,5ms: for all, or repeat: from each to the next"),
    ] = None,
    devices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="devices and links in a TOML file")
    ] = None,
    method: Annotated[
        str,
        typer.Option(metavar="NAME", help="exact, greedy-merge, greedy-split, spectral, kernighan-lin, gcn"),
    ] = "exact",
    force: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="a stage must end after it; repeat")
    ] = None,
    forbid: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="it must stay whole; repeat")
    ] = None,
    imbalance: Annotated[
        float,
        typer.Option(metavar="X", help="for traffic: how much slower than the fastest, 0.25: 25 %"),
    ] = 0.25,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="samples of an input")] = 1,
    input_kb: Annotated[
        float | None,
        typer.Option(metavar="KB", help="of an input on the wire [default: its tensor]"),
    ] = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="what the plan is worth when a speed or a link is another")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="F.png", help="draw the cut network: .png, .svg or .pdf")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="of the methods that draw")] = 0,
    as_json: AsJson = False,
) -> None:
    """Cut a model into stages for several devices, without a search; accuracy stays what it is."""
    if plot is not None and plot.suffix not in PICTURES:
        raise typer.BadParameter(f"--plot draws {', '.join(PICTURES)}, got {str(plot)!r}")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise typer.BadParameter(f"--plot: there is no folder {str(plot.parent)!r}")
    from ..search.decomposition.setting import setting

    def asked_for(named: Any, links: Any) -> Any:
        return setting(
            parts,
            minimise,
            named or None,
            links or None,
            forced=force or (),
            forbidden=forbid or (),
            imbalance=imbalance,
            method=method,
            input_kb=input_kb,
            seed=seed,
        )

    named, links = _platform(device, link, devices)
    if named or not links:
        asked = asked_for(named, links)  # what is wrong is said before the task loads
    with busy() as say:
        say(f"reading the task {task}")
        from ..evaluators.resolve import resolve_task
        from ..search.decompose import decomposition
        from ..search.decomposition.network import read_network
        from ..search.decomposition.picture import picture_of
        from ..search.decomposition.placements import placements
        from ..search.decomposition.refining import measured_layout
        from ..search.decomposition.robustness import robustness as robustness_of
        from ..spaces.threads import one_thread_from_now_on

        made = resolve_task(task)
        one_thread_from_now_on()
        asked = asked_for(named or getattr(made, "devices", None), links or getattr(made, "links", None))
        say("capturing the model and timing its calls")
        network = read_network(made.model, made.example, batch=batch)
        measured = measured_layout(network, asked, progress=say)
        found = decomposition(measured, asked)
        others = placements(network, asked) if asked.two and minimise == "latency" else []
        scenes = robustness_of(measured.layout, asked) if robustness else []
        if plot is not None:
            from ..results.plot_graph import plot_graph

            say("drawing")
            plot_graph(picture_of(measured, asked), plot)
    about = {
        "task": made.name,
        "model": type(made.model).__name__,
        "minimise": minimise,
        "unit": "bytes" if minimise == "traffic" else "ms",
        "scope": measured.layout.scope,
        "batch": network.batch,
        "plans_timed": measured.tried,
    }
    if as_json:
        print_json(_document(about, found, others, scenes))
        return
    _print_plan(about, found)
    if others:
        _print_placements(others)
    if scenes:
        _print_scenes(scenes, minimise)
    if plot is not None:
        tell(f"Picture in {plot}")


def _platform(
    device: list[str] | None, link: list[str] | None, file: Path | None
) -> tuple[Sequence[Any], Sequence[Any]]:
    if file is None:
        return device or (), link or ()
    if device or link:
        raise typer.BadParameter("give --devices FILE, or --device and --link, not both")
    from ..spaces.devices import read_platform

    return read_platform(file)


def _document(
    about: dict[str, Any], found: Decomposition, others: list[Placement], scenes: list[Scene]
) -> dict[str, Any]:
    from dataclasses import asdict

    plan = found.plan
    return {
        **about,
        "value": plan.value,
        "bound": plan.bound,
        "gap": plan.gap,
        "method": plan.method,
        "upload_ms": found.upload_ms,
        "whole_ms": found.whole_ms,
        "difference": found.difference,
        "stages": [{**row.as_dict(), "tensors": list(row.tensors)} for row in found.rows],
        "placements": [{**asdict(p), "latency_ms": p.latency_ms} for p in others],
        "robustness": [{**asdict(s), "regret": s.regret} for s in scenes],
    }


def _print_plan(about: dict[str, Any], found: Decomposition) -> None:
    plan = found.plan
    tell(f"{about['task']}: {about['model']}, batch {about['batch']}, for {about['minimise']}")
    rows = []
    for row in found.rows:
        ends = row.first if row.first == row.last else f"{row.first or 'input'} .. {row.last or 'output'}"
        rows.append(
            (
                str(row.stage),
                row.device,
                ends,
                f"{row.ms:.3g}" + ("" if row.timed else " (profile)"),
                f"{100 * row.macs_share:.1f} %",
                f"{row.weights_mb:.2f}",
                f"{row.memory_mb:.2f}",
                f"{row.sent_kb:,.1f}" if row.sent_kb else "-",
                f"{row.send_ms:.3g}" if row.sent_kb else "-",
            )
        )
    headings = ("stage", "device", "modules", "ms", "MACs", "weights MB", "memory MB", "sends kB", "in ms")
    print_table("", headings, rows, spare=("in ms", "weights MB"))
    if found.upload_ms:
        tell(f"the inputs are sent to {found.rows[0].device} first: {found.upload_ms:.4g} ms")
    worth = (
        f"{plan.value / 1000:,.4g} kB a batch"
        if about["unit"] == "bytes"
        else f"{plan.value:.4g} ms"
        + (f", {1000 / plan.value:.4g} a second" if about["minimise"] == "throughput" and plan.value else "")
    )
    bound = f"{plan.bound / 1000:,.4g} kB" if about["unit"] == "bytes" else f"{plan.bound:.4g} ms"
    proven = "optimal" if plan.optimal else f"gap {100 * plan.gap:.2g} %"
    tell(f"{about['minimise']}: {worth}, bound {bound} over all {about['scope']}: {proven}; {plan.method}")
    if about["minimise"] == "throughput" and plan.value:
        tell(f"unsplit {found.whole_ms:.4g} ms here: {found.whole_ms / plan.value:.2f}x the inputs a second")
    same = "bit for bit" if found.difference == 0 else f"to {found.difference:.1e}"
    tell(f"stages timed here on one thread ({about['plans_timed']} plans); together equal the model {same}")


def _print_placements(others: list[Placement]) -> None:
    print_table(
        "\nEnd to end, modelled from the times of single calls, upload of the inputs counted",
        ("placement", "ms", "first device", "second device", "link", "sends kB"),
        [
            (
                p.name,
                f"{p.latency_ms:.4g}",
                f"{p.first_ms:.4g}",
                f"{p.second_ms:.4g}",
                f"{p.send_ms:.4g}",
                f"{p.sent_kb:,.1f}",
            )
            for p in others
        ],
    )


def _print_scenes(scenes: list[Scene], minimise: str) -> None:
    scale, unit = (1e-3, "kB") if minimise == "traffic" else (1.0, "ms")
    factors = list(dict.fromkeys(s.factor for s in scenes))
    rows = []
    for figure in dict.fromkeys(s.figure for s in scenes):
        cells = []
        for s in (s for s in scenes if s.figure == figure):
            worse = f" (+{100 * s.regret:.0f} %)" if s.regret >= 0.005 else ""
            cells.append(f"{s.value * scale:.4g}{worse}")
        rows.append((figure, *cells))
    print_table(
        f"\nThis plan ({unit}) when one figure is another; in brackets, by how much another is better",
        ("figure", *(f"x {factor:g}" for factor in factors)),
        rows,
    )
