"""One trial as text: its figures, choices and layers beside those of the unchanged model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..results.confirmation import confirming_data
from ..results.table import metric_text, ratio_text
from ..results.trial import Trial, comparable
from .platform import latency_rows, measured_rows, sensitivity_rows

if TYPE_CHECKING:
    from .run import Run


def trial_text(run: Run, number: int) -> str:
    """See :meth:`Run.show`."""
    trial = run[number]
    lines = [f"trial {number} of {run.path}"]
    if len(run.rungs) > 1:
        judged = next((rung.text for rung in run.rungs if rung.name == trial.fidelity), "unknown")
        lines.append(f"fidelity {trial.fidelity}: {judged}")
    if trial.failed:
        return "\n".join([*lines, "failed:", trial.error or ""])
    kept = run.kept(number)
    choices = [("choice", "taken", "unchanged", "units kept" if kept else "")]
    for choice, option in trial.candidate.items():
        was_option = str(choice.options[0]) if option != choice.options[0] else ""
        now, of = kept.get(choice.name, (0, 0))
        choices.append((choice.name, str(option), was_option, f"{now} of {of}" if of else ""))
    tables = [*lines, *_columns(_figures(run, trial)), *_details(trial), "", *_columns(choices)]
    if layers := widths(run, number):
        rows = [("layer", "outputs", "unchanged", "by")]
        rows += [(name, str(now), str(was), " ".join(by)) for name, now, was, by in layers]
        tables += ["", *_columns(rows)]
    return "\n".join(tables)


def widths(run: Run, number: int) -> list[tuple[str, int, int, tuple[str, ...]]]:
    """Layers that a trial made narrower or took away, in network order.

    Returns:
        For each its module's name, its outputs (0: it is gone), those of the unchanged network, and the
        choices that decide them.

    Raises:
        RunError: there is no such trial.
    """
    kept, taken = run.kept(number), run[number].candidate.values
    found = []
    try:
        for layer in run.settings.layers or ():
            if not isinstance(layer["name"], str) or type(layer["width"]) is not int:
                raise TypeError("a layer is not of the kind that we write")
            gone = [name for name in layer["drops"] if taken[name]]
            now = layer["fixed"] + sum(n * kept[choice][0] for choice, n in layer["units"].items())
            if gone or now != layer["width"]:
                by = (*gone, *(c for c in layer["units"] if kept[c][0] != kept[c][1]))
                found.append((layer["name"], 0 if gone else now, layer["width"], by))
    except (AttributeError, KeyError, TypeError):  # an older run, or one that was tampered with
        return []
    return found


def _figures(run: Run, trial: Trial) -> list[tuple[str, ...]]:
    base = comparable(trial, run.baseline)
    units = {o.name: o.unit for o in run.objectives}
    modelled = run.settings.modelled
    rows: list[tuple[str, ...]] = [("", "this", "unchanged", "ratio")]
    for name, value in trial.scores.items():
        was, unit = base.get(name), units.get(name, "")
        cells = ("", "") if was is None else (metric_text(name, was, unit), ratio_text(value, was))
        label = f"{name} (modelled)" if name in modelled else name
        rows.append((label, metric_text(name, value, unit), *cells))
        if name in trial.confirmed:
            rows.append(_confirmed_row(run, trial, name, unit))
    return rows


def _confirmed_row(run: Run, trial: Trial, name: str, unit: str) -> tuple[str, ...]:
    """A metric as it was confirmed, beside that of the unchanged model."""
    now, was = (t.confirmed.get(name) if t is not None else None for t in (trial, run.baseline))
    assert now is not None
    data = confirming_data([trial])
    label = f"{name} (confirmed on {data[1]:,})" if data else f"{name} (confirmed)"
    beside = ("", "") if was is None else (metric_text(name, was, unit), ratio_text(now, was))
    return (label, metric_text(name, now, unit), *beside)


def _details(trial: Trial) -> list[str]:
    """What is known of its stages and exits; nothing where its detail is not of the kind that we write."""
    try:
        tables = [measured_rows(trial), sensitivity_rows(trial), latency_rows(trial)]
        if exits := trial.detail.get("exits"):
            tables.append([("left after", "share"), *((n, f"{s:.1%}") for n, s in exits.items())])
        return [line for table in tables if table for line in ("", *_columns(table))]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as text, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
