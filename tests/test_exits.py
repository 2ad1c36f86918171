"""Cascades: divided networks, exits, heads in closed form, and what they cost on data."""

import copy

import numpy as np
import pytest
import torch
from netcarve.engine import sweep
from netcarve.evaluators import Task
from netcarve.evaluators.base import as_evaluators
from netcarve.evaluators.batchnorm import reestimate_batchnorm
from netcarve.evaluators.pool import Job
from netcarve.evaluators.quality import Quality, Reach, reached
from netcarve.spaces import trace
from netcarve.spaces.kinds.exits import Cascade, Head, confidence
from netcarve.spaces.testing import counted_costs
from torch import nn
from toys import Convs

CLASSES = 5


def seeded(cls):
    torch.manual_seed(0)
    net = cls()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
        net.out.weight.mul_(8)  # so that some samples are sure and others are not
    return net.eval()


def images(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randn(n, 2, 1, 1, generator=generator)  # without, averages are alike
    return torch.randn(n, 2, 8, 8, generator=generator) + 2 * offsets


def built(net, values=None, **options):
    """A space of exits, the cascade of some thresholds with fitted heads, and the blueprint."""
    blueprint = trace(net, images(2))
    space = blueprint.space("exits", **options)
    taken = values or {}
    candidate = space.from_values({c.name: taken.get(c.name, c.options[0]) for c in space.choices})
    return space, space.build(candidate)


def staged(net, thresholds, count=200):
    """A fitted cascade of Convs with exits after the stem and after `down`."""
    space, _ = built(
        net, exit_places=("stem", "down"), thresholds=tuple(sorted(set(thresholds), reverse=True))
    )
    cascade = space.build(space.from_values(dict(zip(("exit:stem", "exit:down"), thresholds, strict=True))))
    cascade.refit([((images(count, 7),), {})])
    return cascade


def one_by_one(cascade, x):
    """The definition: each sample by itself, stage by stage."""
    answers, depths = [], []
    for sample in x.split(1):
        for depth, stage in enumerate(cascade.stages):
            sample = stage(sample)
            if depth == len(cascade.heads):
                break
            scores = cascade.heads[depth](sample)
            if float(torch.softmax(scores, 1).max()) >= cascade.thresholds[depth]:
                sample = scores
                break
        answers.append(sample)
        depths.append(depth)
    return torch.cat(answers), depths


# -- the cascade ---------------------------------------------------------------------------------------


@pytest.mark.quick("0-thresholds0", "1-thresholds1", "33-thresholds3")
@pytest.mark.parametrize("thresholds", [(0.7, 0.75), (0.9, 0.65), (0.6, 0.9), (1.0, 0.7)])
@pytest.mark.parametrize("count", [0, 1, 2, 33])
def test_a_cascade_answers_as_each_sample_by_itself_would(thresholds, count):
    cascade = staged(seeded(Convs), thresholds)
    x = images(count, seed=3)
    with torch.no_grad(), cascade.recording():
        got = cascade(x)
        want, depths = one_by_one(cascade, x) if count else (torch.zeros(0, CLASSES), [])
        again = cascade(x)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(got, again)
    assert cascade.left == [2 * depths.count(k) for k in range(3)]


def test_samples_really_leave_at_different_depths():
    cascade = staged(seeded(Convs), (0.75, 0.65))
    with torch.no_grad(), cascade.recording():
        cascade(images(300, seed=3))
    assert min(cascade.left) > 0


def test_what_has_left_is_not_computed_further():
    cascade = staged(seeded(Convs), (0.75, 0.65))
    ran = [[], []]
    for sizes, stage in zip(ran, cascade.stages[1:], strict=True):
        stage.register_forward_pre_hook(lambda _, args, sizes=sizes: sizes.append(len(args[0])))
    with torch.no_grad(), cascade.recording():
        cascade(images(50, seed=3))
    assert ran == [[sum(cascade.left[1:])], [cascade.left[2]]]
    assert 0 < ran[1][0] < ran[0][0] < 50
    cascade.thresholds = (0.0, 0.0)
    with torch.no_grad():
        cascade(images(50, seed=3))
    assert [len(sizes) for sizes in ran] == [1, 1]  # nobody was left


def test_threshold_0_is_the_first_head_at_its_cost_and_above_1_the_network_at_the_cost_of_all():
    net, x = seeded(Convs), images(40, seed=3)
    cascade = staged(net, (0.5, 0.4))
    cascade.thresholds = (0.0, 0.0)
    with torch.no_grad(), cascade.recording():
        torch.testing.assert_close(cascade(x), cascade.heads[0](cascade.stages[0](x)))
    assert cascade.reach == [1, 0, 0]
    assert cascade.expected_macs == cascade.macs[0]
    cascade.thresholds = (1.1, 1.1)
    with torch.no_grad(), cascade.recording():
        torch.testing.assert_close(cascade(x), net(x), atol=1e-5, rtol=1e-5)
    heads = sum(h.linear.weight.numel() for h in cascade.heads)
    assert cascade.expected_macs == sum(cascade.macs) == counted_costs(net, x)["macs"] + heads


def test_expected_cost_never_falls_with_the_threshold():
    cascade, x = staged(seeded(Convs), (0.5, 0.4)), images(200, seed=3)
    costs = []
    for threshold in np.linspace(0, 1.05, 22):
        cascade.thresholds = (threshold, threshold)
        with torch.no_grad(), cascade.recording():
            cascade(x)
        costs.append(cascade.expected_macs)
    assert costs == sorted(costs)
    assert costs[0] == cascade.macs[0]
    assert len(set(costs)) > 5
    assert costs[-1] == sum(cascade.macs)


def test_numbers_that_do_not_fit_are_refused():
    stages = [nn.Linear(3, 3), nn.Linear(3, 3)]
    for args in ((stages, [], []), (stages[:1], [], []), (stages, [nn.Linear(3, 3)], [0.5, 0.4])):
        with pytest.raises(ValueError, match="a cascade of n >= 2 stages has n - 1 heads"):
            Cascade(*args)
    cascade = Cascade(stages, [nn.Linear(3, 3)], [0.5])
    with pytest.raises(ValueError, match="heads of the class Head"):
        cascade.refit([((torch.zeros(2, 3),), {})])
    with pytest.raises(ValueError, match="no sample has run"):
        _ = cascade.reach


def test_a_cascade_of_any_modules():
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Linear(4, 6), nn.ReLU()),
        nn.Sequential(nn.Linear(6, 6), nn.ReLU()),
        nn.Linear(6, 3),
    ]
    cascade = Cascade(stages, [Head(6, 1, (), 3), Head(6, 1, (), 3)], [0.5, 0.4]).eval()
    x = torch.randn(60, 4)
    cascade.refit([((x,), {})])
    with torch.no_grad():
        torch.testing.assert_close(cascade(x), one_by_one(cascade, x)[0])
    assert cascade.macs == (24 + 18, 36 + 18, 18)


