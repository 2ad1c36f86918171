"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="digits, file.py:function or package.module:function")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run, as `sweep` says at its end")]
TrialName = Annotated[
    str,
    typer.Argument(metavar="TRIAL", help="number of a trial (0 is unchanged), or best, knee, smallest"),
]
Objectives = Annotated[
    list[str] | None,
    typer.Option("--objective", metavar="M", help="metric to trade off, or NAME:min, NAME:max; repeat"),
]
RunTask = Annotated[
    str | None,
    typer.Option("--task", metavar="TASK", help="of the run, where it lies elsewhere or you did not make it"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of tables")]
