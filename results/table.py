"""A front as text and as JSON: numbers as people write them, ratios against the unchanged model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .confirmation import confirming_data
from .objective import FRACTIONS, Objective, full_name, known_metric
from .points import BUSY, latency_drift
from .trial import Trial

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from .front import Front

COUNTS = ("macs", "flops", "params", "nonzeros", "bops", "stages")  # large integers, shown with k, M, G
HEADINGS = {
    "macs": "MACs",
    "flops": "FLOPs",
    "params": "parameters",
    "size_mb": "size",
    "activation_mb": "activations",
    "memory_mb": "memory",
    "traffic_kb": "traffic",
    "latency_ms": "latency",
    "latency_change": "latency change",
    "throughput_change": "throughput change",
    "throughput_per_s": "throughput",
    "robust_accuracy": "robust accuracy",
    "energy_mj": "energy",
}
LEFT_OUT_FIRST = ("params",)  # of these, where a terminal is too narrow: it says least beside MACs
USUAL = ("macs", "params", "latency_ms")  # shown beside the objectives where trials have them


def si(value: float, digits: int = 3) -> str:
    """``1_213_440`` as ``"1.21 M"``, ``42_567`` as ``"42.6 k"``; whole numbers below 1000 as they are."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 1000 and value == int(value):
        return str(int(value))
    power = 0
    # Rounding may carry over: 999_950 is 1.00 M, not 1000 k.
    while abs(float(f"{value / 1000**power:.{digits}g}")) >= 1000 and power < 5:
        power += 1
    return f"{plain(value / 1000**power, digits)} {('', 'k', 'M', 'G', 'T', 'P')[power]}".strip()


def printable(text: str) -> str:
    """Text without what a terminal would obey: names in somebody else's run may hold control characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def literal(text: str) -> Text:
    """What a rich table shows as it stands: brackets in it are no markup."""
    from rich.text import Text

    return Text(printable(text))


def plain(value: float, digits: int = 3) -> str:
    """``digits`` significant digits without an exponent, for numbers of everyday size."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.3g}"
    rounded = float(f"{value:.{digits}g}")
    exponent = math.floor(math.log10(abs(rounded)))
    if not -5 <= exponent < 9:
        return f"{value:.{digits}g}"
    return f"{rounded:.{max(0, digits - 1 - exponent)}f}"


def metric_text(name: str, value: float, unit: str = "") -> str:
    """A score with its unit: ``"98.67 %"``, ``"1.21 M"``, ``"0.412 ms"``.

    Args:
        name: metric name; accuracies are fractions and become percent.
        unit: of a metric that netcarve does not know.
    """
    name = full_name(name)
    if name in FRACTIONS:
        return f"{100 * value:.2f} %"
    if name in COUNTS:
        return si(value)
    goal, own = known_metric(name)
    return f"{plain(value, 3 if goal else 4)} {own if goal and name != 'loss' else unit}".strip()


def ratio_text(value: float, base: float) -> str:
    """``value / base`` as ``"0.43x"``, at least two significant digits; empty when ``base`` is 0."""
    if not base or not math.isfinite(value / base):
        return ""
    ratio = value / base
    if ratio == 0 or 0.095 <= abs(ratio) < 9.995:
        return f"{ratio:.2f}x"
    return f"{plain(ratio, 2 if abs(ratio) < 1 else 3)}x"


def busy_text(trials: Iterable[Trial]) -> str:
    """What to say of latencies that were measured on a busy machine, in a sentence; empty where none was."""
    drift = max(map(latency_drift, trials), default=0.0)
    if drift <= BUSY:
        return ""
    return (
        f"~ measured on a busy machine: the unchanged model differed from itself by up to {drift:.0%}; "
        "latencies that cannot be told apart count as equal"
    )


