"""Importance from activations, as the layers that read a unit see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from ..capture import flat_inputs
from ..coupling import Group
from ..coupling.walk import bind, get_attribute
from ..repair.gram import Inputs
from .measured import Evidence, Scores, pieces
from .weights import l1

Statistic = Callable[[torch.Tensor], torch.Tensor]  # of activations, element by element


class ActivationCriterion(ABC):
    """Made of means, over samples and places, of what the layers read.

    Groups whose units no layer sums over are scored by :func:`.weights.l1`.

    Args:
        batches: inputs ``(args, kwargs)`` each; ``None`` takes the calibration inputs.
    """

    name: str

    def __init__(self, *, batches: Sequence[Inputs] | None = None) -> None:
        self.batches = batches

    @abstractmethod
    def statistics(self) -> tuple[Statistic, ...]:
        """What is averaged."""

    @abstractmethod
    def combine(self, readers: list[np.ndarray]) -> np.ndarray:
        """Scores [units] from the means [statistics, units] that each reader saw."""

    def measure(self, evidence: Evidence) -> Scores:
        """Scores of all groups.

        Raises:
            ValueError: no data.
        """
        batches = self.batches or evidence.inputs(self.name)
        seen = reader_means(evidence, batches, self.statistics())
        module = evidence.captured.graph_module
        scores = {}
        for group in evidence.groups:
            readers = [m for labels, means in seen if (m := _per_unit(group, labels, means)) is not None]
            weights = {m.parameter: get_attribute(module, m.parameter) for m in group.makers()}
            scores[group.name] = self.combine(readers) if readers else l1(group, weights)
        return Scores(scores)


def balanced(readers: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of several [units] scores, each scaled to mean 1, so that every reader has the same voice."""
    return np.mean([s / max(float(s.mean()), 1e-30) for s in readers], axis=0)


def reader_means(
    evidence: Evidence, batches: Sequence[Inputs], statistics: Sequence[Statistic]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels [positions] and means [statistics, positions], float64, of every operand that is summed over."""
    captured = evidence.captured
    observer = _Observer(evidence, statistics)
    with torch.no_grad():
        for args, kwargs in batches:
            whole = [lambda b=(args, kwargs, None): b]
            cut = whole if captured.dynamic_batch else pieces((args, kwargs, None), captured.batch)
            for piece in cut:
                a, k, _ = piece()
                observer.run(*flat_inputs(captured.graph_module, a, k), enable_io_processing=False)
    return observer.means()


class _Observer(fx.Interpreter):
    """Runs the network and averages what passes by."""

    def __init__(self, evidence: Evidence, statistics: Sequence[Statistic]) -> None:
        super().__init__(evidence.captured.graph_module)
        self._statistics = statistics
        self._reads: dict[str, list[tuple[str, int, np.ndarray]]] = {}
        self._sums: dict[tuple[str, str, int], np.ndarray] = {}
        self._counts: dict[tuple[str, str, int], int] = {}
        tensors = evidence.coupling.tensors
        for node in evidence.captured.graph_module.graph.nodes:
            for argument, axis in evidence.coupling.reads.get(node.name, ()):
                operand = _operand(node, argument)
                # Weights have no entry: reading one (a recurrent layer its own) is no activation.
                labels = tensors[operand.name][axis][1] if operand.name in tensors else None
                if labels is not None:
                    self._reads.setdefault(node.name, []).append((argument, axis, labels))

    def run_node(self, n: fx.Node) -> Any:
        for argument, axis, _ in self._reads.get(n.name, ()):
            x = self.env[_operand(n, argument)]
            others = [d for d in range(x.dim()) if d != axis]
            sums = [f(x).sum(others, dtype=torch.float64).numpy() for f in self._statistics]
            key = n.name, argument, axis
            self._sums[key] = self._sums.get(key, 0) + np.stack(sums)
            self._counts[key] = self._counts.get(key, 0) + x.numel() // x.shape[axis]
        return super().run_node(n)

    def means(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (labels, self._sums[node, argument, axis] / self._counts[node, argument, axis])
            for node, reads in self._reads.items()
            for argument, axis, labels in reads
        ]


def _operand(node: fx.Node, argument: str) -> fx.Node:
    name, _, element = argument.partition(".")
    operand = bind(node)[name]
    return operand[int(element)] if element else operand


def _per_unit(group: Group, labels: np.ndarray, means: np.ndarray) -> np.ndarray | None:
    """Means [statistics, units] over each unit's positions; ``None`` where not all units are among them."""
    unit_of = np.full(max(int(labels.max()), int(group.labels.max())) + 1, -1)
    unit_of[group.labels] = np.arange(group.size)
    units = unit_of[labels]
    count = np.bincount(units[units >= 0], minlength=group.size)
    if not count.all():
        return None
    sums = [np.bincount(units[units >= 0], weights=row[units >= 0], minlength=group.size) for row in means]
    return np.stack(sums) / count


# -- Mean activation (Molchanov et al. 2017, arXiv 1611.06440, section 2.2, "activation") ---------------


class ActivationMean(ActivationCriterion):
    """Mean of |activation|, over samples and places, as the layers that read a unit see it.

    The absolute value matters only where activations may be negative (the source has ReLU). Readers count
    alike: each one's means are scaled to mean 1 over the group.

    Arguments as in :class:`.activations.ActivationCriterion`.
    """

    name = "activation_mean"

    def statistics(self) -> tuple[Statistic, ...]:
        return (torch.abs,)

    def combine(self, readers: list[np.ndarray]) -> np.ndarray:
        return balanced([mean for (mean,) in readers])


# -- How often a unit is not zero (Hu et al. 2016, "Network Trimming", arXiv 1607.03250, eq. 1) ---------


class ZeroFraction(ActivationCriterion):
    """One less the fraction of exact zeros among a unit's activations, in [0, 1]; mean over readers.

    Groups whose activations are never zero (GELU and the like) are scored by the mean of |activation|, as
    :class:`.activations.ActivationMean` does: a constant fraction would tell nothing.

    Arguments as in :class:`.activations.ActivationCriterion`.
    """

    name = "zero_fraction"

    def statistics(self) -> tuple[Statistic, ...]:
        return (lambda x: x != 0, torch.abs)

    def combine(self, readers: list[np.ndarray]) -> np.ndarray:
        alive = np.mean([fraction for fraction, _ in readers], axis=0)
        return alive if (alive < 1).any() else balanced([mean for _, mean in readers])
