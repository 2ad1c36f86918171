"""An export, checked again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import busy, tell
from .types import AsJson
from .views import print_json, print_table

if TYPE_CHECKING:
    from ..results.export import FormatVerdict, Verdict


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="folder that `export` made")],
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="also measure the metric again, and rebuild the state format"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an export again, here: hashes, what its files answer, versions."""
    from ..search.exporting import verify as verified

    with busy() as say:
        verdict = verified(directory, task=task, progress=say)
    if as_json:
        print_json(verdict.to_json())
    else:
        _print(verdict)
    if not verdict.ok:
        raise typer.Exit(1)


def _print(verdict: Verdict) -> None:
    from ..results.table import metric_text

    def score(checked: FormatVerdict) -> str:
        return "" if checked.score is None else metric_text(verdict.metric, checked.score)

    print_table(
        f"Export in {verdict.directory}",
        ("format", "verdict", "max relative difference", verdict.metric, "latency", "why"),
        [
            (
                name,
                checked.status,
                "" if checked.difference is None else f"{checked.difference:.1e}",
                score(checked),
                "" if checked.latency is None else f"{checked.latency['median_ms']:.3g} ms",
                checked.reason,
            )
            for name, checked in verdict.formats.items()
        ],
    )
    for name, status in verdict.files.items():
        if status != "same":
            what = "not in the receipt, not checked" if status == "unknown" else status
            tell(f"{name}: {what}")
    for name, (then, now) in verdict.versions.items():
        tell(f"{name}: exported with {then}, here {now or 'not installed'}")
    unchecked = [name for name, checked in verdict.formats.items() if checked.status == "not checked"]
    if not verdict.ok:
        tell("This is not what was exported")
    elif unchecked:
        tell(f"All files are those that were exported; not checked further: {', '.join(unchecked)}")
    else:
        tell("All files are those that were exported, and they answer as they did")
