"""Sequences of several lengths: proof that built networks take those that the example does not have.

The captured graph takes the example's length alone; the user's own module takes what its forward takes, which
may branch on the length. So the model is captured again at the shortest and at the longest one, where its
units must be coupled as they are at the example's, and the pruned module is compared there with the masked
network (see :mod:`.proof`). At the lengths between them it must run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ..model.blocks import find_blocks
from ..model.capture import (
    CaptureError,
    batch_length,
    capture,
    describe_example,
    fresh,
    lengths_of,
    state_kept,
    tensors_of,
)
from ..model.coupling import Coupling, find_coupling
from ..model.facts import Facts
from ..model.proof import Artifacts, no_constant_parameters
from ..model.repair.gram import Inputs
from ..model.surgery import Alive, Surgeon
from ..model.threads import one_thread

SAMPLES = 2  # of each batch that are run


@one_thread()
def check_lengths(
    facts: Facts, cuts: Sequence[Alive], data: Mapping[str, Sequence[Inputs]], *, graph_alone: str = ""
) -> None:
    """Refuse inputs of lengths (of any axis but the first) that the networks of a space do not take.

    Args:
        cuts: what stays in networks that together take all widths of the space.
        data: inputs ``(args, kwargs)``, by what they are (``"validation"``).
        graph_alone: why the networks are captured graphs; empty where they are the user's module.

    Raises:
        ValueError: the networks are captured graphs, or the user's module, pruned, is wrong at some length;
            the cure is to pad.
    """
    traced = facts.captured.args, facts.captured.kwargs
    others: dict[tuple[torch.Size, ...], tuple[str, Inputs]] = {}
    for what, batches in data.items():
        for number, inputs in enumerate(batches):
            if (lengths := lengths_of(inputs)) != lengths_of(traced):
                others.setdefault(lengths, (f"{what} batch {number}", _few(inputs)))
    if not others:
        return
    ordered = sorted(others.values(), key=lambda other: sum(t.numel() for t in tensors_of(other[1])))
    for place, inputs in ordered:
        if not (reason := graph_alone):
            find = _differs if place in (ordered[0][0], ordered[-1][0]) else _fails
            reason = facts.cache.once(_key(inputs, cuts), lambda: find(facts, cuts, inputs))  # noqa: B023
        if reason:
            raise ValueError(
                f"{place} has {describe_example(*inputs)}, and the model was traced with "
                f"{describe_example(*traced)}, the only length that its smaller networks take: {reason}; pad "
                "all data and the example to one length (a mask, or the true lengths, can be a second input)"
            )


def _differs(facts: Facts, cuts: Sequence[Alive], inputs: Inputs) -> str:
    """Why the user's module, cut to one of ``cuts``, is not the masked network on these inputs, or ""."""
    source = facts.surgeon.source
    assert source is not None
    try:
        captured = capture(source, inputs)
    except CaptureError as error:
        return str(error)
    coupling = find_coupling(captured)
    blocks = find_blocks(captured, coupling)
    known = {name for name, _ in (*source.named_parameters(), *source.named_buffers())}
    if not _same(coupling, facts.coupling, known) or [b.name for b in blocks] != [
        b.name for b in facts.surgeon.blocks
    ]:
        return "its forward takes another path there, on which other channels belong together"
    with torch.no_grad(), no_constant_parameters(captured.graph_module, coupling, seed=0):
        surgeon = Surgeon(captured.graph_module, captured.source, coupling, blocks)
        bench = Artifacts(captured, coupling, surgeon)
        return next((reason for cut in cuts if (reason := bench.check(cut) or bench.own_reason)), "")


def _fails(facts: Facts, cuts: Sequence[Alive], inputs: Inputs) -> str:
    """Why the user's module, cut to one of ``cuts``, does not run on these inputs, or ""."""
    module = facts.surgeon.own(cuts[len(cuts) // 2])
    try:
        with torch.no_grad(), state_kept(module):
            args, kwargs = fresh(inputs)
            module(*args, **kwargs)
    except Exception as error:
        return f"its forward does not run pruned there: {str(error).strip().splitlines()[:1]}"
    return ""


def _same(found: Coupling, known: Coupling, names: set[str]) -> bool:
    """Have the tensors of these names the same labels in both?"""
    return all(
        _equal(found.parameters.get(name, ()), known.parameters.get(name, ()))
        for name in names & (found.parameters.keys() | known.parameters.keys())
    )


def _equal(a: Sequence[np.ndarray | None], b: Sequence[np.ndarray | None]) -> bool:
    return len(a) == len(b) and all(
        x is y if x is None or y is None else np.array_equal(x, y) for x, y in zip(a, b, strict=True)
    )


def _few(inputs: Inputs) -> Inputs:
    """The first samples of a batch."""
    have = batch_length(*inputs)
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf[:SAMPLES] if have and isinstance(leaf, torch.Tensor) and leaf.dim() else leaf,
        inputs,
    )
    return args, kwargs


def _key(inputs: Inputs, cuts: Sequence[Alive]) -> str:
    """Name under which the finding is kept."""
    digest = hashlib.sha256(np.packbits(cuts).tobytes())
    for leaf in pytree.tree_leaves(inputs):
        tensor = isinstance(leaf, torch.Tensor)
        digest.update(
            f"{leaf.dtype}{tuple(leaf.shape)}{leaf.tolist()}|".encode() if tensor else f"{leaf!r}|".encode()
        )
    return f"lengths {digest.hexdigest()}"
