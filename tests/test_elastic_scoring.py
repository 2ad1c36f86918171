"""Scoring on the resident network: the scores are those of built ones, and borrowers leave no trace."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from netcarve import Task, trace
from netcarve.evaluators.batchnorm import reestimate_batchnorm, reestimate_if_better
from netcarve.evaluators.pool import Job
from netcarve.evaluators.quality import Quality
from torch import nn
from torch.nn.utils import prune


class Cell(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.first, self.norm = nn.Conv2d(c, 2 * c, 3, padding=1), nn.BatchNorm2d(2 * c)
        self.second = nn.Conv2d(2 * c, c, 1)

    def forward(self, x):
        return x + self.second(torch.relu(self.norm(self.first(x))))


class Images(nn.Module):
    """A residual cell, and a concatenation whose parts are cut each by itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.cells = nn.Conv2d(2, 6, 3, padding=1), nn.Sequential(Cell(6))
        self.more, self.head = nn.Conv2d(6, 3, 1), nn.Linear(9, 4)

    def forward(self, x):
        x = self.cells(torch.relu(self.stem(x)))
        return self.head(torch.cat([x, self.more(x)], 1).mean((2, 3)))


def pictures(n=5):
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(n))


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


@pytest.mark.slow
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("deed", DEEDS)
def test_what_a_borrower_does_is_undone(deed, copies):
    x = pictures()
    space = space_of(Images(), x)
    elastic = elastic_of(space)
    candidates = space.sample(np.random.default_rng(3), 4)
    fresh = [state(elastic.switch(c)) for c in candidates]
    outputs = [elastic.switch(c)(x).detach() for c in candidates]
    store = elastic.network._storage._store.clone()
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
        assert torch.equal(elastic.network._storage._store, store)
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
        space = space_of(Images(), x, graph=graph)
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
    return Task(Images(), x[:4], (x, torch.arange(60) % 4), calibration=x)


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
    assert space.model._switch is not None


def test_a_switch_repairs_as_it_is_asked_to():
    job_task = task()
    space = space_of(job_task.model, pictures(4), calibration=job_task.calibration_batches)
    elastic = elastic_of(space)
    c = space.candidate([1] * len(space))
    weights = []
    for repair in (None, "once", False, True):
        built, small = space.build(c, repair=repair), elastic.switch(c, repair=repair)
        assert off(small(pictures()), built(pictures())) < (1e-5 if repair is False else 1e-12)
        weights.append(state(small)["more.weight"].sum())
    assert weights[0] == weights[3]
    assert len({float(w) for w in weights}) == 3


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
    kept = space.candidate([int(not c.name.startswith("drop")) for c in space.choices])
    elastic = elastic_of(space)
    assert elastic.switches(kept)
    assert not elastic.switches(dropped)
    with pytest.raises(ValueError, match="build it"):
        elastic.switch(dropped)
    for c in (kept, dropped, kept):
        assert job.evaluate(0, c).error is None
    resident = id(elastic.network._resident.module)
    assert [i == resident for i, _ in seen] == [True, False, True]
    assert seen[1][1] < seen[0][1]

    look.lane = True  # asked once, where a job is made
    assert Job(job_task, space, (look,)).evaluate(0, kept).error is None
    assert seen[-1][0] != resident


def test_strangers_get_weights_of_their_own():
    job_task = task()
    space = space_of(job_task.model, pictures(4))
    c = space.sample(np.random.default_rng(0), 1)[0]
    built = space.build(c)
    reestimate_if_better(built, job_task)
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
