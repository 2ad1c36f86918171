"""One resident network instead of many built ones: the same outputs, and nothing leaks between candidates."""

import copy
import gc
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from netcarve import Task, trace
from netcarve.evaluators.accuracy import Quality
from netcarve.evaluators.batchnorm import reestimate_batchnorm
from netcarve.evaluators.pool import Job
from netcarve.spaces.elastic_storage import Storage, Widths
from torch import nn
from torch.nn.utils import prune


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


class Words(nn.Module):
    """A transformer block with its projections in one matrix."""

    def __init__(self, d=8, heads=4):
        super().__init__()
        self.heads, self.embed = heads, nn.Embedding(11, d)
        self.norm, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.GELU(), nn.Linear(3 * d, d))
        self.head = nn.Linear(d, 4)

    def forward(self, tokens):
        x = self.embed(tokens)
        b, t = tokens.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1)
        x = x + self.out(y)
        return self.head((x + self.mlp(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(8, 4)
        self.rnn = nn.LSTM(6, 8, batch_first=True)

    def forward(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[0][:, -1])


def _spread(net):
    """Fresh statistics would make normalisation an identity."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for p in (m.running_mean, m.weight, m.bias):
                nn.init.uniform_(p, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 2.0)


def pictures(n=5):
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(n))


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
    st.builds(lambda make: (make(), tokens()), st.sampled_from((Words, Recurrent))),
)


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.generate),
)
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
    assert elastic._storage is not None
    assert same(before, {k: v.to(before[k].dtype) for k, v in net.state_dict().items()})


@pytest.mark.parametrize("graph", [False, True])
def test_weights_are_views_and_integers_follow(graph):
    net = Images(["residual", "depthwise"])
    space = space_of(net, pictures(), graph=graph)
    elastic = elastic_of(space)
    for c in space.sample(np.random.default_rng(0), 5):
        small, built = elastic.switch(c), space.build(c)
        store = elastic._storage._store.untyped_storage().data_ptr()
        for name, p in small.named_parameters():
            assert (p.untyped_storage().data_ptr() == store) == (p.dim() > 1), name
        for a, b in zip(small.modules(), built.modules(), strict=True):
            for k in ("in_channels", "out_channels", "groups", "num_features", "in_features"):
                assert getattr(a, k, None) == getattr(b, k, None)
    code = small.code if graph else ""
    assert elastic.switch(space.baseline) is small
    assert not graph or small.code == code


def test_what_did_not_change_is_left_alone():
    space = space_of(Words(), tokens())
    elastic = elastic_of(space)
    first = elastic.switch(space.candidate([1] * len(space)))
    at = {n: p.data_ptr() for n, p in first.named_parameters()}
    weight = elastic._resident.holders["mlp.1.weight"]
    version = weight.data
    elastic.switch(space.candidate([1] * len(space)))
    assert at == {n: p.data_ptr() for n, p in first.named_parameters()}
    assert version.shape == weight.shape


# -- borrowers that misbehave ----------------------------------------------------------------------------


def _noise(model, x):
    for p in model.parameters():
        p.data.add_(1.0)


def _shuffle(model, x):
    model.stem.weight.data.copy_(model.stem.weight.data.flip(0))


def _train(model, x):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(x).square().sum().backward()
    optimizer.step()


def _hook(model, x):
    for m in model.modules():
        m.register_forward_hook(lambda m, i, o: o + 1.0)
        m.register_forward_pre_hook(lambda m, i: None)


def _freeze(model, x):
    for p in model.parameters():
        p.requires_grad_(False)
    model.stem.weight.requires_grad_(True).register_hook(lambda g: g * 2)


def _replace(model, x):
    model.head = nn.Identity()
    model.cells[0].first.padding = (0, 0)
    model.extra = nn.Linear(2, 2)
    del model.stem.bias


def _half(model, x):
    model.to(torch.bfloat16)


def _swap(model, x):
    model.stem.weight = nn.Parameter(torch.zeros_like(model.stem.weight))
    model.head.weight.data = torch.zeros(7, 7)


def _parametrize(model, x):
    nn.utils.parametrizations.weight_norm(model.stem)
    prune.custom_from_mask(model.head, "weight", torch.zeros_like(model.head.weight))


def _fail(model, x):
    model.stem.weight.data.zero_()
    raise ZeroDivisionError


DEEDS = (_noise, _shuffle, _train, _hook, _freeze, _replace, _half, _swap, _parametrize, _fail)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("deed", DEEDS)
def test_what_a_borrower_does_is_undone(deed, copies):
    x = pictures()
    space = space_of(Images(["residual", "concat"]), x)
    elastic = elastic_of(space)
    candidates = space.sample(np.random.default_rng(3), 4)
    fresh = [state(elastic.switch(c)) for c in candidates]
    outputs = [elastic.switch(c)(x).detach() for c in candidates]
    store = elastic._storage._store.clone()
    calls = [0]
    for i, c in enumerate(candidates):
        try:
            with elastic.lend(c, copies=copies) as model:
                assert elastic.free is False
                with pytest.raises(RuntimeError, match="in use"), elastic.lend(c):
                    pass
                reestimate_batchnorm(model, [((x,), {})])
                deed(model, x)
                calls[0] += 1
        except ZeroDivisionError:
            pass
        after = elastic.switch(candidates[i - 1])
        assert torch.equal(elastic._storage._store, store)
        assert same(state(after), fresh[i - 1])
        assert torch.equal(after(x), outputs[i - 1])
        assert all(p.requires_grad and p.grad is None and not p._backward_hooks for p in after.parameters())
        assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in after.modules())
    assert elastic.free
    assert (calls[0] == 4) == (deed is not _fail)
    assert same(state(elastic.switch(space.baseline, copies=True)), state(space.build(space.baseline)))


def test_statistics_are_estimated_from_the_original_ones_each_time():
    x = pictures()
    for graph in (False, True):
        space = space_of(Images(["residual", "depthwise"]), x, graph=graph)
        elastic = elastic_of(space)
        for c in [*space.sample(np.random.default_rng(0), 3)] * 2:
            built = space.build(c)
            reestimate_batchnorm(built, [((x,), {})] * 2)
            small = elastic.switch(c)
            reestimate_batchnorm(small, [((x,), {})] * 2)
            assert off(small(x), built(x)) < 1e-5
            counters = [v for k, v in small.state_dict().items() if "num_batches" in k]
            assert graph or {int(v) for v in counters} == {2}


# -- scoring ---------------------------------------------------------------------------------------------


def task():
    x = pictures(60)
    return Task(Images(["residual", "concat"]), x[:4], (x, torch.arange(60) % 4), calibration=x)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("repair", [None, "once", True])
def test_scores_are_those_of_the_built_network(graph, repair):
    job_task = task()
    options = {} if repair is None else {"calibration": job_task.calibration_batches, "repair": repair}
    space = space_of(job_task.model, pictures(4), graph=graph, **options)
    job = Job(job_task, space, (Quality(),))
    for c in [space.baseline, *space.sample(np.random.default_rng(1), 5)]:
        expected = Quality()(job_task, job.build(c), c)
        got = job.evaluate(0, c)
        assert got.error is None
        if repair is None:
            assert got.scores == pytest.approx(expected, rel=1e-6)
        else:
            assert got.scores == expected
    assert space.model._elastic is not None


def test_a_job_builds_what_it_cannot_switch():
    job_task = task()
    blueprint = trace(job_task.model, pictures(4))
    space = blueprint.space("prune", "drop", ratios=2)
    seen = []

    def look(task, model, candidate):
        seen.append((id(model), len(list(model.modules()))))
        return {"n": 1.0}

    job = Job(job_task, space, (look,))
    drop = next(i for i, c in enumerate(space.choices) if c.name.startswith("drop"))
    dropped = space.candidate([int(i == drop) for i in range(len(space))])
    kept = space.candidate([0] * len(space))
    elastic = elastic_of(space)
    assert elastic.switches(kept)
    assert not elastic.switches(dropped)
    with pytest.raises(ValueError, match="build it"):
        elastic.switch(dropped)
    for c in (kept, dropped, kept):
        assert job.evaluate(0, c).error is None
    resident = id(elastic._resident.module)
    assert [i == resident for i, _ in seen] == [True, False, True]
    assert seen[1][1] < seen[0][1]

    look.lane = True
    assert job.evaluate(0, kept).error is None
    assert seen[-1][0] != resident


def test_strangers_get_weights_of_their_own():
    job_task = task()
    space = space_of(job_task.model, pictures(4))
    c = space.sample(np.random.default_rng(0), 1)[0]
    built = space.build(c)
    reestimate_batchnorm(built, job_task.calibration_batches)
    expected = state(built)

    def clip(task, model, candidate):
        assert same(state(model), expected)
        flat = torch.cat([p.view(-1) for p in model.parameters()])  # needs contiguous weights
        for p in model.parameters():
            p.data.clamp_(-0.01, 0.01)
        return {"n": float(flat.numel())}

    for evaluators in ((clip,), (Quality(), clip)):
        outcomes = [Job(job_task, space, evaluators).evaluate(0, c) for _ in range(2)]
        assert outcomes[0].error is None
        assert outcomes[0].scores == outcomes[1].scores
    assert "_storage" not in elastic_of(space).__dict__  # nothing was sorted


def test_scoring_within_scoring_builds():
    job_task = task()
    space = space_of(job_task.model, pictures(4))
    job = Job(job_task, space, (Quality(),))

    def nested(task, model, candidate):
        before = state(model)
        inner = job.evaluate(1, space.baseline).scores
        assert same(before, state(model))
        return {f"inner_{k}": v for k, v in inner.items()}

    c = space.candidate([len(choice) - 1 for choice in space.choices])
    outcome = Job(job_task, space, (nested, Quality())).evaluate(0, c)
    assert outcome.error is None
    assert outcome.scores["inner_loss"] == pytest.approx(job.evaluate(0, space.baseline).scores["loss"])
    assert outcome.scores["loss"] == job.evaluate(0, c).scores["loss"]


def test_the_resident_network_stays_at_home():
    space = space_of(Images(["residual"]), pictures())
    elastic_of(space).switch(space.baseline)
    there = copy.deepcopy(space)
    assert there.model._elastic is None
    c = space.candidate([1] * len(space))
    assert torch.equal(elastic_of(there).switch(c)(pictures()), elastic_of(space).switch(c)(pictures()))


def test_without_proof_that_sorting_is_harmless_weights_are_copied():
    space = space_of(Images(["grouped"]), pictures())
    elastic = elastic_of(space)
    wrong = {g: np.roll(o, 1) for g, o in elastic._orders.items()}
    assert elastic._storage is not None

    class Unsound(Storage):
        """Sorts the units of one layer alone."""

        def _ordered(self, name):
            tensor = super()._ordered(name)
            return tensor.flip(0) if name == "cells.0.second.weight" else tensor

    import netcarve.spaces.elastic as module

    original, module.Storage = module.Storage, Unsound
    try:
        other = copy.deepcopy(space)
        unsound = elastic_of(other)
        assert unsound._storage is None
        c = space.candidate([1] * len(space))
        assert torch.equal(unsound.switch(c)(pictures()), space.build(c)(pictures()))
    finally:
        module.Storage = original
    assert wrong


def test_widths_count_what_is_kept():
    blueprint = trace(Words(), tokens())
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
        assert widths.lengths(kept) == counts
        for i, v in enumerate(widths.vectors):
            assert not widths.is_prefix(v) or alive[v][: counts[i]].all()
        if before is not None:
            touched = widths.touched(kept, before)
            was = widths.leading(before)
            assert all(t or (alive[v] == was[v]).all() for t, v in zip(touched, widths.vectors, strict=True))
        before = kept


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
    work(600 if how == "build" else 3000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    assert grown < 60_000  # bytes; the smallest leak, one empty dict a candidate, would be more
    assert held() == before
