"""Explanations of small networks with a closed form, of tasks that are no images, of runs without a model."""

import json
from collections import OrderedDict

import pytest
import torch
from netcarve import Task, trace
from netcarve.__main__ import run as main
from netcarve.engine import RunError
from netcarve.engine.budget import POINTS, Clock
from netcarve.evaluators.pool import Job
from netcarve.explain.analyses import ANALYSES, analyse
from netcarve.explain.graphs import graph_of
from netcarve.explain.layers import layers_section, path_counts
from netcarve.explain.section import Skipped
from netcarve.explain.similarity import pooled
from netcarve.explain.subject import Subject
from netcarve.spaces.kinds.branches import Branches
from netcarve.spaces.kinds.exits import Cascade
from netcarve.testing import ToyScorer, toy_sweep
from torch import nn


def trained(model, x, y, steps=60):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model.train()(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def subject_of(task, space, candidate, **options):
    network = Job(task, space, ()).build(candidate)
    return Subject(task, space, candidate, network, **{"samples": 80, **options})


def test_paths_of_a_chain_are_the_product_of_its_widths():
    chain = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.GELU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        chain[2].weight[0] = 0.0  # one unit of three without inputs
    total, through = path_counts(graph_of(chain, ((torch.zeros(2, 5),), {})), ((torch.zeros(2, 5),), {}))
    assert total == 5 * 7 * 2 * 2
    assert through == {"0": total, "2": total, "4": total}  # none goes round a layer of a chain


def test_paths_of_a_residual_network_go_round_its_blocks():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = nn.Linear(4, 3), nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.out(x + self.two(torch.relu(self.one(x))))

    example = ((torch.zeros(2, 4),), {})
    total, through = path_counts(graph_of(Sum().eval(), example), example)
    assert total == 4 + 4 * 3 * 4
    assert through == {"one": 48.0, "two": 48.0, "out": 52.0}


def test_paths_are_not_counted_where_activations_are_multiplied():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) * self.b(x)

    example = ((torch.zeros(2, 4),), {})
    with pytest.raises(Skipped, match="mul is not linear"):
        path_counts(graph_of(Gated().eval(), example), example)


def test_large_maps_are_averaged_over_places():
    x = torch.randn(3, 8, 64, 64)
    assert pooled(x, 512).shape == (3, 512)
    assert torch.allclose(pooled(x, 8), x.mean(dim=(2, 3)), atol=1e-6)
    assert torch.equal(pooled(x[:, :, :4, :4], 512), x[:, :, :4, :4].flatten(1))
    tokens = torch.randn(3, 50, 16)
    assert torch.allclose(pooled(tokens, 100), tokens.mean(dim=1))


def test_parts_of_a_chain_are_skipped_and_layers_stand_in_for_blocks():
    torch.manual_seed(0)
    x, y = torch.randn(60, 6), torch.arange(60) % 3

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(10, 3)

        def forward(self, x):
            return self.out(torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], dim=1))

    chain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    results = []
    for model in (chain, Wide()):
        task = Task(trained(model, x, y), x[:2], (x, y), name="chain")
        space = trace(task.model, task.example).space("prune", ratios=2)
        results.append(analyse("parts", subject_of(task, space, space.baseline)))
    assert "chain" in results[0].skipped
    assert results[1].data["parts"] == ["left", "right"]
    assert "2 layers" in results[1].basis


def mean_error(outputs, targets):
    return float(-(outputs[:, 0] - targets).abs().mean())


def regression():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(60, 5)
    return Task(model, x[:2], (x, x.sum(dim=1)), metric=mean_error, name="sums")


def tokens():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 8), nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 3))
    x = torch.randint(0, 30, (60, 6))
    return Task(model, x[:2], (x, torch.arange(60) % 3), name="tokens")


@pytest.mark.quick("tokens")
@pytest.mark.parametrize(
    ("made", "left_out"),
    [
        (regression, {"classes", "localisation", "parts"}),
        (tokens, {"attribution", "localisation", "parts"}),
    ],
)
def test_tasks_that_are_not_images_get_what_applies_and_reasons_for_the_rest(made, left_out):
    task = made()
    space = trace(task.model, task.example).space("prune", ratios=3)
    subject = subject_of(task, space, space.candidate([1] * len(space)))
    found = {name: analyse(name, subject) for name in ANALYSES}
    assert {name for name, one in found.items() if one.skipped} == left_out
    assert all("failed with" not in one.skipped for one in found.values())


