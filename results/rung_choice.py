"""Runs of netcarve 0.1 with rungs, read as today's: there the rung was the last choice of the space.

Its candidates held ``"rung": "quick"``, and below the first rung metrics were called ``accuracy@quick``.
Ledgers and exports are translated where they are read; nothing else knows of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAME = "rung"  # of the choice
BY_METRIC = ("spread", "differs")  # entries of a detail that are by metric


@dataclass(frozen=True, slots=True)
class RungChoice:
    """Translates what belongs to one such run."""

    place: int  # of the choice
    names: tuple[str, ...]  # of the rungs, the most thorough first

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> RungChoice | None:
        """For settings (or a receipt) as they were written; None where no choice is a rung."""
        choices, recipe = settings.get("choices"), settings.get("space")
        rungs = isinstance(recipe, Mapping) and "rungs" in recipe
        if "rungs" in settings or not (rungs or settings.get("searcher") == "progressive"):
            return None
        for place, choice in enumerate(choices if isinstance(choices, list) else ()):
            match choice:
                case [str(name), [*names]] if name == NAME and all(isinstance(n, str) for n in names):
                    return cls(place, tuple(names))
        return None

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings without the choice, the rungs beside them."""
        found = dict(settings)
        recipe = found.get("space")
        found["rungs"] = [{"name": name} for name in self.names]
        if isinstance(recipe, Mapping):
            found["rungs"] = recipe.get("rungs", found["rungs"])
            found["space"] = {key: value for key, value in recipe.items() if key != "rungs"}
        found["choices"] = self._without(found["choices"])
        if isinstance(rows := found.get("uniform"), list):
            found["uniform"] = [self._without(row) if isinstance(row, list) else row for row in rows]
        return found

    def row(self, table: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """A row of a ledger's table."""
        if table == "proposals":
            number, text, fidelity = row
            values = json.loads(text)
            if isinstance(values, dict) and NAME in values:
                fidelity = values.pop(NAME)
                return number, json.dumps(values), fidelity
        elif table == "outcomes":
            return row[0], self._renamed(row[1]), *row[2:]
        elif table == "measurements":
            number, scores, detail = row
            found = json.loads(detail)
            if isinstance(found, dict):
                changed = {k: self._names(v) if k in BY_METRIC else v for k, v in found.items()}
                return number, self._renamed(scores), json.dumps(changed)
        return row

    def _without(self, row: list[Any]) -> list[Any]:
        return [*row[: self.place], *row[self.place + 1 :]]

    def _renamed(self, text: str) -> str:
        return json.dumps(self._names(json.loads(text)))

    def _names(self, scores: Any) -> Any:
        """By metric, without the rung in its name."""
        if not isinstance(scores, dict):
            return scores
        ends = tuple(f"@{name}" for name in self.names[1:])
        return {m.rpartition("@")[0] if m.endswith(ends) else m: value for m, value in scores.items()}
