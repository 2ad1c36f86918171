"""Decisions: the cost of each decision of a candidate, as Shapley values of the choices it changed."""

from __future__ import annotations

import numpy as np

from ..evaluators.pool import Job
from ..evaluators.quality import Quality
from ..results.table import HEADINGS
from ..spaces import Candidate
from ..spaces.choice import unsplit
from .section import Section, SectionFigure, Skipped, clipped, series
from .shapley import shapley
from .subject import Subject, samples_of

MOST_EXACT = 7  # choices: 128 networks, each repaired
NETWORKS = 100  # about as many where there are more choices
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
    plain = unsplit(candidate)  # no score depends on cuts
    changed = [d for d, i in enumerate(plain.indices) if i]
    if not changed:
        raise Skipped("the trial changes nothing that the score depends on")
    if len(changed) > MOST:
        raise Skipped(f"{len(changed)} changed choices: more than {MOST} take too long")
    count = len(changed)
    exact = count <= MOST_EXACT
    permutations = 2 * max(1, NETWORKS // (2 * count))
    task = subject.affordable(2**count if exact else permutations * count)
    job = Job(task, subject.space, (Quality(),), rungs=subject.rungs)
    metric = task.metric_name

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
        count,
        most_exact=MOST_EXACT,
        permutations=permutations,
        seed=subject.seed,
        progress=subject.counter("coalitions of choices"),
    )
    label, percent = HEADINGS.get(metric, metric), metric == "accuracy"
    shown = np.argsort(-np.abs(found.values), kind="stable")[:SHOWN]
    shown = shown[np.argsort(found.values[shown], kind="stable")]
    names = [plain.choices[d].name for d in changed]
    figures = [
        SectionFigure(
            "bars",
            f"What each choice does to {label}",
            f"Bars to the left are choices that lower {label}; all together add up to the subnetwork's "
            "change.",
            {
                "labels": [names[i] for i in shown],
                "series": series(choice=clipped(found.values[shown])),
                "percent": percent,
                "axis": f"Shapley value, {label}",
            },
        )
    ]
    if found.interactions is not None and np.any(found.interactions):
        figures.append(
            SectionFigure(
                "heat",
                "Pairs of choices",
                f"Orange pairs lower {label} more together than apart, blue pairs less.",
                {
                    "across": names,
                    "down": names,
                    "values": clipped(found.interactions),
                    "signed": True,
                    "percent": percent,
                    "axis": "interaction index",
                },
            )
        )
    worst = int(np.argmax(np.abs(found.values)))
    scale, unit = (100, " points") if percent else (1, "")
    count_of, all_of = samples_of(task), samples_of(subject.whole)
    on = ""
    if count_of < all_of:
        on = f" on {count_of} of {all_of} samples, {scale * subject.change():+.3g}{unit} on all"
    how = "exact" if exact else f"from {permutations} permutations in antithetic pairs"
    return Section(
        "decisions",
        "What each choice costs",
        f"{label} changes by {scale * (found.all - found.none):+.3g}{unit}{on}; {names[worst]} makes "
        f"{scale * found.values[worst]:+.3g}",
        f"{count_of} of {all_of} validation samples, {count} changed choices, {found.evaluations} networks "
        f"scored as in the run; Shapley values {how}",
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