# -- states of the module ------------------------------------------------------------------------------


def test_nothing_leaves_before_the_heads_are_fitted_nor_in_training():
    net, x = seeded(Convs), images(9)
    _, cascade = built(net, {"exit:stem": 0.0}, exit_places=("stem",), thresholds=(0.0,))
    with torch.no_grad():
        torch.testing.assert_close(cascade(x), net(x))
        cascade.refit([((images(64, 7),), {})])
        assert not torch.allclose(cascade(x), net(x))
        torch.testing.assert_close(copy.deepcopy(cascade).train()(x), copy.deepcopy(net).train()(x))
    cascade.train()(x).sum().backward()
    assert all(p.grad is not None for s in cascade.stages for p in s.parameters())


def test_batch_norms_are_reestimated_on_all_samples_also_with_fitted_heads():
    net, batches = seeded(Convs), [((images(40, 5),), {}), ((images(24, 6),), {})]
    cascade = staged(net, (0.0, 0.0))
    reestimate_batchnorm(cascade, batches)
    reestimate_batchnorm(net, batches)
    found = {
        k.partition(".")[2].partition(".")[2]: v for k, v in cascade.state_dict().items() if "running" in k
    }
    assert found
    for name, value in found.items():
        torch.testing.assert_close(value, net.state_dict()[name], msg=name)


@pytest.mark.quick("False")
@pytest.mark.parametrize("fitted", [True, False])
def test_the_exported_program_selects_the_same_answers(fitted):
    cascade = staged(seeded(Convs), (0.75, 0.65))
    cascade.fitted.fill_(fitted)
    program = torch.export.export(
        cascade, (images(4),), dynamic_shapes={"args": ({0: torch.export.Dim("batch")},)}
    )
    with torch.no_grad():
        for n in (1, 57):
            torch.testing.assert_close(
                program.module()(images(n, 3)), cascade(images(n, 3)), atol=1e-5, rtol=1e-5
            )


# -- the kind ------------------------------------------------------------------------------------------


