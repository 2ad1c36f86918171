"""Operators in searched networks: fitted on the way of the repair's run, offered by their front, costed."""

import numpy as np
import pytest
import torch
from netcarve import Space, trace
from netcarve.model.operators.catalogue import Offer, worth_offering
from netcarve.model.operators.counting import count
from netcarve.model.operators.initialise import initialise
from netcarve.model.operators.site import Site, operator
from netcarve.spaces.testing import ToyNet, counted_costs
from torch import nn

NAMES = ("svd", "separable", "fire-linear", "learned-groups", "tucker")


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    net, x = ToyNet().eval(), torch.randn(240, 3, 6, 6)
    blueprint = trace(net, x[:4])
    data = blueprint.calibrate([((x[:160],), {})])
    space = blueprint.space("prune", "drop", "operators", ratios=3, calibration=data, operators=NAMES)
    return net, x, blueprint, data, space


def _some(space, count, seed=0):
    return space.sample(np.random.default_rng(seed), count)


def test_a_switched_network_is_the_built_one_where_layers_are_fitted(made):
    _, x, _, _, space = made
    elastic, switched = space.side.elastic(space.choices), 0
    for candidate in _some(space, 8):
        if not elastic.switches(candidate):  # a dropped block
            continue
        switched += 1
        with elastic.lend(candidate) as network, torch.no_grad():
            torch.testing.assert_close(network(x), space.build(candidate)(x), rtol=1e-4, atol=1e-5)
    assert switched > 2


def test_weights_do_not_depend_on_what_was_built_before(made):
    _, x, blueprint, data, space = made
    other = blueprint.space("prune", "drop", "operators", ratios=3, calibration=data, operators=NAMES)
    candidates = _some(space, 6)
    first = [space.build(c)(x) for c in candidates]
    for candidate, before in reversed(list(zip(candidates, first, strict=True))):
        assert torch.equal(other.build(other.candidate(candidate.indices))(x), before)


def test_a_space_of_some_choices_comes_before_the_whole(made):
    """Both share one model side, whoever builds first."""
    _, x, blueprint, data, _ = made
    whole = blueprint.space("operators", operators=("svd",), calibration=data)
    part = Space(whole.choices[:1], model=whole.model)
    with torch.no_grad():
        alone = part.build(part.candidate([1]))(x)
        assert torch.equal(whole.build(whole.candidate([1] + [0] * (len(whole) - 1)))(x), alone)
        assert not torch.equal(whole.build(whole.candidate([1] * len(whole)))(x), alone)


def test_fitting_loses_less_than_starting_on_inputs_that_it_has_not_seen(made):
    """Every operator in the place of every layer; squared errors of the outputs."""
    net, x, blueprint, data, _ = made
    started = blueprint.space("operators", operators=NAMES)
    fitted = blueprint.space("operators", operators=NAMES, calibration=data)
    assert [c.options for c in started.choices] == [c.options for c in fitted.choices]
    losses = []
    with torch.no_grad():
        y = net(x[160:])
        for at, choice in enumerate(started.choices):
            for index in range(1, len(choice)):
                indices = [index if i == at else 0 for i in range(len(started))]
                losses.append(
                    [
                        float((s.build(s.candidate(indices))(x[160:]) - y).square().mean())
                        for s in (started, fitted)
                    ]
                )
    ratios = np.array(losses)[:, 1] / np.array(losses)[:, 0]
    assert np.exp(np.log(ratios).mean()) < 0.75
    assert (ratios < 1.1).mean() > 0.9


def test_costs_are_those_of_a_new_trace_of_the_built_network(made):
    """Memory as what is allocated when it runs, input and weights apart: a substitute holds what it reads."""
    _, x, _, _, space = made
    for candidate in _some(space, 6, seed=1):
        network = space.build(candidate)
        traced = counted_costs(network, x[:4])
        costs = {name: float(v[0]) for name, v in space.cost_arrays([candidate]).items()}
        for name in ("macs", "params", "size_mb", "activation_mb"):
            assert costs[name] == pytest.approx(traced[name], rel=1e-9), name
        run = count(network, x[:1])
        assert costs["memory_mb"] == pytest.approx((run.peak + run.bytes) / 1e6, rel=1e-9)
        assert costs["memory_mb"] >= traced["memory_mb"] - 1e-9


