"""About a run: how it was made, in lines for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..devices import devices_of, links_of, platform_text
from ..results.front import Front
from ..results.objective import Limit, Objective
from ..results.settings import RunSettings
from ..results.significance import Figure
from ..results.table import busy_text, metric_text
from ..results.trial import Trial


class Reported(Protocol):
    """What a report reads from a run; :class:`netcarve.Run` has it."""

    path: Path
    settings: RunSettings
    info: dict[str, Any]
    trials: list[Trial]

    @property
    def objectives(self) -> tuple[Objective, ...]: ...
    @property
    def limits(self) -> tuple[Limit, ...]: ...
    @property
    def front(self) -> Front: ...
    @property
    def uniform(self) -> list[Trial]: ...
    @property
    def unconfirmed(self) -> str: ...
    @property
    def certificate(self) -> Any: ...


# -- How a run was made, in lines for people ------------------------------------------------------------

PLATFORM = ("devices", "links")  # options of a space with a line of their own


def about(run: Reported) -> list[list[str]]:
    """``[what, text]`` pairs; what the ledger does not say is said to be unrecorded, never guessed."""
    settings, trials = run.settings, run.trials
    goals = {"min": "less is better", "max": "more is better"}
    failed = sum(t.failed for t in trials)
    lines = [
        ("Task", str(settings.task or "none: a space without a model")),
        ("Searcher", settings.searcher),
        ("Seed", str(settings.seed)),
        ("Objectives", ", ".join(f"{o.name} ({goals[o.goal]})" for o in run.objectives)),
        ("Limits", ", ".join(m.text for m in run.limits) or "none"),
        ("Rungs", "; ".join(f"{r.name}: {r.text}" for r in settings.rungs)),
        ("Space", _space(settings.space)),
        ("Devices", _platform(settings.space)),
        ("Candidates", _size(trials[0].candidate.choices)),
        ("Trials", f"{len(trials)}, {failed} failed, {len(run.front)} on the front"),
        ("Time", _time(run)),
        ("Certificate", run.certificate.line() if run.certificate is not None else ""),
        ("Test data", _tested(run)),
        ("Machine", _machine(run)),
        ("Latency", _protocol(trials)),
        ("Versions", _versions(run)),
        ("Model and data", str(settings.fingerprint or "")[:16]),
        ("Folder", str(run.path)),
    ]
    return [[what, text] for what, text in lines if text]


def _tested(run: Reported) -> str:
    """The figures on test data, by which no search chose, of the trials that were exported."""
    held = run.info.get("test")
    shown = []
    for number, data in held.items() if isinstance(held, Mapping) else ():
        try:
            figure, metric = Figure.from_json(data["figure"]), str(data["metric"])
            value, low, high = (metric_text(metric, x) for x in (figure.value, figure.low, figure.high))
        except (TypeError, ValueError, AttributeError, KeyError):
            continue
        shown.append(f"trial {number}: {metric} {value} ({low} to {high}, {figure.samples} samples)")
    return "; ".join(shown)


def _space(recipe: Mapping[str, Any] | None) -> str:
    if not isinstance(recipe, Mapping):
        return "made by hand"
    kinds = ", ".join(map(str, recipe.get("kinds") or ())) or "made by hand"
    options = recipe.get("options")
    given = options.items() if isinstance(options, Mapping) else ()
    shown = ", ".join(
        f"{key} {value}" for key, value in given if key not in PLATFORM and value not in (None, [])
    )
    return f"{kinds} ({shown})" if shown else kinds


def _platform(recipe: Any) -> str:
    """What its networks were split over."""
    try:
        devices = devices_of(recipe["options"]["devices"])
        return platform_text(devices, links_of(recipe["options"]["links"], devices))
    except (KeyError, TypeError, ValueError):
        return ""  # none, or what makes no sense


def _size(choices: Sequence[Any]) -> str:
    count = math.prod(len(c.options) for c in choices)
    plural = "choice" if len(choices) == 1 else "choices"
    # Above 10^15 a float is not enough to print a whole number, and above 10^308 there is none.
    many = f"{count:,}" if count < 10**12 else f"about 10^{len(str(count)) - 1}"
    return f"{many} candidates of {len(choices)} {plural}"


def _time(run: Reported) -> str:
    workers = len({t.worker for t in run.trials if t.worker})
    by = f", {workers} worker{'s' * (workers != 1)} seen" if workers else ""
    seconds = run.info.get("seconds")
    whole = f"{seconds:.1f} s in all" if isinstance(seconds, int | float) else "duration not recorded"
    status = run.info.get("status")
    return f"{whole}{by}" + (f", {status}" if status else "")


def _environments(run: Reported) -> list[Mapping[str, Any]]:
    held = run.info.get("environments")
    return [e for e in held if isinstance(e, Mapping)] if isinstance(held, list) else []


def _machine(run: Reported) -> str:
    found = dict.fromkeys(f"{e.get('machine', '')}, {e.get('system', '')}" for e in _environments(run))
    return "; ".join(found) or "not recorded"


def _versions(run: Reported) -> str:
    shown = [
        ", ".join(f"{name} {version}" for name, version in e.items() if name not in ("machine", "system"))
        for e in _environments(run)
    ]
    return "; ".join(dict.fromkeys(shown)) or f"netcarve {run.settings.version}"


def _protocol(trials: Sequence[Trial]) -> str:
    measured = [t.detail for t in trials if "latency_ms" in t.scores and "median_ms" in t.detail]
    if not measured:
        return ""

    def values(key: str) -> str:
        found = list(
            map(str, sorted({d[key] for d in measured if key in d}, key=lambda v: (str(type(v)), v)))
        )
        return " or ".join(found) if len(found) < 4 else f"{found[0]} to {found[-1]}"

    return (
        f"median of {values('repeats')} calls, batch {values('batch')}, threads {values('threads')}, runtime "
        f"{values('runtime')}, on {values('device')}; calls alternate with those of the unchanged model, and "
        f"the score is the share of its time; bars show quartiles ({len(measured)} trials measured)"
        + (f". {busy}" if (busy := busy_text(trials)) else "")
    )
