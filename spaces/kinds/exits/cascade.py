"""A cascade: easy samples leave at an early exit, and only the others are computed further."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ....model.counter import counted
from .head import RIDGE, Head, Moments


class Cascade(nn.Module):
    """Consecutive stages with an exit head after each but the last (Teerapittayanon et al. 2016, BranchyNet).

    All samples run through the first stage; those whose largest class probability, by its head, reaches the
    threshold leave with the head's scores, the others go on. What has left is not computed further. The
    answers come in the order of the inputs.

    Nothing leaves before the heads are fitted (:meth:`refit`), in train mode, and while batch norms take
    statistics: the module is then the whole network.

    Under ``torch.export`` it becomes a program that computes all stages for all samples and selects: the same
    answers, none of the savings.

    Args:
        stages: the first takes the network's inputs, every other what the one before returns, the last
            returns scores [batch, classes].
        heads: one after each stage but the last: the stage's output to scores [batch, classes].
        thresholds: one a head, of the largest probability: at 0 all leave, above 1 none does.
        macs: multiply-accumulates per sample of every stage, its head included; :meth:`refit` counts them.

    Attributes:
        names: what to call the exits, in order.
        left: samples that left at each exit, the end of the network last, since :meth:`recording` began.

    Raises:
        ValueError: numbers of stages, heads, thresholds, macs or names that do not fit.
    """

    left: list[int]
    fitted: Tensor

    def __init__(
        self,
        stages: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        thresholds: Sequence[float],
        *,
        macs: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        fitted: bool = False,
    ) -> None:
        super().__init__()
        exits = len(stages) - 1
        names = [str(i + 1) for i in range(exits)] if names is None else list(names)
        macs = [0.0] * (exits + 1) if macs is None else [float(m) for m in macs]
        if exits < 1 or not len(heads) == len(thresholds) == len(names) == len(macs) - 1 == exits:
            raise ValueError(
                "a cascade of n >= 2 stages has n - 1 heads, thresholds and names, and n macs; got "
                f"{len(stages)}, {len(heads)}, {len(thresholds)}, {len(names)} and {len(macs)}"
            )
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)
        self.thresholds = tuple(float(t) for t in thresholds)
        self.names, self.macs = tuple(names), tuple(macs)
        self.left = [0] * (exits + 1)
        self.register_buffer("fitted", torch.tensor(fitted))  # in the state, so that it comes with the heads

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Scores [batch, classes]; called as the network is."""
        if torch.compiler.is_exporting():
            return self._selected(*args, **kwargs)
        x = self.stages[0](*args, **kwargs)
        if self.training or self._measures() or not self.fitted:
            for stage in self.stages[1:]:
                x = stage(x)
            self.left[-1] += len(x)
            return x
        out: Tensor | None = None
        rows = torch.arange(len(x), device=x.device)  # where the samples under way stand among the inputs
        for k, (head, threshold, stage) in enumerate(
            zip(self.heads, self.thresholds, self.stages[1:], strict=True)
        ):
            scores = head(x)
            leaves = confidence(scores) >= threshold
            gone = int(leaves.sum())
            self.left[k] += gone
            if out is None:
                out = torch.empty_like(scores)
            if gone:
                out[rows[leaves]] = scores[leaves]
                rows, x = rows[~leaves], x[~leaves]
            if not len(rows):
                return out
            x = stage(x)
        self.left[-1] += len(rows)
        assert out is not None
        out[rows] = x
        return out

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within: :attr:`left` counts from zero; it keeps the counts afterwards."""
        self.left = [0] * len(self.stages)
        yield

    @property
    def reach(self) -> list[float]:
        """Share of the samples counted in :attr:`left` that ran through each stage; 1 for the first.

        Raises:
            ValueError: none was counted.
        """
        total = sum(self.left)
        if not total:
            raise ValueError("no sample has run through the cascade yet: call it on data first")
        return [sum(self.left[k:]) / total for k in range(len(self.stages))]

    @property
    def expected_macs(self) -> float:
        """Multiply-accumulates per sample of those counted: the sum of reach_i x macs_i."""
        return sum(share * macs for share, macs in zip(self.reach, self.macs, strict=True))

    @torch.no_grad()
    def refit(
        self, batches: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], *, ridge: float = RIDGE
    ) -> None:
        """Fit the heads to give the network's own outputs, by ridge regression; no labels.

        Args:
            batches: ``(args, kwargs)`` each; calibration inputs.
            ridge: damping, relative to the mean variance of a head's features.

        Raises:
            ValueError: no batches, or heads that are no :class:`Head`.
        """
        heads = [head for head in self.heads if isinstance(head, Head)]
        if not batches or len(heads) < len(self.heads):
            raise ValueError("refit needs at least one batch, and heads of the class Head")
        sums = [Moments(head.linear.in_features, head.linear.out_features) for head in heads]
        for args, kwargs in batches:
            x = self.stages[0](*args, **kwargs)
            seen = []
            for head, stage in zip(heads, self.stages[1:], strict=True):
                seen.append(head.features(x).clone())  # the stage may write on what it is given
                x = stage(x)
            for moments, features in zip(sums, seen, strict=True):
                moments.add(features, x)
        for head, moments in zip(heads, sums, strict=True):
            weight, bias = moments.solve(ridge=ridge)
            head.linear.weight.copy_(weight)
            head.linear.bias.copy_(bias)
        self.fitted.fill_(True)
        self.macs = self._counted(*batches[0])

    def extra_repr(self) -> str:
        return ", ".join(f"{n}: {t}" for n, t in zip(self.names, self.thresholds, strict=True))

    def _measures(self) -> bool:
        """Do batch norms take statistics at the moment (see ``reestimate_batchnorm``)?"""
        return any(
            getattr(m, "batch_norm_training", False) or (isinstance(m, _NORMS) and m.training)
            for stage in self.stages
            for m in stage.modules()
        )

    def _counted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, ...]:
        """Multiply-accumulates of each stage with its head, by torch's counter, on the first sample."""
        args, kwargs = pytree.tree_map(
            lambda t: t[:1] if isinstance(t, Tensor) and t.dim() else t, (args, kwargs)
        )
        x, first = counted(self.stages[0], *args, **kwargs)
        macs = [first]
        for head, stage in zip(self.heads, self.stages[1:], strict=True):
            macs[-1] += counted(head, x)[1]
            x, work = counted(stage, x)
            macs.append(work)
        return tuple(macs)

    def _selected(self, *args: Any, **kwargs: Any) -> Tensor:
        """The same answers without branching: everything is computed, then selected."""
        x = self.stages[0](*args, **kwargs)
        out: Tensor | None = None
        left: Tensor | None = None
        for head, threshold, stage in zip(self.heads, self.thresholds, self.stages[1:], strict=True):
            scores = head(x)
            leaves = torch.logical_and(confidence(scores) >= threshold, self.fitted)[:, None]
            out = scores if out is None or left is None else torch.where(left, out, scores)
            left = leaves if left is None else torch.logical_or(left, leaves)
            x = stage(x)
        assert out is not None
        assert left is not None
        return torch.where(left, out, x)


_NORMS = (nn.modules.batchnorm._BatchNorm,)


def confidence(scores: Tensor) -> Tensor:
    """The largest class probability of each sample, [batch]."""
    return torch.softmax(scores, 1).amax(1)
