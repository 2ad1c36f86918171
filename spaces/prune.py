"""Pruning as a choice: how many units of a coupled group stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .choice import Choice
from .coupling import Group


@dataclass(frozen=True, slots=True)
class Prune:
    """What a pruning choice does to a model: keep the most important units of a group."""

    group: str
    kept: tuple[int, ...]  # units kept, per option
    order: str  # which of the blueprint's importance orders applies


def pruning_choice(
    group: Group, *, ratios: int | Sequence[float], round_to: int, order: str, least: int = 1
) -> Choice:
    """Choice ``prune:<group>`` whose options are pruning ratios, 0.0 first.

    Args:
        ratios: how many equally spaced ratios from 0 (8 gives 0, 1/8, ..., 7/8), or the ratios themselves
            in [0, 1), starting with 0.
        round_to: kept units are rounded to a multiple of this; at least one multiple stays.
        least: fewest units that may stay.

    Raises:
        ValueError: ratios out of range or not starting with 0.
    """
    wanted = [r / ratios for r in range(ratios)] if isinstance(ratios, int) else [float(r) for r in ratios]
    if not wanted or wanted[0] != 0.0 or any(not 0.0 <= r < 1.0 for r in wanted):
        raise ValueError(f"pruning ratios start with 0 and lie in [0, 1), got {wanted}")
    if round_to < 1:
        raise ValueError(f"round_to must be at least 1, got {round_to}")
    options: dict[int, float] = {group.size: 0.0}
    for ratio in sorted(wanted[1:]):
        kept = round(group.size * (1 - ratio) / round_to) * round_to
        options.setdefault(min(group.size, max(round_to, kept, least)), ratio)
    return Choice(
        f"prune:{group.name}", tuple(options.values()), edit=Prune(group.name, tuple(options), order)
    )
