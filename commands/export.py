"""Files of one trial."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import names_in
from .terminal import busy
from .types import AsJson, RunPath, RunTask, TrialName
from .views import print_json, print_receipt


def export(
    run: RunPath,
    trial: TrialName,
    formats: Annotated[
        str,
        typer.Option("--format", metavar="LIST", help="of pt2, onnx, state, int8, executorch, stages"),
    ] = "pt2,onnx,state",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="new folder [default: RUN/export-TRIAL]")
    ] = None,
    samples: Annotated[
        bool,
        typer.Option("--samples/--no-samples", help="keep a few validation samples, for `netcarve verify`"),
    ] = True,
    task: RunTask = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export there")] = False,
    as_json: AsJson = False,
) -> None:
    """Export one trial's subnetwork; every file is proven in a fresh process."""
    from ..results.export import FORMATS
    from ..search import load

    names = names_in(formats)
    if not names or not set(names) <= set(FORMATS):
        raise typer.BadParameter(f"--format {formats!r}: known are {', '.join(FORMATS)}")
    loaded = load(run, task)
    number = loaded.number(trial)
    folder = loaded.path / f"export-{number}" if out is None else out
    with busy() as say:
        receipt = loaded.export(number, folder, names, samples=samples, overwrite=overwrite, progress=say)
    if as_json:
        print_json({"out": str(folder), **receipt.to_json()})
    else:
        print_receipt(receipt)
