"""Several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import front_of
from .types import AsJson, Objectives
from .views import print_comparison, print_json


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs")],
    objective: Objectives = None,
    as_json: AsJson = False,
) -> None:
    """Compare the fronts of several runs under one reference."""
    from ..results.comparison import common_objectives, compare_fronts
    from ..search import load

    loaded = {str(path): load(path) for path in runs}
    shared = common_objectives({name: front_of(r, objective) for name, r in loaded.items()})
    fronts = {name: front_of(r, shared) for name, r in loaded.items()}
    figures = compare_fronts(fronts)
    if as_json:
        print_json(figures)
    else:
        print_comparison(figures, fronts, loaded)
