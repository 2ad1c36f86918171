"""What is left of a damaged run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from .terminal import program
from .types import RunPath


def salvage(
    run: RunPath,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="new folder [default: RUN-salvaged]")
    ] = None,
) -> None:
    """Save what is intact in a damaged run to a new one."""
    from ..results.salvage import salvage as save
    from ..search.settings import LEDGER, ledger_path

    ledger = ledger_path(run)
    folder = out or ledger.parent.with_name(f"{ledger.parent.resolve().name}-salvaged")
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = save(ledger, folder / LEDGER)
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise
    print(f"Saved {done.outcomes} trials of {done.proposals} candidates to {folder}")
    if not done.settings:
        print("Lost: the run's settings; they come back with the first --resume, from its command")
    if not done.proposals:
        print("Lost: every candidate, if there were any; the settings alone are intact")
    if done.lost:
        print(f"Lost: {_ranges(done.lost)}")
    if done.unscored:
        print(f"Without an outcome, lost or never scored: {_ranges(done.unscored)}")
    typed = quote(str(folder))
    look = f"Look: {program()} front {typed}; go on" if done.settings and done.outcomes else "Go on"
    print(f"{look}: the command of the run with --resume --out {typed}")


def _ranges(numbers: tuple[int, ...]) -> str:
    """``3, 7-9``."""
    out: list[list[int]] = []
    for n in numbers:
        if out and n == out[-1][1] + 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)
