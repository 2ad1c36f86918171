"""Commands about models: inspect, profile and partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.read_settings import shown
from .arguments import AsJson, TaskAndOptions, TaskName, kinds_of, traced
from .options import check_kind_options, kind_options, options_of, task_and_options, with_options
from .runs import PICTURES
from .terminal import busy, proving, tell
from .views import print_inspection, print_json, print_table

if TYPE_CHECKING:
    from ..deployment.alternatives import Placement, Scene
    from ..deployment.decompose import Decomposition
    from ..devices import Device, Link
    from ..evaluators.profiling import Profiled


def inspect(
    words: TaskAndOptions = None,
    *,
    space: Annotated[
        str, typer.Option("--space", metavar="KINDS", help="show what these kinds decide: operators,bits")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show what may be changed in a model, and what its layers cost; takes a sweep's options of kinds."""
    task, others = task_and_options(words or ())
    kinds = kinds_of(space.split(",")) if space else ()
    options = kind_options(others)
    check_kind_options(kinds, options)
    with busy() as say:
        from ..evaluators.inspection import inspection

        found = inspection(*traced(task, say), kinds, options, progress=proving(say))
    if as_json:
        print_json(found)
    else:
        print_inspection(found)


# -- Measure how fast this machine runs a task's network ------------------------------------------------


def profile(
    task: TaskName,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="write the profile, for --device NAME=FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how long a task's operators take on this machine, at several widths."""
    if output is not None and not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"--output: there is no folder {str(output.parent)!r}")
    with busy() as say:
        from ..evaluators.profiling import measure_profile

        found = measure_profile(*traced(task, say), say=say)
    if output is not None:
        found.profile.save(output)
    if as_json:
        lines = [asdict(line) for line in found.lines]
        print_json({**found.profile.to_json(), "ms": found.ms, "lines": lines})
    else:
        _print(found)
    if output is not None:
        typer.echo(f"wrote {output}", err=True)


def _print(found: Profiled) -> None:
    from ..results.table import plain

    made = found.profile
    total = sum(line.ms for line in found.lines)
    rows = [
        (line.operator, str(line.calls), plain(line.ms), f"{line.ms / total:.1%}") for line in found.lines
    ]
    print_table(
        f"One sample, one thread, {made.runtime}, {made.machine}", ("operator", "calls", "ms", "share"), rows
    )
    tell(f"The whole network takes {plain(found.ms)} ms")
    if made.error is not None:
        median, most = made.error
        tell(
            f"Stages of {'other' if found.checked else 'the same'} networks are predicted to "
            f"{median:.1%} in the median, {most:.1%} in 90 % of {len(found.held_out)}"
        )


# -- Cut a model into stages ----------------------------------------------------------------------------

DAILY, DEVICES, DETAIL = "Options", "Several devices", "The cut in detail"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The options of ``netcarve partition``."""

    parts: int | None = field(
        default=None, metadata=shown(DAILY, "stages", "K", least=1, default="one a device, or 2")
    )
    minimise: str = field(default="throughput", metadata=shown(DAILY, "throughput, latency, traffic", "GOAL"))
    plot: str | None = field(
        default=None, metadata=shown(DAILY, "draw the cut network: .png, .svg or .pdf", "F.png")
    )
    robustness: bool = field(
        default=False, metadata=shown(DAILY, "what the plan is worth when a speed or a link is another")
    )
    device: tuple[str, ...] = field(
        default=(),
        metadata=shown(DEVICES, "edge=0.2x, edge=profile.json, edge=1x,memory=64mb; repeat", "NAME=SPEED"),
    )
    link: tuple[str, ...] = field(
        default=(),
        metadata=shown(DEVICES, "20mbps,5ms: for all, or repeat: from each to the next", "RATE"),
    )
    devices: str | None = field(
        default=None, metadata=shown(DEVICES, "devices and links in a TOML file", "FILE")
    )
    method: str = field(
        default="exact",
        metadata=shown(DETAIL, "exact, greedy-merge, greedy-split, spectral, kernighan-lin, gcn", "NAME"),
    )
    force: tuple[str, ...] = field(
        default=(), metadata=shown(DETAIL, "a stage must end after it; repeat", "MODULE")
    )
    forbid: tuple[str, ...] = field(
        default=(), metadata=shown(DETAIL, "it must stay whole; repeat", "MODULE")
    )
    imbalance: float = field(
        default=0.25,
        metadata=shown(DETAIL, "for traffic: how much slower than the fastest, 0.25: 25 %", "X"),
    )
    batch: int = field(default=1, metadata=shown(DETAIL, "samples of an input", "N", least=1))
    input_kb: float | None = field(
        default=None, metadata=shown(DETAIL, "of an input on the wire", "KB", default="its tensor")
    )
    seed: int = field(default=0, metadata=shown(DETAIL, "of the methods that draw", "S", least=0))

    def settings(self, devices: Sequence[Device | str], links: Sequence[Link | str]) -> Any:
        """The question to the partitioners, for these devices and links.

        Raises:
            ValueError: what cannot be.
        """
        from ..deployment.setting import partition_settings

        return partition_settings(
            self.parts,
            self.minimise,
            devices or None,
            links or None,
            forced=self.force,
            forbidden=self.forbid,
            imbalance=self.imbalance,
            method=self.method,
            input_kb=self.input_kb,
            seed=self.seed,
        )


@with_options(_Asked)
def partition(task: TaskName, *, as_json: AsJson = False, **given: Any) -> None:
    """Cut a model into stages for several devices, without a search; accuracy stays what it is."""
    wanted = options_of(_Asked, given)
    plot = None if wanted.plot is None else Path(wanted.plot)
    if plot is not None and plot.suffix not in PICTURES:
        raise typer.BadParameter(f"--plot draws {', '.join(PICTURES)}, got {str(plot)!r}")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise typer.BadParameter(f"--plot: there is no folder {str(plot.parent)!r}")
    named, links = _platform(wanted)
    if named or not links:
        asked = wanted.settings(named, links)  # what is wrong is said before the task loads
    with busy() as say:
        say(f"reading the task {task}")
        from ..deployment.alternatives import placements
        from ..deployment.alternatives import robustness as robustness_of
        from ..deployment.decompose import decomposition, measured_layout
        from ..deployment.network import read_network
        from ..deployment.picture import picture_of
        from ..evaluators.resolve import resolve_task
        from ..model.threads import one_thread_from_now_on

        made = resolve_task(task)
        one_thread_from_now_on()
        asked = wanted.settings(named or made.devices, links or made.links)
        say("capturing the model and timing its calls")
        network = read_network(made.model, made.example, batch=wanted.batch)
        measured = measured_layout(network, asked, progress=say)
        found = decomposition(measured, asked)
        others = placements(network, asked) if asked.two and wanted.minimise == "latency" else []
        scenes = robustness_of(measured.layout, asked) if wanted.robustness else []
        if plot is not None:
            from ..deployment.picture import plot_graph

            say("drawing")
            plot_graph(picture_of(measured, asked), plot)
    about = {
        "task": made.name,
        "model": type(made.model).__name__,
        "minimise": wanted.minimise,
        "unit": "bytes" if wanted.minimise == "traffic" else "ms",
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
        _print_scenes(scenes, wanted.minimise)
    if plot is not None:
        tell(f"Picture in {plot}")


def _platform(asked: _Asked) -> tuple[Sequence[Any], Sequence[Any]]:
    if asked.devices is None:
        return asked.device, asked.link
    if asked.device or asked.link:
        raise typer.BadParameter("give --devices FILE, or --device and --link, not both")
    from ..devices import read_platform

    return read_platform(asked.devices)


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
