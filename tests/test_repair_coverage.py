"""Which layers are repaired: recurrent ones, transformers, tied weights; what is kept between candidates."""

import pickle
import time

import numpy as np
import pytest
import torch
from netcarve import Task, sweep, trace
from netcarve.evaluators.batchnorm import reestimate_batchnorm
from netcarve.model.capture import capture
from netcarve.model.repair import least_squares
from netcarve.model.repair.consumers import find_consumers
from netcarve.model.repair.least_squares import Change, Changes
from netcarve.model.repair.sequential import _mean_and_variance
from netcarve.model.repair.sources import MomentSource, Patch, Picker, take
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, unfold


def consumers(net, x):
    blueprint = trace(net, x)
    return {c.weight for c in find_consumers(blueprint.captured.graph_module.graph, blueprint.coupling)[0]}


def keep_first_half(group, parameters):
    return -np.arange(group.size)


# -- recurrent layers ------------------------------------------------------------------------------------

H = 4  # units k and k + H are the same


class Recurrent(nn.Module):
    """Inputs and hidden units come in equal pairs, read with different weights."""

    def __init__(self, kind, layers=1, bidirectional=False, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.input = nn.Linear(3, 2 * H)
        options = {"batch_first": True, "bidirectional": bidirectional, "bias": bias}
        self.rnn = getattr(nn, kind)(2 * H, 2 * H, layers, **options)
        self.head = nn.Linear(2 * H * (1 + bidirectional), 5)
        with torch.no_grad():
            for p in self.input.parameters():
                p[H:] = p[:H]
            for name, p in self.rnn.named_parameters():
                gates = p.view(-1, 2 * H, *p.shape[1:])
                gates[:, H:] = gates[:, :H]
                if name.startswith("weight_hh"):
                    p *= 2
        self.double().eval()

    def forward(self, x):
        return self.head(self.rnn(torch.relu(self.input(x)))[0])


@pytest.mark.quick("True-2-True-LSTM", "True-1-False-GRU", "True-3-False-GRU")
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    ("bias", "layers", "bidirectional"),
    [(True, 1, False), (False, 1, False), (True, 3, False), (True, 2, True)],
)
def test_recurrent_layers_that_read_equal_units_are_repaired_exactly(kind, bias, layers, bidirectional):
    net = Recurrent(kind, bias=bias, layers=layers, bidirectional=bidirectional)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, 3, generator=generator, dtype=torch.float64)
    blueprint = trace(net, x)
    data = blueprint.calibrate([((x,), {})], repair="once", ridge=1e-10)
    space = blueprint.space(ratios=[0, 0.5], importance=keep_first_half, calibration=data)
    assert {c.name for c in space.choices} == {"prune:input", "prune:rnn"}
    plain = trace(net, x).space(ratios=[0, 0.5], importance=keep_first_half)
    fresh = torch.randn(8, 6, 3, generator=generator, dtype=torch.float64)
    for cut in ([1, 0], [0, 1], [1, 1]):
        with torch.no_grad():
            small = space.build(space.candidate(cut))(fresh)
            torch.testing.assert_close(small, net(fresh), rtol=1e-5, atol=1e-6)
            assert (plain.build(plain.candidate(cut))(fresh) - net(fresh)).abs().max() > 1e-3


def test_a_stack_at_full_width_stays_bit_for_bit():
    net, x = Recurrent("LSTM", layers=2, bidirectional=True), torch.randn(40, 6, 3, dtype=torch.float64)
    space = trace(net, x).space(ratios=[0, 0.5], calibration=[((x,), {})])
    built = space.build(space.baseline)
    for name, value in net.state_dict().items():
        assert torch.equal(built.state_dict()[name], value), name
    with torch.no_grad():
        assert torch.equal(built(x), net(x))


def test_calibration_of_another_length_is_refused_in_words():
    net, x = Recurrent("GRU"), torch.randn(4, 6, 3, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"no calibration batch is as long.*\(4, 6, 3\).*1 of 1 have \(4, 5, 3\)"
    ):
        trace(net, x).calibrate([((x[:, :5],), {})])


def test_a_capture_takes_no_step_of_a_sequence():
    x = torch.randn(2, 500, 3, dtype=torch.float64)
    began = time.process_time()
    captured = capture(Recurrent("LSTM", layers=3), x)
    # Unrolled, it takes some 0.15 s a step.
    assert time.process_time() - began < 20
    lstm = next(n for n in captured.graph_module.graph.nodes if n.name == "lstm")
    assert tuple(lstm.meta["val"][0].shape[1:]) == (500, 2 * H)


def test_every_weight_of_a_stack_is_a_consumer():
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    for kind, layers, bidirectional in (("LSTM", 1, False), ("LSTM", 3, False), ("GRU", 2, True)):
        net = Recurrent(kind, layers=layers, bidirectional=bidirectional)
        weights = {f"rnn.{name}" for name, _ in net.rnn.named_parameters() if name.startswith("weight")}
        assert consumers(net, x) == weights | {"head.weight"}


