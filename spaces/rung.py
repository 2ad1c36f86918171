"""How thoroughly a candidate is evaluated, as a choice of the space: rungs of a progressive search.

The first rung is the one that results are read at. A candidate on a lower one is the same network, judged on
less: fewer samples, a quicker repair, no fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .choice import Candidate, Choice
from .space import Space

NAME = "rung"  # of the choice


@dataclass(frozen=True, slots=True)
class Rung:
    """One level of effort.

    Raises:
        ValueError: a number out of its range.
    """

    name: str
    samples: float = 1.0  # share of the validation data, in (0, 1]; smaller shares are parts of larger ones
    repair: bool | Literal["once"] | None = None  # of built networks; None: what the space does
    epochs: int = 0  # of fine-tuning on the task's training data

    def __post_init__(self) -> None:
        if not 0.0 < self.samples <= 1.0:
            raise ValueError(f"samples of rung {self.name!r} must lie in (0, 1], got {self.samples}")
        if self.epochs < 0:
            raise ValueError(f"epochs of rung {self.name!r} must not be negative, got {self.epochs}")
        if self.repair not in (None, True, False, "once"):
            raise ValueError(
                f"repair of rung {self.name!r} is True, False, 'once' or None, got {self.repair!r}"
            )


RUNGS = {
    rung.name: rung
    for rung in (Rung("tuned", epochs=5), Rung("full"), Rung("quick", samples=0.25, repair="once"))
}
DEFAULT = ("full", "quick")


def parse_rungs(names: Sequence[str]) -> tuple[Rung, ...]:
    """Rungs by name, the most thorough first.

    Raises:
        ValueError: a name that is not one of :data:`RUNGS`.
    """
    if unknown := [name for name in names if name not in RUNGS]:
        raise ValueError(f"unknown rung {unknown[0]!r}; known are {', '.join(RUNGS)}")
    return tuple(rung for rung in RUNGS.values() if rung.name in names)


def with_rungs(space: Space, rungs: Sequence[Rung]) -> Space:
    """``space`` with the choice ``"rung"`` at its end.

    Args:
        rungs: at least two, the most thorough first.

    Raises:
        ValueError: fewer than two, two of one name, or the space has rungs already.
    """
    if len(rungs) < 2:
        raise ValueError(f"a progressive search needs at least two rungs, got {len(rungs)}")
    choice = Choice(NAME, tuple(r.name for r in rungs), edit=tuple(rungs))
    recipe: dict[str, Any] | None = None
    if space.recipe is not None:
        recipe = {**space.recipe, "rungs": [asdict(r) for r in rungs]}
    return Space([*space.choices, choice], model=space.model, recipe=recipe)


def rungs_of(of: Space | Candidate) -> tuple[Rung, ...]:
    """The rungs of a space, or of a candidate's, the most thorough first; empty where it has none."""
    return next((c.edit for c in of.choices if is_rung(c)), ())


def tunes(space: Space) -> bool:
    """Does any rung of the space need training data?"""
    return any(rung.epochs for rung in rungs_of(space))


def rung_of(candidate: Candidate) -> Rung | None:
    """The rung that a candidate is to be evaluated on; ``None`` in a space without rungs."""
    for choice, index in zip(candidate.choices, candidate.indices, strict=True):
        if is_rung(choice):
            return choice.edit[index]
    return None


def on_rung(metric: str, rung: Rung, rungs: Sequence[Rung]) -> str:
    """What a metric is called on a rung: itself on the first, ``accuracy@quick`` on a lower one."""
    return metric if rung == rungs[0] else f"{metric}@{rung.name}"


def off_rung(metric: str, rung: Rung) -> str:
    """The inverse of :func:`on_rung`."""
    return metric.removesuffix(f"@{rung.name}")


def is_rung(choice: Choice) -> bool:
    """Is it the choice of :func:`with_rungs`?"""
    return choice.name == NAME and isinstance(choice.edit, tuple)
