"""Decisions: the cost of each decision of a candidate, as Shapley values of the choices it changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..evaluators.pool import Job
from ..evaluators.quality import Quality
from ..spaces import Candidate
from ..spaces.choice import unsplit
from .section import Section, SectionFigure, Skipped, clipped, pairs_figure, series
from .shapley import Values, shapley
from .subject import Judged, Subject, samples_of

MOST_EXACT = 7  # choices: 128 networks, each repaired
NETWORKS = 100  # about as many where there are more choices
MOST = 40  # choices
SHOWN = 24


@dataclass(frozen=True)
class Decisions(Judged):
    """Shapley values of the choices that a candidate changed."""

    names: list[str]  # of the choices
    values: Values
    permutations: int  # where they were sampled


def decisions_section(subject: Subject) -> Section:
    """How the change of the metric is shared out among the choices that were changed.

    Raises:
        Skipped: see :func:`decide`.
    """
    found = decide(subject)
    values = found.values
    worst = int(np.argmax(np.abs(values.values)))
    scale, unit = (100, " points") if found.percent else (1, "")
    count_of, all_of = samples_of(found.task), samples_of(subject.whole)
    on = ""
    if count_of < all_of:
        on = f" on {count_of} of {all_of} samples, {scale * subject.change():+.3g}{unit} on all"
    how = "exact" if values.exact else f"from {found.permutations} permutations in antithetic pairs"
    return Section(
        "decisions",
        "What each choice costs",
        f"{found.label} changes by {scale * (values.all - values.none):+.3g}{unit}{on}; {found.names[worst]} "
        f"makes {scale * values.values[worst]:+.3g}",
        f"{count_of} of {all_of} validation samples, {len(found.names)} changed choices, "
        f"{values.evaluations} networks scored as in the run; Shapley values {how}",
        _pictures(found),
        {
            "metric": found.task.metric_name,
            "choices": found.names,
            "shapley": values.values,
            "errors": values.errors,
            "interactions": values.interactions,
            "original": values.none,
            "subnetwork": values.all,
        },
    )


def decide(subject: Subject) -> Decisions:
    """Shapley values of the changed choices.

    The worth of a set of choices is the metric of the network with these changed and the others not,
    repaired as in the run.

    Raises:
        Skipped: nothing was changed, too much was, or a network between the two cannot be scored.
    """
    plain = unsplit(subject.candidate)  # no score depends on cuts
    changed = [d for d, i in enumerate(plain.indices) if i]
    if not changed:
        raise Skipped("the trial changes nothing that the score depends on")
    if len(changed) > MOST:
        raise Skipped(f"{len(changed)} changed choices: more than {MOST} take too long")
    count = len(changed)
    permutations = 2 * max(1, NETWORKS // (2 * count))
    task = subject.affordable(2**count if count <= MOST_EXACT else permutations * count)
    job = Job(task, subject.space, (Quality(),), rungs=subject.rungs)

    def worth(members: np.ndarray) -> float:
        kept = {d for d, on in zip(changed, members, strict=True) if on}
        indices = tuple(i if d in kept else 0 for d, i in enumerate(plain.indices))
        outcome = job.evaluate(0, Candidate(indices, plain.choices))
        if outcome.scores is None:
            last = (outcome.error or "").strip().splitlines()[-1:]
            raise Skipped(f"a network between the original and this one cannot be scored: {' '.join(last)}")
        return outcome.scores[task.metric_name]

    values = shapley(
        worth,
        count,
        most_exact=MOST_EXACT,
        permutations=permutations,
        seed=subject.seed,
        progress=subject.counter("coalitions of choices"),
    )
    return Decisions(task, [plain.choices[d].name for d in changed], values, permutations)


def _pictures(found: Decisions) -> tuple[SectionFigure, ...]:
    values, label = found.values, found.label
    shown = np.argsort(-np.abs(values.values), kind="stable")[:SHOWN]
    shown = shown[np.argsort(values.values[shown], kind="stable")]
    bars = SectionFigure(
        "bars",
        f"What each choice does to {label}",
        f"Bars to the left are choices that lower {label}; all together add up to the subnetwork's change.",
        {
            "labels": [found.names[i] for i in shown],
            "series": series(choice=clipped(values.values[shown])),
            "percent": found.percent,
            "axis": f"Shapley value, {label}",
        },
    )
    pairs = pairs_figure(
        "Pairs of choices",
        f"Orange pairs lower {label} more together than apart, blue pairs less.",
        found.names,
        values.interactions,
        percent=found.percent,
    )
    return bars, *pairs
