"""Splits as choices: what they mean, what is refused, and that the network stays the same."""

import copy
import itertools
import json

import netcarve
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve.devices import Device, Link
from netcarve.engine.rebuild import rebuild_space
from netcarve.evaluators.inspection import inspection
from netcarve.evaluators.pool import Job
from netcarve.model.stages import Cut
from netcarve.spaces.builder import Builder
from netcarve.spaces.choice import unsplit
from netcarve.spaces.kinds.splits.kind import offered
from netcarve.spaces.kinds.splits.plan import Split, SplitPlan, plan_of, splitting_choices
from netcarve.spaces.kinds.splits.staged import Staged
from torch import nn

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.c = nn.Sequential(nn.Conv2d(8, 6, 3, stride=2), nn.Dropout(0.1), nn.ReLU())
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.a(x)
        x = torch.relu(x + self.b(x))
        return self.head(self.c(x).mean((2, 3)))


def net(seed=0):
    torch.manual_seed(seed)
    return Net().eval()


@pytest.fixture(scope="module")
def blueprint():
    return netcarve.trace(net(), X)


def taken(space, **values):
    """The candidate with these values and else the first options; ``cut_1`` stands for ``cut:1``."""
    named = {name.replace("_", ":", 1): value for name, value in values.items()}
    return space.from_values({**space.baseline.values, **named})


def stages_of(blueprint, candidate):
    return [(p.stage.name, p.device) for p in Builder(blueprint).stages(candidate)]


def cost(space, candidate, name):
    return float(space.cost_arrays([candidate])[name][0])


# -- meaning ---------------------------------------------------------------------------------------------


def test_the_unchanged_model_is_one_stage_on_the_first_device(blueprint):
    space = blueprint.space("splits")
    (choice,) = space.choices
    assert (choice.name, choice.options[0], choice.options[-1]) == ("cut:1", "end", "start")
    assert choice.options[1:-1] == tuple(reversed(plan_of(space.choices).places))
    assert stages_of(blueprint, space.baseline) == [("input..output", "device1")]
    assert cost(space, space.baseline, "traffic_kb") == 0
    assert type(space.build(space.baseline)) is Net


def test_a_boundary_at_the_start_sends_the_inputs(blueprint):
    space = blueprint.space("splits")
    first = taken(space, cut_1="start")
    assert stages_of(blueprint, first) == [("input..output", "device2")]
    assert cost(space, first, "traffic_kb") == 3 * 64 * 4 / 1000
    assert cost(space, first, "stages") == 1
    assert type(space.build(first)) is Net


def test_a_cut_makes_two_stages_that_are_the_whole(blueprint):
    space = blueprint.space("prune", "splits", ratios=2)
    cut = space.candidate([1] * (len(space) - 1) + [space.choices[-1].options.index("a.2")])
    placed = Builder(blueprint).stages(cut)
    expected = [("input..a.2", "device1"), ("a.2..output", "device2")]
    assert [(p.stage.name, p.device) for p in placed] == expected
    built = space.build(cut)
    whole = space.build(unsplit(cut))
    assert isinstance(built, Staged)
    assert [p.stage.name for p in built.stages] == [p.stage.name for p in placed]
    for samples in (1, 3, 7):
        x = torch.randn(samples, 3, 8, 8)
        assert torch.allclose(built(x), whole(x), rtol=0, atol=1e-6)
    again = copy.deepcopy(built)
    assert again.stages[0].stage.module is again.parts[0]
    assert {n.split(".", 2)[2] for n in built.state_dict()} == set(whole.state_dict())


def test_staged_networks_train_as_the_whole_does(blueprint):
    space = blueprint.space("splits")
    cut = taken(space, cut_1="a.2")
    staged, whole = space.build(cut).train(), space.build(space.baseline).train()
    for m in (staged, whole):
        torch.manual_seed(3)
        m(X).square().sum().backward()
    gradients = {n.split(".", 2)[2]: p.grad for n, p in staged.named_parameters()}
    for name, p in whole.named_parameters():
        assert torch.allclose(gradients[name], p.grad, rtol=1e-4, atol=1e-6), name
    buffers = {n.split(".", 2)[2]: b for n, b in staged.named_buffers()}
    assert torch.allclose(buffers["a.1.running_mean"], whole.a[1].running_mean)


