"""How an accuracy changed, class by class, when both networks saw the same samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # standard normal quantile of 97.5 %


@dataclass(frozen=True)
class Change:
    """Per class, in order of ``classes``; accuracies are fractions."""

    classes: np.ndarray  # [classes] int, those that occur
    samples: np.ndarray  # [classes] int
    before: np.ndarray  # [classes] accuracy
    after: np.ndarray
    change: np.ndarray  # after - before
    low: np.ndarray  # 95 % interval of the change
    high: np.ndarray


def class_change(targets: np.ndarray, before: np.ndarray, after: np.ndarray) -> Change:
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
    return Change(classes, count, was, is_, is_ - was, low, high)


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