def test_a_space_without_a_model_is_told_of_its_trials_alone(tmp_path):
    toy = toy_sweep(tmp_path / "run", trials=40)
    document = toy.explain(7, tmp_path / "e.html")
    reasons = {s["name"]: s["skipped"] for s in document["sections"]}
    assert reasons["sensitivity"] == ""
    assert reasons["cka"] == "the run has no model"
    with pytest.raises(RunError, match=r"nothing about trial 7 .* can be explained: the run has no model"):
        toy.explain(7, tmp_path / "e.html", only=["cka", "layers"])


def test_failed_trials_and_bad_arguments_end_in_a_line(tmp_path, capsys):
    folder = tmp_path / "run"
    toy = toy_sweep(folder, toy=ToyScorer(lambda c: c.indices[0] == 3), trials=30)
    failed = next(t.number for t in toy.trials if t.failed)
    page = tmp_path / "e.html"
    good = next(t.number for t in toy.trials if not t.failed)
    for arguments, words in (
        ([str(failed)], f"trial {failed} of {folder} failed (ValueError: bad candidate)"),
        ([str(good), "--only", "cka,shap"], "no explanation is called 'shap'"),
        ([str(good), "--samples", "0"], "--samples"),
        (["12345"], "there is no trial 12345"),
    ):
        assert main(["explain", str(folder), *arguments, "-o", str(page)]) == 2
        assert words in capsys.readouterr().err.replace("\n", " ")
    assert main(["explain", str(folder), str(good), "-o", str(tmp_path / "no" / "e.html")]) == 1
    assert not page.exists()
    assert main(["explain", str(folder), str(good), "-o", str(page), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["page"] == str(page)
    assert page.exists()


def test_a_clock_stays_small_and_rises():
    clock = Clock()
    for n in range(1, 5001):
        clock.add(n, n / 10)
    assert len(clock.points) <= POINTS
    assert clock.points[0] == [1, 0.1]
    assert clock.points[-1][0] > 4900
    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in zip(clock.points, clock.points[1:], strict=False))
    resumed = Clock(clock.points)
    resumed.add(5100, 400.0)  # an earlier session's time was lost: the clock never runs back
    assert resumed.points[-1][1] >= clock.points[-1][1]


def test_layers_of_a_cascade_and_of_branches_are_those_of_the_network():
    torch.manual_seed(0)
    one, two = nn.Linear(4, 6), nn.Linear(6, 2)

    class Whole(nn.Module):
        def __init__(self, one, two):
            super().__init__()
            self.one, self.two = one, two

        def forward(self, x):
            return self.two(torch.relu(self.one(x)))

    def part(name, layer, after):
        return nn.Sequential(OrderedDict([(name, layer), *after]))

    relu = [("act", nn.ReLU())]
    cascade = Cascade([part("one", one, relu), part("two", two, [])], [nn.Linear(6, 2)], [0.9]).eval()
    halves = [part("two", nn.Linear(6, 1), []) for _ in range(2)]
    with torch.no_grad():
        halves[1].two.weight[0, :3] = 0.0
    branches = Branches(part("one", one, relu), halves).eval()
    whole = Whole(one, two).eval()
    x, y = torch.randn(60, 4), torch.arange(60) % 2
    task = Task(whole, x[:2], (x, y))
    space = trace(task.model, task.example).space(ratios=2)
    for network, density, fan_in, new in (
        (cascade, [1.0, 1.0], [4.0, 6.0], ["heads.0"]),
        (branches, [1.0, 9 / 12], [4.0, 4.5], []),
    ):
        found = layers_section(Subject(task, space, space.baseline, network, 60)).data
        assert found["layers"] == ["one", "two"]
        assert found["density"].tolist() == density
        assert found["fan_in"][1].tolist() == fan_in
        assert found["new_layers"] == new
        assert not analyse("cka", Subject(task, space, space.baseline, network, 60)).skipped