def test_boundaries_that_fall_back_or_repeat_leave_empty_stages(blueprint):
    space = blueprint.space("splits", parts=3)
    assert [c.name for c in space.choices] == ["cut:1", "cut:2"]
    assert [d.name for d in plan_of(space.choices).devices] == ["device1", "device2", "device3"]
    same = taken(space, cut_1="a.2", cut_2="a.2")
    assert stages_of(blueprint, same) == [("input..a.2", "device1"), ("a.2..output", "device3")]
    back = taken(space, cut_1="c.2", cut_2="a.2")  # moves up to c
    assert stages_of(blueprint, back) == [("input..c.2", "device1"), ("c.2..output", "device3")]
    three = taken(space, cut_1="a.2", cut_2="c.2")
    assert [d for _, d in stages_of(blueprint, three)] == ["device1", "device2", "device3"]
    assert [cost(space, c, "stages") for c in (same, back, three)] == [2, 2, 3]
    last = taken(space, cut_1="start", cut_2="start")
    assert stages_of(blueprint, last) == [("input..output", "device3")]


def test_free_placement_names_the_device_of_each_stage(blueprint):
    devices = [Device("edge"), Device("server")]
    space = blueprint.space("splits", placement="free", devices=devices, links=Link(20, 5))
    assert [(c.name, c.options) for c in space.choices[1:]] == [
        ("place:1", ("edge", "server")),
        ("place:2", ("server", "edge")),
    ]
    cut = taken(space, cut_1="a.2", place_1="server", place_2="edge")
    assert [d for _, d in stages_of(blueprint, cut)] == ["server", "edge"]
    crossing = 8 * 64 * 4 / 1000
    assert cost(space, cut, "traffic_kb") == pytest.approx(3 * 64 * 4 / 1000 + crossing)
    one = taken(space, cut_1="a.2", place_1="edge", place_2="edge")
    assert cost(space, one, "traffic_kb") == 0
    assert cost(space, one, "memory_mb:server") == 0
    assert [d for _, d in stages_of(blueprint, one)] == ["edge", "edge"]


def test_each_place_by_itself(blueprint):
    space = blueprint.space("splits", encoding="each", places=4)
    assert all(c.options == (False, True) and c.name.startswith("cut:") for c in space.choices)
    assert len(space) == 4
    every = space.candidate([1] * 4)
    assert [d for _, d in stages_of(blueprint, every)] == ["device1", "device2"] * 2 + ["device1"]
    assert cost(space, every, "stages") == 5
    names = plan_of(space.choices).places
    two = space.candidate([0, 1, 0, 0])
    assert stages_of(blueprint, two) == [
        (f"input..{names[1]}", "device1"),
        (f"{names[1]}..output", "device2"),
    ]


def test_forced_boundaries_are_in_every_candidate(blueprint):
    space = blueprint.space("splits", parts=3, forced=["a"])
    assert [c.name for c in space.choices] == ["cut:1"]
    assert "a.2" not in space.choices[0].options
    assert stages_of(blueprint, space.baseline) == [("input..a.2", "device1"), ("a.2..output", "device2")]
    assert len(stages_of(blueprint, taken(space, cut_1="c.2"))) == 3
    each = blueprint.space("splits", encoding="each", forced=["a"], places=3)
    assert len(each) == 2
    assert len(stages_of(blueprint, each.baseline)) == 2


def test_forbidden_modules_stay_whole(blueprint):
    free = plan_of(blueprint.space("splits").choices).places
    places = plan_of(blueprint.space("splits", forbidden=["b", "c"]).choices).places
    assert set(places) < set(free)
    inside = {c.name for c in blueprint.cuts if {"b", "c"} & set(c.inside)}
    assert inside
    assert set(places) == set(free) - inside


def test_few_places_are_spread_and_small():
    def cut(i, size, end=False):
        return Cut(i, f"n{i}", ("t",), size, f"n{i}", (i * 10.0, 100.0 - i * 10), ("m",) if end else (), ())

    cuts = [cut(1, 50), cut(2, 40), cut(4, 10), cut(5, 10, True), cut(7, 90), cut(8, 90, True)]
    assert [c.index for c in offered(cuts, 2)] == [4, 5]
    assert [c.index for c in offered(cuts, 3)] == [2, 5, 8]
    assert [c.index for c in offered(cuts, 3, [cuts[4]])] == [4, 5, 7]
    assert offered(cuts, 9) == cuts