# -- transformers ----------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """One layer of attention and MLP between an embedding and a head, which may share their weight."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 32)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
        self.head = nn.Linear(32, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return self.head(x + self.mlp(self.norm2(x)))


LAYERS = {"qkv.weight", "out.weight", "mlp.0.weight", "mlp.2.weight"}


@pytest.mark.parametrize("tied", [False, True])
def test_every_linear_layer_of_a_transformer_is_repaired_but_a_tied_head(tied):
    tokens = torch.randint(20, (64, 8), generator=torch.Generator().manual_seed(0))
    net = Decoder(tied).eval()
    assert consumers(net, tokens) == (LAYERS if tied else LAYERS | {"head.weight"})
    errors = []
    for repair in (False, "once", True):
        space = trace(net, tokens).space(
            ratios=[0, 0.5], importance="l1", calibration=[((tokens,), {})], repair=repair
        )
        small = space.build(space.candidate([1] * len(space)))
        with torch.no_grad():
            errors.append(float((small(tokens) - net(tokens)).square().sum()))
    assert errors[2] < errors[1] < errors[0]


def test_a_captured_graph_without_batch_norm_has_nothing_to_reestimate():
    tokens = torch.randint(20, (4, 8))
    space = trace(Decoder(tied=True), tokens).space(ratios=[0, 0.5])
    assert space.model.artifact == "graph"
    small = space.build(space.candidate([1] * len(space)))
    before = {k: v.clone() for k, v in small.state_dict().items()}
    for module in (small, small.train().eval()):
        reestimate_batchnorm(module, [((tokens,), {})])
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


# -- what is kept between candidates ---------------------------------------------------------------------


def test_changes_are_made_once_and_stay_within_their_bound():
    made = []

    def change(size):
        made.append(size)
        return Change(torch.zeros(size), torch.zeros(0))

    held = Changes(bytes=400)  # 100 float32
    for key, size in (("a", 20), ("b", 20), ("a", 20), ("c", 25), ("d", 25)):
        held.get(key, lambda size=size: change(size))
    assert made == [20, 20, 25, 25]
    assert held.nbytes == 360
    held.get("e", lambda: change(25))  # b was used least recently
    held.get("a", lambda: change(20))
    assert made == [20, 20, 25, 25, 25]
    held.get("f", lambda: change(90))  # too large to be kept
    assert held.nbytes <= 400
    assert len(pickle.loads(pickle.dumps(held))) == 0


def test_a_candidate_is_the_same_whatever_was_built_before(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    data = [((torch.randn(200, 6),), {})]
    space = trace(net, data[0][0]).space(ratios=4, calibration=data)
    candidates = space.sample(np.random.default_rng(0), 6)
    built = [space.build(c).state_dict() for c in candidates]
    monkeypatch.setattr(least_squares, "BYTES", 0)
    alone = [
        trace(net, data[0][0]).space(ratios=4, calibration=data).build(c).state_dict() for c in candidates
    ]
    for a, b in zip(built, alone, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_layers_before_the_first_cut_stay_as_they_were():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    ).eval()
    data = [((torch.randn(40, 3, 6, 6),), {})]
    space = trace(net, data[0][0]).space(ratios=[0, 0.5], calibration=data)
    small = space.build(space.candidate([int(c.name == "prune:6") for c in space.choices]))
    assert small[6].weight.shape[0] == 4
    for name, value in net.state_dict().items():
        if int(name.split(".")[0]) < 6:
            assert small.state_dict()[name].equal(value), name
    assert not small[12].weight.equal(net[12].weight)  # reads what was fitted to something else


# -- rows and statistics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("patch", [Patch((3, 2), (2, 1), (1, 0), (1, 2)), None])
def test_rows_are_what_unfold_gives(patch, groups):
    x = torch.randn(3, 4, 7, 6)
    source = MomentSource((("conv", "input"),), -3, groups, patch, np.ones(4, dtype=int))
    if patch is None:
        every = x.movedim(1, -1).reshape(-1, 4)
    else:
        columns = unfold(x, patch.kernel, patch.dilation, patch.padding, patch.stride)
        every = columns.transpose(1, 2).reshape(-1, 4 * 6)
    at = torch.randint(len(every), (17,))
    assert take(x, source, at).equal(every[at])
    assert take(x, source, torch.arange(len(every))).equal(every)
    some = Picker(x, source, at)(x[:, :3], 5)  # fewer channels, the first rows
    assert some.transpose(1, 2).equal(every[at[:5]].view(5, 4, -1)[:, :3])


def test_statistics_of_a_batch_are_mean_and_variance():
    x = 100 + 3 * torch.randn(50, 4, 5, 6)
    mean, variance = _mean_and_variance(x)
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, x.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


# -- the score -------------------------------------------------------------------------------------------


def test_cross_entropy_as_the_score_tells_apart_what_accuracy_cannot(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    x = torch.randn(64, 4)
    task = Task(net, x[:2], (x, net(x).argmax(1)), metric="loss")
    space = trace(net, x).space(calibration=task.calibration_batches)
    run = sweep(task, space, "random", ["loss", "macs"], trials=8, workers=0, out=tmp_path / "run")
    assert [o.name for o in run.front.objectives] == ["loss", "macs"]
    scores = [t.scores for t in run.trials if t.scores]
    assert len({s["loss"] for s in scores}) > len({s["accuracy"] for s in scores})
    front = sorted((t.scores["macs"], t.scores["loss"]) for t in run.front.trials)
    assert [loss for _, loss in front] == sorted((loss for _, loss in front), reverse=True)


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_transposed_convolutions_are_cut_but_not_fitted(groups):
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(8, 8, 3, groups=groups)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), conv, nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten())
    x = torch.randn(40, 2, 6, 6)
    assert consumers(net, x) == {"4.weight"}
    cut, repaired = (trace(net, x).space(importance="l1", **o) for o in ({}, {"calibration": [((x,), {})]}))
    small, mended = (space.build(space.candidate(space.counts - 1)) for space in (cut, repaired))
    assert small[2].weight.numel() < conv.weight.numel()
    assert torch.equal(small[2].weight, mended[2].weight)
    assert not torch.equal(small[4].weight, mended[4].weight)
    assert (mended(x) - net(x)).square().mean() < (small(x) - net(x)).square().mean()
