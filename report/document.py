"""Document of the page, as plain JSON values. Trials are columns, which is compact and quick to read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..explain.sensitivity import importance
from ..results.comparison import common_objectives, common_reference, sentence
from ..results.confirmation import indistinct, notes, value_of
from ..results.front import Front
from ..results.objective import FRACTIONS, Objective, known_metric
from ..results.settings import RunSettings
from ..results.table import COUNTS, HEADINGS
from ..results.trial import Trial, in_full
from ..spaces import Choice
from ..spaces.kinds.splits.plan import SplitPlan, splitting_choices
from .about import Reported, about
from .convergence import clock_of, convergence, rivals, volume


def stages(settings: RunSettings, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Every trial's decomposition, equal ones once; None where networks were not split.

    Returns:
        ``{"choices": [name], "ways": [[[stage, device], ...], ...], "taken": [...], "ms": {number: [...]},
        "changes": {number: [latency, throughput]}}``: ``choices`` that only say where to cut and what runs
        where; a stage reads ``"after..up to"``; ``taken`` is a position in ``ways`` for each trial; ``ms``
        of stages that were measured, and the relative changes of :func:`.devices.pipeline.sensitivity`.
    """
    if settings.split is None:
        return None
    try:
        return _stages(SplitPlan.from_json(settings.split), trials)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None  # an older run, or one that somebody has written


def _stages(plan: SplitPlan, trials: Sequence[Trial]) -> dict[str, Any]:
    known = {c: i for i, c in enumerate(trials[0].candidate.choices)}
    choices = [c for c in splitting_choices(plan) if c in known]
    indices = np.array([[t.candidate.indices[known[c]] for c in choices] for t in trials], dtype=np.int64)
    begins, on = plan.decode(choices, indices.reshape(len(trials), len(choices)))
    names = ["input", *plan.places, "output"]
    ways: dict[tuple[tuple[str, str], ...], int] = {}
    taken = []
    for edge, devices in zip(begins.tolist(), on.tolist(), strict=True):
        spans = zip([0, *edge], [*edge, plan.segments], devices, strict=True)
        way = tuple((f"{names[a]}..{names[b]}", plan.devices[d].name) for a, b, d in spans if b > a)
        taken.append(ways.setdefault(way, len(ways)))
    return {
        "choices": [c.name for c in choices],
        "ways": [[list(stage) for stage in way] for way in ways],
        "taken": taken,
        "ms": _of_details(trials, "measured", lambda found: found["stage_ms"]),
        "changes": _of_details(
            trials, "sensitivity", lambda found: [found["latency_change"], found["throughput_change"]]
        ),
    }


def _of_details(
    trials: Sequence[Trial], key: str, read: Callable[[Any], Sequence[float]]
) -> dict[str, list[float]]:
    """Numbers of the trials whose detail has them, by number."""
    out = {}
    for trial in trials:
        try:
            values = [float(v) for v in read(trial.detail[key])]
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if np.isfinite(values).all():
            out[str(trial.number)] = values
    return out


# -- What the page shows, as plain JSON values. Trials are columns, which is compact and quick to read

CONFIRMED = "confirmed "  # before the name of a metric: its column on data that chose nothing
TEXT_BUDGET = 400_000  # characters of tracebacks in one report; beyond it their last lines alone
LONGEST = 6_000  # characters of one traceback: its end, where the reason is


