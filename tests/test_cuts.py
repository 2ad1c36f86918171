"""Where a network may be cut, and what crosses there."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from netcarve.model.capture import capture
from netcarve.model.stages import (
    Cut,
    CutError,
    after_modules,
    balanced,
    by_balance,
    by_bytes,
    efficient,
    find_cuts,
    functionalise,
    outside_modules,
    run_stages,
    split,
    verify,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

property_test = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


def cuts_of(net, *args):
    return find_cuts(capture(net.eval(), args))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn, self.conv2 = (
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.bn(self.conv1(x)))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList([Block(4), Block(4)])
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


@property_test
@given(widths=st.lists(st.integers(1, 9), min_size=2, max_size=6), batch=st.integers(1, 3))
def test_a_chain_has_a_cut_after_every_layer_but_the_last(widths, batch):
    layers = [nn.Linear(i, o) for i, o in itertools.pairwise(widths)]
    net = nn.Sequential(*itertools.chain.from_iterable((layer, nn.Tanh()) for layer in layers))
    cuts = cuts_of(net, torch.randn(batch, widths[0]))
    assert [c.name for c in cuts] == [str(i) for i in range(len(net) - 1)]
    total = sum(layer.weight.numel() for layer in layers)
    for i, c in enumerate(cuts):
        before = sum(layer.weight.numel() for layer in layers[: i // 2 + 1])
        assert len(c.tensors) == 1
        assert c.bytes == 4 * widths[i // 2 + 1]
        assert c.macs == (before, total - before)


class Program(nn.Module):
    """Sums of earlier values, each through an activation: reads[k] are what value k + 1 is made of."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def forward(self, x):
        values = [x]
        for a, b in self.reads:
            values.append(torch.atan2(values[a], values[b]))
        return values[-1]


@st.composite
def programs(draw):
    return [
        (draw(st.integers(0, k)), draw(st.integers(0, k))) for k in range(draw(st.integers(2, 9)) - 1)
    ] + [(0, 1)]


@property_test
@given(reads=programs())
def test_what_crosses_is_what_was_made_before_and_is_read_after(reads):
    needed, todo = set(), [len(reads)]
    while todo:  # torch.export leaves out what nothing reads
        k = todo.pop()
        if k and k not in needed:
            needed.add(k)
            todo += reads[k - 1]
    calls = sorted(needed)
    expected = []
    for i in range(len(calls) - 1):
        made = {0, *calls[: i + 1]}
        read = {v for later in calls[i + 1 :] for v in reads[later - 1]}
        expected.append(4 * 3 * len(made & read))
    assert [c.bytes for c in cuts_of(Program(reads), torch.randn(2, 3)) if c.bytes] == expected


