"""What each decision of a candidate costs: Shapley values of the choices it changed."""

from __future__ import annotations

import numpy as np

from ...results.explaining.section import Figure, Section, Skipped, clipped, series
from ...results.explaining.shapley import MOST_EXACT, shapley
from ...results.table import HEADINGS
from ...spaces import Candidate
from ...spaces.rung import is_rung
from ..accuracy import Quality
from ..pool import Job
from .subject import Subject

PERMUTATIONS = 8  # where there are too many changed choices for all coalitions
MOST = 40  # choices
SHOWN = 24


def decisions_section(subject: Subject) -> Section:
    """How the change of the metric is shared out among the choices that were changed.

    The worth of a set of choices is the metric of the network with these changed and the others not,
    repaired as in the run.

    Raises:
        Skipped: nothing was changed, too much was, or a network between the two cannot be scored.
    """
    candidate = subject.candidate
    plain = _scored(candidate)
    changed = [d for d, i in enumerate(plain.indices) if i]
    if not changed:
        raise Skipped("the trial changes nothing that the score depends on")
    if len(changed) > MOST:
        raise Skipped(f"{len(changed)} changed choices: more than {MOST} take too long")
    job = Job(subject.task, subject.space, (Quality(),))
    metric = subject.task.metric_name

    def worth(members: np.ndarray) -> float:
        kept = {d for d, on in zip(changed, members, strict=True) if on}
        indices = tuple(i if d in kept else 0 for d, i in enumerate(plain.indices))
        outcome = job.evaluate(0, Candidate(indices, plain.choices))
        if outcome.scores is None:
            last = (outcome.error or "").strip().splitlines()[-1:]
            raise Skipped(f"a network between the original and this one cannot be scored: {' '.join(last)}")
        return outcome.scores[metric]

    found = shapley(
        worth,
        len(changed),
        permutations=PERMUTATIONS,
        seed=subject.seed,
        progress=subject.counter("coalitions of choices"),
    )
    label, percent = HEADINGS.get(metric, metric), metric == "accuracy"
    order = np.argsort(found.values, kind="stable")
    if len(order) > SHOWN:
        order = np.sort(np.argsort(-np.abs(found.values), kind="stable")[:SHOWN])
        order = order[np.argsort(found.values[order], kind="stable")]
    names = [f"{plain.choices[d].name}" for d in changed]
    figures = [
        Figure(
            "bars",
            f"What each choice does to {label}",
            f"Bars to the left are choices that cost {label}; all bars add up to the change of the whole "
            "subnetwork.",
            {"labels": [names[i] for i in order], "series": series(choice=clipped(found.values[order])),
             "percent": percent, "axis": f"Shapley value, {label}"},
        )
    ]  # fmt: skip
    if found.interactions is not None and len(changed) > 1:
        figures.append(
            Figure(
                "heat",
                "Pairs of choices",
                "Orange pairs cost more together than apart, blue pairs less.",
                {"across": names, "down": names, "values": clipped(found.interactions), "signed": True,
                 "percent": percent, "axis": "interaction index"},
            )
        )  # fmt: skip
    worst = int(np.argmin(found.values))
    scale, unit = (100, " points") if percent else (1, "")
    return Section(
        "decisions",
        "What each choice costs",
        f"of {scale * (found.all - found.none):+.3g}{unit} of {label}, {names[worst]} makes "
        f"{scale * found.values[worst]:+.3g}",
        f"{subject.count} validation samples, {len(changed)} changed choices, {found.evaluations} networks scored as "
        "in the run; Shapley values "
        + (
            "exact" if len(changed) <= MOST_EXACT else f"from {PERMUTATIONS} permutations in antithetic pairs"
        ),
        tuple(figures),
        {
            "metric": metric,
            "choices": names,
            "shapley": found.values,
            "errors": found.errors,
            "interactions": found.interactions,
            "original": found.none,
            "subnetwork": found.all,
        },
    )


def _scored(candidate: Candidate) -> Candidate:
    """The candidate on its most thorough rung, without what no score depends on: cuts and their places."""
    indices = tuple(
        0 if is_rung(choice) or choice.name.startswith(("cut:", "place:")) else i
        for choice, i in zip(candidate.choices, candidate.indices, strict=True)
    )
    return Candidate(indices, candidate.choices)