def test_a_cascade_of_a_pruned_network_has_its_answers_and_costs():
    net = seeded(Convs)
    blueprint = trace(net, images(2))
    batches = [((images(64, 7),), {})]
    space = blueprint.space(
        "prune", "exits", ratios=[0, 0.5], calibration=batches, exit_places=("stem", "down")
    )
    values = {c.name: c.options[-1] for c in space.choices}
    cascade = space.build(space.from_values(values))
    plain = space.build(space.from_values({**values, "exit:stem": "none", "exit:down": "none"}))
    x = images(20, 3)
    with torch.no_grad():
        torch.testing.assert_close(cascade(x), plain(x))  # not fitted yet: nothing leaves
    cascade.refit(batches)
    costs = {k: float(v[0]) for k, v in space.cost_arrays([space.from_values(values)]).items()}
    assert "macs" not in costs
    assert "flops" not in costs
    assert costs["params"] == sum(p.numel() for p in cascade.parameters())
    heads = sum(h.linear.weight.numel() for h in cascade.heads)
    assert sum(cascade.macs) == counted_costs(plain, x)["macs"] + heads
    with torch.no_grad():
        torch.testing.assert_close(cascade(x), one_by_one(cascade, x)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exits": 0}, "exits must be at least 1"),
        ({"thresholds": (0.5, 0.9)}, "the highest first"),
        ({"thresholds": ()}, "the highest first"),
        ({"thresholds": (1.5,)}, r"in \[0, 1\]"),
        ({"exit_places": ("nowhere",)}, "cannot be after 'nowhere'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trace(seeded(Convs), images(2)).space("exits", **options)


class Two(Convs):
    def forward(self, x):
        return super().forward(x), x


class Map(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.out(self.a(x))


class Counting(Convs):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(1)
        return super().forward(x)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Two, "returns 2 values"),
        (Map, "returns a tensor"),
        (Counting, "state between calls: .* writes on seen"),
    ],
)
def test_networks_that_can_have_no_exits_say_why(cls, message):
    with pytest.raises(ValueError, match=f"this network can have no exits: it .*{message}"):
        trace(seeded(cls), images(2)).space("exits")


def test_a_fixed_batch_cannot_be_divided():
    class Fixed(Convs):
        def forward(self, x):
            return super().forward(x.reshape(2, 2, 8, 8))

    with pytest.raises(ValueError, match="batch length is fixed"):
        trace(seeded(Fixed), images(2)).space("exits")


# -- scores --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task():
    net, x = seeded(Convs), images(120, 11)
    with torch.no_grad():
        y = net(x).argmax(1)
    return Task(net, images(1), (x, y), calibration=images(100, 7), name="convs")


def test_macs_are_what_the_validation_samples_needed(task):
    space = trace(task.model, task.example).space(
        "exits", exit_places=("stem", "down"), thresholds=(0.7,), calibration=task.calibration_batches
    )
    job = Job(task, space, reached(space, [Quality()]))
    candidate = space.from_values({"exit:stem": 0.7, "exit:down": 0.7})
    outcome = job.evaluate(1, candidate)
    assert outcome.error is None, outcome.error
    model = job.build(candidate)
    depths, right = [], 0
    with torch.no_grad():
        for args, _, y in task.batches:
            scores, depth = one_by_one(model, *args)
            depths += depth
            right += int((scores.argmax(1) == y).sum())
    want = sum(sum(model.macs[: d + 1]) for d in depths) / len(depths)
    assert outcome.scores["macs"] == pytest.approx(want, rel=1e-9)
    assert outcome.scores["flops"] == 2 * outcome.scores["macs"]
    assert outcome.scores["accuracy"] == pytest.approx(right / len(depths))
    shares = [depths.count(k) / len(depths) for k in range(3)]
    assert list(outcome.detail["exits"].values()) == pytest.approx(shares)
    assert list(outcome.detail["exits"]) == ["stem", "down", "end"]
    base = job.evaluate(0, space.baseline)
    assert base.scores["macs"] == counted_costs(task.model, images(2))["macs"]


def test_evaluators_are_left_alone_where_nothing_is_measured(task):
    blueprint = trace(task.model, task.example)
    scorers = [Quality()]
    assert reached(blueprint.space("prune"), scorers) == scorers
    made = reached(blueprint.space("exits"), as_evaluators([lambda task, model, candidate: {"x": 1.0}]))
    assert isinstance(made[-1], Reach)
    assert made[-1].metrics == ("macs", "flops")


def test_a_sweep_finds_cheaper_networks_and_keeps_them(task, tmp_path):
    space = trace(task.model, task.example).space(
        "prune", "exits", exit_places=("stem", "down"), ratios=2, calibration=task.calibration_batches
    )
    run = sweep(
        task, space, "random", ["accuracy", "macs"], ["macs<=1.0x"], 8, workers=0, out=tmp_path / "run"
    )
    assert all(t.error is None for t in run.trials)
    cascades = [t for t in run.trials if "exits" in t.detail]
    assert cascades
    for t in cascades:
        assert sum(t.detail["exits"].values()) == pytest.approx(1)
    assert "exit:stem" in run.show(cascades[0].number)
    model = run.model(cascades[0].number)
    assert isinstance(model, Cascade)
    assert bool(model.fitted)
    with torch.no_grad():
        assert confidence(model(images(3))).shape == (3,)
