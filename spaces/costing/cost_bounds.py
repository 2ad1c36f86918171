"""Which costs can only fall along the options of the choices, by how they are made."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..choice import Choice
from ..drop import Drop
from ..masks.choice import Mask
from ..prune import Prune
from ..splitting.splits import is_split

SUMS = ("macs", "flops", "params", "size_mb")  # over what is there
LIVES = ("activation_mb", "memory_mb")  # depend on which tensors are alive together


def falling_costs(choices: Iterable[Choice], *, positive: bool) -> tuple[str, ...]:
    """Names of the costs that never rise when any choice goes to a later option.

    Sums of products of axis lengths with coefficients that are not negative (``positive``) fall with the
    units kept; a dropped block takes terms away. What is alive together is a maximum of such sums, of which
    dropping changes the members: nothing is said about it then. Any other kind of choice, or kept units that
    rise along the options: none. A split network has the same sums, but its ``memory_mb`` is that of its
    devices, which may rise: nothing is said about that, nor about other costs of splits.
    """
    drops = splits = False
    for choice in choices:
        if isinstance(choice.edit, Drop):
            drops = True
        elif is_split(choice):
            splits = True
        elif isinstance(choice.edit, Mask):
            continue  # sets numbers to zero: these costs stay as they are
        elif not isinstance(choice.edit, Prune) or (np.diff(choice.edit.kept) > 0).any():
            return ()
    if not positive:
        return ()
    return SUMS + tuple(name for name in LIVES if not drops and not (splits and name == "memory_mb"))
