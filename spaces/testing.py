"""For tests: oracles independent of the code that cuts, and what every kind of choices must do, to inherit::

    from netcarve.spaces.testing import KindConformance

    class TestMine(KindConformance):
        kind, options = "mine", {"strength": (0.0, 0.5)}

Runs under pytest, in seconds.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ..model.capture import capture
from ..model.counter import counted
from ..model.coupling.walk import IN
from ..model.model_copy import plain_copy
from .blueprint import Blueprint, trace
from .choice import Candidate, unsplit
from .kinds import kind_class
from .space import Space

_kept_alive: list[torch.library.Library] = []  # a library's declarations go with it


def declare_torchvision_operators() -> None:
    """Let torchvision be imported beside a torch that cannot load its compiled operators.

    A CPU-only torch cannot load those of the usual wheel; the model definitions only need their names.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations or _kept_alive:
        return
    for binary in Path(found.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(binary)
            return
        except OSError:
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
        library.define(f"{operator}(Tensor x) -> Tensor")
        library.define(f"_{operator}_backward(Tensor x) -> Tensor")
    _kept_alive.append(library)


def zeroed_consumers(net: nn.Module, blueprint: Blueprint, candidate: Candidate) -> nn.Module:
    """Copy of the unpruned ``net`` whose layers ignore the removed units: their input weights are zero.

    A pruned network equals it wherever no normalisation runs over a pruned axis
    (see :func:`norms_over_kept`).
    """
    kept = blueprint.kept(candidate)
    net = plain_copy(net).eval()
    weights = dict(net.named_parameters())
    with torch.no_grad():
        for group in blueprint.groups:
            gone = np.setdiff1d(np.arange(group.size), kept.get(group.name, np.arange(group.size)))
            for member in group.members:
                if member.role == IN:
                    rows = weights[member.parameter].movedim(member.axis, 0)
                    rows[torch.from_numpy(member.positions[gone].reshape(-1))] = 0
    return net


def counted_costs(module: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Costs of a built network by other routes than those of its space.

    ``macs`` by counting what runs, ``params`` and ``size_mb`` from what the module holds, ``activation_mb``
    and ``memory_mb`` from a trace of the module itself, in which nothing is cut.
    """
    macs = counted(module, x)[1]
    again = Blueprint(capture(module, x))
    whole = np.array([[g.size for g in again.coupling.groups]], dtype=np.int64)
    unchanged = again.costs.evaluate(whole)
    return {
        "macs": macs / len(x),
        "params": float(sum(p.numel() for p in module.parameters())),
        "size_mb": sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers())) / 1e6,
        "activation_mb": float(unchanged["activation_mb"][0]),
        "memory_mb": float(unchanged["memory_mb"][0]),
    }


@contextmanager
def norms_over_kept(width: int, kept: np.ndarray) -> Iterator[None]:
    """Within: ``torch.nn.functional.layer_norm`` over ``width`` channels normalises over ``kept`` alone."""
    original = nn.functional.layer_norm
    index = torch.from_numpy(kept)

    def masked(x, shape, weight=None, bias=None, eps=1e-5):  # type: ignore[no-untyped-def]
        if tuple(shape) != (width,):
            return original(x, shape, weight, bias, eps)
        y = (x - x[..., index].mean(-1, keepdim=True)) / (
            x[..., index].var(-1, unbiased=False, keepdim=True) + eps
        ).sqrt()
        return y * (1 if weight is None else weight) + (0 if bias is None else bias)

    nn.functional.layer_norm = masked
    try:
        yield
    finally:
        nn.functional.layer_norm = original


class ToyNet(nn.Module):
    """A small classifier with convolutions, batch norm, a residual block and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.hidden, self.out = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        return self.out(torch.relu(self.hidden(x.mean((2, 3)))))


class KindConformance:
    """Inherit, and set ``kind`` to the name of a kind that is installed.

    Attributes:
        options: of the kind, as for ``Blueprint.space``; of those beside it too.
        beside: other kinds of the spaces.
        uncounted: costs that are not those of one call of the built network, but are modelled.
    """

    kind: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    beside: ClassVar[tuple[str, ...]] = ()
    uncounted: ClassVar[tuple[str, ...]] = ()
    candidates: ClassVar[int] = 3

    @classmethod
    def network(cls) -> tuple[nn.Module, torch.Tensor]:
        """The network that is searched, in eval mode, and its example."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return ToyNet().eval(), torch.randn(4, 3, 6, 6)

    @classmethod
    @cache
    def made(cls) -> tuple[Blueprint, Space]:
        blueprint = trace(*cls.network())
        return blueprint, blueprint.space(cls.kind, *cls.beside, ratios=3, **cls.options)

    @classmethod
    def sample(cls, space: Space) -> list[Candidate]:
        """The unchanged network, the one changed most, and some between."""
        drawn = space.sample(np.random.default_rng(0), cls.candidates)
        return [space.baseline, space.candidate(space.counts - 1), *drawn]

    def test_the_unchanged_option_is_the_given_network(self) -> None:
        _, space = self.made()
        model, x = self.network()
        assert all(c.kind is not None for c in space.choices)
        assert any(type(c.kind) is kind_class(self.kind) for c in space.choices)
        assert space.side.unchanged(space.baseline)
        with torch.no_grad():
            assert torch.equal(space.build(space.baseline)(x), model(x))

    def test_costs_are_those_of_the_built_network(self) -> None:
        _, space = self.made()
        _, x = self.network()
        measured = {name for c in space.choices for name in c.measured}
        for candidate in self.sample(space):
            costs = {name: float(v[0]) for name, v in space.cost_arrays([candidate]).items()}
            network = space.build(unsplit(candidate))
            found = {
                "macs": counted(network, x)[1] / len(x),
                "params": sum(p.numel() for p in network.parameters()),
            }
            assert not measured & costs.keys()
            for name in found.keys() - measured - set(self.uncounted):
                assert np.isclose(costs[name], found[name], rtol=1e-9), (name, candidate.values)

    def test_many_candidates_cost_what_each_costs_alone(self) -> None:
        _, space = self.made()
        candidates = self.sample(space)
        together = space.cost_arrays(candidates)
        for i, candidate in enumerate(candidates):
            for name, alone in space.cost_arrays([candidate]).items():
                assert np.isclose(together[name][i], alone[0], rtol=1e-12), name

    def test_bounds_hold_in_random_boxes(self) -> None:
        _, space = self.made()
        rng = np.random.default_rng(1)
        for _ in range(20):
            ends = rng.integers(0, space.counts, size=(2, len(space)))
            low, high = ends.min(axis=0), ends.max(axis=0)
            bounds = space.side.cost_bounds(space.choices, low[None], high[None])
            inside = rng.integers(low, high + 1, size=(20, len(space)))
            costs = space.side.cost_arrays(space.choices, inside)
            for name, (least, most) in bounds.items():
                slack = 1e-9 * abs(most[0])
                assert (costs[name] >= least[0] - slack).all(), name
                assert (costs[name] <= most[0] + slack).all(), name

    def test_equal_keys_are_equal_networks(self) -> None:
        _, space = self.made()
        _, x = self.network()
        whole = [unsplit(c) for c in self.sample(space)]
        prints = [fingerprint(space.build(c), x) for c in whole]
        keys = [space.side.network_key(c) for c in self.sample(space)]
        for i in range(len(keys)):
            for j in range(i):
                assert (keys[i] == keys[j]) == (prints[i] == prints[j]), (whole[i].values, whole[j].values)

    def test_switching_is_building(self) -> None:
        _, space = self.made()
        _, x = self.network()
        elastic = space.side.elastic(space.choices)
        assert elastic is not None
        for candidate in map(unsplit, self.sample(space)):
            if elastic.switches(candidate):
                with elastic.lend(candidate) as network, torch.no_grad():
                    torch.testing.assert_close(network(x), space.build(candidate)(x), rtol=1e-4, atol=1e-5)

    def test_a_copy_elsewhere_builds_and_costs_the_same(self) -> None:
        _, space = self.made()
        _, x = self.network()
        there = pickle.loads(pickle.dumps(space))
        for candidate in map(unsplit, self.sample(space)):
            with torch.no_grad():
                assert torch.equal(there.build(candidate)(x), space.build(candidate)(x))
            for name, value in space.cost_arrays([candidate]).items():
                assert np.array_equal(there.cost_arrays([candidate])[name], value)

    def test_recorded_options_make_an_equal_kind(self) -> None:
        own = {f.name for f in fields(kind_class(self.kind))}
        made = kind_class(self.kind)(**{k: v for k, v in self.options.items() if k in own})
        again = type(made)(**json.loads(json.dumps(made.recorded())))
        assert again.recorded() == made.recorded()

    def test_a_second_space_changes_nothing(self) -> None:
        """Calibration, repair, order of units, kinds and artifact belong to one space each."""
        blueprint, space = self.made()
        _, x = self.network()
        candidates = [unsplit(c) for c in self.sample(space)[:2]]

        def seen() -> list[Any]:
            costs = space.cost_arrays(candidates)
            built = [fingerprint(space.build(c), x) for c in candidates]
            there = pickle.loads(pickle.dumps(space))
            copies = [fingerprint(there.build(c), x) for c in candidates]
            return [built, copies, {k: v.tolist() for k, v in costs.items()}]

        before = seen()
        data = blueprint.calibrate([((x,), {})])
        for kinds, options in (
            (("prune", "drop"), {"calibration": data, "importance": "l2"}),
            (("prune",), {"repair": "merge", "importance": "cluster"}),
            (("width", "group"), {}),
        ):
            other = blueprint.space(*kinds, ratios=2, **options)
            other.build(other.candidate(other.counts - 1))
        assert seen() == before


def fingerprint(network: nn.Module, x: torch.Tensor) -> str:
    """Text that is equal for networks of the same structure, numbers and outputs."""
    plain = (int, float, str, bool)

    def said(value: Any) -> bool:
        return isinstance(value, plain) or (
            isinstance(value, (list, tuple)) and all(isinstance(v, plain) for v in value)
        )

    modules = [
        (name, type(m).__name__, sorted((k, v) for k, v in vars(m).items() if said(v)))
        for name, m in network.named_modules()
    ]
    state = [(k, tuple(v.shape), v.double().sum().item()) for k, v in network.state_dict().items()]
    with torch.no_grad():
        return repr((modules, state, network(x).tolist()))