def front_rows(
    front: Front,
    baseline: Trial | None = None,
    extra: Sequence[str] = USUAL,
    *,
    uniform: Sequence[Trial] = (),
    noise: bool = False,
) -> list[dict[str, str]]:
    """The front as rows of text, best first objective first, the unchanged model on top.

    Args:
        baseline: the unchanged model; the front's own by default. Costs are given as ratios to it too.
        extra: metrics to show beside the objectives; those that no trial has are left out.
        uniform: the trials of uniform cuts; those beside the front follow below.
        noise: show what the samples leave open: intervals, and which trials they do not tell apart.

    Returns:
        Per row ``"trial"`` (number), one entry per metric (empty where the trial lacks it), and ``"note"``:
        ``"unchanged"``, ``"knee"``, ``"uniform"``, ``"= 12, 15"`` (not told apart from these), with a comma
        between them, or ``""``. A cost looks like ``"1.21 M 0.43x"``; a latency that was measured on a busy
        machine begins with ``~``. Where trials were confirmed, also ``"confirmed"``: the measured objective
        on data that chose nothing.
    """
    from .confirmation import indistinct, measured_objective

    baseline = baseline or front.baseline
    names = shown_metrics(front, baseline, extra)
    units = {o.name: o.unit for o in front.objectives}
    knee = front.knee.number if len(front) > 2 else None  # of one or two points neither is a compromise
    trials = list(front)
    if baseline is not None:
        trials = [baseline, *(t for t in trials if t.number != baseline.number)]
    shown = {t.number for t in trials}
    lead = front.objectives[0]
    beside = [t for t in uniform if t.number not in shown and lead.name in t.scores]
    trials += sorted(beside, key=lambda t: (lead.sign * t.scores[lead.name], t.number))
    same, measured = indistinct(front) if noise else {}, measured_objective(front)
    sure = measured is not None and any(t.confirmed for t in trials)
    cut_alike = {t.number for t in uniform}
    rows = []
    for trial in trials:
        notes = []
        if baseline is not None and trial.number == baseline.number:
            notes.append("unchanged")
        if trial.number == knee:
            notes.append("knee")
        if trial.number in cut_alike:
            notes.append("uniform")
        if alike := same.get(trial.number):
            notes.append(_alike(alike))
        cells = {name: _cell(name, trial, baseline, units.get(name, "")) for name in names}
        if noise and measured is not None and not sure:
            cells[measured.name] = _with_margin(measured, trial) or cells[measured.name]
        if measured is not None and sure:
            known = measured.name in trial.confirmed
            cells["confirmed"] = _with_margin(measured, trial) if known else ""
        rows.append({"trial": str(trial.number), **cells, "note": ", ".join(notes)})
    return rows


def _alike(numbers: Sequence[int]) -> str:
    """``"= 15, 12 +3"``: at most two of the trials that are not told apart, the last of the front first."""
    more = f" +{len(numbers) - 2}" if len(numbers) > 2 else ""
    return f"= {', '.join(map(str, numbers[:-3:-1]))}{more}"


def _with_margin(objective: Objective, trial: Trial) -> str:
    """``"98.67 ±1.2 %"``; without a margin where there is none."""
    from .confirmation import value_of

    found = value_of(trial, objective.name)
    if found is None:
        return ""
    if found.margin is None or objective.name not in FRACTIONS:
        return metric_text(objective.name, found.value, objective.unit)
    return f"{100 * found.value:.2f} ±{100 * found.margin:.1f} %"


def shown_metrics(front: Front, baseline: Trial | None, extra: Sequence[str] = USUAL) -> list[str]:
    """The objectives, then those of ``extra`` that the front or the baseline has."""
    trials = [*front, *([baseline] if baseline else [])]
    wanted = [full_name(name) for name in extra]
    present = [name for name in wanted if any(name in t.scores for t in trials)]
    return list(dict.fromkeys([o.name for o in front.objectives] + present))


def _cell(name: str, trial: Trial, baseline: Trial | None, unit: str) -> str:
    if name not in trial.scores:
        return ""
    text = metric_text(name, trial.scores[name], unit)
    if name == "latency_ms" and latency_drift(trial) > BUSY:
        text = f"~{text}"
    is_cost = known_metric(name)[0] == "min" and name != "loss"
    if baseline is None or trial.number == baseline.number or name not in baseline.scores or not is_cost:
        return text
    ratio = ratio_text(trial.scores[name], baseline.scores[name])
    return f"{text} {ratio:>5}" if ratio else text  # padded, so that the numbers before it stay in line


