"""Fidelity: how thoroughly a candidate is judged. It travels beside the candidate, and is no choice.

A search may judge candidates on several fidelities, its rungs, the most thorough first. Results are read at
the first one. On a lower rung a candidate is the same network, judged on less: fewer samples, a quicker
repair, no fine-tuning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..spaces import Candidate
from ..standalone import Json

LONGEST = 60  # characters of a name


@dataclass(frozen=True, slots=True)
class Fidelity:
    """One level of effort.

    Raises:
        ValueError: no name, or a number out of its range.
    """

    name: str
    samples: float = 1.0  # share of the validation data, in (0, 1]; smaller shares are parts of larger ones
    repair: bool | Literal["once"] | None = None  # of built networks; None: what the space does
    epochs: int = 0  # of fine-tuning on the task's training data

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= LONGEST:
            raise ValueError(
                f"the name of a fidelity is a text of 1 to {LONGEST} characters, got {self.name!r:.80}"
            )
        if isinstance(self.samples, bool) or not isinstance(self.samples, int | float):
            raise ValueError(f"samples of fidelity {self.name!r} must be a number, got {self.samples!r:.40}")
        if not 0.0 < self.samples <= 1.0:
            raise ValueError(f"samples of fidelity {self.name!r} must lie in (0, 1], got {self.samples}")
        if type(self.epochs) is not int or self.epochs < 0:
            raise ValueError(
                f"epochs of fidelity {self.name!r} must be an integer of at least 0, got {self.epochs!r:.40}"
            )
        if self.repair not in (None, True, False, "once"):
            raise ValueError(
                f"repair of fidelity {self.name!r} is True, False, 'once' or None, got {self.repair!r:.40}"
            )

    @property
    def text(self) -> str:
        """In words: ``"25 % of the validation data, repair 'once'"``."""
        data = "all" if self.samples == 1 else f"{100 * self.samples:.3g} %"
        parts = [f"{data} of the validation data"]
        if self.repair is not None:
            parts.append(f"repair {self.repair!r}")
        if self.epochs:
            parts.append(f"after {self.epochs} epoch{'s' * (self.epochs > 1)} of fine-tuning")
        return ", ".join(parts)


FULL = Fidelity("full")
FIDELITIES = {f.name: f for f in (Fidelity("tuned", epochs=5), FULL, Fidelity("quick", 0.25, "once"))}
DEFAULT_RUNGS = ("full", "quick")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate, and the name of the fidelity on which it is to be judged."""

    candidate: Candidate
    fidelity: str = FULL.name

    def to_json(self) -> str:
        """The candidate's, and in brackets the fidelity where it is not the full one."""
        return self.candidate.to_json() + (
            "" if self.fidelity == FULL.name else f" (fidelity {self.fidelity})"
        )


def proposals(asked: Iterable[Candidate | Proposal], rungs: Sequence[Fidelity] = (FULL,)) -> list[Proposal]:
    """What a searcher has asked for: its candidates on the first of the rungs, its proposals as they are.

    Raises:
        ValueError: a proposal on none of the rungs.
    """
    found = [one if isinstance(one, Proposal) else Proposal(one, rungs[0].name) for one in asked]
    names = [f.name for f in rungs]
    for one in found:
        if one.fidelity not in names:
            raise ValueError(
                f"the searcher proposes a candidate on fidelity {one.fidelity!r}, which is none of this "
                f"search's: {', '.join(names)}"
            )
    return found


def parse_rungs(rungs: Iterable[Fidelity | str]) -> tuple[Fidelity, ...]:
    """Rungs of a search, the most thorough first; known names are put in this order.

    Args:
        rungs: names of :data:`FIDELITIES`, or instances, the most thorough first.

    Raises:
        ValueError: fewer than two, two of one name, or a name that is not known.
    """
    given = [rungs] if isinstance(rungs, str | Fidelity) else list(rungs)
    if unknown := [one for one in given if isinstance(one, str) and one not in FIDELITIES]:
        raise ValueError(f"unknown rung {unknown[0]!r}; known are {', '.join(FIDELITIES)}")
    if all(isinstance(one, str) for one in given):
        given.sort(key=list(FIDELITIES).index)  # type: ignore[arg-type]
    found = tuple(FIDELITIES[one] if isinstance(one, str) else one for one in given)
    names = [f.name for f in found]
    if len(set(names)) < len(names):
        raise ValueError(f"rungs must have distinct names, got {', '.join(names)}")
    if len(found) < 2:
        raise ValueError(
            f"a search over rungs needs at least two of them, got {len(found)}; for example quick,full"
        )
    return found


def proposal_row(number: int, proposal: Proposal) -> tuple[int, str, str | None]:
    """The row of a proposal in a ledger's table ``proposals``."""
    fidelity = None if proposal.fidelity == FULL.name else proposal.fidelity
    return int(number), proposal.candidate.to_json(), fidelity


# -- Runs of netcarve 0.1 with rungs, read as today's: there the rung was the last choice ---------------

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

    def _names(self, scores: Json) -> Any:
        """By metric, without the rung in its name."""
        if not isinstance(scores, dict):
            return scores
        ends = tuple(f"@{name}" for name in self.names[1:])
        return {m.rpartition("@")[0] if m.endswith(ends) else m: value for m, value in scores.items()}
