"""One trial of a run."""

from __future__ import annotations

from .types import AsJson, RunPath, TrialName
from .views import print_json, print_next


def show(run: RunPath, trial: TrialName, as_json: AsJson = False) -> None:
    """Show what was cut where in one trial, against the unchanged model."""
    from ..results.table import printable
    from ..search import load

    loaded = load(run)
    number = loaded.number(trial)
    if not as_json:
        print(printable(loaded.show(number)))
        print_next(loaded, number, "export", "explain")
        return
    found = loaded[number]
    print_json(
        {
            "number": found.number,
            "candidate": found.candidate.values,
            "unchanged": {choice.name: choice.options[0] for choice, _ in found.candidate.items()},
            "kept": loaded.kept(number),
            "scores": dict(found.scores),
            **({"confirmed": dict(own)} if (own := found.confirmed) else {}),
            **({"modelled": names} if (names := loaded.settings.modelled) else {}),
            **({"measured": times} if (times := found.detail.get("measured")) else {}),
            **({"sensitivity": changes} if (changes := found.detail.get("sensitivity")) else {}),
            "baseline": dict(loaded.baseline.scores) if loaded.baseline else {},
            "error": found.error,
        }
    )
