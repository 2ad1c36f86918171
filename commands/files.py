"""Commands about files: export, verify and salvage."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import AsJson, RunPath, RunTask, TrialName, names_in
from .terminal import busy, program, tell
from .views import print_json, print_receipt, print_table

if TYPE_CHECKING:
    from ..export import FormatVerdict, Verdict


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
    from ..engine import load
    from ..export import FORMATS

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


# -- An export, checked again ---------------------------------------------------------------------------


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="folder that `export` made")],
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="also measure the metric again, and rebuild the state format"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an export again, here: hashes, what its files answer, versions."""
    from ..engine.exporting import verify as verified

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


# -- What is left of a damaged run ----------------------------------------------------------------------


def salvage(
    run: RunPath,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="new folder [default: RUN-salvaged]")
    ] = None,
) -> None:
    """Save what is intact in a damaged run to a new one."""
    from ..engine.settings import LEDGER, ledger_path
    from ..results.salvage import salvage as save

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
