"""Counter of multiply-accumulates: torch's own, and the operators that it does not know.

All figures that are counted rather than derived come from here, so that two of them cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

aten = torch.ops.aten


class Counter(FlopCounterMode):
    """Counts what runs within it. Fused attention and recurrent layers count as the products they consist of.

    Control flow (``torch.cond`` and the like) cannot run within it.
    """

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=_UNKNOWN)

    @property
    def macs(self) -> float:
        """Multiply-accumulates so far, of the whole batch."""
        return self.get_total_flops() / 2


def counted(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """What ``call`` returns, and the multiply-accumulates that it took."""
    with torch.no_grad(), Counter() as counter:
        out = call(*args, **kwargs)
    return out, counter.macs


# Below, shapes stand in place of tensors; two operations are one multiply-accumulate.
Shape = Sequence[int]


def _attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _onednn_layer(x: Shape, w_ih: Shape, w_hh: Shape, *args: Any, **kwargs: Any) -> int:
    """One direction of one layer."""
    return _recurrent(x, [w_ih, w_hh])


def _recurrent(x: Shape, weights: Sequence[Any], *args: Any, **kwargs: Any) -> int:
    """Every weight matrix meets every step of every sequence once."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(w) for w in weights if len(w) == 2)


def _matrix_vector(matrix: Shape, vector: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


def _added_matrix_vector(added: Shape, matrix: Shape, vector: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


def _bilinear(left: Shape, weight: Shape, right: Shape, *args: Any, **kwargs: Any) -> int:
    """``sum_ij l_i W_oij r_j`` of :func:`torch.bilinear`: the sum over ``i``, then that over ``j``."""
    outputs, _, j = weight
    return 2 * left[0] * (math.prod(weight) + outputs * j)


def _added_product(added: Shape, left: Shape, right: Shape, *args: object, **kwargs: object) -> int:
    """Matrices, or batches of them, whose product goes into a tensor that is there."""
    return 2 * math.prod(left) * right[-1]


def _bags(
    table: Shape,
    index: Shape,
    starts: Shape,
    scale: bool,
    mode: int,
    sparse: bool,
    weights: Shape | None = None,
    *args: object,
    **kwargs: object,
) -> int:
    """Weighted sums of a table's rows, which is a sparse matrix times it; plain sums multiply nothing."""
    return 0 if weights is None else 2 * math.prod(index) * table[1]


_UNKNOWN: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_fused_attention_overrideable: _attention,
    aten.mkldnn_rnn_layer: _onednn_layer,
    aten._cudnn_rnn: _recurrent,
    aten.miopen_rnn: _recurrent,
    aten.mv: _matrix_vector,
    aten.dot: _matrix_vector,
    aten.vdot: _matrix_vector,
    aten.addmv: _added_matrix_vector,
    aten._trilinear: _bilinear,
    aten.addmm_: _added_product,
    aten.baddbmm_: _added_product,
    aten._embedding_bag: _bags,
    aten._embedding_bag_forward_only: _bags,
}