def render_front(
    front: Front,
    baseline: Trial | None = None,
    extra: Sequence[str] = USUAL,
    *,
    title: str | None = None,
    uniform: Sequence[Trial] = (),
    noise: bool = False,
    width: int | None = None,
) -> Table:
    """:func:`front_rows` as a rich table: the unchanged model and uniform cuts dimmed, the knee in bold.

    Args:
        width: columns of the terminal; metrics that are no objectives are left out until the table fits.
    """
    from rich import box
    from rich.table import Table

    baseline = baseline or front.baseline
    rows = front_rows(front, baseline, extra, uniform=uniform, noise=noise)
    names = shown_metrics(front, baseline, extra)
    if rows and "confirmed" in rows[0]:
        names.insert(1, "confirmed")
    wanted = [o.name for o in front.objectives]
    for name in (*LEFT_OUT_FIRST, *names[:0:-1]):
        if width is not None and name in names and name not in (*wanted, "confirmed"):
            if _width(rows, names) <= width:
                break
            names.remove(name)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trial", justify="right")
    for name in names:
        table.add_column(literal(HEADINGS.get(name, name)), justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    on_front = {str(t.number) for t in front}
    for row in rows:
        dim = "unchanged" in row["note"] or row["trial"] not in on_front
        style = "bold green" if "knee" in row["note"] else "dim" if dim else None
        table.add_row(*(literal(row[name]) for name in ("trial", *names, "note")), style=style)
    return table


def _width(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> int:
    """Columns of a terminal that the rows take: two between cells, one at each side."""
    headings = {"trial": "trial", "note": "", **{name: HEADINGS.get(name, name) for name in names}}
    cells = [max(len(text), *(len(row[name]) for row in rows)) for name, text in headings.items()]
    return sum(cells) + 2 * len(cells)


# -- A front as one JSON object: what ``netcarve front --json`` and ``netcarve sweep --json`` print -----


def front_document(
    front: Front, *, task: str | None, searcher: str, seed: int, modelled: Sequence[str] = ()
) -> dict[str, Any]:
    """The front as plain JSON values, the non-dominated trials only, best first objective first.

    Args:
        task: its name; ``None`` for a space without a model.
        searcher: its name.
        seed: the run's.
        modelled: metrics that come from profiles of devices, not from a clock; kept where there are any.

    Returns:
        ``{"task", "searcher", "seed", "objectives": [{"name", "goal", "unit"}], "baseline": {metric: value},
        "trials": [{"number", "candidate": {choice: value}, "scores": {metric: value}}]}``; the baseline is
        ``{}`` when the unchanged model has no scores. A trial that was confirmed on data that chose nothing
        has ``"confirmed": {metric: value}`` beside its scores, and ``"confirmed_on"`` says what they were.
    """
    data = confirming_data(list(front))
    return {
        "task": task,
        "searcher": searcher,
        "seed": seed,
        "objectives": [{"name": o.name, "goal": o.goal, "unit": o.unit} for o in front.objectives],
        "baseline": _numbers(front.baseline.scores) if front.baseline else {},
        "trials": [
            {
                "number": t.number,
                "candidate": t.candidate.values,
                "scores": _numbers(t.scores),
                **({"confirmed": dict(own)} if (own := t.confirmed) else {}),
            }
            for t in front
        ],
        **({"confirmed_on": {"data": data[0], "samples": data[1]}} if data else {}),
        **({"modelled": list(modelled)} if modelled else {}),
    }


def sweep_document(
    front: Front,
    *,
    task: str | None,
    searcher: str,
    seed: int,
    out: str,
    evaluated: int,
    failed: int,
    seconds: float,
    modelled: Sequence[str] = (),
) -> dict[str, Any]:
    """:func:`front_document` with how the run went.

    Args:
        out: the run's folder.
        evaluated: trials with an outcome, the failed ones among them.
        failed: trials that failed.
        seconds: wall time of the run, all sessions together.
    """
    return front_document(front, task=task, searcher=searcher, seed=seed, modelled=modelled) | {
        "out": out,
        "evaluated": evaluated,
        "failed": failed,
        "seconds": seconds,
        "hypervolume": front.hypervolume(),
    }


def _numbers(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items()}
