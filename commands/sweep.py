"""Launch a search."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import KINDS, about, check_place, cores, kinds_of, ratios_of, repair_of, rungs_of, traced
from .platform import (
    DevicesFile,
    DeviceTexts,
    Forbidden,
    Forced,
    LinkTexts,
    Parts,
    PlacementName,
    platform_of,
)
from .terminal import CTRL_C, busy, program, proving, tell
from .types import AsJson, Objectives, TaskName
from .views import print_busy, print_front, print_json, print_modelled, print_next

if TYPE_CHECKING:
    from ..evaluators import Task
    from ..search import Run

TRIALS = 500  # by default


def sweep(
    task: TaskName,
    space: Annotated[
        str,
        typer.Option(metavar="KINDS", help=f"what to decide: {', '.join(KINDS)}; several: prune,splits"),
    ] = "prune",
    searcher: Annotated[
        str, typer.Option(metavar="NAME", help="auto, nsga2, gp, greedy, random, ...")
    ] = "auto",
    importance: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="which units go first: l1, taylor, ... [default: reconstruction]"),
    ] = None,
    ratios: Annotated[
        str, typer.Option(metavar="N|LIST", help="pruning ratios of each group: how many, or 0,0.25,0.5")
    ] = "8",
    round_to: Annotated[
        int, typer.Option(metavar="N", min=1, help="keep multiples of N units of each group")
    ] = 1,
    repair: Annotated[
        str, typer.Option(metavar="HOW", help="without training: full, once (several times faster), none")
    ] = "full",
    rungs: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="of a progressive search: quick,full,tuned [default: quick,full]"),
    ] = None,
    device: DeviceTexts = None,
    link: LinkTexts = None,
    devices: DevicesFile = None,
    placement: PlacementName = None,
    parts: Parts = None,
    force: Forced = None,
    forbid: Forbidden = None,
    objective: Objectives = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPR", help="such as 'macs<=0.5x', x: of the unchanged model; repeat"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", min=1, help=f"stop after N in all [default: {TRIALS}]")
    ] = None,
    minutes: Annotated[float | None, typer.Option(metavar="M", help="stop after M minutes instead")] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="processes [default: the cores, at most 4]")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="of a Ray cluster [default: this machine]")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="same seed, same trials")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="new folder [default: runs/TASK-SEARCHER-N]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the run in --out, or else the latest of its kind")
    ] = False,
    seed_from: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="begin with an earlier run, or candidates in a .json file; repeat"),
    ] = None,
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:WHERE]", help="also show the trials in tensorboard, mlflow or optuna; repeat"
        ),
    ] = None,
    trial_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="a trial that takes longer has failed")
    ] = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="score each candidate N times, where chance is in it")
    ] = 1,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="the latency of the front, at the end")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Search the Pareto front of a task."""
    from ..evaluators.ray_session import check_reachable
    from ..evaluators.shipping import Rehearsal
    from ..results import Objective
    from ..results.trust import BUILT_IN
    from ..search import Interrupted
    from ..search import sweep as run_sweep
    from ..search.base import parse_limits
    from ..search.devices import stored_platform
    from ..search.mirrors import mirror as mirror_named
    from ..search.plan import check_numbers, check_task
    from ..search.progress import RichProgress
    from ..search.registry import find_searcher
    from ..search.settings import resumed_settings
    from ..search.warm_start import read_source

    # What can be wrong without a model is said before the task loads, which may take a while.
    kinds = kinds_of(space)
    levels = rungs_of(rungs, searcher)
    shares, mend = ratios_of(ratios), repair_of(repair)
    platform = platform_of(kinds, device, link, devices, placement, parts, force, forbid, searcher)
    limits = parse_limits(limit or ())
    wanted = {Objective.name_in(text) for text in objective or ()} | {m.metric for m in limits}
    find_searcher(searcher)
    if trials is not None and minutes is not None:
        raise typer.BadParameter("give --trials or --minutes, not both")
    if resume and seed_from:
        raise typer.BadParameter("--seed-from is for a new run; one that is resumed has begun already")
    begin = [read_source(path) for path in seed_from or ()]
    mirrors = [mirror_named(text) for text in mirror or ()]
    workers = cores() if workers is None else workers
    check_numbers(trials=trials, minutes=minutes, trial_timeout=trial_timeout, workers=workers)
    if address is not None and workers:
        check_reachable(address)
    settled: dict[str, Any] = {"seed": seed, "repeats": repeats}  # of a run that is resumed
    if "splits" not in kinds:  # memories of devices are limits too
        settled["limits"] = [m.text for m in limits]
    if not resume:
        check_place(out)
    elif out is not None:
        resumed_settings(out, None, searcher, settled)

    goals: list[Objective] = []
    stored: dict[str, Any] = {}

    def check(made: Task) -> None:
        goals.extend(Objective.parse(text, made.goals) for text in objective or ())
        tuned = any(level.epochs for level in levels or ())
        check_task(made, kinds, goals or None, limits, importance=importance, tuned=tuned)
        if resume:
            if goals:
                settled["objectives"] = [{"name": o.name, "goal": o.goal, "unit": o.unit} for o in goals]
            stored.update(resumed_settings(out, made, searcher, settled))
        if workers and made.spec not in BUILT_IN:
            rehearsals.append(closing.enter_context(Rehearsal(made)))

    rehearsals: list[Rehearsal] = []
    with busy() as say, ExitStack() as closing:
        made, blueprint = traced(task, say, check)
        prove = proving(say)

        def proven(done: int, total: int) -> None:
            for rehearsal in rehearsals:
                rehearsal.check()
            prove(done, total)

        options: dict[str, Any] = {}
        if "splits" in kinds:
            before = stored_platform(stored)[0]
            options = platform.options(made, blueprint, searcher, wanted=wanted, stored=before, say=say)
        candidates = blueprint.space(
            *kinds,
            ratios=shares,
            round_to=round_to,
            repair=mend,
            importance=importance,
            calibration=made.calibration_batches,
            progress=proven,
            **options,
        )
    try:
        with busy(spinner=False):
            run = run_sweep(
                made,
                candidates,
                searcher,
                goals or None,
                limits,
                trials=TRIALS if trials is None and minutes is None else trials,
                minutes=minutes,
                workers=workers,
                seed=seed,
                out=out,
                resume=resume,
                trial_timeout=trial_timeout,
                address=address,
                progress=RichProgress(),
                seed_from=begin,
                mirrors=mirrors,
                repeats=repeats,
                measure=measure,
                rungs=levels,
            )
    except Interrupted as stop:
        tell(str(stop), err=True)
        if stop.path.exists():
            typer.echo(f"Go on: the same command with --resume --out {quote(str(stop.path))}", err=True)
        raise SystemExit(CTRL_C) from None  # said above; typer's own Exit would be said again

    _show(run, searcher, as_json)


