"""netcarve.decompose: real stages in one call, equal to the model, and what it refuses."""

import netcarve
import numpy as np
import pytest
import torch
from netcarve import Device, Link
from netcarve.model.stages import CutError
from torch import nn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.narrow = nn.Conv2d(8, 1, 1)
        self.last = nn.Conv2d(1, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x, scale=None):
        y = self.first(x)
        y = torch.relu(y + self.block(y))
        y = self.last(self.narrow(y))
        y = self.head(y.mean((2, 3)))
        return {"logits": y if scale is None else y * scale, "size": y.abs().sum(1)}


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.layer(x) + self.calls


def model(seed=0):
    torch.manual_seed(seed)
    return Residual().eval()


X = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.quick("throughput")
@pytest.mark.parametrize("minimise", ["throughput", "traffic"])
def test_stages_are_the_model(minimise):
    made = model()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    found = netcarve.decompose(made, X, 3, minimise)
    assert len(found) == len(found.stages) == len(list(found)) == 3
    other = torch.randn(5, 1, 12, 12)
    want, got = made(other), found.run(other)
    assert want.keys() == got.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-6, atol=1e-6)
    by_hand = other
    for number, stage in enumerate(found):
        by_hand = stage(by_hand) if number == 0 else stage(*by_hand)
    assert torch.equal(by_hand["logits"], got["logits"])
    assert found.difference <= 1e-6
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    held = [{id(p) for p in stage.parameters()} for stage in found]
    assert all(held[a].isdisjoint(held[b]) for a in range(3) for b in range(a))


@pytest.mark.slow
def test_the_table_and_the_plan_say_what_the_stages_are():
    found = netcarve.decompose(model(), X, 2)
    table = found.table
    assert table.index.tolist() == [1, 2]
    assert table["macs_share"].sum() == pytest.approx(1)
    assert found.plan.value == pytest.approx(table["ms"].max())
    assert 0 < found.plan.bound <= found.plan.value
    assert list(found.plan.parts) == sorted(found.plan.parts)
    assert set(found.plan.parts) == {0, 1}
    out = found[0](X[:1])
    assert table["sent_kb"].tolist() == [sum(t.numel() * t.element_size() for t in out) / 1000, 0]
    assert len(found.rows[0].tensors) == len(out)
    parameters = [sum(t.numel() * t.element_size() for t in s.state_dict().values()) for s in found]
    assert table["weights_mb"].tolist() == pytest.approx(np.array(parameters) / 1e6)
    assert (table["memory_mb"] > table["weights_mb"]).all()


@pytest.mark.slow
def test_least_traffic_goes_through_the_narrow_place():
    found = netcarve.decompose(model(), X, 2, "traffic", imbalance=30.0)
    assert found.plan.value <= 12 * 12 * 4
    assert found.plan.optimal
    assert found.table["sent_kb"].sum() * 1000 == found.plan.value


@pytest.mark.slow
def test_an_edge_that_is_slow_sends_and_one_that_is_fast_does_not():
    server = Device("server", "1x")
    slow = netcarve.decompose(
        model(), X, minimise="latency", devices=[Device("edge", "0.001x"), server], links=Link(1000, 0.01)
    )
    assert [row.device for row in slow.rows] == ["server"]
    assert slow.upload_ms == pytest.approx(0.01 + 12 * 12 * 4 * 8e-6)
    assert slow.plan.value == pytest.approx(slow.rows[0].ms + slow.upload_ms)
    fast = netcarve.decompose(
        model(), X, minimise="latency", devices=["edge=1x", "server=1x"], links="0.01mbps,50ms"
    )
    assert [row.device for row in fast.rows] == ["edge"]
    assert fast.upload_ms == 0
    assert len(fast) == 1
    torch.testing.assert_close(fast.run(X)["logits"], model()(X)["logits"])


@pytest.mark.slow
def test_boundaries_may_be_forced_and_forbidden():
    found = netcarve.decompose(model(), X, 2, forced=["first"])
    assert found.rows[0].last.startswith("first")
    assert found.rows[1].first == "block"
    found = netcarve.decompose(model(), X, 2, forbidden=["first", "block"])
    assert found.rows[0].last not in ("first.0", "first.1")


def test_keyword_inputs_and_one_part():
    example = ((X,), {"scale": torch.full((2, 1), 2.0)})
    found = netcarve.decompose(model(), example, 1)
    assert len(found) == 1
    want = model()(X, scale=torch.full((2, 1), 3.0))
    torch.testing.assert_close(found.run(X, scale=torch.full((2, 1), 3.0))["logits"], want["logits"])


@pytest.mark.slow
def test_a_fixed_batch_stays_what_it_is():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(16, 3)

        def forward(self, x):
            return self.b(self.a(x).reshape(1, 16))

    found = netcarve.decompose(Fixed(), torch.randn(2, 6), 2)
    x = torch.randn(2, 6)
    assert found.run(x).shape == (1, 3)
    assert found.rows[0].sent_kb * 1000 in (2 * 8 * 4, 16 * 4)


@pytest.mark.quick("options0", "options1", "options4")
@pytest.mark.parametrize(
    ("made", "options", "error", "says"),
    [
        (model, {"parts": 200}, CutError, r"only \d+ legal cuts, but 200 parts need 199"),
        (lambda: nn.Linear(1, 1), {}, CutError, "Linear has no legal cut, but 2 parts need 1"),
        (Counting, {}, CutError, "state between calls: it writes on calls"),
        (model, {"forced": ["nowhere"]}, CutError, "no legal cut right after module 'nowhere'"),
        (model, {"forced": ["first", "block"]}, ValueError, "2 forced cuts make 3 stages"),
        (model, {"devices": ["edge=missing.json", "b=1x"]}, ValueError, "cannot read the profile"),
        (model, {"links": "0mbps"}, ValueError, "bandwidth above 0"),
        (model, {"devices": ["a=1x,memory=1kb", "b=1x,memory=1kb"]}, ValueError, "are missing|lacks"),
        (model, {"minimise": "size"}, ValueError, "minimise is one of throughput, latency, traffic"),
        (model, {"batch": 0}, ValueError, "at least one sample, got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_words(made, options, error, says):
    example = {"Linear": torch.randn(2, 1), "Counting": torch.randn(2, 4)}
    network = made()
    with pytest.raises(error, match=says):
        netcarve.decompose(network, example.get(type(network).__name__, X), **options)


@pytest.mark.slow
def test_stages_refuse_what_they_were_not_made_for():
    found = netcarve.decompose(model(), X, 2)
    with pytest.raises(ValueError, match="but it takes"):
        found.run(torch.randn(2, 1, 9, 9))
