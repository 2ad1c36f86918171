"""Branches: classes and units in balanced sets, independence, exact costs, and repair without training."""

import numpy as np
import pytest
import torch
from netcarve.engine import sweep
from netcarve.evaluators import Task
from netcarve.evaluators.finetuning import finetune
from netcarve.evaluators.pool import Job
from netcarve.evaluators.quality import Quality
from netcarve.model.captured_module import CapturedModule
from netcarve.spaces import trace
from netcarve.spaces.kinds.branches import Branches, assign, cluster_classes, energies, retained
from netcarve.spaces.kinds.branches.assignment import shares
from netcarve.spaces.testing import counted_costs
from torch import nn
from toys import BasicBlock

CLASSES = 6


class Convs(nn.Module):
    """A stem, two strided stages with a residual block each, and a linear end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.stage1 = nn.Sequential(
            nn.Conv2d(8, 9, 3, 2, 1), nn.BatchNorm2d(9), nn.ReLU(inplace=True), BasicBlock(9, 9, inplace=True)
        )
        self.stage2 = nn.Sequential(
            nn.Conv2d(9, 14, 3, 2, 1), nn.BatchNorm2d(14), nn.ReLU(), BasicBlock(14, 14, inplace=True)
        )
        self.out = nn.Linear(14, CLASSES)

    def forward(self, x):
        return self.out(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


class Perceptron(nn.Module):
    def __init__(self, hidden=12):
        super().__init__()
        self.trunk = nn.Linear(5, 7)
        self.first, self.second = nn.Linear(7, hidden), nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, CLASSES)

    def forward(self, x):
        x = torch.relu(self.first(torch.relu(self.trunk(x))))
        return self.out(torch.relu(self.second(x)))


def seeded(cls):
    torch.manual_seed(0)
    return cls().eval()


def images(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=generator) + 2 * torch.randn(n, 1, 1, 1, generator=generator)


def branched(net, x, number, *kinds, values=None, **options):
    space = trace(net, x).space("branches", *kinds, **options)
    taken = {c.name: (values or {}).get(c.name.partition(":")[0], c.options[0]) for c in space.choices}
    name = next(n for n in taken if n.startswith("branches:"))
    candidate = space.from_values({**taken, name: number})
    return space, candidate, space.build(candidate)


def planted(parts, sizes=(12, 12), permute=True, seed=0):
    """A perceptron whose tail falls apart: hidden units and classes of hidden sets see only their own."""
    net = seeded(Perceptron)
    rng = np.random.default_rng(seed)
    owners = [np.arange(n) % parts for n in (*sizes, CLASSES)]
    if permute:
        owners = [rng.permutation(o) for o in owners]
    with torch.no_grad():
        for layer, rows, columns in ((net.second, owners[1], owners[0]), (net.out, owners[2], owners[1])):
            layer.weight.mul_(torch.from_numpy(rows[:, None] == columns))
    return net, owners


# -- units ---------------------------------------------------------------------------------------------


def parted(net, x):
    blueprint = trace(net, x)
    blueprint.prove()
    coupling = blueprint.coupling
    groups = [g for g in coupling.groups if g.name in ("first", "second")]
    return coupling, groups, energies(groups, coupling, blueprint.surgeon.tensors, "out.weight")


@pytest.mark.parametrize("parts", [2, 3])
def test_planted_units_are_found_and_all_energy_stays(parts):
    net, owners = planted(parts)
    coupling, groups, found = parted(net, torch.randn(4, 5))
    classes = [np.flatnonzero(owners[2] == k).tolist() for k in range(parts)]
    owner = assign(groups, np.ones(coupling.units + 1, dtype=bool), found, classes)
    for group, planted_owner in zip(groups, owners[:2], strict=True):
        assert owner[group.labels].tolist() == planted_owner.tolist()
    assert retained(found, owner, classes) == pytest.approx(1)


def test_units_are_divided_evenly_and_better_than_at_random():
    coupling, groups, found = parted(seeded(Perceptron), torch.randn(4, 5))
    classes = [(0, 1), (2, 3), (4, 5)]
    alive = np.ones(coupling.units + 1, dtype=bool)
    alive[groups[0].labels[:2]] = False  # pruned: 10 of 12 stay
    owner = assign(groups, alive, found, classes)
    counts = [[int((owner[g.labels] == k).sum()) for k in range(-1, 3)] for g in groups]
    assert [sorted(c[1:]) for c in counts] == [[3, 3, 4], [4, 4, 4]]
    assert counts[0][0] == 2
    rng = np.random.default_rng(0)
    for _ in range(50):
        other = owner.copy()
        for g in groups:
            labels = g.labels[owner[g.labels] >= 0]
            other[labels] = rng.permutation(owner[labels])
        assert retained(found, other, classes) <= retained(found, owner, classes)


def test_groups_too_small_to_divide_are_shared():
    coupling, groups, found = parted(seeded(Perceptron), torch.randn(4, 5))
    alive = np.ones(coupling.units + 1, dtype=bool)
    alive[groups[0].labels[2:]] = False
    owner = assign(groups, alive, found, [(0, 1), (2, 3), (4, 5)])
    assert (owner[groups[0].labels] == -1).all()
    assert (owner[groups[1].labels] >= 0).all()
    assert shares(7, 3) == [3, 2, 2]


# -- the module ----------------------------------------------------------------------------------------


def test_a_network_that_falls_apart_is_its_branches():
    for parts in (2, 3):
        net, owners = planted(parts)
        x = torch.randn(9, 5)
        space, _, made = branched(net, x, parts, branches=(1, parts), branch_place="trunk")
        classes = sorted(tuple(np.flatnonzero(owners[2] == k).tolist()) for k in range(parts))
        if list(made.classes) != classes:  # classes that the last layer's rows tell apart
            about = space.choices[0].about
            about.classes[parts] = tuple(classes)
            made = space.build(space.candidate((1,)))
        with torch.no_grad():
            torch.testing.assert_close(made(x), net(x))


def test_branches_exchange_nothing():
    _, _, made = branched(seeded(Convs), images(4), 3, branches=(1, 3), branch_place="stem")
    for k, members in enumerate(made.classes):
        made.zero_grad()
        made(images(4))[:, list(members)].square().sum().backward()
        for other, branch in enumerate(made.branches):
            grads = [p.grad for p in branch.parameters()]
            if other == k:
                assert all(g is not None and g.abs().sum() > 0 for g in grads)
            else:
                assert all(g is None or g.abs().sum() == 0 for g in grads)
        assert any(p.grad.abs().sum() > 0 for p in made.trunk.parameters())


def test_branches_run_by_themselves_reproduce_the_module():
    _, _, made = branched(seeded(Convs), images(4), 2, branch_place="stem")
    x = images(5, 2)
    out = torch.empty(5, CLASSES)
    with torch.no_grad():
        sent = made.trunk(x)
        for branch, members in reversed(list(zip(made.branches, made.classes, strict=True))):
            out[:, list(members)] = branch(sent.clone())
        assert torch.equal(made(x), out)


def test_the_equivalent_dense_weights_are_block_diagonal():
    """R_W of SplitNet: norms of the rows and columns that would cross between branches."""

    def crossing(weight, rows, columns, parts):  # weight [outputs, inputs]
        total = 0.0
        for g in range(parts):
            into, out_of = weight[np.ix_(rows == g, columns != g)], weight[np.ix_(rows != g, columns == g)]
            total += np.linalg.norm(into, axis=0).sum() + np.linalg.norm(out_of, axis=1).sum()
        return total

    net = seeded(Perceptron)
    space, candidate, made = branched(net, torch.randn(4, 5), 2, branch_place="trunk")
    alive = space.model.alive(candidate)
    about = space.choices[0].about
    _, groups, found = parted(net, torch.randn(4, 5))
    owner = assign(groups, alive, found, about.classes[2])
    owners = [owner[g.labels] for g in groups]
    classes = np.array([next(k for k, m in enumerate(made.classes) if c in m) for c in range(CLASSES)])
    sizes = [int(np.bincount(o).max()) for o in owners]
    for name, rows, columns in (("second", owners[1], owners[0]), ("out", classes, owners[1])):
        original = dict(net.named_parameters())[f"{name}.weight"].detach().numpy()
        dense = np.zeros_like(original)
        for k, branch in enumerate(made.branches):
            weight = branch.get_parameter(f"{name}.weight").detach().numpy()
            dense[np.ix_(rows == k, columns == k)] = weight
            assert weight.shape == ((rows == k).sum(), (columns == k).sum())
        assert crossing(dense, rows, columns, 2) == 0
        assert crossing(original, rows, columns, 2) > 1
        assert np.count_nonzero(dense) == dense.size / 2  # 1/G
    assert sizes == [6, 6]


def test_unrepaired_branches_are_the_network_with_crossing_weights_zero():
    net = seeded(Perceptron)
    x = torch.randn(8, 5)
    space, candidate, made = branched(net, x, 2, branch_place="trunk")
    _, groups, found = parted(net, x)
    owner = assign(groups, space.model.alive(candidate), found, space.choices[0].about.classes[2])
    rows = np.array([next(k for k, m in enumerate(made.classes) if c in m) for c in range(CLASSES)])
    first, second = (owner[g.labels] for g in groups)
    with torch.no_grad():
        net.second.weight.mul_(torch.from_numpy(second[:, None] == first))
        net.out.weight.mul_(torch.from_numpy(rows[:, None] == second))
        torch.testing.assert_close(made(x), net(x))


# -- costs ---------------------------------------------------------------------------------------------


@pytest.mark.quick("2-0.5-True-stem")
@pytest.mark.parametrize("place", ["stem", "stage1"])
@pytest.mark.parametrize(
    ("number", "ratio", "dropped"), [(2, 0, False), (3, 0, True), (3, 0.5, False), (2, 0.5, True)]
)
def test_costs_are_those_counted_on_the_module(place, number, ratio, dropped):
    values = {"prune": ratio, "drop": dropped}
    net = seeded(Convs)
    space, candidate, made = branched(
        net,
        images(2),
        number,
        "prune",
        "drop",
        values=values,
        ratios=[0, 0.5],
        branches=(1, 2, 3),
        branch_place=place,
    )
    assert isinstance(made, Branches)
    assert all(isinstance(b, CapturedModule) for b in made.branches)
    costs = {k: float(v[0]) for k, v in space.cost_arrays([candidate]).items()}
    counted = counted_costs(made, images(2))
    for name in ("macs", "params"):
        assert costs[name] == counted[name], name
    for name in ("size_mb", "memory_mb"):
        assert costs[name] == pytest.approx(counted[name], rel=1e-9), name
    assert costs["flops"] == 2 * costs["macs"]
    assert "activation_mb" not in costs


def test_costs_of_many_candidates_are_those_of_each():
    space = trace(seeded(Convs), images(2)).space("prune", "branches", ratios=3, branches=(1, 2, 3))
    candidates = space.sample(np.random.default_rng(0), 40)
    together = space.cost_arrays(candidates)
    for i, c in enumerate(candidates):
        for name, values in space.cost_arrays([c]).items():
            assert values[0] == pytest.approx(together[name][i], rel=1e-12), name


# -- repair and training -------------------------------------------------------------------------------


@pytest.mark.slow
def test_repair_brings_the_scores_back():
    torch.manual_seed(0)
    net = seeded(Convs)
    finetune(
        net,
        (images(512, 4), (images(512, 4).mean((1, 2, 3)) * 1.5 + 3).clamp(0, 5).long()),
        epochs=4,
        learning_rate=0.01,
    )
    batches = [((images(256, 5),), {})]
    x = images(200, 6)
    gaps = {}
    for repair in (False, True):
        _, _, made = branched(net, images(2), 2, calibration=batches, repair=repair, branch_place="stem")
        with torch.no_grad():
            gaps[repair] = float((made(x) - net(x)).square().mean() / net(x).var())
    assert gaps[True] < 0.5 * gaps[False]
    assert gaps[True] < 0.2


def test_branches_can_be_trained():
    net = seeded(Convs)
    _, _, made = branched(net, images(4), 3, branches=(1, 3), branch_place="stem")
    x = images(256, 8)
    y = (x.mean((1, 2, 3)) + 3).clamp(0, 5).long()
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        before = float(loss(made(x), y))
    means = [b.clone() for name, b in made.named_buffers() if name.endswith("running_mean")]
    finetune(made, (x, y), epochs=6, learning_rate=0.01)
    with torch.no_grad():
        assert float(loss(made(x), y)) < 0.8 * before
    after = [b for name, b in made.named_buffers() if name.endswith("running_mean")]
    assert all(not torch.equal(a, b) for a, b in zip(means, after, strict=True))


# -- the kind ------------------------------------------------------------------------------------------


def test_the_default_place_divides_most_between_a_quarter_and_three_quarters():
    (choice,) = trace(seeded(Convs), images(2)).space("branches").choices
    assert choice.options == (1, 2, 4)
    about = choice.about
    assert 0.25 <= about.place.share <= 0.75
    assert "out" not in about.tail.groups
    assert "stem.0" not in about.tail.groups


def test_classes_may_be_told_apart_by_outputs():
    net, batches = seeded(Convs), [((images(64, 3),), {})]
    space = trace(net, images(2)).space("branches", classes_by="outputs", calibration=batches)
    with torch.no_grad():
        want = cluster_classes(torch.softmax(net(images(64, 3)).double(), 1).T.numpy(), 2)
    assert space.choices[0].about.classes[2] == want
    with pytest.raises(ValueError, match="needs calibration"):
        trace(net, images(2)).space("branches", classes_by="outputs")


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (("branches",), {"branches": (2, 4)}, "begin with 1 and rise"),
        (("branches",), {"branches": (1,)}, "begin with 1 and rise"),
        (("branches",), {"classes_by": "name"}, "weights or outputs"),
        (("branches",), {"branch_place": "nowhere"}, "branches cannot be after 'nowhere'"),
        (("branches", "mask"), {}, "branches and mask cannot be in one space"),
        (("exits", "branches"), {}, "exits and branches cannot be in one space"),
        (("branches",), {"branches": (1, 7)}, "nothing in this model may be divided into branches"),
    ],
)
def test_bad_options_are_refused(kinds, options, message):
    with pytest.raises(ValueError, match=message):
        trace(seeded(Convs), images(2)).space(*kinds, **options)


class NoLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x))).mean((2, 3))


def test_a_network_without_a_last_linear_layer_says_so():
    with pytest.raises(ValueError, match="they must come from a linear layer"):
        trace(seeded(NoLinear), images(2)).space("branches")


@pytest.mark.slow
def test_a_sweep_scores_rebuilds_and_exports_branches(tmp_path):
    net, x = seeded(Convs), images(60, 9)
    with torch.no_grad():
        y = net(x).argmax(1)
    task = Task(net, images(1), (x, y), calibration=images(128, 5), name="convs")
    space = trace(net, task.example).space(
        "branches", "prune", ratios=2, calibration=task.calibration_batches
    )
    run = sweep(
        task, space, "random", ["accuracy", "macs"], ["params<=0.9x"], 4, workers=0, out=tmp_path / "run"
    )
    assert all(t.error is None for t in run.trials)
    best = next(t for t in run.trials if t.candidate.indices[0])
    model = run.model(best.number)
    assert isinstance(model, Branches)
    assert counted_costs(model, images(2))["macs"] == best.scores["macs"]
    again = Job(task, space, [Quality()]).evaluate(best.number, best.candidate)
    assert again.scores["accuracy"] == best.scores["accuracy"]
