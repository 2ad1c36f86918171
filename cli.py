"""The command line: reads arguments, calls the library, shows what came of it.

Everything heavy is imported inside the commands, so that ``--help`` is instant. Results go to stdout,
progress and errors to stderr; ``__main__`` turns errors into exit codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._arguments import about, cores, front_of, kinds_of, names_in, rungs_of, traced
from ._terminal import busy, printer, program, proving
from ._views import print_comparison, print_inspection, print_json, print_receipt

if TYPE_CHECKING:
    pass

PICTURES = (".png", ".svg", ".pdf")
TRIALS = 500  # by default

app = typer.Typer(
    help="Search what a trained network can become. `netcarve sweep digits` shows netcarve at work.",
    rich_markup_mode=None,  # plain help: importing rich would take longer than all else
    add_completion=False,
)

TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="digits, file.py:function or package.module:function")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run, as `sweep` says at its end")]
TrialNumber = Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="number of a trial; 0 is unchanged")]
Objectives = Annotated[
    list[str] | None,
    typer.Option("--objective", metavar="M", help="metric to trade off, or NAME:min, NAME:max; repeat"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of tables")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"netcarve {version('netcarve')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


@app.command()
def sweep(
    task: TaskName,
    space: Annotated[
        str,
        typer.Option(metavar="KINDS", help="what to decide: prune, drop, mask; several: prune,drop"),
    ] = "prune",
    searcher: Annotated[
        str, typer.Option(metavar="NAME", help="auto, nsga2, gp, greedy, random, ...")
    ] = "auto",
    importance: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="which units go first: l1, taylor, ... [default: reconstruction]"),
    ] = None,
    rungs: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="of a progressive search: quick,full,tuned [default: quick,full]"),
    ] = None,
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
    trial_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="a trial that takes longer has failed")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search the Pareto front of a task."""
    from .results import Limit, Objective
    from .results.document import sweep_document
    from .results.table import render_front
    from .search import Interrupted, known_searchers
    from .search import sweep as run_sweep
    from .search.plan import check_numbers
    from .search.progress import RichProgress
    from .search.settings import check_free
    from .search.warm_start import read_source
    from .spaces.rung import with_rungs

    # What can be wrong without a model is said before the task loads, which may take a while.
    kinds = kinds_of(space)
    levels = rungs_of(rungs, searcher)
    for text in objective or ():
        Objective.parse(text)
    for text in limit or ():
        Limit(text)
    if searcher not in known_searchers():
        raise ValueError(f"unknown searcher {searcher!r}; known are {', '.join(known_searchers())}")
    if trials is not None and minutes is not None:
        raise typer.BadParameter("give --trials or --minutes, not both")
    if resume and seed_from:
        raise typer.BadParameter("--seed-from is for a new run; one that is resumed has begun already")
    begin = [read_source(path) for path in seed_from or ()]
    workers = cores() if workers is None else workers
    check_numbers(trials=trials, minutes=minutes, trial_timeout=trial_timeout, workers=workers)
    if out is not None and not resume:
        check_free(out)

    with busy() as say:
        made, blueprint = traced(task, say)
        candidates = blueprint.space(
            *kinds, importance=importance, calibration=made.calibration_batches, progress=proving(say)
        )
        if levels:
            candidates = with_rungs(candidates, levels)
    try:
        with busy(spinner=False):
            run = run_sweep(
                made,
                candidates,
                searcher,
                objective or None,
                limit or (),
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
            )
    except Interrupted as stop:
        typer.echo(stop, err=True)
        if stop.path.exists():
            typer.echo(f"Go on: the same command with --resume --out {stop.path}", err=True)
        raise typer.Exit(1) from None

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
        printer().print(render_front(front, run.baseline))
        trials_text = "1 trial" if len(run.trials) == 1 else f"{len(run.trials)} trials"
        summary = f"{trials_text} in {run.info['seconds']:.0f} s, {len(front)} on the front"
        print(f"{summary}, hypervolume {front.hypervolume():.4f}" + (f", {failed} failed" if failed else ""))
        if failed:
            first = next(t for t in run.trials if t.failed)
            print(f"Trial {first.number} failed: {first.reason}")
        print(f"The run is in {run.path}")
    if not len(front):
        limits = " and ".join(m.text for m in run.limits)
        why = f"no trial keeps {limits}; loosen it, or" if limits else "every trial failed;"
        typer.echo(f"error: the front is empty: {why} see `{program()} front {run.path}`", err=True)
        raise typer.Exit(1)
    if not as_json:
        name, number = program(), front.knee.number
        print("Next:")
        print(f"  {name} front {run.path} --plot front.png")
        print(f"  {name} show {run.path} {number}")
        print(f"  {name} export {run.path} {number} --format pt2,onnx,state")


