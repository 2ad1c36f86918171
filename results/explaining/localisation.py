"""Where in a feature map its energy is."""

from __future__ import annotations

import numpy as np


def energy(maps: np.ndarray) -> np.ndarray:
    """Sum of squares over the channels: [samples, height, width] of [samples, channels, height, width]."""
    return np.sum(np.square(np.asarray(maps, dtype=np.float64)), axis=1)


def energy_entropy(energies: np.ndarray) -> np.ndarray:
    """Entropy of where the energy is, in [0, 1]: 0 all in one place, 1 the same everywhere.

    Args:
        energies: [samples, ...places], not negative, at least two places.

    Returns:
        [samples]; NaN where there is no energy at all.
    """
    share = _shares(energies)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(share > 0, -share * np.log(share), share)
    return terms.sum(axis=1) / np.log(share.shape[1])


def area_holding(energies: np.ndarray, part: float = 0.8) -> np.ndarray:
    """The smallest share of places that together hold ``part`` of the energy, in (0, 1].

    Args:
        energies: as for :func:`energy_entropy`.
        part: in (0, 1].

    Returns:
        [samples]; NaN where there is no energy at all.
    """
    if not 0 < part <= 1:
        raise ValueError(f"part must be in (0, 1], got {part}")
    share = -np.sort(-_shares(energies), axis=1)
    held = np.cumsum(share, axis=1)
    # A sum of shares may end a few ulps below 1.
    needed = np.count_nonzero(held < part - 1e-9, axis=1) + 1
    return np.where(np.isnan(held[:, -1]), np.nan, np.minimum(needed, share.shape[1]) / share.shape[1])


def _shares(energies: np.ndarray) -> np.ndarray:
    flat = np.asarray(energies, dtype=np.float64).reshape(len(energies), -1)
    if flat.shape[1] < 2:
        raise ValueError(f"a feature map needs at least two places, got shape {np.shape(energies)}")
    total = flat.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, flat / total, np.nan)