def report_document(runs: Sequence[Reported], *, program: str = "netcarve") -> dict[str, Any]:
    """Everything about the runs that the page shows.

    Args:
        program: what to type for netcarve in commands.

    Returns:
        ``{"made", "program", "metrics": [...], "runs": [...], "rivals": {...} | None}``. Every number is
        finite or None. In a run, ``numbers``, ``seconds``, ``workers`` (index into ``worker_names``), the
        lists in ``scores`` and ``spread`` and those in ``taken`` (one per choice: indices of options) all
        have one entry per trial; ``front``, ``baseline``, ``knee`` and ``uniform`` are positions in them.
        A metric that was confirmed on data that chose nothing has a column too: ``"confirmed accuracy"``.

    Raises:
        ValueError: no run, or one without a trial.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    for run in runs:
        if not run.trials:
            raise ValueError(f"the run {run.path} has no trials yet; report it when some are scored")
    names = _names([run.path for run in runs])
    fronts = {name: run.front for name, run in zip(names, runs, strict=True)}
    shared: tuple[Objective, ...] = ()
    if len(runs) > 1:
        try:
            shared = common_objectives(fronts)
        except ValueError:
            shared = ()
    compared = {
        n: Front(r.trials, shared, limits=r.limits) for n, r in zip(names, runs, strict=True) if shared
    }
    reference = common_reference(list(compared.values())) if compared else None
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "program": program,
        "metrics": _metrics(runs),
        "runs": [
            _run(name, run, objectives=shared or run.objectives, reference=reference)
            for name, run in zip(names, runs, strict=True)
        ],
        "rivals": rivals(compared, reference) if len(runs) > 1 else None,
    }


def finite(value: Any) -> float | None:
    """A number for JSON, None for what is not a finite one."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _run(
    name: str, run: Reported, *, objectives: Sequence[Objective], reference: Mapping[str, float] | None
) -> dict[str, Any]:
    trials, front = in_full(run.trials), run.front
    place = {t.number: i for i, t in enumerate(trials)}
    workers = list(dict.fromkeys(t.worker for t in trials))
    choices = trials[0].candidate.choices
    return {
        "name": name,
        "path": str(run.path),
        "task": run.settings.task,
        "found": bool(run.settings.spec),  # the command line can find the task again
        "searcher": run.settings.searcher,
        "seed": str(run.settings.seed),
        "status": str(run.info.get("status", "")),
        "wall": finite(run.info.get("seconds")),
        "objectives": [o.name for o in run.objectives],
        "choices": [
            {"name": c.name, "options": [str(o) for o in c.options], "kept": _kept(run.settings, c)}
            for c in choices
        ],
        "layers": _layers(run.settings, choices),
        "stages": stages(run.settings, trials),
        "taken": [[t.candidate.indices[c] for t in trials] for c in range(len(choices))],
        "numbers": [t.number for t in trials],
        "scores": _scores(run, trials),
        "seconds": [round(finite(t.seconds) or 0.0, 4) for t in trials],
        "worker_names": workers,
        "workers": [workers.index(t.worker) for t in trials],
        "front": [place[t.number] for t in front],
        "baseline": place[front.baseline.number] if front.baseline else None,
        "knee": _knee(front, place),
        "uniform": [place[t.number] for t in run.uniform],
        "hypervolume": volume(front.points, front.objectives, front.reference),
        "importance": importance(trials, run.objectives),
        **_analyses(run, trials, objectives, reference),
        **_failures(trials),
        "about": about(run),
    }


def _scores(run: Reported, trials: Sequence[Trial]) -> dict[str, list[float | None]]:
    """A column for each metric, and for each that was confirmed."""
    metrics = list(dict.fromkeys(m for t in trials for m in t.scores))
    sure = {CONFIRMED + m: [finite(t.confirmed.get(m)) for t in trials] for m in _confirmed_metrics(run)}
    return {m: [finite(t.scores.get(m)) for t in trials] for m in metrics} | sure


def _analyses(
    run: Reported,
    trials: Sequence[Trial],
    objectives: Sequence[Objective],
    reference: Mapping[str, float] | None,
) -> dict[str, Any]:
    """What is computed from the trials. What cannot be had, say of a damaged run, is left out with a note."""
    front = run.front
    left_out: list[str] = []

    def analysis(what: str, make: Callable[[], Any], otherwise: object) -> Any:
        """What ``make`` gives; where it cannot be had, ``otherwise``, and the reason among the notes."""
        try:
            return make()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            left_out.append(f"Left out: {what}, because of {reason}.")
            return otherwise

    said = analysis(
        "what the samples leave open",
        lambda: [*notes(front, run.unconfirmed), sentence(front, run.uniform)],
        [],
    )
    alike = analysis("which trials are not told apart", lambda: indistinct(front), {})
    base = reference or front.reference
    grown = analysis(
        "convergence",
        lambda: convergence(run.trials, objectives, run.limits, base, clock_of(run.info)),
        {"trials": [], "seconds": [], "volume": [], "clock": False},
    )
    sure = [CONFIRMED + m for m in _confirmed_metrics(run)]
    spread = analysis("spreads", lambda: _spread(trials) | _intervals(trials, sure), {})
    return {
        "spread": spread,
        "alike": {str(number): others for number, others in alike.items() if others},
        "notes": [text for text in (*said, _lower(run.trials, trials), *left_out) if text],
        "convergence": grown,
    }


def _lower(trials: Sequence[Trial], shown: Sequence[Trial]) -> str:
    """What to say of the trials on lower rungs, which the page does not show; empty where there are none."""
    numbers = {t.number for t in shown}
    count = Counter(t.fidelity for t in trials if t.number not in numbers)
    if not count:
        return ""
    each = ", ".join(f"{n} {name}" for name, n in count.items())
    return f"Not shown: trials judged on lower rungs ({each})."


def _knee(front: Front, place: Mapping[int, int]) -> int | None:
    """Of one or two points neither is a compromise."""
    if len(front) < 3:
        return None
    with np.errstate(all="ignore"):
        spread = np.ptp(front.points, axis=0)
    return place[front.knee.number] if np.isfinite(spread).all() else None


def _kept(settings: RunSettings, choice: Choice) -> list[int] | None:
    """How many units each option keeps; None for a choice that cuts none, or a record that makes no sense."""
    known = settings.kept
    counts = known.get(choice.name) if isinstance(known, Mapping) else None
    if not isinstance(counts, list) or len(counts) != len(choice.options):
        return None
    return counts if all(type(n) is int and 0 <= n < 2**53 for n in counts) and counts[0] else None


