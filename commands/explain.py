"""The page that explains one trial."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import names_in
from .terminal import busy, tell
from .types import AsJson, RunPath, RunTask, TrialName
from .views import print_json


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
    from ..results.report import check_output, write_explanation
    from ..search import load
    from ..search.explaining import check_names
    from ..search.explaining import explain as explained

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
