"""Networks side by side: a shared trunk, and branches that exchange nothing until their outputs join."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

COMBINE = ("concat", "sum", "mean")


class Branches(nn.Module):
    """A parallel composition: every branch reads what the trunk returns, and their outputs are joined.

    Multiply-accumulates are the sum over trunk and branches. Run side by side, the latency is that of the
    trunk, the slowest branch and the joining; run in one process it is their sum.

    Args:
        trunk: called as the network is; ``None``: every branch is.
        branches: at least one, each gives [batch, ...].
        classes: for ``"concat"``: which columns of the answer each branch gives, every column once; by
            default one after the other.
        combine: ``"concat"`` along axis 1, ``"sum"`` or ``"mean"`` of outputs of one shape.

    Raises:
        ValueError: no branch, an unknown way to combine, classes that do not fit.
    """

    order: Tensor | None

    def __init__(
        self,
        trunk: nn.Module | None,
        branches: Sequence[nn.Module],
        classes: Sequence[Sequence[int]] | None = None,
        *,
        combine: str = "concat",
    ) -> None:
        super().__init__()
        if combine not in COMBINE:
            raise ValueError(f"outputs are combined by {', '.join(COMBINE)}, got {combine!r}")
        if not branches:
            raise ValueError("a parallel composition needs at least one branch, got none")
        if classes is not None and (combine != "concat" or len(classes) != len(branches)):
            raise ValueError(
                f"classes are for combine='concat', one set a branch; got {len(classes)} sets for "
                f"{len(branches)} branches and combine={combine!r}"
            )
        flat = [c for members in classes or () for c in members]
        if sorted(flat) != list(range(len(flat))):
            raise ValueError(f"the branches' classes must be 0 to n - 1, each once; got {classes}")
        self.trunk, self.branches, self.combine = trunk, nn.ModuleList(branches), combine
        self.classes = None if classes is None else tuple(tuple(members) for members in classes)
        order = None if classes is None else torch.tensor(flat, dtype=torch.int64).argsort()
        self.register_buffer("order", order, persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The joined outputs; called as the network is."""
        if self.trunk is not None:
            args, kwargs = (self.trunk(*args, **kwargs),), {}
        outputs = [branch(*args, **kwargs) for branch in self.branches]
        if self.combine == "concat":
            out = torch.cat(outputs, 1)
            return out if self.order is None else out.index_select(1, self.order)
        out = torch.stack(outputs).sum(0)
        return out / len(outputs) if self.combine == "mean" else out

    def extra_repr(self) -> str:
        return f"combine={self.combine!r}, classes={self.classes}"
