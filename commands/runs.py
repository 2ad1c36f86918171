"""Commands that read runs: list, front, show, compare, report and explain."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .arguments import AsJson, Objectives, RunPath, RunTask, TrialName, about, front_of, names_in
from .terminal import busy, program, tell
from .views import (
    print_busy,
    print_comparison,
    print_front,
    print_json,
    print_modelled,
    print_next,
    print_sketch,
    print_table,
)


def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="where to look, folders below too")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder."""
    from ..engine.opening import runs_in

    runs = runs_in(folder)
    if as_json:
        print_json({"runs": [asdict(r) for r in runs]})
        return
    if not runs:
        tell(f"No runs in {folder}")
        return
    headings = ("run", "task", "searcher", "seed", "trials", "failed", "front", "hypervolume", "minutes", "")
    rows = [
        (
            r.path,
            r.task,
            r.searcher,
            str(r.seed),
            str(r.trials),
            str(r.failed),
            str(r.front),
            "-" if r.hypervolume is None else f"{r.hypervolume:.4f}",
            f"{r.seconds / 60:.1f}",
            "" if r.status == "finished" else r.status,
        )
        for r in runs
        if not r.error
    ]
    if rows:
        print_table("", headings, rows, spare=("seed", "failed", "task", "searcher"))
    for r in runs:
        if r.error:
            tell(f"{r.path}: {r.error}", err=True)


# -- The front of a run ---------------------------------------------------------------------------------

PICTURES = (".png", ".svg", ".pdf")


def front(
    run: RunPath,
    objective: Objectives = None,
    csv: Annotated[Path | None, typer.Option(metavar="F", help="write the front's table")] = None,
    parquet: Annotated[Path | None, typer.Option(metavar="F", help="the same as Parquet")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="F.png", help="draw the front: .png, .svg or .pdf")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the Pareto front of a run."""
    from ..engine import load
    from ..results.table import front_document

    if plot is not None and plot.suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"--plot writes {', '.join(PICTURES)}, got {str(plot)!r}")
    loaded = load(run)
    best = front_of(loaded, objective)
    if csv is not None:
        csv.write_text(best.table.to_csv(), encoding="utf-8")
        typer.echo(f"wrote {csv}", err=True)
    if parquet is not None:
        best.table.to_parquet(parquet)
        typer.echo(f"wrote {parquet}", err=True)
    if plot is not None:
        from ..results.plot import plot_front

        plot_front(best, loaded.trials, plot, uniform=loaded.uniform)
        typer.echo(f"wrote {plot}", err=True)
    if as_json:
        print_json(front_document(best, **about(loaded)))
    elif len(best):
        print_front(loaded, best)
        print_sketch(best, loaded.trials)
        if loaded.certificate is not None:
            tell(loaded.certificate.line())
        print_busy(best)
        print_modelled(loaded, [o.name for o in best.objectives])
        print_next(loaded, best.knee.number, "show", "report", "export")
    else:
        tell(f"The front of {run} is empty: none of {len(loaded.trials)} trials succeeded within the limits")
        for reason in sorted({t.reason for t in loaded.trials if t.failed}):
            tell(f"  failed: {reason}")


# -- One trial of a run ---------------------------------------------------------------------------------


def show(run: RunPath, trial: TrialName, as_json: AsJson = False) -> None:
    """Show what was cut where in one trial, against the unchanged model."""
    from ..engine import load
    from ..results.table import printable

    loaded = load(run)
    number = loaded.number(trial)
    if not as_json:
        print(printable(loaded.show(number)))
        print_next(loaded, number, "export", "explain")
        return
    found = loaded[number]
    print_json(
        {
            "number": found.number,
            "candidate": found.candidate.values,
            "unchanged": {choice.name: choice.options[0] for choice, _ in found.candidate.items()},
            "kept": loaded.kept(number),
            "scores": dict(found.scores),
            **({"confirmed": dict(own)} if (own := found.confirmed) else {}),
            **({"modelled": names} if (names := loaded.settings.modelled) else {}),
            **({"measured": times} if (times := found.detail.get("measured")) else {}),
            **({"sensitivity": changes} if (changes := found.detail.get("sensitivity")) else {}),
            "baseline": dict(loaded.baseline.scores) if loaded.baseline else {},
            "error": found.error,
        }
    )


# -- Several runs ---------------------------------------------------------------------------------------


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs")],
    objective: Objectives = None,
    as_json: AsJson = False,
) -> None:
    """Compare the fronts of several runs under one reference."""
    from ..engine import load
    from ..results.comparison import common_objectives, compare_fronts

    loaded = {str(path): load(path) for path in runs}
    shared = common_objectives({name: front_of(r, objective) for name, r in loaded.items()})
    fronts = {name: front_of(r, shared) for name, r in loaded.items()}
    figures = compare_fronts(fronts)
    if as_json:
        print_json(figures)
    else:
        print_comparison(figures, fronts, loaded)


# -- The page about runs --------------------------------------------------------------------------------


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="F.html", help="the page; an earlier one is replaced")
    ] = Path("report.html"),
) -> None:
    """Write one interactive page about one or several runs; it needs no network and no other file."""
    from ..engine import load
    from ..report import check_output, write_report

    check_output(out)  # before anything that takes a while
    path = write_report([load(run) for run in runs], out, program=program())
    tell(f"The report is in {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")


# -- The page that explains one trial -------------------------------------------------------------------


def explain(
    run: RunPath,
    trial: TrialName,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="F.html", help="the page; an earlier one is replaced")
    ] = Path("explain.html"),
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAMES", help="analyses, such as sensitivity,cka")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="for representations")] = 200,
    task: RunTask = None,
    as_json: AsJson = False,
) -> None:
    """Explain one trial's subnetwork against the original, on one page of pictures."""
    from ..engine import load
    from ..engine.explaining import check_names
    from ..engine.explaining import explain as explained
    from ..report import check_output, write_explanation

    check_output(out)  # before anything that takes a while
    names = names_in(only) if only is not None else []
    check_names(names)
    with busy() as say:
        loaded = load(run, task)
        document = explained(loaded, loaded.number(trial), only=names, samples=samples, progress=say)
    path = write_explanation(document, out)
    if as_json:
        print_json({**document, "page": str(path)})
        return
    for section in document["sections"]:
        found = f"left out: {section['skipped']}" if section["skipped"] else section["summary"]
        tell(f"{section['title']}: {found}")
    tell(f"The pictures are in {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")