# -- decoding --------------------------------------------------------------------------------------------


@st.composite
def plans(draw):
    places = draw(st.integers(1, 6))
    each = draw(st.booleans())
    forced = draw(st.lists(st.integers(0, places - 1), unique=True, max_size=min(2, places - 1)))
    parts = places + 1 if each else draw(st.integers(len(forced) + 2, len(forced) + 4))
    names = tuple(f"p{i}" for i in range(places))
    devices = tuple(Device(f"d{i}") for i in range(draw(st.integers(1, 4))))
    placement = "ordered" if each else draw(st.sampled_from(["ordered", "free"]))
    encoding = "each" if each else "positions"
    return SplitPlan(
        names, tuple(range(places)), encoding, placement, parts, devices, (Link(),), tuple(forced)
    )


@settings(max_examples=60, deadline=None)
@given(plans(), st.data())
def test_decoding_says_what_plain_reading_says(plan, data):
    choices = splitting_choices(plan)
    rows = [[data.draw(st.integers(0, len(c) - 1)) for c in choices] for _ in range(3)]
    begins, on = plan.decode(choices, np.array(rows).reshape(3, len(choices)))
    s = len(plan.places) + 1
    for row, got, devices in zip(rows, begins.tolist(), on.tolist(), strict=True):
        taken = {c.name: c.options[i] for c, i in zip(choices, row, strict=True)}
        if plan.encoding == "each":
            present = [p for p, name in enumerate(plan.places) if taken.get(f"cut:{name}", p in plan.forced)]
            wanted = [p + 1 for p in present]
            assert got == wanted + [s] * (len(plan.places) - len(wanted))
        else:
            at = {"end": s, "start": 0} | {name: p + 1 for p, name in enumerate(plan.places)}
            told = [at[o] for name, o in taken.items() if name.startswith("cut:")]
            told = [max(told[: k + 1]) for k in range(len(told))]
            assert got == sorted([*told, *(p + 1 for p in plan.forced)])
            assert len(got) == plan.parts - 1
        expected = [
            taken.get(f"place:{k + 1}", plan.devices[k % len(plan.devices)].name) for k in range(len(devices))
        ]
        assert [plan.devices[d].name for d in devices] == expected
    first = plan.decode(choices, np.zeros((1, len(choices)), dtype=int))
    assert {0, s, *(p + 1 for p in plan.forced)} >= set(first[0][0].tolist())


# -- the network stays the same --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task():
    labels = torch.arange(64) % 5
    return netcarve.Task(net(), X[:2], [(torch.randn(64, 3, 8, 8), labels)], name="toy")


def test_cuts_change_no_score(task):
    space = netcarve.trace(task.model, task.example).space(
        "prune", "splits", ratios=3, calibration=task.calibration_batches
    )
    seen = []

    def score(task, model, candidate):
        seen.append(torch.rand(1).item())  # the generator is seeded by what the network is
        with torch.no_grad():
            return {"loss": float(task.measure([model(*a, **k) for a, k, _ in task.batches])["loss"])}

    job = Job(task, space, [score])
    outcomes = []
    for cut in space.choices[-1].options[:4]:
        candidate = space.candidate([1] * (len(space) - 1) + [space.choices[-1].options.index(cut)])
        outcomes.append(job.evaluate(0, candidate))
    assert not any(o.error for o in outcomes)
    assert len({o.scores["loss"] for o in outcomes}) == 1
    assert len(set(seen)) == 1
    elastic = space.model.elastic(space.choices)
    assert elastic.switches(candidate)


