"""The page about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import program, tell


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="F.html", help="the page; an earlier one is replaced")
    ] = Path("report.html"),
) -> None:
    """Write one interactive page about one or several runs; it needs no network and no other file."""
    from ..results.report import check_output, write_report
    from ..search import load

    check_output(out)  # before anything that takes a while
    path = write_report([load(run) for run in runs], out, program=program())
    tell(f"The report is in {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")
