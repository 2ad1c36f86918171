"""Searchers by name, as the command line gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from inspect import signature

from ..results.fidelity import Fidelity
from ..results.objective import Limit, Objective
from ..spaces import Space
from .base import Searcher, parse_limits
from .wrappers import Distinct, Feasible

GROUP = "netcarve.searchers"
# Code that is newer than what pip wrote down of it: names are missing, or modules have moved.
MEND = "for a package just added or updated, `pip install -e .` in its folder renews its entry points"


def known_searchers() -> list[str]:
    """Names that :func:`searcher` takes, sorted: netcarve's own, and those of other installed packages."""
    return sorted(entry_points(group=GROUP).names)


def find_searcher(name: str) -> Callable[..., Searcher]:
    """The class or function that an installed package declares under ``name``; the first, where several do.

    Raises:
        ValueError: no package declares it, or what it names cannot be imported.
    """
    for entry in entry_points(group=GROUP, name=name):
        try:
            return entry.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"searcher {name!r} is declared as {entry.value}, which cannot be imported ({error}); {MEND}"
            ) from error
    raise ValueError(f"unknown searcher {name!r}; known are {', '.join(known_searchers())} ({MEND})")


def searcher(
    name: str,
    space: Space,
    objectives: Iterable[Objective | str],
    *,
    seed: int = 0,
    limits: Iterable[Limit | str] = (),
    rungs: Sequence[Fidelity] = (),
) -> Searcher:
    """A searcher by name, one that never repeats itself and keeps the limits on analytic costs.

    Works for a space without a model. A package adds one by an entry point of the group
    ``netcarve.searchers``: a :class:`Searcher` class, or any function of (space, objectives, seed=...).

    Args:
        rungs: fidelities to climb, for a searcher that takes them (``progressive``).

    Raises:
        ValueError: unknown name, unknown metric, unreadable limit, or a limit that no candidate can keep;
            rungs for a searcher that judges every candidate in full.
    """
    make, options = find_searcher(name), {"rungs": tuple(rungs)} if rungs else {}
    if rungs and "rungs" not in signature(make).parameters:
        raise ValueError(
            f"the searcher {name!r} judges every candidate in full and takes no rungs; progressive does"
        )
    return guard(make(space, objectives, seed=seed, **options), parse_limits(limits))


def guard(inner: Searcher, limits: Iterable[Limit | str] = ()) -> Searcher:
    """Wrap an algorithm so that it proposes no candidate twice, and none that breaks an analytic limit.

    Raises:
        ValueError: a limit that no candidate can keep; or ``inner`` is guarded already, with other limits.
    """
    limits = parse_limits(limits)
    if isinstance(inner, Distinct) and (not limits or set(limits) == set(inner.limits)):
        return inner
    if inner.limits and set(limits) != set(inner.limits):
        raise ValueError(
            f"the searcher was made with the limits {[m.text for m in inner.limits]}, now given "
            f"{[m.text for m in limits]}; give them once"
        )
    if not limits:
        return Distinct(inner)
    feasible = Feasible(inner, limits)
    return Distinct(feasible, repair=feasible.repair)