def _show(run: Run, searcher: str, as_json: bool) -> None:
    """The end of a sweep: its front, what it says of the search, and what to type next.

    Raises:
        typer.Exit: the front is empty.
    """
    from ..results.document import sweep_document

    front, failed = run.front, sum(t.failed for t in run.trials)
    if as_json:
        print_json(
            sweep_document(
                front,
                **about(run),
                out=str(run.path),
                evaluated=len(run.trials),
                failed=failed,
                seconds=run.info["seconds"],
            )
        )
    else:
        print_front(run, front)
        print_busy(front)
        print_modelled(run, [o.name for o in front.objectives])
        trials_text = "1 trial" if len(run.trials) == 1 else f"{len(run.trials)} trials"
        summary = f"{trials_text} in {run.info['seconds']:.0f} s, {len(front)} on the front"
        tell(f"{summary}, hypervolume {front.hypervolume():.4f}" + (f", {failed} failed" if failed else ""))
        if run.certificate is not None:
            tell(run.certificate.line())
        elif run.info.get("complete"):
            tell(f"The search is complete: {searcher} has nothing more to propose, whatever the budget")
        if failed:
            first = next(t for t in run.trials if t.failed)
            tell(f"Trial {first.number} failed: {first.reason}")
        tell(f"The run is in {run.path}")
    if not len(front):
        kept = " and ".join(m.text for m in run.limits)
        why = f"no trial keeps {kept}; loosen it, or" if kept else "every trial failed;"
        tell(f"error: the front is empty: {why} see `{program()} front {quote(str(run.path))}`", err=True)
        raise typer.Exit(1)
    if not as_json:
        print_next(run, front.knee.number, "front", "show", "export")
