"""The front of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import about, front_of
from .terminal import tell
from .types import AsJson, Objectives, RunPath
from .views import print_busy, print_front, print_json, print_modelled, print_next, print_sketch

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
    from ..results.document import front_document
    from ..search import load

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
