"""Proof by execution that residual blocks can be dropped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .capture import Captured
from .coupling import Coupling
from .proof import Artifacts, Proof, alive_without, no_constant_parameters
from .surgery import Alive, Surgeon


def prove_blocks(
    captured: Captured,
    coupling: Coupling,
    surgeon: Surgeon,
    proof: Proof,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Proof:
    """Execute the network without each residual block, then without all of them and half of every group.

    The reference is the whole network with the branch multiplied by zero where it is added.

    Args:
        proof: of the groups; those that it left out stay whole.
        progress: called with (blocks checked, blocks).

    Returns:
        Blocks that may not be dropped, with the reason; whether the user's own module still agrees.
    """
    left_out: dict[str, str] = {}
    blocks = surgeon.blocks
    rng = np.random.default_rng(seed)
    half = alive_without(
        coupling, [rng.permutation(g.labels)[: max(1, g.size // 2)] for g in coupling.groups], proof.left_out
    )

    def without(gone: set[str], units: Alive) -> Alive:
        return np.concatenate([units, [b.name not in gone for b in blocks]])

    with torch.no_grad(), no_constant_parameters(captured.graph_module, coupling, seed):
        bench = Artifacts(captured, coupling, surgeon)
        part = next((b.name for b in blocks if b.module is None), None)
        if part is not None:
            bench.own_reason = (
                f"the residual block {part} is not a whole module, so only the graph can lose it"
            )
        bench.own_reason = proof.own_reason or bench.own_reason
        for i, b in enumerate(blocks):
            alone = without({b.name}, np.ones_like(half))
            if reason := bench.check(alone, own=False):
                left_out[b.name] = reason
            else:
                bench.check_shapes(alone)
            if progress is not None:
                progress(i + 1, len(blocks))
        accepted = {b.name for b in blocks} - left_out.keys()
        if accepted and bench.check(without(accepted, half)):
            together: set[str] = set()
            for name in sorted(accepted):
                if reason := bench.check(without(together | {name}, half)):
                    left_out[name] = f"together with others: {reason}"
                else:
                    together.add(name)
            accepted = together
        bench.check_training(without(accepted, half))
    return Proof(left_out, not bench.own_reason, bench.own_reason, bench.worst)
