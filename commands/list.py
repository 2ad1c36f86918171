"""The runs in a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .terminal import tell
from .types import AsJson
from .views import print_json, print_table


def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="where to look, folders below too")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder."""
    from ..search.listing import runs_in

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