def test_stages_of_a_job_are_the_network_that_was_scored(task):
    space = netcarve.trace(task.model, task.example).space("prune", "splits", ratios=2)
    job = Job(task, space, [])
    candidate = space.candidate([1] * (len(space) - 1) + [3])
    whole = job.build(candidate)
    assert isinstance(whole, Net)
    values = X
    for p in job.stages(candidate):
        values = p.stage.module(*(values if isinstance(values, tuple) else (values,)))
    assert torch.allclose(values, whole(X), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_captured_graph_is_cut_like_the_module():
    blueprint = netcarve.trace(net(), X)
    space = blueprint.space("prune", "drop", "splits", ratios=2)
    candidates = space.sample(np.random.default_rng(0), 2)
    own = [space.model.stages(c) for c in candidates]
    space.model.own_reason = "a test"
    assert space.model.artifact == "graph"
    for candidate, stages in zip(candidates, own, strict=True):
        graph = space.model.stages(candidate)
        assert [p.stage.name for p in graph] == [p.stage.name for p in stages]
        values, others = X, X
        for a, b in zip(graph, stages, strict=True):
            assert [str(port) for port in a.stage.inputs] == [str(port) for port in b.stage.inputs]
            values = a.stage.module(*(values if isinstance(values, tuple) else (values,)))
            others = b.stage.module(*(others if isinstance(others, tuple) else (others,)))
        assert torch.allclose(values, others, rtol=0, atol=1e-6)


def test_equal_networks_have_equal_keys(blueprint):
    space = blueprint.space("prune", "drop", "mask", "splits", ratios=2)
    last = space.counts - 1
    keys = {}
    for column in range(len(space)):
        indices = np.zeros(len(space), dtype=int)
        indices[column] = last[column]
        keys[space.choices[column].name] = space.model.network_key(space.candidate(indices))
    unchanged = space.model.network_key(space.baseline)
    assert {name for name, key in keys.items() if key == unchanged} == {"cut:1"}
    assert len(set(keys.values())) == len(keys)
    for pair in itertools.pairwise(space.sample(np.random.default_rng(1), 40)):
        same = unsplit(pair[0]) == unsplit(pair[1])
        assert (space.model.network_key(pair[0]) == space.model.network_key(pair[1])) == same


# -- a run makes the space again -------------------------------------------------------------------------


def test_the_recipe_makes_the_same_space_again(task, blueprint):
    devices = [Device("edge", 0.2, memory_limit_mb=1), Device("server", power_w=30)]
    options = {"devices": devices, "links": [Link(20, 5)], "placement": "free", "parts": 3, "places": 5}
    space = netcarve.trace(task.model, task.example).space("prune", "splits", forced=["a"], **options)
    again = rebuild_space(task, json.loads(json.dumps(space.recipe)), space.choices)
    assert again.choices == space.choices
    assert again.recipe == space.recipe
    assert plan_of(again.choices).devices == tuple(devices)
    candidates = space.sample(np.random.default_rng(0), 20)
    for name, values in space.cost_arrays(candidates).items():
        assert np.array_equal(values, again.cost_arrays(candidates)[name])


def test_split_choices_are_told_by_what_they_are_about(blueprint):
    space = blueprint.space("prune", "splits", ratios=2)
    assert [isinstance(c.about, Split) for c in space.choices] == [False] * (len(space) - 1) + [True]
    plain = blueprint.space("prune", ratios=2).baseline
    assert unsplit(plain) is plain


def test_certain_bounds_say_nothing_wrong(blueprint):
    space = blueprint.space("prune", "splits", ratios=3, places=4)
    rng = np.random.default_rng(0)
    pairs = np.sort(rng.integers(0, space.counts, size=(30, 2, len(space))), axis=1)
    bounds = Builder(blueprint).cost_bounds(space.choices, pairs[:, 0], pairs[:, 1])
    assert {"macs", "params", "size_mb", "activation_mb"} <= set(bounds)
    assert not {"memory_mb", "traffic_kb", "stages", "latency_ms"} & set(bounds)
    for (low, high), row in zip(pairs, range(30), strict=True):
        inside = rng.integers(low, high + 1, size=(10, len(space)))
        costs = Builder(blueprint).cost_arrays(space.choices, inside)
        for name, (least, most) in bounds.items():
            assert (costs[name] >= least[row] - 1e-9).all()
            assert (costs[name] <= most[row] + 1e-9).all()


def test_inspection_tells_where_the_model_may_be_cut(task):
    blueprint = netcarve.trace(task.model, task.example)
    found = inspection(task, blueprint)
    assert [c["name"] for c in found["cuts"]] == [c.name for c in blueprint.cutting.followed]
    a = next(c for c in found["cuts"] if c["name"] == "a.2")
    assert a["bytes"] == 8 * 64 * 4
    assert a["macs"][0] == 64 * 8 * 27
    assert a["module_ends"]
    assert found["no_cuts"] == ""
