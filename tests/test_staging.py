"""Costs of the parts of a network, against networks that are really built, captured, cut and counted."""

import itertools
import pickle

import netcarve
import numpy as np
import pytest
import torch
from netcarve.devices import Device, Link, Profile, pipeline_costs
from netcarve.devices.profile import moved_bytes, operator_of
from netcarve.model.capture import capture
from netcarve.model.stages import find_cuts, functionalise
from netcarve.model.stages.cuts import Order, macs
from netcarve.spaces.choice import unsplit
from netcarve.spaces.kinds.splits.plan import plan_of
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from toys import Attention, Recurrent


class Block(nn.Module):
    """Residual; ``way`` tells how it adds and activates."""

    def __init__(self, c, way):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
        self.c2, self.b2 = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
        self.way = way

    def forward(self, x):
        y = self.b2(self.c2(torch.relu(self.b1(self.c1(x)))))
        if self.way == "in place":
            y += x
            return functional.relu_(y)
        return torch.relu(x + y) if self.way == "relu" else x + y


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.a, self.b = Block(8, "in place"), Block(8, "relu")
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU())
        self.c, self.d = Block(12, "relu"), Block(12, "plain")
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.d(self.c(self.down(self.b(self.a(self.stem(x))))))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Transformer(nn.Module):
    def __init__(self, d=12):
        super().__init__()
        self.patch = nn.Conv2d(3, d, 2, stride=2)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, d)), nn.Parameter(torch.randn(1, 17, d))
        self.norm, self.attention = nn.LayerNorm(d), Attention(d, 3)
        self.mlp = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 20), nn.GELU(), nn.Linear(20, d))
        self.head = nn.Linear(d, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        x = x + self.attention(self.norm(x))
        x = x + self.mlp(x)
        return self.head(x[:, 0])


class Dense(nn.Module):
    """Concatenates, twice from one tensor; a split and a skip over two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.c, self.d = nn.Conv2d(14, 8, 1), nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        a = torch.relu(self.a(x))
        x = torch.cat([a, torch.relu(self.b(a))], 1)
        left, right = torch.relu(self.c(x)).chunk(2, 1)
        x = torch.cat([self.d(left), right], 1)
        return self.head(x.mean((2, 3)))


def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5))


IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NETS = {
    "residual": (Residual, IMAGES),
    "transformer": (Transformer, IMAGES),
    "dense": (Dense, IMAGES),
    "mlp": (mlp, IMAGES[:, 0, 0, :6].clone()),
    "recurrent": (
        lambda: Recurrent(nn.LSTM, 8, 6, 5, nn.Sequential(nn.Linear(6, 8), nn.ReLU())),
        IMAGES[:, 0, :, :6].clone(),
    ),
}
PROFILE = Profile(
    {
        "conv2d": np.array([[1e3, 1e3, 0.01], [1e6, 1e5, 0.5], [1e5, 1e6, 0.7]]),
        "linear": np.array([[1e2, 1e3, 0.003], [1e6, 1e5, 0.3]]),
        "relu": np.array([[0, 1e2, 0.002], [0, 1e5, 0.05]]),
    },
)
DEVICES = [Device("edge", PROFILE, speed=0.5, power_w=5.0), Device("server", PROFILE, power_w=50.0)]


class Made:
    def __init__(self, name, drop):
        torch.manual_seed(0)
        make, self.x = NETS[name]
        net = make().eval()
        for m in net.modules():  # statistics that a network has after training
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 2)
        self.blueprint = netcarve.trace(net, self.x)
        kinds = ["prune", "splits"] + (["drop"] if drop else [])
        self.space = self.blueprint.space(
            *kinds, ratios=[0, 0.3, 0.6], places=99, devices=DEVICES, links=Link(8, 2)
        )
        self.plan = plan_of(self.space.choices)
        self.staging = self.blueprint.cutting.staging(self.plan.indices)

    def sample(self, n, seed):
        return self.space.sample(np.random.default_rng(seed), n)

    def edge(self, candidate):
        """The segment at which the second stage really begins."""
        begins, _ = self.plan.decode(self.space.choices, np.array([candidate.indices]))
        return int(self.segments([candidate]).snap[0, begins[0, 0]])

    def segments(self, candidates, devices=()):
        rows = np.array([c.indices for c in candidates])
        return self.staging.evaluate(
            *self.space.model.decoder.widths(self.space.choices, rows), devices=devices
        )


@pytest.fixture(scope="module", params=["residual drop", "transformer drop", "dense", "mlp", "recurrent"])
def made(request):
    return Made(request.param.split()[0], request.param.endswith("drop"))


@pytest.mark.quick("dense")
def test_every_part_costs_what_it_costs_in_the_built_network(made):
    candidates = [made.space.baseline, *made.sample(2, 1)]
    found = made.segments(candidates, DEVICES)
    assert len(made.plan.places) >= 3
    for row, candidate in enumerate(candidates):
        network = functionalise(capture(made.space.build(unsplit(candidate)), made.x))
        cuts, order, work = find_cuts(network), Order(network), macs(network)
        real = {(c.bytes, c.macs[0]) for c in cuts}
        before = np.concatenate([[0], np.cumsum(found.macs[row])])
        assert before[-1] == pytest.approx(sum(cuts[0].macs))
        for b in range(1, made.plan.segments):
            if found.snap[row, b] not in (0, made.plan.segments):
                at = (found.sent[row, b], before[b])
                assert any(np.allclose(at, r) for r in real), (candidate.values, made.plan.places[b - 1], at)
        calls = [n for n in order.calls if not order.is_view(n)]
        count, moved = np.array(
            [(work.get(n.name, 0.0), moved_bytes(n, network.captured.batch)) for n in calls]
        ).T
        ms = PROFILE.milliseconds([operator_of(n) for n in calls], count[None], moved[None]).sum()
        # Not to the last digit where a dropped block leaves a copy in place of an addition.
        copies = any(c.name.startswith("drop:") and o for c, o in candidate.items())
        assert found.ms[row].sum(axis=1) == pytest.approx([ms / 0.5, ms], rel=1e-2 if copies else 1e-9)


@pytest.mark.quick("mlp", "transformer drop")
def test_stages_are_what_the_tables_say(made):
    split = [c for c in made.sample(40, 2) if 0 < made.edge(c) < made.plan.segments][:2]
    found = made.segments(split)
    costs = made.space.cost_arrays(split)
    for row, candidate in enumerate(split):
        whole = made.space.build(unsplit(candidate))
        placed = made.space.model.stages(candidate)
        edge = made.edge(candidate)
        spans = [slice(0, edge), slice(edge, None)]
        assert [p.device for p in placed] == ["edge", "server"]
        assert costs["stages"][row] == len(placed) == 2
        crossing = sum(port.bytes(1) for port in placed[1].stage.inputs)
        assert crossing == found.sent[row, edge]
        assert costs["traffic_kb"][row] == pytest.approx(crossing / 1000)
        for samples in (2, 5):
            x = torch.cat([made.x, made.x])[:samples]
            values = x
            for p, span in zip(placed, spans, strict=True):
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    values = p.stage.module(*(values if isinstance(values, tuple) else (values,)))
                if not isinstance(made.blueprint.captured.source, Recurrent):
                    counted = counter.get_total_flops() / 2 / samples
                    if not isinstance(made.blueprint.captured.source, Transformer):  # fused: not counted
                        assert counted == found.macs[row, span].sum()
                held = itertools.chain(p.stage.module.parameters(), p.stage.module.buffers())
                assert sum(t.numel() * t.element_size() for t in held) == found.weights[row, span].sum()
            with torch.no_grad():
                assert torch.allclose(values, whole(x), rtol=0, atol=1e-6 * max(1, float(values.abs().max())))


@pytest.mark.slow
def test_one_stage_takes_the_memory_of_the_whole(made):
    candidates = [made.space.baseline, *map(unsplit, made.sample(30, 4))]
    rows = np.array([c.indices for c in candidates])
    split = made.space.cost_arrays(candidates)
    whole = made.space.model.decoder.cost_arrays(made.space.choices, rows, whole=True)
    assert np.allclose(split["memory_mb"], whole["memory_mb"], rtol=1e-12)
    assert np.array_equal(split["memory_mb:edge"], split["memory_mb"])
    assert not split["memory_mb:server"].any()
    assert not split["traffic_kb"].any()
    assert (split["stages"] == 1).all()


@pytest.mark.slow
def test_many_candidates_cost_what_each_costs_alone(made):
    candidates = made.sample(60, 5)
    together = made.space.cost_arrays(candidates)
    alone = [made.space.cost_arrays([c]) for c in candidates]
    assert set(together) >= {"traffic_kb", "latency_ms", "throughput_per_s", "energy_mj", "stages"}
    for name, values in together.items():
        assert np.allclose(values, [a[name][0] for a in alone], rtol=1e-12), name


def test_a_copy_that_travels_knows_the_same_costs(made):
    copy = pickle.loads(pickle.dumps(made.space))
    candidates = made.sample(20, 6)
    for name, values in made.space.cost_arrays(candidates).items():
        assert np.array_equal(values, copy.cost_arrays(candidates)[name])


def test_costs_are_those_of_the_pipeline(made):
    candidates = made.sample(50, 7)
    rows = np.array([c.indices for c in candidates])
    parts = made.segments(candidates, DEVICES)
    begins, on = made.plan.decode(made.space.choices, rows)
    snapped = parts.snap[np.arange(len(rows))[:, None], begins]
    expected = pipeline_costs(
        parts.ms, parts.sent, parts.weights, parts.peaks, snapped, on, DEVICES, [Link(8, 2)]
    )
    got = made.space.cost_arrays(candidates)
    for name, values in expected.items():
        assert np.array_equal(got[name], values)


def test_sensitivity_is_a_cost_where_it_is_asked_for():
    torch.manual_seed(0)
    blueprint = netcarve.trace(mlp().eval(), NETS["mlp"][1])
    options = {"devices": DEVICES, "links": Link(8, 2)}
    plain = blueprint.space("splits", **options)
    asked = blueprint.space("splits", sensitivity=True, **options)
    candidates = [asked.candidate([i]) for i in range(len(asked.choices[0]))]
    costs = asked.cost_arrays(candidates)
    assert {"latency_change", "throughput_change"} <= set(costs)
    assert {k: v.tolist() for k, v in plain.cost_arrays(candidates).items()} == {
        k: v.tolist() for k, v in costs.items() if "_change" not in k
    }
    # In one stage on the first device latency is time / speed: half the speed doubles it.
    assert costs["latency_change"][0] == pytest.approx(1.0)


def test_a_parameter_that_two_stages_read_is_held_by_both():
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)
            self.b = nn.Linear(8, 4)

        def forward(self, x):
            return self.b(torch.relu(self.a(torch.relu(self.a(x)))))

    blueprint = netcarve.trace(Tied().eval(), torch.randn(2, 8))
    space = blueprint.space("splits")
    plan = plan_of(space.choices)
    widths = np.array([[g.size for g in blueprint.coupling.groups]])
    found = blueprint.cutting.staging(plan.indices).evaluate(widths, np.zeros((1, 0), dtype=bool))
    assert found.weights.sum() == 4 * (2 * (64 + 8) + 32 + 4)