def test_a_layer_that_no_operator_can_stand_for_is_left_with_the_reason():
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 1)
            self.volume = nn.Conv3d(1, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.volume(self.two(self.one(x)).unsqueeze(1)).sum((1, 3, 4))

    space = trace(Grouped().eval(), torch.randn(2, 4, 6, 6)).space("operators", operators=("svd", "tucker"))
    left = space.side.left_out
    assert [c.name for c in space.choices] == ["operators:two"]
    assert left["operators:one"] == "has 2 groups already"
    assert left["operators:volume"] == "is a conv3d: operators stand for conv1d, conv2d and linear"
    with pytest.raises(ValueError, match=r"nothing in this model may be replaced .*one tap"):
        trace(nn.Conv2d(8, 8, 1).eval(), torch.randn(2, 8, 6, 6)).space("operators", operators=("separable",))


@pytest.mark.parametrize("other", ["mask", "group", "width", "branches", "exits"])
def test_kinds_that_change_the_same_layers_are_refused(made, other):
    with pytest.raises(ValueError, match=f"operators and {other} cannot be searched together"):
        made[2].space("operators", other)


def test_what_is_offered_is_the_front(made):
    """Random offers: those kept are not dominated, and of few all that are not are kept."""
    rng = np.random.default_rng(0)
    for many in (5, 40):
        offers = [
            Offer(f"o{i:02}", tuple(rng.integers(1, 9, 2).astype(float)), round(float(rng.random()), 1))
            for i in range(many)
        ]
        points = {o.label: (o.error, *o.costs) for o in offers if o.error < 1}
        best = {
            label
            for label, p in points.items()
            if not any(
                all(a <= b for a, b in zip(q, p, strict=True)) and (q, other) < (p, label)
                for other, q in points.items()
            )
        }
        kept = worth_offering(offers)
        assert set(kept) <= best
        assert len(kept) <= 8
        if len(best) <= 8:
            assert set(kept) == best


def test_a_calibrated_space_offers_less_and_remembers(made):
    _, _, blueprint, data, _ = made
    everything = blueprint.space("operators")
    offered = blueprint.space("operators", calibration=data)
    assert {c.name for c in offered.choices} <= {c.name for c in everything.choices}
    assert sum(map(len, offered.choices)) < sum(map(len, everything.choices))
    again = blueprint.space("operators", calibration=data)
    assert [c.options for c in again.choices] == [c.options for c in offered.choices]
    for choice in offered.choices:
        names = {str(option).partition(":")[0] for option in choice.options[1:]}
        assert not names & {"fire", "mobilenet", "shuffle"}  # trained for every cut: by name only


def test_the_unchanged_candidate_is_the_model_itself(made):
    net, x, _, _, space = made
    with torch.no_grad():
        assert torch.equal(space.build(space.baseline)(x), net(x))


def test_planted_shared_heads_are_found():
    """Six heads that are maps of three, in any order: nothing is lost at three."""
    size, inputs = 4, 24
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shared = drawn(3, size, inputs)
    weight = torch.cat([drawn(size, size) @ shared[group] for group in (0, 2, 1, 1, 0, 2)])
    site = Site(weight, drawn(6 * size), size=(5,), head=size)
    x = drawn(200, 5, inputs)
    new = initialise(operator("shared-heads"), site, 0.5, x)
    torch.testing.assert_close(new(x), site(x), rtol=1e-6, atol=1e-6)
    assert "no heads" in operator("shared-heads").refuses(Site(weight, size=(5,)))


class Attention(nn.Module):
    """Of four heads, each projection a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (m(x).unflatten(-1, (4, 4)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(self.out(y.transpose(1, 2).flatten(2)).mean(1))


def test_heads_of_attention_share_keys_and_values_after_pruning():
    torch.manual_seed(0)
    net, x = Attention().eval(), torch.randn(64, 6, 16)
    blueprint = trace(net, x[:4])
    data = blueprint.calibrate([((x,), {})])
    space = blueprint.space(
        "prune", "operators", ratios=[0, 0.25], calibration=data, operators=("shared-heads",)
    )
    names = [c.name for c in space.choices if c.name.startswith("operators")]
    assert names == ["operators:q", "operators:k", "operators:v"]
    assert space.side.left_out["operators:out"].endswith("gives no heads of attention")
    candidate = space.candidate(space.counts - 1)
    network = space.build(candidate)
    assert network.k.shared_heads.front.out_features == 4  # of three heads left, one is shared
    costs = {name: float(v[0]) for name, v in space.cost_arrays([candidate]).items()}
    traced = counted_costs(network, x[:4])
    assert costs["macs"] == pytest.approx(traced["macs"])
    assert costs["params"] == traced["params"]
