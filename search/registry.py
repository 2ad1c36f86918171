"""Searchers by name, as the command line gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import entry_points

from ..results.objective import Limit, Objective
from ..spaces import Space
from .base import Searcher, parse_limits
from .distinct import Distinct
from .feasible import Feasible

GROUP = "netcarve.searchers"
BUILT_IN = {  # module of this folder, class; known even where the package's metadata is not installed
    "additive": (".greedy.additive", "Additive"),
    "age-moea": (".evolutionary.age_moea", "AGEMOEA"),
    "ageing": (".evolutionary.ageing", "Ageing"),
    "auto": (".bayesian.auto", "Auto"),
    "branch-and-bound": (".exact.branch_and_bound", "BranchAndBound"),
    "chebyshev": (".combined.scalarised", "Chebyshev"),
    "ga": (".evolutionary.genetic", "Genetic"),
    "gp": (".bayesian.gp", "GP"),
    "greedy": (".greedy.greedy", "Greedy"),
    "greedy-merge": (".greedy.merge", "GreedyMerge"),
    "greedy-split": (".greedy.split", "GreedySplit"),
    "grid": (".baselines.grid", "Grid"),
    "ladder": (".baselines.ladder", "Ladder"),
    "lagrangian": (".greedy.lagrangian", "Lagrangian"),
    "lhs": (".baselines.latin_hypercube", "LatinHypercube"),
    "moead": (".evolutionary.moead", "MOEAD"),
    "netadapt": (".greedy.netadapt", "NetAdapt"),
    "nsga2": (".evolutionary.nsga2", "NSGA2"),
    "nsga3": (".evolutionary.nsga3", "NSGA3"),
    "optuna-gp": (".bayesian.optuna_gp", "OptunaGP"),
    "ppo": (".learnt.ppo", "PPO"),
    "progressive": (".combined.progressive", "Progressive"),
    "pso": (".evolutionary.particle_swarm", "ParticleSwarm"),
    "random": (".baselines.random", "Random"),
    "reinforce": (".learnt.reinforce", "Reinforce"),
    "sms-emoa": (".evolutionary.sms_emoa", "SMSEMOA"),
    "tpe": (".bayesian.tpe", "TPE"),
    "weighted-sum": (".combined.scalarised", "WeightedSum"),
}


def known_searchers() -> list[str]:
    """Names that :func:`searcher` takes, sorted: built in, and of installed packages."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=GROUP))})


def searcher(
    name: str,
    space: Space,
    objectives: Iterable[Objective | str],
    *,
    seed: int = 0,
    limits: Iterable[Limit | str] = (),
) -> Searcher:
    """A searcher by name, one that never repeats itself and keeps the limits on analytic costs.

    Works for a space without a model. A package adds one by an entry point of the group
    ``netcarve.searchers``: a :class:`Searcher` class, or any function of (space, objectives, seed=...).

    Raises:
        ValueError: unknown name, unknown metric, unreadable limit, or a limit that no candidate can keep.
    """
    return guard(_find(name)(space, objectives, seed=seed), parse_limits(limits))


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


def _find(name: str) -> Callable[..., Searcher]:
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name]
        return getattr(import_module(module, __package__), attribute)
    for entry in entry_points(group=GROUP, name=name):
        return entry.load()
    raise ValueError(f"unknown searcher {name!r}; known are {', '.join(known_searchers())}")