def _layers(settings: RunSettings, choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """What decides each layer's width, in network order; empty for an older run, or a senseless record."""
    known = settings.layers
    kept = {c.name: _kept(settings, c) for c in choices}
    found = []
    for layer in known if isinstance(known, list) else []:
        try:
            name, units, drops = layer["name"], layer["units"], layer["drops"]
            numbers = [layer["width"], layer["fixed"], *units.values()]
        except (TypeError, KeyError, AttributeError):
            return []
        if not isinstance(name, str) or not isinstance(drops, list) or layer["width"] == 0:
            return []
        if any(kept.get(c) is None for c in units) or any(d not in kept for d in drops):
            return []
        if not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
            return []
        width, fixed = numbers[:2]
        found.append(
            {"name": name, "width": width, "fixed": fixed, "units": list(units.items()), "drops": drops}
        )
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """Folder names, or whole paths where they would be taken for each other."""
    short = [path.resolve().name for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    return names if len(set(names)) == len(names) else [f"{name} ({i})" for i, name in enumerate(names, 1)]


def _metrics(runs: Sequence[Reported]) -> list[dict[str, str]]:
    """Every metric of any run, the objectives first."""
    asked = {o.name: o for run in runs for o in run.objectives}
    seen = [m for run in runs for t in run.trials for m in t.scores]
    sure = {m for run in runs for m in _confirmed_metrics(run)}
    names = dict.fromkeys(s for m in (*asked, *seen) for s in (m, *([CONFIRMED + m] if m in sure else [])))
    described = []
    for shown in names:
        name = shown.removeprefix(CONFIRMED)
        goal, unit = known_metric(name)
        objective = asked.get(name)
        described.append(
            {
                "name": shown,
                "label": shown if shown != name else _label(name),
                "goal": objective.goal if objective else goal,
                "unit": "" if name in COUNTS or name == "loss" else objective.unit if objective else unit,
                "kind": "percent" if name in FRACTIONS else "count" if name in COUNTS else "number",
                "digits": "3" if goal else "4",
            }
        )
    return described


def _label(name: str) -> str:
    """``"memory of edge"`` of ``"memory_mb:edge"``."""
    metric, _, device = name.partition(":")
    label = HEADINGS.get(metric)
    return name if label is None else f"{label} of {device}" if device else label


def _spread(trials: Sequence[Trial]) -> dict[str, list[list[float | None]]]:
    """Per measured metric the lower and the upper quartile of every trial, in the metric's own units.

    A latency's score is a share of one time of the unchanged model (``evaluators.lane.steadied``); its
    quartiles came off the clock and are scaled alike.
    """
    if not any("latency_ms" in t.scores for t in trials):
        return {}
    lows: list[float | None] = []
    highs: list[float | None] = []
    for trial in trials:
        score, median, q25, q75 = (
            finite(v)
            for v in (
                trial.scores.get("latency_ms"),
                *(trial.detail.get(k) for k in ("median_ms", "q25_ms", "q75_ms")),
            )
        )
        if score is None or q25 is None or q75 is None or not median or median < 0:
            lows.append(None)
            highs.append(None)
        else:
            lows.append(finite(score * q25 / median))
            highs.append(finite(score * q75 / median))
    return {"latency_ms": [lows, highs]} if any(v is not None for v in lows) else {}


def _confirmed_metrics(run: Reported) -> list[str]:
    """The objectives that were confirmed on data that chose nothing."""
    # Few trials of a long run are confirmed: the record is looked for before it is read.
    known = {m for t in run.trials if "confirmed" in t.detail for m in t.confirmed}
    return [o.name for o in run.objectives if o.name in known]


def _intervals(trials: Sequence[Trial], shown: Sequence[str]) -> dict[str, list[list[float | None]]]:
    """Per confirmed metric the ends of the 95 % interval of every trial that has one."""
    found = {}
    for name in shown:
        metric = name.removeprefix(CONFIRMED)
        values = [value_of(t, metric) if metric in t.confirmed else None for t in trials]
        ends = [
            [finite(v.low if v else None) for v in values],
            [finite(v.high if v else None) for v in values],
        ]
        if any(v is not None for v in ends[0]):
            found[name] = ends
    return found


def _failures(trials: Sequence[Trial]) -> dict[str, Any]:
    """``errors``: number of a failed trial -> index into ``error_texts``, equal ones kept once; and
    ``failures``: ``[reason, [numbers]]``, the most frequent first."""
    texts: dict[str, int] = {}
    errors: dict[str, int] = {}
    reasons: dict[str, list[int]] = {}
    room = TEXT_BUDGET
    for trial in trials:
        if not trial.failed:
            continue
        reason = trial.reason[-500:] or "failed without a reason"
        reasons.setdefault(reason, []).append(trial.number)
        text = (trial.error or "").strip()[-LONGEST:]
        if text not in texts:
            text = text if len(text) <= room else reason
            room -= len(text)
        errors[str(trial.number)] = texts.setdefault(text, len(texts))
    ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
    return {"errors": errors, "error_texts": list(texts), "failures": [list(item) for item in ordered]}
