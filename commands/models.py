"""Commands about models: inspect and profile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import AsJson, TaskName, traced
from .terminal import busy, proving, tell
from .views import print_inspection, print_json, print_table

if TYPE_CHECKING:
    from ..evaluators.profiling import Profiled


def inspect(task: TaskName, as_json: AsJson = False) -> None:
    """Show what may be changed in a model, and what its layers cost."""
    with busy() as say:
        from ..evaluators.inspection import inspection

        found = inspection(*traced(task, say), progress=proving(say))
    if as_json:
        print_json(found)
    else:
        print_inspection(found)


# -- Measure how fast this machine runs a task's network ------------------------------------------------


def profile(
    task: TaskName,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="write the profile, for --device NAME=FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how long a task's operators take on this machine, at several widths."""
    if output is not None and not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"--output: there is no folder {str(output.parent)!r}")
    with busy() as say:
        from ..evaluators.profiling import measure_profile

        found = measure_profile(*traced(task, say), say=say)
    if output is not None:
        found.profile.save(output)
    if as_json:
        lines = [asdict(line) for line in found.lines]
        print_json({**found.profile.to_json(), "ms": found.ms, "lines": lines})
    else:
        _print(found)
    if output is not None:
        typer.echo(f"wrote {output}", err=True)


def _print(found: Profiled) -> None:
    from ..results.table import plain

    made = found.profile
    total = sum(line.ms for line in found.lines)
    rows = [
        (line.operator, str(line.calls), plain(line.ms), f"{line.ms / total:.1%}") for line in found.lines
    ]
    print_table(
        f"One sample, one thread, {made.runtime}, {made.machine}", ("operator", "calls", "ms", "share"), rows
    )
    tell(f"The whole network takes {plain(found.ms)} ms")
    if made.error is not None:
        median, most = made.error
        tell(
            f"Stages of {'other' if found.checked else 'the same'} networks are predicted to "
            f"{median:.1%} in the median, {most:.1%} in 90 % of {len(found.held_out)}"
        )
