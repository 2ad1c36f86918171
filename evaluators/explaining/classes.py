"""Who pays for the compression: accuracy class by class."""

from __future__ import annotations

import numpy as np
import torch

from ...results.explaining.paired import class_change
from ...results.explaining.section import Figure, Section, Skipped, clipped
from ..metrics import IGNORED
from .subject import Subject

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
    drawn = np.argsort(found.change, kind="stable")
    if len(drawn) > MOST:
        drawn = np.concatenate([drawn[: MOST // 2], drawn[-(MOST // 2) :]])
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    sure = [int(c) for c, high in zip(found.classes, found.high, strict=True) if high < 0]
    worst = int(found.change.argmin())
    summary = f"{lost} samples lost, {won} won of {len(targets)}"
    if found.change[worst] < 0:
        summary += f"; class {found.classes[worst]} pays most, {100 * found.change[worst]:+.1f} points"
    rows = [
        [str(found.classes[i]), str(found.samples[i]), f"{found.before[i]:.1%}", f"{found.after[i]:.1%}",
         f"{100 * found.change[i]:+.1f}", f"{100 * found.low[i]:+.1f} to {100 * found.high[i]:+.1f}"]
        for i in drawn
    ]  # fmt: skip
    return Section(
        "classes",
        "Who pays for it",
        summary,
        f"{len(targets)} validation targets, the same for both networks; intervals of 95 %, class by class "
        "(Bonett and Price 2012)",
        (
            Figure(
                "intervals",
                "Change of accuracy by class",
                "A point left of zero is a class that lost; where its line also stays left of zero, chance "
                "alone "
                "does not explain it.",
                {
                    "labels": [f"class {found.classes[i]}" for i in drawn],
                    "low": clipped(found.low[drawn]),
                    "middle": clipped(found.change[drawn]),
                    "high": clipped(found.high[drawn]),
                    "percent": True,
                    "axis": "change of accuracy",
                },
            ),
            Figure(
                "table",
                "In numbers",
                "Each row is a class; the interval is of the change in points of a percent.",
                {"head": ["class", "samples", "original", "subnetwork", "change", "95 %"], "rows": rows},
            ),
        ),
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