class Mixed(nn.Module):
    """Integer tokens, a table of positions, a recurrent layer, pieces, and an input that is read late."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens, scale):
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1]))
        x, _ = self.lstm(x)
        left, right = x.chunk(2, 1)
        mask = (tokens[:, :3] > 0).unsqueeze(-1)
        return self.head(((left + right) * mask).mean(1)) * scale


@pytest.mark.parametrize("make", [Residual, Mixed])
def test_bytes_are_those_of_the_tensors_that_are_sent(make):
    torch.manual_seed(0)
    args = (torch.randn(2, 3, 6, 6),)
    if make is Mixed:
        args = torch.randint(0, 11, (2, 6)), torch.randn(2, 1)
    network = functionalise(capture(make().eval(), args))
    for c in find_cuts(network):
        first, second = split(network, [c], check=False)
        sent = first.module(*args)
        assert [t.numel() * t.element_size() for t in sent] == [p.bytes(2) for p in second.inputs]
        assert sum(t.numel() * t.element_size() for t in sent) == 2 * c.bytes
        assert [p.name for p in first.outputs] == [p.name for p in second.inputs] == list(c.tensors)


def test_constants_sizes_and_initial_states_do_not_cross_and_tuples_stay_whole():
    cuts = cuts_of(Mixed(), torch.randint(0, 11, (2, 6)), torch.randn(2, 1))
    by_name = {c.name: c for c in cuts}
    tokens, scale = 8 * 6, 4
    assert by_name["embed"].bytes == tokens + scale + 4 * 6 * 8  # not the positions
    assert by_name["lstm"].bytes == tokens + scale + 4 * 6 * 6  # not the states
    assert by_name["lstm"].macs[0] == 6 * (4 * 6 * 8 + 4 * 6 * 6)  # 4 gates, 6 steps
    assert not any(c.after in ("lstm", "split") for c in cuts)
    assert by_name["head"].bytes == scale + 4 * 3  # neither tokens nor mask any more


def test_a_view_is_sent_as_the_smallest_tensor_that_makes_it_and_once():
    class Views(nn.Module):
        def forward(self, x):
            y = torch.tanh(x)
            wide = y[:, :, None].expand(-1, -1, 50)
            z = torch.sigmoid(wide.sum(-1))
            return z + wide.mean(-1) + y.t().sum(0, keepdim=True).t() + y[:, :1]

    cuts = cuts_of(Views(), torch.randn(2, 4))
    assert cuts[0].bytes == 16  # y, neither its views nor fifty times it
    assert {t for c in cuts for t in c.tensors if "expand" in t} == set()


def test_nothing_is_cut_where_the_batch_length_or_the_strides_are_lost():
    class Counted(nn.Module):
        def forward(self, x):
            return torch.tanh(torch.tanh(x).sum(0)) * x.shape[0]

    class Strided(nn.Module):
        def forward(self, x):
            return torch.tanh(torch.as_strided(torch.tanh(x).relu(), (2, 2), (1, 2)))

    assert [c.after for c in cuts_of(Counted(), torch.randn(2, 3))] == ["tanh"]
    fixed = cuts_of(Strided(), torch.randn(2, 3))
    assert [c.after for c in fixed] == ["as_strided"]


def test_modules_name_the_boundaries():
    network = functionalise(capture(Residual().eval(), torch.randn(2, 3, 6, 6)))
    cuts = find_cuts(network)
    assert len({c.name for c in cuts}) == len(cuts)
    (after,) = after_modules(cuts, ["layers.0"])
    assert after.ends == ("layers.0",)
    assert after.inside == ("layers",)
    assert [c.name for c in after_modules(cuts, ["layers", "stem"])] == ["stem", "layers.1"]
    whole = outside_modules(cuts, ["layers.0", "layers.1"])
    assert [c.name for c in whole][:3] == ["stem", "layers.0", "layers.1"]
    assert {c.bytes for c in whole} == {4 * 4 * 36, 4 * 4}
    inside = set(cuts) - set(whole)
    assert all(c.inside[:1] == ("layers",) for c in inside)
    assert max(c.bytes for c in inside) == 2 * 4 * 4 * 36  # the skip connection crosses too
    with pytest.raises(CutError, match=r"after module 'layer9'; there are cuts after stem, "):
        after_modules(cuts, ["layer9"])
    with pytest.raises(CutError, match="no cut lies in or after a module 'nothing'"):
        outside_modules(cuts, ["nothing"])


def test_work_is_that_of_torchs_counter():
    net, x = Residual().eval(), torch.randn(2, 3, 6, 6)
    with FlopCounterMode(display=False) as counter:
        net(x)
    cuts = cuts_of(net, x)
    assert {sum(c.macs) for c in cuts} == {counter.get_total_flops() / 2 / 2}
    assert [c.macs[0] for c in cuts] == sorted(c.macs[0] for c in cuts)


def test_attention_counts():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return torch.tanh(F.scaled_dot_product_attention(q, k, v))

    (after,) = after_modules(cuts_of(Attention(), torch.randn(2, 5, 8)), ["qkv"])
    assert after.macs == (5 * 8 * 24, 2 * 5 * 5 * 8)
    assert after.bytes == 4 * 5 * 24


@st.composite
def made_up(draw):
    n = draw(st.integers(1, 7))
    before = list(itertools.accumulate(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))))
    total = before[-1] + draw(st.integers(0, 5))
    sizes = draw(st.lists(st.integers(1, 6), min_size=n, max_size=n))
    return [
        Cut(i, f"n{i}", (f"n{i}",), float(s), f"n{i}", (float(b), float(total - b)), (), ())
        for i, (b, s) in enumerate(zip(before, sizes, strict=True))
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cuts=made_up(), data=st.data())
def test_rankings_and_the_balanced_plan_equal_brute_force(cuts, data):
    parts = data.draw(st.integers(1, len(cuts) + 1))

    def cost(plan):
        ends = [0.0, *(c.macs[0] for c in plan), sum(cuts[0].macs)]
        return max(b - a for a, b in itertools.pairwise(ends)), sum(c.bytes for c in plan)

    plan = balanced(data.draw(st.permutations(cuts)), parts)
    assert cost(plan) == min(map(cost, itertools.combinations(cuts, parts - 1)))
    assert [c.index for c in plan] == sorted(c.index for c in plan)
    front = {
        (c.bytes, c.imbalance)
        for c in cuts
        if not any(
            o.bytes <= c.bytes
            and o.imbalance <= c.imbalance
            and (o.bytes, o.imbalance) != (c.bytes, c.imbalance)
            for o in cuts
        )
    }
    assert [(c.bytes, c.imbalance) for c in efficient(cuts)] == sorted(front)
    assert [c.bytes for c in by_bytes(cuts)] == sorted(c.bytes for c in cuts)
    assert [c.imbalance for c in by_balance(cuts)] == sorted(c.imbalance for c in cuts)


@pytest.mark.parametrize("parts", [0, 4, -1])
def test_more_parts_than_cuts(parts):
    cuts = [Cut(i, "a", ("a",), 1.0, "a", (1.0, 1.0), (), ()) for i in range(2)]
    with pytest.raises(CutError, match=f"{parts} parts asked for, but 2 legal cuts give 1 to 3"):
        balanced(cuts, parts)


def test_state_between_calls_is_refused():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += 1
            return x / self.seen

    captured = capture(Counter(), torch.randn(2, 3))
    with pytest.raises(CutError, match="Counter has state between calls: it writes on seen"):
        find_cuts(captured)


def test_a_fixed_batch_is_kept_fixed():
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.tanh(torch.tanh(x) if x.shape[0] == 4 else x)

    stages = split(capture(Fixed(), torch.randn(4, 3)), [0])
    assert run_stages(stages, torch.ones(4, 3)).shape == (4, 3)
    for stage in stages:
        with pytest.raises(ValueError, match=r"is \[5, 3\] float32, but it takes \[4, 3\] float32"):
            stage.module(torch.randn(5, 3))


def test_a_stage_can_be_captured_again():
    net = Residual().eval()
    network = functionalise(capture(net, torch.randn(2, 3, 8, 8)))
    stages = split(network, balanced(find_cuts(network), 3))
    x = torch.randn(2, 3, 8, 8)
    out = x
    for stage in stages:
        again = capture(stage.module, out if isinstance(out, tuple) else (out,))
        assert again.dynamic_batch
        out = again.graph_module(*(out if isinstance(out, tuple) else (out,)))
    assert torch.equal(out, net(x))


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recurrent():
    return functionalise(capture(Mixed().eval(), (torch.randint(0, 11, (2, 6)), torch.rand(2, 1))))


def test_a_stage_refuses_other_shapes_types_and_batches():
    class Two(nn.Module):
        def forward(self, x, y, times=3):
            return torch.tanh(torch.tanh(x) + y) * times

    stages = split(capture(Two(), (torch.randn(2, 3), torch.randn(2, 3), 3)), [0])
    first, second = (s.module for s in stages)
    x = torch.randn(4, 3)
    assert run_stages(stages, x, x, 3).shape == (4, 3)
    for call, message in (
        (
            lambda: first(torch.randn(4, 2), x, 3),
            r"input..tanh: x is \[4, 2\] float32, but it takes \[batch, 3\]",
        ),
        (lambda: first(x[None], x, 3), r"x is \[1, 4, 3\] float32"),
        (lambda: first(x, x.double(), 3), r"y is \[4, 3\] float64, but it takes \[batch, 3\] float32"),
        (lambda: first(x, x[:3], 3), "y holds 3 samples, but x holds 4"),
        (lambda: first(x, x, 4), "times is 4, but the network was captured with 3"),
        (lambda: first(x[:0], x[:0], 3), "x holds 0 samples, but it takes 1 to any number"),
        (lambda: second(x, torch.randn(4, 5)), r"tanh..output: tanh is \[4, 5\] float32"),
        (lambda: second(x, "x"), r"tanh must be a tensor \[batch, 3\] float32, got str"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError):
        second(x)


def test_a_recurrent_stage_off_its_sizes_is_refused(recurrent):
    # Without guards an LSTM whose initial state is of another batch reads memory that is not its own.
    cut = next(c for c in find_cuts(recurrent) if c.name == "lstm")
    _, second = split(recurrent, [cut])
    sent = [torch.ones(p.shape(2), dtype=p.dtype) for p in second.inputs]
    second.module(*sent)
    with pytest.raises(ValueError, match="samples"):
        second.module(sent[0], *(torch.ones(p.shape(3), dtype=p.dtype) for p in second.inputs[1:]))


@pytest.mark.parametrize("index", [-1, 10_000])
def test_an_index_that_is_no_cut_is_refused(recurrent, index):
    with pytest.raises(CutError, match=f"no legal cut has index {index}"):
        split(recurrent, [index])


def test_between_a_tuple_and_its_parts_nothing_is_cut(recurrent):
    after_lstm = next(c.index for c in find_cuts(recurrent) if c.name == "lstm")
    with pytest.raises(CutError, match=f"no legal cut has index {after_lstm - 1}"):
        split(recurrent, [after_lstm - 1])


def test_a_cut_given_twice_is_refused(recurrent):
    cut = find_cuts(recurrent)[0]
    with pytest.raises(CutError, match="given twice"):
        split(recurrent, [cut, cut])


def test_stages_that_are_not_the_whole_are_found(recurrent):
    stages = split(recurrent, find_cuts(recurrent)[:1])
    with torch.no_grad():
        stages[-1].module.head.bias[0] += 1e-4
    with pytest.raises(CutError, match="the stages differ from the whole by"):
        verify(recurrent.captured, stages)
