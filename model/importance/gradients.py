"""Importance from gradients of single samples: Taylor, gradient times weight, Fisher.

**What to take gradients of.** A network that fits its training data has almost no loss there, and almost no
gradients; scores from them rank badly. Give ``batches`` that it has not been trained on, or augmented ones.
Without a loss, the targets are the network's own outputs z0, each moved by independent noise e ~ N(0, 1): the
gradient of 1/2 ||z - (z0 + e)||^2 at z = z0 is that of -<e, z>, and its square averages to the squared change
of all outputs (the Gauss-Newton matrix; Martens 2020, arXiv 1412.1193, section 8). That needs no labels, no
knowledge of what the outputs mean, and does not vanish where the network is sure. Own outputs that are *not*
moved are useless as targets: every gradient is exactly zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from ..capture import Captured, flat_inputs
from ..coupling import Group, Member
from ..coupling.walk import get_attribute
from .measured import Batch, Evidence, Scores, pieces

SAMPLES = 128  # whose gradients are taken, evenly spaced over the data; each is one pass forth and back

Loss = Callable[[Any, Any], torch.Tensor]  # (outputs as the network returns them, targets) -> scalar


class GradientCriterion(ABC):
    """Scores are means over samples of a function of gradient times weight.

    They are in units of the loss (or its square) and compare units of one group, all of which have equally
    many weights; across groups they grow with the weights of a unit.

    Args:
        batches: ``(args, kwargs, targets)`` each; ``None`` takes the calibration inputs.
        loss: ``loss(outputs, targets) -> scalar``, called with one sample at a time (batches of one, or of
            the captured length where the capture fixed it). ``None`` takes the network's own outputs, moved
            by noise, as targets: see the module's text, also on what data to give.
        samples: of the batches' samples, how many are used, evenly spaced.
        seed: of the noise.

    Raises:
        ValueError: batches without a loss or a loss without batches; no batches; samples below one.
    """

    name: str

    def __init__(
        self,
        *,
        batches: Sequence[Batch] | None = None,
        loss: Loss | None = None,
        samples: int = SAMPLES,
        seed: int = 0,
    ) -> None:
        if (batches is None) != (loss is None):
            raise ValueError(
                "give both batches=[(args, kwargs, targets), ...] and loss=function(outputs, targets), or "
                "neither: then the calibration inputs and the network's own outputs are used"
            )
        if batches is not None and not batches:
            raise ValueError("gradients need at least one batch, got none")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.batches, self.loss, self.samples, self.seed = batches, loss, samples, seed

    @abstractmethod
    def members(self, group: Group) -> list[Member]:
        """The weights whose gradients speak for the group's units."""

    @abstractmethod
    def of_sample(self, terms: list[tuple[Member, torch.Tensor]]) -> np.ndarray:
        """A sample's part [units], from each member's gradient times weight (in the weight's shape)."""

    def measure(self, evidence: Evidence) -> Scores:
        """Means over the samples, for all groups.

        Raises:
            ValueError: no data, or a loss that is not one finite number.
        """
        batches = self.batches or [(*inputs, None) for inputs in evidence.inputs(self.name)]
        found = {g.name: self.members(g) for g in evidence.groups}
        names = dict.fromkeys(m.parameter for members in found.values() for m in members)
        module = evidence.captured.graph_module
        weights = {name: get_attribute(module, name).detach() for name in names}
        total = {g.name: np.zeros(g.size) for g in evidence.groups}
        count = 0
        loss = self.loss or OwnOutputs(seed=self.seed)
        for gradients in sample_gradients(evidence.captured, weights, batches, loss, self.samples):
            count += 1
            products = {name: gradient * weights[name] for name, gradient in gradients.items()}
            for group, members in found.items():
                terms = [(m, products[m.parameter]) for m in members if m.parameter in products]
                if terms:
                    total[group] += self.of_sample(terms)
        return Scores({group: score / count for group, score in total.items()})


class OwnOutputs:
    """The loss whose targets are the network's own outputs moved by noise (see the module's text)."""

    def __init__(self, *, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, outputs: object, targets: object) -> torch.Tensor:
        """<e, z> over all outputs that have gradients; ``targets`` are not looked at."""
        total = torch.zeros(())
        for z in pytree.tree_leaves(outputs):
            if isinstance(z, torch.Tensor) and z.requires_grad:
                total = total + (torch.randn(z.shape, generator=self._generator).to(z) * z).sum()
        return total


def per_unit(values: torch.Tensor, member: Member) -> np.ndarray:
    """Sum of a weight-shaped tensor over each unit's positions and over all other axes, float64 [units]."""
    others = [axis for axis in range(values.dim()) if axis != member.axis]
    along = values.sum(others, dtype=torch.float64) if others else values.double()
    return along.numpy()[member.positions].sum(axis=1)


