"""Problems on which searchers are measured: real networks, real evaluations, kept in the user's cache.

::

    problem = load("truth")
    searcher = netcarve.searcher("nsga2", problem.space, problem.objectives, limits=problem.limits)
    scores = [problem.score(candidate) for candidate in searcher.ask(50)]
    problem.hypervolume(scores)

No torch is needed once what a problem rests on is in the cache; ``python benchmarks/search.py --make-table``
puts it there. ``large`` is not enumerable: candidates that nobody has scored yet are built and scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from netcarve import Candidate, Choice, Limit, Objective, Space, Trial
from netcarve.results.hypervolume import hypervolume
from netcarve.results.objective import total_violation
from search_cache import Memo, Table, cache_path, digest, store
from search_costs import Costs

Scores = Mapping[str, float]

MARGIN = 0.10  # of accuracy: the region that a user cares about, below the unchanged network
RATIOS = (0.0, 0.375, 0.625, 0.875)

# What decides the scores: a change here makes another table and other runs of the peers. Where the digits
# task's own network changes, the version must. Every choice of `choices` cuts the groups that it names alike.
DIGITS: dict[str, Any] = {
    "version": 1,
    "network": "the digits task's, 9 groups",
    "repair": "sequential (the default), BatchNorm re-estimated on 512 images; scored on 450 images",
    "choices": {
        "stem": (["stem.0"], RATIOS[:3]),
        "stage1.inside": (["stage1.0.conv1", "stage1.1.conv1"], RATIOS),
        "stage2": (["stage2.0.conv2"], RATIOS),
        "stage2.inside": (["stage2.0.conv1", "stage2.1.conv1"], RATIOS),
        "stage3": (["stage3.0.conv2"], RATIOS),
        "stage3.inside": (["stage3.0.conv1", "stage3.1.conv1"], RATIOS),
    },
}
RESNET: dict[str, Any] = {
    "version": 1,
    "network": "ResNet-20 of 8, 16, 32 channels on digits at 16x16, 12 groups",
    "widths": (8, 16, 32),
    "seed": 0,
    "epochs": 25,
    "ratios": 8,
    "repair": "once",
    "calibration": 512,  # training images
    "batchnorm": 128,  # of them, to re-estimate BatchNorm
    "validation": 400,  # images
}


@dataclass(frozen=True)
class Problem:
    """A space, what is wanted of it, and what every candidate really scores."""

    name: str
    space: Space
    objectives: tuple[Objective, ...]
    accuracy: Callable[[Candidate], float] = field(repr=False)
    baseline: Mapping[str, float]  # scores of the unchanged network
    region: Mapping[str, float]  # by objective: the worst value that counts, the reference point
    limits: tuple[Limit, ...] = ()
    key: str = ""  # changes with anything that decides what a search sees
    truth: float | None = None  # hypervolume of the whole space where it is enumerated, normalised

    def score(self, candidate: Candidate) -> dict[str, float]:
        """Accuracy and all analytic costs."""
        costs = self.space.cost_arrays([candidate])
        return {"accuracy": self.accuracy(candidate), **{name: float(v[0]) for name, v in costs.items()}}

    def feasible(self, scores: Scores) -> bool:
        """All limits kept."""
        return not self.limits or total_violation(self.limits, scores, self.baseline) <= 0.0

    def point(self, scores: Scores) -> list[float]:
        """Minimised; 1 is the reference, 0 the unchanged network's accuracy or no cost at all."""
        best = {"accuracy": self.baseline["accuracy"]}  # costs: 0
        return [
            (scores[o.name] - best.get(o.name, 0.0)) / (self.region[o.name] - best.get(o.name, 0.0))
            for o in self.objectives
        ]

    def hypervolume(self, found: Iterable[Trial | Scores]) -> float:
        """Of the feasible within the region, normalised; as a share of the truth where that is known."""
        scores = [t.scores if isinstance(t, Trial) else t for t in found]
        points = [self.point(s) for s in scores if s and self.feasible(s)]
        volume = hypervolume(points, np.ones(len(self.objectives))) if points else 0.0
        return volume / self.truth if self.truth else volume


def make_digits(workers: int = 2) -> Path:
    """Score every candidate of ``truth`` once; about ten minutes of two cores, nothing when it is done."""
    path = cache_path("digits", DIGITS, ".npz")
    if path.exists():
        return path
    from search_tables import digits_job, forms, score_all

    job = digits_job(DIGITS)
    space = _space(DIGITS, {})
    at = {c.about.group: i for i, c in enumerate(job.space.choices)}
    full = np.zeros((space.size, len(at)), dtype=np.int64)
    rows = _all_indices(space)
    for c, (groups, _) in enumerate(DIGITS["choices"].values()):
        full[:, [at[g] for g in groups]] = rows[:, c, None]
    accuracy = score_all(job, [job.space.candidate(row) for row in full], workers=workers)
    kept = {c.about.group: np.array(c.kept) for c in job.space.choices}
    names = [g for groups, _ in DIGITS["choices"].values() for g in groups]
    store(
        path,
        accuracy=accuracy,
        **{f"form:{name}": form for name, form in forms(job.space, names).items()},
        **{f"kept:{name}": kept[name] for name in names},
    )
    return path


