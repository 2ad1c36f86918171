"""How alike two representations of the same samples are, and what can be read off one linearly."""

from __future__ import annotations

import numpy as np


def gram(features: np.ndarray) -> np.ndarray:
    """Inner products [samples, samples] float64 of features [samples, ...], less their mean.

    Neither CKA nor the probes depend on the mean; without it no digits are lost to it.
    """
    flat = np.asarray(features, dtype=np.float64).reshape(len(features), -1)
    flat = flat - flat.mean(axis=0)
    return flat @ flat.T


def debiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion (Song et al. 2012, equation 5).

    Args:
        k, m: Gram matrices [n, n] of the same n >= 4 samples.

    Raises:
        ValueError: fewer than 4 samples, or matrices that do not fit.
    """
    n = len(k)
    if n < 4 or k.shape != (n, n) or m.shape != (n, n):
        raise ValueError(
            f"two Gram matrices of the same 4 samples or more are needed, got {k.shape}, {m.shape}"
        )
    a, b = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    both = a.sum(axis=0) @ b.sum(axis=0)
    trace = np.sum(a * b)
    return float((trace + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * both / (n - 2)) / (n * (n - 3)))


def linear_cka(k: np.ndarray, m: np.ndarray) -> float:
    """Debiased linear CKA of two representations, from their Gram matrices (Kornblith et al. 2019).

    1 for a representation and itself, unchanged by rotation and by scaling of either; about 0 for unrelated
    ones, where the biased estimate grows with the number of features. NaN where one of them is constant.
    """
    k, m = _scaled(k), _scaled(m)
    own = debiased_hsic(k, k) * debiased_hsic(m, m)
    return debiased_hsic(k, m) / float(np.sqrt(own)) if own > 0 else float("nan")


def probe_accuracy(
    k: np.ndarray, classes: np.ndarray, *, folds: int = 5, ridge: float = 1e-2, seed: int = 0
) -> float:
    """Share of samples whose class a linear probe reads off a representation, cross-validated.

    The probe is ridge regression onto the classes' indicators, in its dual form.

    Args:
        k: Gram matrix [n, n].
        classes: [n] int.
        folds: parts that are held out in turn.
        ridge: relative to the mean of the centred Gram matrix's diagonal.

    Raises:
        ValueError: fewer samples than folds.
    """
    n = len(k)
    if n < folds:
        raise ValueError(f"{folds} folds need as many samples, got {n}")
    targets = (classes[:, None] == np.unique(classes)).astype(np.float64)  # [n, classes]
    truth = targets.argmax(axis=1)
    fold = np.random.default_rng(seed).permutation(n) % folds
    hits = 0
    for held in range(folds):
        test, train = fold == held, fold != held
        inner = k[np.ix_(train, train)]
        cross = k[np.ix_(test, train)]
        column = inner.mean(axis=0)  # centre on the training samples
        centred = inner - column - column[:, None] + inner.mean()
        moved = cross - cross.mean(axis=1, keepdims=True) - column + inner.mean()
        size = np.trace(centred) / len(centred)
        offset = targets[train].mean(axis=0)
        if size <= 0:  # a constant representation says nothing
            guesses = np.tile(offset, (int(test.sum()), 1))
        else:
            dual = np.linalg.solve(centred + ridge * size * np.eye(len(centred)), targets[train] - offset)
            guesses = moved @ dual + offset
        hits += int((guesses.argmax(axis=1) == truth[test]).sum())
    return hits / n


def _scaled(k: np.ndarray) -> np.ndarray:
    """Of mean diagonal 1: products of large features would lose digits."""
    size = float(np.trace(k)) / max(1, len(k))
    return k / size if size > 0 else k