def sample_gradients(
    captured: Captured,
    weights: Mapping[str, torch.Tensor],
    batches: Sequence[Batch],
    loss: Loss,
    samples: int,
) -> Iterator[dict[str, torch.Tensor]]:
    """Gradients of the loss by weight, one mapping a sample; the model and its weights are not changed.

    Frozen weights have gradients as well; those that do not reach the loss, and integers, are left out.
    """
    floating = [name for name, w in weights.items() if w.is_floating_point()]
    leaves = {name: weights[name].detach().requires_grad_() for name in floating}
    network = _Network(captured, leaves)
    one = 1 if captured.dynamic_batch else captured.batch
    cut = [piece for batch in batches for piece in pieces(batch, one)]
    for i in np.unique(np.linspace(0, len(cut) - 1, min(samples, len(cut))).round().astype(int)):
        args, kwargs, targets = cut[i]()
        with torch.enable_grad():
            value = loss(network(args, kwargs), targets)
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not bool(value.isfinite()):
            raise ValueError(f"the loss must be one finite number in a tensor, got {value!r}")
        if not value.requires_grad:
            raise ValueError(
                "the loss does not depend on the network's outputs, or was computed without them"
            )
        found = torch.autograd.grad(value.reshape(()), list(leaves.values()), allow_unused=True)
        yield {name: g for name, g in zip(floating, found, strict=True) if g is not None}


class _Network(fx.Interpreter):
    """The captured graph with other tensors in place of some weights."""

    def __init__(self, captured: Captured, leaves: Mapping[str, torch.Tensor]) -> None:
        super().__init__(captured.graph_module)
        # By identity: a shared weight stands in the graph under several names.
        self._leaves = {id(get_attribute(captured.graph_module, n)): leaf for n, leaf in leaves.items()}

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Outputs in the structure that the user's network gives them."""
        module = self.module
        assert isinstance(module, fx.GraphModule)
        flat = self.run(*flat_inputs(module, args, kwargs), enable_io_processing=False)
        return module.graph.process_outputs(flat)

    def get_attr(
        self, target: fx.node.Target, args: tuple[fx.node.Argument, ...], kwargs: dict[str, Any]
    ) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self._leaves.get(id(value), value)


# -- First-order Taylor expansion of the loss in a unit's presence (Molchanov et al. 2017 and 2019) -----


class Taylor(GradientCriterion):
    """Squared change of the loss, to first order, when a unit goes; mean over samples.

    A unit goes when the layers that read it stop reading it: a sample's loss changes by -sum(g w) over all
    weights that read the unit, in all layers at once. The sum comes before the square (Molchanov et al. 2019,
    arXiv 1906.10771, eq. 8, whose gate has this gradient; for activations 2017, arXiv 1611.06440, eq. 8).
    Units that no weight reads (a product of activations does) are judged by the weights that make them.

    Arguments as in :class:`.gradients.GradientCriterion`.
    """

    name = "taylor"

    def members(self, group: Group) -> list[Member]:
        return [m for m in group.members if m.role == "in"] or group.makers()

    def of_sample(self, terms: list[tuple[Member, torch.Tensor]]) -> np.ndarray:
        return np.sum([per_unit(product, member) for member, product in terms], axis=0) ** 2


# -- Gradient times weight, weight by weight (Lee et al. 2019, "SNIP", arXiv 1810.02340, eq. 6) ---------


class Gradient(GradientCriterion):
    """Sum of |g w| over the weights that make a unit; mean over samples.

    Unlike :class:`.gradients.Taylor`, effects of opposite sign do not cancel. The absolute value is taken
    sample by sample, so that samples do not cancel either.

    Arguments as in :class:`.gradients.GradientCriterion`.
    """

    name = "gradient"

    def members(self, group: Group) -> list[Member]:
        return group.makers()

    def of_sample(self, terms: list[tuple[Member, torch.Tensor]]) -> np.ndarray:
        return np.sum([per_unit(product.abs(), member) for member, product in terms], axis=0)


# -- Diagonal Fisher information (LeCun et al. 1989, "Optimal Brain Damage"; Theis et al. 2018) ---------


class Fisher(GradientCriterion):
    """1/2 sum(F w^2) over the weights that make a unit, F the mean squared gradient of single samples.

    The increase of the loss when the weights become zero, at a minimum, with the empirical Fisher information
    for the diagonal of the Hessian (LeCun et al. 1989, NIPS 2, eq. 5; Theis et al. 2018, arXiv 1801.05787,
    eq. 5 to 8). With the network's own outputs as targets F is the true diagonal for Gaussian outputs.

    Arguments as in :class:`.gradients.GradientCriterion`.
    """

    name = "fisher"

    def members(self, group: Group) -> list[Member]:
        return group.makers()

    def of_sample(self, terms: list[tuple[Member, torch.Tensor]]) -> np.ndarray:
        return np.sum([per_unit(product.square(), member) for member, product in terms], axis=0) / 2