@app.command()
def inspect(task: TaskName, as_json: AsJson = False) -> None:
    """Show what may be changed in a model, and what its layers cost."""
    with busy() as say:
        from .evaluators.inspection import inspection

        found = inspection(*traced(task, say), progress=proving(say))
    if as_json:
        print_json(found)
    else:
        print_inspection(found)


@app.command()
def front(
    run: RunPath,
    objective: Objectives = None,
    csv: Annotated[Path | None, typer.Option(metavar="F", help="write the front's table")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="F.png", help="draw the front: .png, .svg or .pdf")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the Pareto front of a run."""
    from .results.document import front_document
    from .results.table import render_front
    from .search import load

    if plot is not None and plot.suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"--plot writes {', '.join(PICTURES)}, got {str(plot)!r}")
    loaded = load(run)
    best = front_of(loaded, objective)
    if csv is not None:
        csv.write_text(best.table.to_csv(), encoding="utf-8")
        typer.echo(f"wrote {csv}", err=True)
    if plot is not None:
        from .results.plot import plot_front

        plot_front(best, loaded.trials, plot)
        typer.echo(f"wrote {plot}", err=True)
    if as_json:
        print_json(front_document(best, **about(loaded)))
    elif len(best):
        printer().print(render_front(best, loaded.baseline))
        if loaded.certificate is not None:
            print(loaded.certificate.line())
    else:
        print(f"The front of {run} is empty: none of {len(loaded.trials)} trials succeeded within the limits")
        for reason in sorted({t.reason for t in loaded.trials if t.failed}):
            print(f"  failed: {reason}")


@app.command()
def show(run: RunPath, trial: TrialNumber, as_json: AsJson = False) -> None:
    """Show what was cut where in one trial, against the unchanged model."""
    from .search import load

    loaded = load(run)
    if not as_json:
        print(loaded.show(trial))
        return
    found = loaded[trial]
    print_json(
        {
            "number": found.number,
            "candidate": found.candidate.values,
            "unchanged": {choice.name: choice.options[0] for choice, _ in found.candidate.items()},
            "kept": loaded.kept(trial),
            "scores": dict(found.scores),
            "baseline": dict(loaded.baseline.scores) if loaded.baseline else {},
            "error": found.error,
        }
    )


@app.command()
def export(
    run: RunPath,
    trial: TrialNumber,
    formats: Annotated[
        str, typer.Option("--format", metavar="LIST", help="of pt2, onnx, state; with commas")
    ] = "pt2,onnx,state",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="new folder [default: RUN/export-TRIAL]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export there")] = False,
    as_json: AsJson = False,
) -> None:
    """Export one trial's subnetwork; every file is proven in a fresh process."""
    from .results.export import FORMATS
    from .search import load

    names = names_in(formats)
    if not names or not set(names) <= set(FORMATS):
        raise typer.BadParameter(f"--format {formats!r}: known are {', '.join(FORMATS)}")
    loaded = load(run)
    folder = loaded.path / f"export-{trial}" if out is None else out
    with busy() as say:
        receipt = loaded.export(trial, folder, names, overwrite=overwrite, progress=say)
    if as_json:
        print_json({"out": str(folder), **receipt.to_json()})
    else:
        print_receipt(receipt)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="F.html", help="the page; an earlier one is replaced")
    ] = Path("report.html"),
) -> None:
    """Write one interactive page about one or several runs; it needs no network and no other file."""
    from .results.report import check_output, write_report
    from .search import load

    check_output(out)  # before anything that takes a while
    path = write_report([load(run) for run in runs], out, program=program())
    print(f"The report is in {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs")],
    objective: Objectives = None,
    as_json: AsJson = False,
) -> None:
    """Compare the fronts of several runs under one reference."""
    from .results.comparison import common_objectives, compare_fronts
    from .search import load

    loaded = {str(path): load(path) for path in runs}
    shared = common_objectives({name: front_of(r, objective) for name, r in loaded.items()})
    fronts = {name: front_of(r, shared) for name, r in loaded.items()}
    figures = compare_fronts(fronts)
    if as_json:
        print_json(figures)
    else:
        print_comparison(figures, fronts, loaded)
