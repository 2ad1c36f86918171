"""One resident network instead of many built ones: the same outputs, and nothing leaks between candidates."""

import copy
import gc
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import trace
from netcarve.model.elastic_storage import Storage, Widths
from torch import nn
from toys import Recurrent, Words


class Cell(nn.Module):
    """One of several kinds of block on feature maps of ``c`` channels."""

    def __init__(self, kind, c):
        super().__init__()
        kind = "residual" if kind == "grouped" and c % 2 else kind
        groups = {"depthwise": c, "grouped": 2}.get(kind, 1)
        self.kind, self.out_channels = kind, c + 3 if kind == "concat" else c
        self.first = nn.Conv2d(c, 3 if kind == "concat" else c, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm2d(self.first.out_channels)
        self.second = nn.Conv2d(self.first.out_channels, c, 1) if kind != "concat" else nn.Identity()

    def forward(self, x):
        y = self.first(x)
        if self.kind == "grouped":  # a channel shuffle
            b, c, h, w = y.shape
            y = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        y = self.second(torch.relu(self.norm(y)))
        return torch.cat([x, y], 1) if self.kind == "concat" else x + y


class Images(nn.Module):
    def __init__(self, kinds, flatten=False):
        super().__init__()
        cells, c = [], 6
        for kind in kinds:
            cells.append(Cell(kind, c))
            c = cells[-1].out_channels
        self.stem, self.cells = nn.Conv2d(2, 6, 3, padding=1), nn.Sequential(*cells)
        self.flatten, self.head = flatten, nn.Linear(c * (16 if flatten else 1), 4)
        _spread(self)

    def forward(self, x):
        x = self.cells(torch.relu(self.stem(x)))
        return self.head(x.flatten(1) if self.flatten else x.mean((2, 3)))


def _spread(net):
    """Fresh statistics would make normalisation an identity."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for p in (m.running_mean, m.weight, m.bias):
                nn.init.uniform_(p, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 2.0)


def pictures(n=5):
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(n))


def words():
    return Words(11, 8, 4)


def recurrent():
    return Recurrent(nn.LSTM, 6, 8, 4, nn.Embedding(11, 6))


def tokens(n=5):
    return torch.randint(11, (n, 7), generator=torch.Generator().manual_seed(n))


def space_of(net, x, *, graph=False, **options):
    blueprint = trace(net, x)
    if graph:
        blueprint._proof = replace(blueprint.prove(), own=False)
    return blueprint.space("prune", importance="l2", ratios=5, **options)


def elastic_of(space):
    return space.model.elastic(space.choices)


def off(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


nets = st.one_of(
    st.builds(
        lambda kinds, flatten: (Images(kinds, flatten), pictures()),
        st.lists(st.sampled_from(("residual", "depthwise", "grouped", "concat")), min_size=1, max_size=4),
        st.booleans(),
    ),
    st.builds(lambda make: (make(), tokens()), st.sampled_from((words, recurrent))),
)


@settings(settings.get_profile("networks"), derandomize=True)
@given(nets, st.integers(0, 999), st.booleans())
def test_switched_outputs_equal_built_ones(made, seed, graph):
    net, x = made
    torch.manual_seed(seed)
    for p in net.parameters():
        nn.init.uniform_(p.data, -0.7, 0.7)
    before = state(net)
    space = space_of(net.double(), x if x.dtype is torch.long else x.double(), graph=graph)
    x = x if x.dtype is torch.long else x.double()
    elastic = elastic_of(space)
    candidates = space.sample(np.random.default_rng(seed), 8)
    candidates += [space.baseline, *space.neighbours(candidates[-1])[:3], candidates[0]]
    modules = set()
    with torch.no_grad():
        for c in candidates:
            small, built = elastic.switch(c), space.build(c)
            modules.add(id(small))
            assert not small.training
            assert off(small(x), built(x)) < 1e-10
            assert {k: v.shape for k, v in small.state_dict().items()} == {
                k: v.shape for k, v in built.state_dict().items()
            }
            assert off(elastic.switch(c, copies=True)(x), built(x)) == 0
    assert len(modules) == 1
    assert elastic.network._storage is not None
    assert same(before, {k: v.to(before[k].dtype) for k, v in net.state_dict().items()})


@pytest.mark.quick("True")
@pytest.mark.parametrize("graph", [False, True])
def test_weights_are_views_and_integers_follow(graph):
    net = Images(["residual", "depthwise"])
    space = space_of(net, pictures(), graph=graph)
    elastic = elastic_of(space)
    changed = [c for c in space.sample(np.random.default_rng(0), 6) if not space.model.unchanged(c)]
    for c in changed:  # the unchanged one is built as a copy of the given module
        small, built = elastic.switch(c), space.build(c)
        store = elastic.network._storage._store.untyped_storage().data_ptr()
        for name, p in small.named_parameters():
            assert (p.untyped_storage().data_ptr() == store) == (p.dim() > 1), name
        for a, b in zip(small.modules(), built.modules(), strict=True):
            for k in ("in_channels", "out_channels", "groups", "num_features", "in_features"):
                assert getattr(a, k, None) == getattr(b, k, None)
    code = small.code if graph else ""
    assert elastic.switch(space.baseline) is small
    assert not graph or small.code == code


def test_the_resident_network_stays_at_home():
    space = space_of(Images(["residual"]), pictures())
    elastic_of(space).switch(space.baseline)
    there = copy.deepcopy(space)
    assert there.model._switch is None
    c = space.candidate([1] * len(space))
    assert torch.equal(elastic_of(there).switch(c)(pictures()), elastic_of(space).switch(c)(pictures()))


class Middle(nn.Module):
    """Writes on a slice in the middle, whose bounds count some units of a group and not others."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 3, 1)
        _spread(self)

    def forward(self, x):
        x = self.stem(x).clone()
        x[:, 2:5].mul_(0.5)
        a, b = x.chunk(2, 1)
        return self.head(self.norm(torch.cat([a * b, a], 1)))


class Remembering(nn.Module):
    """Computes a table at the first call in eval mode, and keeps it."""

    def __init__(self):
        super().__init__()
        self.stem, self.scale, self.head = nn.Linear(5, 8), nn.Parameter(torch.rand(8)), nn.Linear(8, 3)
        self.kept = {}

    def forward(self, x):
        if torch.compiler.is_exporting():
            return self.head(torch.relu(self.stem(x)) * self.scale.exp())
        if "table" not in self.kept:
            self.kept["table"] = self.scale.exp()
        return self.head(torch.relu(self.stem(x)) * self.kept["table"])


@pytest.mark.quick("True")
@pytest.mark.parametrize("copies", [False, True])
def test_bounds_of_a_slice_follow_the_units_that_stay(copies):
    x = pictures()
    space = space_of(Middle(), x)
    elastic = elastic_of(space)
    assert len(space) == 2
    for c in space.sample(np.random.default_rng(0), 30):
        with elastic.lend(c, copies=copies) as switched:
            torch.testing.assert_close(switched(x), space.build(c)(x))
    assert copies or elastic.network._storage is not None


def test_what_a_module_remembers_is_not_handed_to_the_next_candidate():
    torch.manual_seed(0)
    x = torch.randn(4, 5)
    space = space_of(Remembering(), x)
    elastic = elastic_of(space)
    for c in space.sample(np.random.default_rng(0), 5):
        with elastic.lend(c) as switched:
            torch.testing.assert_close(switched(x), space.build(c)(x))
    assert elastic.network._storage is not None


class Unsound(Storage):
    """Sorts the units of one layer alone."""

    def _ordered(self, name):
        tensor = super()._ordered(name)
        return tensor.flip(0) if name == "cells.0.second.weight" else tensor


def test_weights_are_copied_where_sorting_would_change_the_outputs(monkeypatch):
    monkeypatch.setattr("netcarve.model.elastic.Storage", Unsound)
    space = space_of(Images(["residual"]), pictures())
    elastic = elastic_of(space)
    c = space.candidate([1] * len(space))
    assert torch.equal(elastic.switch(c)(pictures()), space.build(c)(pictures()))
    assert elastic.network._storage is None


def test_widths_count_what_is_kept():
    blueprint = trace(words(), tokens())
    coupling = blueprint.coupling
    widths = Widths(
        coupling.units, coupling.groups, [v for axes in coupling.parameters.values() for v in axes]
    )
    rng = np.random.default_rng(0)
    before = None
    for _ in range(20):
        kept = np.array([rng.integers(1, g.size + 1) for g in coupling.groups])
        alive = widths.leading(kept)
        counts = [int(alive[v].sum()) for v in widths.vectors]
        assert widths.lengths(kept, alive) == counts
        for i, v in enumerate(widths.vectors):
            assert not widths.is_prefix(v) or alive[v][: counts[i]].all()
        if before is not None:
            touched = widths.touched(kept, before)
            was = widths.leading(before)
            assert all(t or (alive[v] == was[v]).all() for t, v in zip(touched, widths.vectors, strict=True))
        before = kept


@pytest.mark.slow
@pytest.mark.parametrize("how", ["switch", "lend", "build"])
def test_memory_does_not_grow(how):
    x = pictures()
    space = space_of(Images(["residual", "concat"]), x)
    elastic = elastic_of(space)
    candidates = space.sample(np.random.default_rng(0), 40)

    def work(times):
        for i in range(times):
            c = candidates[i % len(candidates)]
            if how == "switch":
                elastic.switch(c)
            elif how == "lend":
                with elastic.lend(c):
                    pass
            else:
                space.build(c)

    def held():
        gc.collect()
        tensors = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
        return len(tensors), sum(t.numel() for t in tensors)

    work(80)
    before = held()
    tracemalloc.start()
    work(200)
    gc.collect()
    start = tracemalloc.get_traced_memory()[0]
    work(600 if how == "build" else 2000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    assert grown < 60_000  # bytes; the smallest leak, one empty dict a candidate, would be more
    assert held() == before
