"""Shape kernels of recurrent operators, so that captures take the same time at any sequence length.

``torch.export`` works out the shape of an LSTM's results by running its cells step by step on tensors without
data: minutes for a long sequence, and the length becomes a constant of the program. The shapes are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

aten = torch.ops.aten


@contextmanager
def recurrent_shapes() -> Iterator[None]:
    """Within: LSTM, GRU and RNN on tensors without data give results of the right shape, and run no step.

    Real tensors are computed as ever, by torch's C++ kernels.
    """
    replaced = [(op, dict(op.py_kernels)) for op in _SHAPES]
    try:
        for op, kernels in replaced:
            op.py_kernels.update(dict.fromkeys(kernels, _SHAPES[op]))
            op._dispatch_cache.clear()
        yield
    finally:
        for op, kernels in replaced:
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()


def _lstm(x: torch.Tensor, states: Sequence[torch.Tensor], *rest: Any) -> tuple[torch.Tensor, ...]:
    """Arguments of ``aten::lstm.input``; states ``(h, c)``, each [layers * directions, batch, units]."""
    return _output(x, states[0], *rest), *map(torch.empty_like, states)


def _gru(x: torch.Tensor, state: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    """Arguments of ``aten::gru.input``, and of ``rnn_tanh`` and ``rnn_relu``, which have the same."""
    return _output(x, state, *rest), torch.empty_like(state)


def _output(
    x: torch.Tensor,
    state: torch.Tensor,
    params: object,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> torch.Tensor:
    """[steps, batch, units of both directions], or its transpose, as torch's kernels lay it out."""
    steps, batch = (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
    out = x.new_empty((steps, batch, state.shape[-1] * (2 if bidirectional else 1)))
    return out.transpose(0, 1) if batch_first else out


_SHAPES: dict[Any, Callable[..., tuple[torch.Tensor, ...]]] = {
    aten.lstm.input: _lstm,
    aten.gru.input: _gru,
    aten.rnn_tanh.input: _gru,
    aten.rnn_relu.input: _gru,
}
