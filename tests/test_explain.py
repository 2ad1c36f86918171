"""Explanations of real networks: identities on closed forms, and what whole runs are told."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from netcarve import Task, sweep, trace
from netcarve.engine import RunError
from netcarve.engine import explaining as search_explaining
from netcarve.evaluators.pool import Job
from netcarve.explain.analyses import ANALYSES, analyse
from netcarve.explain.attribution import attribution_section
from netcarve.explain.graphs import find_place, place_of
from netcarve.explain.subject import Subject
from netcarve.model.layer_widths import LayerWidth
from netcarve.report import report_document
from torch import nn


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class Net(nn.Module):
    """Three residual blocks, the last of which gives zeros."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.a, self.b, self.idle = Residual(8), Residual(8), Residual(8)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.pool(self.idle(self.b(self.a(self.stem(x))))).flatten(1))


def trained(model, x, y, steps=60):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model.train()(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def pictures(n=120, classes=4, seed=0):
    """Images whose class is the corner that is bright."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=g)
    x = 0.6 * torch.randn(n, 2, 6, 6, generator=g)
    for i, c in enumerate(y.tolist()):
        x[i, :, 3 * (c // 2) : 3 * (c // 2) + 3, 3 * (c % 2) : 3 * (c % 2) + 3] += 1.0
    return x, y


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    model = trained(Net(), *pictures())
    with torch.no_grad():  # a dummy: the block adds nothing
        model.idle.bn2.weight.zero_()
        model.idle.bn2.bias.zero_()
    return Task(model, torch.zeros(2, 2, 6, 6), pictures(n=160, seed=1), train=pictures(), name="corners")


@pytest.fixture(scope="module")
def space(task):
    made = trace(task.model, task.example)
    return made.space("prune", "drop", ratios=4, calibration=task.calibration_batches)


def subject_of(task, space, candidate, **options):
    network = Job(task, space, ()).build(candidate)
    return Subject(task, space, candidate, network, **{"samples": 80, **options})


@pytest.fixture(scope="module")
def subject(task, space):
    """Half of every group, one block dropped."""
    indices = [2 if c.name.startswith("prune") else int(c.name == "drop:b") for c in space.choices]
    return subject_of(task, space, space.candidate(indices))


@pytest.fixture(scope="module")
def unchanged(task, space):
    """The original against itself, which is what a run builds for trial 0."""
    return subject_of(task, space, space.baseline)


def section(name, subject):
    found = analyse(name, subject)
    assert found.skipped == ""
    assert found.summary
    assert found.basis
    assert found.figures
    assert all(figure.read.endswith(".") for figure in found.figures)
    json.dumps(found.to_json(), allow_nan=False)
    return found


# graphs


@pytest.mark.slow
def test_a_network_as_a_graph_gives_what_the_network_gives(subject):
    x = subject.only_input()
    for graph, model in zip(subject.graphs, (subject.original, subject.network), strict=True):
        with torch.no_grad():
            output = graph.run(((x,), {}), lambda node, value: value)
            assert torch.allclose(output, model(x), atol=1e-5)


def test_layers_and_places_are_found_again_in_the_smaller_network(subject):
    before, after = subject.graphs
    assert list(before.layers)[:3] == ["stem.0", "a.conv1", "a.conv2"]
    assert set(before.layers) - set(after.layers) == {"b.conv1", "b.conv2"}
    for name in after.layers:
        assert find_place(after, place_of(before.layers[name])) is after.layers[name]
    assert find_place(after, place_of(before.layers["b.conv1"])) is None


# layers


def test_density_and_fan_in_are_those_of_the_built_network(subject):
    found = section("layers", subject).data
    sizes = dict(subject.original.named_modules())
    left = dict(subject.graphs[1].module.named_parameters())
    for name, density, fan in zip(found["layers"], found["density"], found["fan_in"][1], strict=True):
        if name.startswith("b."):
            assert density == fan == 0
            continue
        weight = left[f"{name}.weight"]
        assert density == pytest.approx(weight.count_nonzero() / sizes[name].weight.numel())
        assert fan == pytest.approx(weight[0].numel())
    assert 0 < found["paths"] < 1


def test_layers_of_operators_are_seen(task):
    """One layer replaced, the others as they were: counted on the network that is built."""
    space = trace(task.model, task.example).space("operators", operators=("svd",))
    candidate = space.candidate([1] + [0] * (len(space) - 1))
    name = space.choices[0].name.partition(":")[2]
    found = section("layers", subject_of(task, space, candidate)).data
    left = dict(zip(found["layers"], found["density"], strict=True))
    assert left.pop(name) == 0
    assert set(left.values()) == {1}
    assert len(found["new_layers"]) == 2


def test_widths_told_by_choices_are_those_of_the_built_network(space):
    layers = [LayerWidth(**one) for one in space.model.layers(space.choices)]
    assert [layer.name for layer in layers][:2] == ["stem.0", "a.conv1"]
    rng = np.random.default_rng(3)
    for candidate in space.sample(rng, 6):
        kept = {c.name: c.kept[i] for c, i in zip(space.choices, candidate.indices, strict=True)
                if c.name.startswith("prune")}  # fmt: skip
        built = dict(space.build(candidate).named_parameters())
        for layer in layers:
            if any(candidate[name] for name in layer.drops):
                assert f"{layer.name}.weight" not in built
                continue
            width = layer.fixed + sum(each * kept[name] for name, each in layer.units.items())
            assert width == len(built[f"{layer.name}.weight"])


# similarity, maps, classes


def test_the_unchanged_network_is_like_itself(unchanged):
    found = section("cka", unchanged).data
    silent = found["layers"].index("idle.conv2")  # its norm gives zeros, like nothing at all
    assert np.isnan(found["cka"][silent])
    assert np.delete(found["cka"], silent) == pytest.approx(np.ones(len(found["layers"]) - 1), abs=1e-6)
    assert found["probes"]["original"] == pytest.approx(found["probes"]["subnetwork"])
    assert found["probes"]["original"][-1] > 0.9
    maps = section("localisation", unchanged).data
    assert maps["area"]["original"] == pytest.approx(maps["area"]["subnetwork"], nan_ok=True)


def test_a_smaller_network_is_less_alike(subject):
    found = section("cka", subject).data
    assert np.nanmin(found["cka"]) < 0.999
    assert "b.conv1" not in found["layers"]
    maps = section("localisation", subject).data
    areas = np.concatenate([maps["area"]["original"], maps["area"]["subnetwork"]])
    assert np.isnan(areas).sum() == 2  # of the block that gives zeros
    assert (np.nanmin(areas), np.nanmax(areas)) == pytest.approx((0.5, 0.5), abs=0.49)


def test_class_by_class_adds_up_to_the_change_of_accuracy(subject, task):
    found = section("classes", subject).data
    with torch.no_grad():
        scores = [
            task.measure(m(*a, **k) for a, k, _ in task.batches)["accuracy"]
            for m in (subject.original, subject.network)
        ]
    assert (found["won"] - found["lost"]) / 160 == pytest.approx(scores[1] - scores[0])
    assert found["samples"].sum() == 160


# coalitions


def test_parts_are_worth_what_they_are_worth(unchanged):
    found = section("parts", unchanged).data
    for which in ("original", "subnetwork"):
        values = found[which]
        assert values["shapley"].sum() == pytest.approx(values["all"] - values["none"])  # efficiency
        idle = found["parts"].index("idle")
        assert values["shapley"][idle] == pytest.approx(0, abs=1e-12)  # dummy
        assert values["lost_without"][idle] == 0
        assert np.abs(values["interactions"][idle]).max() == pytest.approx(0, abs=1e-12)
    assert found["original"]["shapley"] == pytest.approx(found["subnetwork"]["shapley"])


def test_a_dropped_part_is_worth_nothing(subject):
    found = section("parts", subject)
    at = found.data["parts"].index("b")
    assert found.data["subnetwork"]["shapley"][at] == 0
    assert "1 of which the subnetwork does not have" in found.basis


def test_choices_share_the_whole_change_of_the_score(subject):
    found = section("decisions", subject).data
    scored = [
        Job(subject.whole, subject.space, (search_explaining_quality(),)).evaluate(0, c).scores["accuracy"]
        for c in (subject.space.baseline, subject.candidate)
    ]
    assert [found["original"], found["subnetwork"]] == pytest.approx(scored)
    assert found["shapley"].sum() == pytest.approx(scored[1] - scored[0])
    assert len(found["choices"]) == sum(map(bool, subject.candidate.indices))


def search_explaining_quality():
    from netcarve.evaluators import Quality

    return Quality()


def test_scores_of_an_explanation_are_those_of_the_run(subject, monkeypatch):
    decisions, classes = section("decisions", subject), section("classes", subject).data
    for name in ("original", "subnetwork"):
        right = (classes["samples"] * classes[name]).sum() / classes["samples"].sum()
        assert decisions.data[name] == pytest.approx(right)
    assert decisions.basis.startswith("160 of 160 validation samples")
    assert "on all" not in decisions.summary
    # Where not all can be afforded, the figure on all stands beside that of the part.
    monkeypatch.setattr("netcarve.explain.subject.BUDGET", 0.0)
    few = section("decisions", subject)
    assert few.basis.startswith("50 of 160 validation samples")
    change = 100 * (decisions.data["subnetwork"] - decisions.data["original"])
    assert f"on 50 of 160 samples, {change:+.3g} points on all" in few.summary


def test_nothing_changed_is_nothing_to_share(unchanged):
    assert "changes nothing" in analyse("decisions", unchanged).skipped


@pytest.mark.slow
def test_the_same_seed_gives_the_same_explanation(task, space, subject):
    again = subject_of(task, space, subject.candidate)
    for name in ("parts", "decisions", "cka", "classes"):
        first, second = (analyse(name, s).to_json() | {"seconds": 0} for s in (subject, again))
        assert first == second


# attributions


def test_integrated_gradients_are_complete_within_a_percent(subject):
    pytest.importorskip("captum", reason="captum is not installed")
    found = section("attribution", subject).data
    assert found["completeness_gap"]["largest"] < 0.01
    assert all(-1 <= a["rank_correlation"] <= 1 for a in found["agreement"].values())


def test_attributions_of_a_network_and_itself_agree(unchanged):
    pytest.importorskip("captum", reason="captum is not installed")
    for score in attribution_section(unchanged).data["agreement"].values():
        assert score["rank_correlation"] > 0.999
        assert score["top_overlap"] > 0.99


# runs


@pytest.fixture(scope="module")
def run(task, space, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain") / "run"
    return sweep(task, space, "random", ["accuracy"], trials=16, workers=0, out=folder, seed=1)


def test_a_run_is_explained_whole(run, tmp_path):
    document = run.explain(5, tmp_path / "e.html", samples=60)
    assert [s["name"] for s in document["sections"]] == list(search_explaining.NAMES)
    shown = {s["name"] for s in document["sections"] if not s["skipped"]}
    assert shown >= {"sensitivity", *ANALYSES} - {"attribution"}
    assert (tmp_path / "e.html").stat().st_size < 5_000_000
    assert document["scores"][0][0] in ("accuracy", "MACs")


def test_names_of_analyses_are_told_once(run):
    assert tuple(ANALYSES) == search_explaining.OF_THE_NETWORK
    with pytest.raises(RunError, match="no explanation is called 'shap'; known are sensitivity"):
        run.explain(3, "x.html", only=["shap"])
    with pytest.raises(RunError, match="there is no trial 99"):
        run.explain(99, "x.html")
    document = search_explaining.explain(run, 3, only=["cka", "sensitivity"])
    assert [s["name"] for s in document["sections"]] == ["sensitivity", "cka"]


def test_runs_keep_their_layers_and_their_clock(run):
    assert next(layer["name"] for layer in run.settings.layers) == "stem.0"
    counts, seconds = np.transpose(run.info["clock"])
    assert counts[-1] == 16
    assert (np.diff(counts) > 0).all()
    assert (np.diff(seconds) >= 0).all()
    assert seconds[-1] <= run.info["seconds"]


def test_the_report_knows_layers_importance_and_the_clock(run):
    found = report_document([run])["runs"][0]
    kept = {c["name"]: c["kept"] for c in found["choices"]}
    assert [layer["name"] for layer in found["layers"]] == [y["name"] for y in run.settings.layers]
    for layer in found["layers"]:  # unchanged, every layer has its whole width
        assert layer["fixed"] + sum(each * kept[c][0] for c, each in layer["units"]) == layer["width"]
    assert found["importance"]["metric"] == "accuracy"
    assert sorted(found["importance"]["shares"], reverse=True) == found["importance"]["shares"]
    assert found["convergence"]["clock"]
    assert found["convergence"]["seconds"][-1] == pytest.approx(run.info["clock"][-1][1], abs=1e-3)


@pytest.mark.parametrize("key", ["layers", "clock"])
@pytest.mark.parametrize(
    "bad", [None, 3, [3], [[1, 2, 3]], [[2, 1.0], [1, 2.0]], [{"name": "<b>"}], [[1, float("inf")]],
            [{"name": "x", "width": 4, "fixed": 0, "units": {"none": 1}, "drops": []}]],
)  # fmt: skip
def test_older_and_broken_records_are_read_as_none(run, key, bad):
    changed = copy.copy(run)
    if key == "layers":
        changed.settings = replace(run.settings, layers=bad)
    else:
        changed.info = {**run.info, key: bad}
    found = report_document([changed])["runs"][0]
    if key == "layers":
        assert found["layers"] == []
    else:
        assert not found["convergence"]["clock"]
        assert found["convergence"]["seconds"][-1] == pytest.approx(
            sum(t.seconds for t in run.trials), abs=0.01
        )
