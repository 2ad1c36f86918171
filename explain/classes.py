"""Classes: who pays for the compression, by the change of accuracy of each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..evaluators.metrics import IGNORED
from .section import Section, SectionFigure, Skipped, clipped
from .subject import Subject

Z95 = 1.959963984540054  # standard normal quantile of 97.5 %


@dataclass(frozen=True)
class ClassChange:
    """Per class, in order of ``classes``; accuracies are fractions."""

    classes: np.ndarray  # [classes] int, those that occur
    samples: np.ndarray  # [classes] int
    before: np.ndarray  # [classes] accuracy
    after: np.ndarray
    change: np.ndarray  # after - before
    low: np.ndarray  # 95 % interval of the change
    high: np.ndarray


def class_change(targets: np.ndarray, before: np.ndarray, after: np.ndarray) -> ClassChange:
    """Accuracy of each class before and after.

    Args:
        targets: [samples] int classes.
        before, after: [samples] bool, whether each network was right.
    """
    classes, which = np.unique(targets, return_inverse=True)
    count = np.bincount(which)
    lost = np.bincount(which, weights=before & ~after)
    won = np.bincount(which, weights=~before & after)
    was, is_ = np.bincount(which, weights=before) / count, np.bincount(which, weights=after) / count
    low, high = paired_interval(lost, won, count)
    return ClassChange(classes, count, was, is_, is_ - was, low, high)


def paired_interval(
    lost: np.ndarray, won: np.ndarray, count: np.ndarray, z: float = Z95
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of (won - lost) / count, of samples that both networks saw (Bonett and Price 2012).

    One loss and one gain are added to each, and two samples, so that it is not of width 0 where nothing
    changed; by default 95 %.

    Args:
        lost: right before, wrong after. won: wrong before, right after. count: samples.
    """
    lost, won, count = (np.asarray(v, dtype=np.float64) for v in (lost, won, count))
    p, q = (won + 1) / (count + 2), (lost + 1) / (count + 2)
    half = z * np.sqrt((p + q - (p - q) ** 2) / (count + 2))
    return np.maximum(p - q - half, -1.0), np.minimum(p - q + half, 1.0)


# -- Who pays for the compression: accuracy class by class ----------------------------------------------

MOST = 30  # classes drawn: those that changed most


def classes_section(subject: Subject) -> Section:
    """Change of the accuracy of each class, with intervals, on the whole validation data.

    Raises:
        Skipped: the targets are no classes.
    """
    subject.say("comparing the networks class by class")
    before, after = (subject.hits(model).numpy() for model in (subject.original, subject.network))
    targets = torch.cat([t.flatten()[t.flatten() != IGNORED] for _, _, t in subject.whole.batches]).numpy()
    if not len(targets):
        raise Skipped("every target is ignored")
    found = class_change(targets, before, after)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    sure = [int(c) for c, high in zip(found.classes, found.high, strict=True) if high < 0]
    worst = int(found.change.argmin())
    summary = f"{lost} samples lost, {won} won of {len(targets)}"
    if found.change[worst] < 0:
        summary += f"; class {found.classes[worst]} pays most, {100 * found.change[worst]:+.1f} points"
    return Section(
        "classes",
        "Who pays for it",
        summary,
        f"{len(targets)} validation targets, the same for both networks; intervals of 95 %, class by class "
        "(Bonett and Price 2012)",
        _pictures(found),
        {
            "lost": lost,
            "won": won,
            "surely_worse": sure,
            "classes": found.classes,
            "samples": found.samples,
            "original": found.before,
            "subnetwork": found.after,
            "low": found.low,
            "high": found.high,
        },
    )


def _pictures(found: ClassChange) -> tuple[SectionFigure, SectionFigure]:
    """Intervals and table of the classes, those that changed most where there are many."""
    drawn = np.argsort(found.change, kind="stable")
    if len(drawn) > MOST:
        drawn = np.concatenate([drawn[: MOST // 2], drawn[-(MOST // 2) :]])
    rows = [
        [str(found.classes[i]), str(found.samples[i]), f"{found.before[i]:.1%}", f"{found.after[i]:.1%}",
         f"{100 * found.change[i]:+.1f}", f"{100 * found.low[i]:+.1f} to {100 * found.high[i]:+.1f}"]
        for i in drawn
    ]  # fmt: skip
    intervals = SectionFigure(
        "intervals",
        "Change of accuracy by class",
        "A point left of zero is a class that lost; where its line also stays left of zero, chance alone "
        "does not explain it.",
        {
            "labels": [f"class {found.classes[i]}" for i in drawn],
            "low": clipped(found.low[drawn]),
            "middle": clipped(found.change[drawn]),
            "high": clipped(found.high[drawn]),
            "percent": True,
            "axis": "change of accuracy",
        },
    )
    table = SectionFigure(
        "table",
        "In numbers",
        "Each row is a class; the interval is of the change in points of a percent.",
        {"head": ["class", "samples", "original", "subnetwork", "change", "95 %"], "rows": rows},
    )
    return intervals, table