def _space(recipe: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, latency: bool = False) -> Space:
    """The space of an enumerated recipe; without arrays it knows no costs."""
    choices = [Choice(name, tuple(ratios)) for name, (_, ratios) in recipe["choices"].items()]
    if not arrays:
        return Space(choices)
    members = [groups for groups, _ in recipe["choices"].values()]
    ends = np.cumsum([len(groups) for groups in members]).tolist()
    columns = tuple(tuple(range(end - len(g), end)) for g, end in zip(members, ends, strict=True))
    kept = tuple(tuple(arrays[f"kept:{g[0]}"].tolist()) for g in members)
    return Space(choices, model=Costs(columns, kept, _forms(arrays), latency))


def _forms(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix("form:"): arrays[key] for key in arrays if key.startswith("form:")}


def _all_indices(space: Space) -> np.ndarray:
    """Every candidate [size, choices], in row-major order."""
    return np.indices(tuple(space.counts)).reshape(len(space), -1).T


def make_resnet() -> Path:
    """Train the network of ``large`` and find its costs: a minute, nothing when it is done."""
    path = cache_path("resnet", RESNET, ".npz")
    if path.exists():
        return path
    from search_tables import forms, resnet_job

    space = resnet_job(RESNET, path.with_suffix(".safetensors")).space
    kept = {f"kept:{c.about.group}": np.array(c.kept) for c in space.choices}
    ratios = np.array([c.options for c in space.choices])
    names = [c.about.group for c in space.choices]
    store(path, ratios=ratios, **kept, **{f"form:{n}": form for n, form in forms(space, names).items()})
    return path


def _large() -> Problem:
    path = make_resnet()
    arrays = dict(np.load(path))
    names = [key.removeprefix("kept:") for key in arrays if key.startswith("kept:")]
    choices = [Choice(f"prune:{n}", tuple(r)) for n, r in zip(names, arrays["ratios"].tolist(), strict=True)]
    columns = tuple((i,) for i in range(len(names)))
    kept = tuple(tuple(arrays[f"kept:{n}"].tolist()) for n in names)
    space = Space(choices, model=Costs(columns, kept, _forms(arrays)))

    def job() -> Any:
        from search_tables import resnet_job

        return resnet_job(RESNET, path.with_suffix(".safetensors"))

    return make_problem("large", RESNET, space, ("accuracy", "macs"), Memo(path.with_suffix(".sqlite"), job))


# Limits of the problems on the enumerated table; `search.py` prints the share of candidates that keep them.
ENUMERATED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "truth": (("accuracy", "macs"), ()),
    "three": (("accuracy", "macs", "latency_ms"), ()),
    "constrained": (("accuracy", "macs"), ("macs<=0.1x", "params<=0.08x", "accuracy>=0.9x")),
    "measured": (("macs", "params", "activation_mb"), ("accuracy>=0.98x", "macs<=0.2x")),
}
NAMES = ("truth", "large", "three", "constrained", "measured")


@cache
def load(name: str) -> Problem:
    """A problem by name, one of :data:`NAMES`; what it rests on is made where it is not in the cache.

    Raises:
        ValueError: an unknown name.
    """
    if name == "large":
        return _large()
    if name not in ENUMERATED:
        raise ValueError(f"unknown problem {name!r}; known are {', '.join(NAMES)}")
    objectives, limits = ENUMERATED[name]
    arrays = dict(np.load(make_digits()))
    space = _space(DIGITS, arrays, latency="latency_ms" in objectives)
    problem = make_problem(name, DIGITS, space, objectives, Table(arrays["accuracy"], space.counts), limits)
    return replace(problem, truth=problem.hypervolume(everything(problem)))


def everything(problem: Problem) -> list[dict[str, float]]:
    """Scores of all candidates of an enumerated problem."""
    candidates = [
        Candidate(tuple(row), problem.space.choices) for row in _all_indices(problem.space).tolist()
    ]
    costs = problem.space.cost_arrays(candidates)
    return [
        {"accuracy": problem.accuracy(c), **{name: float(v[i]) for name, v in costs.items()}}
        for i, c in enumerate(candidates)
    ]


def make_problem(
    name: str,
    recipe: Mapping[str, Any],
    space: Space,
    objectives: Sequence[str],
    accuracy: Callable[[Candidate], float],
    limits: Sequence[str] = (),
) -> Problem:
    """The region: within :data:`MARGIN` of the unchanged network's accuracy, at most its costs; limits on
    objectives narrow it."""
    bounds = tuple(Limit(text) for text in limits)
    costs = space.cost_arrays([space.baseline])
    baseline = {"accuracy": accuracy(space.baseline), **{k: float(v[0]) for k, v in costs.items()}}
    region = {**baseline, "accuracy": baseline["accuracy"] - MARGIN}
    region.update({m.metric: m.bound(baseline) for m in bounds})
    goals = tuple(Objective(o) for o in objectives)
    key = f"{name}-{digest([recipe, objectives, limits])}"
    region = {o: region[o] for o in objectives}
    return Problem(name, space, goals, accuracy, baseline, region, bounds, key)
