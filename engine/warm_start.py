"""A search that begins with what is known: trials of earlier runs, and candidates of the user's own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..results.settings import RunSettings
from ..results.trial import Trial, in_full
from ..spaces import Candidate, Choice, Space
from ..standalone.limits import read_text
from .run import Run
from .settings import RunError

Source = Candidate | Mapping[str, Any] | Run | Sequence[Mapping[str, Any]] | str | Path
# Equal settings make equal networks, so equal scores.
SAME = ("fingerprint", "choices", "kept", "space", "scoring", "repeats", "rungs")


@dataclass(frozen=True)
class WarmStart:
    """What the searcher is told before it is asked for anything."""

    candidates: tuple[Candidate, ...]  # distinct; the first trials after the unchanged model, in this order
    scored: Mapping[Candidate, Trial]  # outcomes that hold here as well, the unchanged model's among them


def warm_start(
    sources: Iterable[Source], space: Space, settings: RunSettings, *, measured: Iterable[str] = ()
) -> WarmStart:
    """Candidates and known outcomes from ``sources``.

    A run of the same task and space gives all trials that it judged in full, with their scores. Another run
    gives the candidates of its front, to be scored anew: choices of the same name take the nearest
    option, others stay unchanged.

    Args:
        sources: candidates, ``{choice: option}``, runs, folders of runs, or JSON files that hold
            ``{choice: option}``, a list of them, or what ``netcarve front --json`` prints.
        settings: of the run that begins (:func:`engine.settings.describe`).
        measured: metrics whose values belong to the time and place of their measurement (latency); where
            they are wanted nothing is taken over unmeasured.

    Raises:
        RunError: no such run or file, or nothing in it that fits the space.
        ValueError: a candidate that is not of this space.
    """
    if isinstance(sources, str | Path | Run | Candidate | Mapping):
        sources = [sources]
    chosen: dict[Candidate, None] = {}
    scored: dict[Candidate, Trial] = {}
    wanted = {o.name for o in settings.objectives} | set(settings.metrics or ())
    for given in sources:
        source = read_source(given) if isinstance(given, str | Path) else given
        if isinstance(source, Run):
            if _comparable(source.settings, settings) and not wanted & set(measured):
                for trial in in_full(source.trials):
                    if wanted <= set(trial.scores):
                        scored.setdefault(space.from_values(trial.candidate.values), trial)
                chosen.update(dict.fromkeys(scored))
            else:
                chosen.update(dict.fromkeys(_translated(source, space)))
        else:
            several = source if isinstance(source, Sequence) else [source]
            values = [c.values if isinstance(c, Candidate) else c for c in several]
            chosen.update(dict.fromkeys(map(space.from_values, values)))
    chosen.pop(space.baseline, None)
    return WarmStart(tuple(chosen), scored)


def read_source(path: str | Path) -> Run | list[Mapping[str, Any]]:
    """The run in a folder, or the candidates in a JSON file.

    Raises:
        RunError: there is neither.
    """
    path = Path(path)
    return _read(path) if path.suffix == ".json" else Run(path)


def _comparable(theirs: RunSettings, ours: RunSettings) -> bool:
    return all(getattr(theirs, key) == getattr(ours, key) for key in SAME)


def _translated(run: Run, space: Space) -> list[Candidate]:
    """The front's candidates in terms of another space."""
    known = {c.name for trial in run.front for c in trial.candidate.choices}
    if not known & {c.name for c in space.choices}:
        raise RunError(
            f"{run.path} has nothing to begin with: none of the choices on its front is one of this space "
            f"({space.choices[0].name!r}, ...)"
        )
    return [
        space.candidate([_nearest(choice, trial.candidate.values) for choice in space.choices])
        for trial in run.front
    ]


def _nearest(choice: Choice, values: Mapping[str, Any]) -> int:
    """Index of the option next to the one taken; 0 where there is none."""
    value = values.get(choice.name)
    if value in choice.options:
        return choice.options.index(value)
    if not isinstance(value, int | float):
        return 0
    distance = [abs(o - value) if isinstance(o, int | float) else math.inf for o in choice.options]
    return distance.index(min(distance))


def _read(path: Path) -> list[Mapping[str, Any]]:
    """Candidates in a JSON file."""
    try:
        held = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read candidates from {path}: {error}") from None
    if isinstance(held, dict):
        held = [t.get("candidate") for t in held["trials"]] if "trials" in held else [held]
    if not isinstance(held, list) or not held or not all(isinstance(c, dict) for c in held):
        raise RunError(
            f"{path} holds no candidates: a list of {{choice: option}} is wanted, or what "
            "`netcarve front RUN --json` prints"
        )
    return held
