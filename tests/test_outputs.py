"""Which output is judged, and metrics that see all samples: the right values, whatever the batches."""

from __future__ import annotations

import netcarve
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import Task, sweep, trace
from netcarve.evaluators import TaskError
from netcarve.evaluators.heldout import answers, figure
from netcarve.evaluators.outputs import joined, named_tensors, pick, rows_of
from torch import nn


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Wrapped(nn.Module):
    """A network of 6 inputs and 10 classes whose outputs come in any structure."""

    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU())
        self.head = nn.Linear(24, 10)
        self.wrap = wrap

    def forward(self, x):
        features = self.body(x)
        return self.wrap(features, self.head(features))


def answered(wrap, **options):
    """A task whose labels are the network's own answers: judged rightly, its accuracy is 1."""
    x = normal(60, 6)
    net = Wrapped(lambda f, s: s)
    labels = net(x).argmax(1)
    return Task(Wrapped(wrap), x[:1], (x, labels), **options)


def score(task):
    return task.measure(answers(task.model, task.batches))


# -- which output is judged


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda f, s: (f, s), 1),
        (lambda f, s: (f, s), -1),
        (lambda f, s: (f, s), lambda outputs: outputs[1]),
        (lambda f, s: [f, {"scores": s}], "1.scores"),
        (lambda f, s: {"features": f, "scores": s}, "scores"),
        (lambda f, s: {"features": f, "logits": s}, None),  # the name that transformers gives class scores
        (lambda f, s: (f[:, :, None], s), None),  # only one fits the targets
        (lambda f, s: (f.sum(), s), None),
        (lambda f, s: (s, None), None),
    ],
)
def test_the_named_or_only_fitting_output_is_judged(wrap, output):
    assert score(answered(wrap, output=output))["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("wrap", "listed"),
    [
        (lambda f, s: (f, s), r"0: float32\[60, 24\], 1: float32\[60, 10\]"),
        (lambda f, s: {"features": f, "scores": s}, r"features: .*, scores: float32\[60, 10\]"),
    ],
)
def test_several_outputs_are_asked_about(wrap, listed):
    with pytest.raises(TaskError, match=f"several tensors.*{listed}.*Task\\(output=") as caught:
        answered(wrap)
    assert "\n" not in str(caught.value)


def test_an_output_that_is_not_there_is_refused():
    with pytest.raises(TaskError, match=r"output='b' is not among what the model returns: .*a: float32"):
        answered(lambda f, s: {"a": f, "c": s}, output="b")
    with pytest.raises(TaskError, match=r"the model returns float32.*leave output out"):
        answered(lambda f, s: s, output="logits")
    with pytest.raises(TaskError, match="raises IndexError"):
        answered(lambda f, s: (f, s), output=lambda o: o[7])
    with pytest.raises(TaskError, match="must return a tensor, got a tuple"):
        answered(lambda f, s: (f, s), output=lambda o: o)


def test_named_tensors_are_found_in_any_container():
    made = {"a": normal(2), "b": [normal(3), (normal(4), None)]}
    assert {name: len(t) for name, t in named_tensors(made).items()} == {"a": 2, "b.0": 3, "b.1.0": 4}
    assert pick(made, "b.1.0") is made["b"][1][0]


def two_heads(outputs, targets):
    """Mean accuracy of both heads."""
    first = (outputs["first"].argmax(1) == targets["first"]).float().mean()
    return float((first + (outputs["second"].argmax(1) == targets["second"]).float().mean()) / 2)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
        self.first, self.second = nn.Linear(16, 3), nn.Linear(16, 4)

    def forward(self, x):
        x = self.body(x)
        return {"first": self.first(x), "second": self.second(x)}


def heads_task(size=25, **options):
    net, x = TwoHeads(), normal(75, 6)
    labels = {name: scores.argmax(1) for name, scores in net(x).items()}
    cut = range(0, 75, size)
    data = [(x[i : i + size], {k: v[i : i + size] for k, v in labels.items()}) for i in cut]
    given = {"metric": two_heads, "goal": "max", "test": (normal(40, 6, seed=3), labels_of(net)), **options}
    return Task(net, x[:2], data, **given)


def labels_of(net):
    return {name: scores.argmax(1) for name, scores in net(normal(40, 6, seed=3)).items()}


@pytest.mark.slow
def test_two_heads_from_sweep_to_verified_export(tmp_path):
    task = heads_task(output="second")  # for what looks at one; the metric is given both
    space = trace(task.model, task.example).space("prune", ratios=4, calibration=task.calibration_batches)
    run = sweep(task, space, "random", trials=6, workers=0, out=tmp_path / "run")
    assert [o.name for o in run.front.objectives] == ["two_heads", "macs"]
    assert run.baseline.scores["two_heads"] == 1.0
    assert "loss" not in run.baseline.scores
    cut = max(run.front, key=lambda t: t.number)
    receipt = run.export(cut.number, tmp_path / "out", formats=["pt2"])
    assert receipt.score == pytest.approx(cut.scores["two_heads"])
    assert receipt.formats["pt2"].score == pytest.approx(cut.scores["two_heads"])
    assert receipt.test.samples == 40
    verdict = netcarve.verify(tmp_path / "out", task=task)
    assert verdict.ok
    assert verdict.formats["pt2"].score == pytest.approx(cut.scores["two_heads"])
    sections = {s["name"]: s for s in run.explain(cut.number, tmp_path / "why.html", samples=50)["sections"]}
    assert not sections["attribution"]["skipped"]
    for name, section in sections.items():
        assert "it failed with" not in section["skipped"], (name, section["skipped"])


def test_metric_functions_get_the_whole_and_running_metrics_the_named_output():
    class Kind(Sum):
        def update(self, outputs, targets):
            kinds.append(type(outputs))

        def compute(self):
            return 0.0

    def kind(outputs, targets):
        kinds.append(type(outputs))
        return 0.0

    kinds: list[type] = []
    for metric, output, want in (
        (kind, None, dict),
        (kind, "second", dict),
        (Kind(), None, dict),
        (Kind(), "second", torch.Tensor),
    ):
        score(heads_task(metric=metric, output=output))
        assert kinds[-1] is want, (metric, output)


def test_the_axis_of_classes_is_the_same_in_every_batch():
    """Classes last, as language models have them; in one batch there are as many steps as classes."""
    net = nn.Sequential(nn.Linear(4, 5))
    batches = [(normal(8, steps, 4, seed=steps), steps) for steps in (5, 3)]
    data = [(x, net(x).argmax(-1)) for x, _ in batches]
    assert score(Task(net, batches[0][0][:2], data))["accuracy"] == 1.0


# -- the same value for any batch size


def rmse(outputs, targets):
    return float((outputs["y"][:, 0] - targets["y"]).square().mean().sqrt())


class Sums(nn.Module):
    def forward(self, x):
        return {"y": x.sum(1, keepdim=True), "scale": torch.ones(3)}


def cut_at(n, edges):
    return list(zip([0, *edges], [*edges, n], strict=True))


splits = st.lists(st.integers(1, 39), unique=True, max_size=6).map(sorted)


@given(splits)
@settings(max_examples=25, deadline=None)
def test_a_metric_of_dicts_does_not_depend_on_the_batches(edges):
    x, y = normal(40, 3), normal(40, seed=1)
    data = [(x[a:b], {"y": y[a:b], "unit": "m"}) for a, b in cut_at(40, edges)]
    task = Task(Sums(), x[:1], data, metric=rmse, goal="min")
    assert score(task) == {"rmse": pytest.approx(float((x.sum(1) - y).square().mean().sqrt()), rel=1e-5)}


class Boxes(nn.Module):
    """As many boxes as an image has positive numbers."""

    def forward(self, x):
        return [{"boxes": row[row > 0][:, None].expand(-1, 4), "score": row.max()} for row in x]


def found(outputs, targets):
    assert len(outputs) == len(targets)
    return sum(len(o["boxes"]) * float(t["weight"]) for o, t in zip(outputs, targets, strict=True))


@given(splits)
@settings(max_examples=25, deadline=None)
def test_lists_of_one_item_a_sample_are_joined(edges):
    x, weights = normal(40, 5), normal(40, seed=1)
    data = [(x[a:b], [{"weight": w} for w in weights[a:b]]) for a, b in cut_at(40, edges)]
    task = Task(Boxes(), x[:2], data, metric=found, goal="max")
    assert score(task)["found"] == pytest.approx(float(((x > 0).sum(1) * weights).sum()), rel=1e-4)


class Sum:
    """A running metric in torchmetrics' protocol."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.error, self.count = 0.0, 0

    def update(self, outputs, targets):
        self.error += float((outputs["y"][:, 0] - targets["y"]).abs().sum())
        self.count += len(targets["y"])

    def compute(self):
        return self.error / self.count


@given(splits)
@settings(max_examples=15, deadline=None)
def test_running_metrics_sum_over_the_batches(edges):
    x, y = normal(40, 3), normal(40, seed=1)
    data = [(x[a:b], {"y": y[a:b]}) for a, b in cut_at(40, edges)]
    metric = Sum()
    metric.error = 99.0  # what the user's own has seen is neither used nor lost
    task = Task(Sums(), x[:1], data, metric=metric, goal="min")
    for _ in range(2):
        assert score(task) == {"Sum": pytest.approx(float((x.sum(1) - y).abs().mean()), rel=1e-5)}
    assert metric.error == 99.0


def test_metrics_of_torchmetrics_are_accepted_as_they_are():
    torchmetrics = pytest.importorskip("torchmetrics")
    x = normal(90, 6)
    net = nn.Linear(6, 3)
    y = net(x).argmax(1)
    y[:9] = (y[:9] + 1) % 3
    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=3, average="micro")
    task = Task(net, x[:1], [(x[:50], y[:50]), (x[50:], y[50:])], metric=metric)
    assert (task.metric_name, task.judge.goal) == ("MulticlassAccuracy", "max")
    assert score(task) == {"MulticlassAccuracy": pytest.approx(0.9)}
    with pytest.raises(TaskError, match=r"it is a class|metric is a class, make an instance"):
        Task(net, x[:1], (x, y), metric=torchmetrics.classification.MulticlassAccuracy)
    error = torchmetrics.MeanSquaredError()
    assert Task(Sums(), x[:1], (x, x[:, :1]), metric=error, output="y").judge.goal == "min"


@given(splits)
@settings(max_examples=25, deadline=None)
def test_joining_gives_what_one_batch_would(edges):
    whole = {
        "scores": normal(40, 3),
        "tokens": normal(80, 2),  # two rows a sample
        "pair": (normal(40), [normal(40, 1, seed=2), normal(40, 2, 2)]),
        "names": [str(i) for i in range(40)],
        "constant": normal(7),
        "unit": "m",
        "none": None,
    }

    def batch(a, b):
        first, (second, third) = whole["pair"]
        return whole | {
            "scores": whole["scores"][a:b],
            "tokens": whole["tokens"][2 * a : 2 * b],
            "pair": (first[a:b], [second[a:b], third[a:b]]),
            "names": whole["names"][a:b],
        }

    cuts = cut_at(40, edges)
    made = joined([batch(a, b) for a, b in cuts], [b - a for a, b in cuts])
    names = [made.pop("names"), made.pop("unit")]
    assert names == [whole["names"], "m"]
    torch.testing.assert_close(made, {k: v for k, v in whole.items() if k in made})
    made["names"] = names[0]
    rows = torch.tensor([3, 3, 39])
    some = rows_of(made, rows, 40)
    assert torch.equal(some["tokens"], whole["tokens"].reshape(40, 2, 2)[rows].reshape(6, 2))
    assert torch.equal(some["pair"][1][1], whole["pair"][1][1][rows])
    assert some["names"] == ["3", "3", "39"]
    assert torch.equal(some["constant"], whole["constant"])


def test_ragged_tensors_become_a_list_of_samples():
    values = [normal(4, 3, 2), normal(2, 5, 2)]
    made = joined(values, [4, 2])
    assert [tuple(v.shape) for v in made] == [(3, 2)] * 4 + [(5, 2)] * 2


def test_a_bootstrap_over_samples_of_structured_targets():
    task = heads_task(size=10)
    outputs = answers(task.model, task.test_batches)
    got = figure(task, task.test_batches, outputs, outputs)
    assert (got.value, got.samples, got.low, got.high) == (1.0, 40, 1.0, 1.0)


# -- data and losses that are asked about before the search


def test_a_list_of_two_unlabelled_batches_is_asked_about():
    x = normal(20, 6)
    net = nn.Linear(6, 3)
    for two in ([x[:10], x[10:]], [x, x.clone()]):
        for data in ({"validation": two}, {"validation": (x, net(x).argmax(1)), "calibration": two}):
            with pytest.raises(TaskError, match=r"a list of two tensors, float32.*write a tuple"):
                Task(net, x[:1], **data, metric=rmse)


def test_two_inputs_without_targets_calibrate():
    two = nn.Bilinear(3, 4, 2)
    a, b = normal(20, 3), normal(20, 4)
    task = Task(two, (a[:1], b[:1]), ((a, b), two(a, b).argmax(1)), calibration=[(a, b)])
    (args, _), *_ = task.calibration_batches
    assert torch.equal(args[1], b)


def test_embeddings_with_class_labels_have_no_loss_unless_declared():
    x = normal(20, 6)
    data = (x, torch.arange(20) % 3)
    spread = lambda outputs, targets: float(outputs.std())  # noqa: E731
    assert Task(nn.Linear(6, 3), x[:1], data, metric=spread).metrics == ("metric",)
    declared = Task(nn.Linear(6, 3), x[:1], data, metric=spread, loss="cross_entropy")
    assert set(declared.metrics) == {"metric", "loss"}


def test_a_loss_for_fine_tuning_is_checked_before_the_search():
    x = normal(70, 6)
    pair = (x, x[:, :1])
    options = {"metric": lambda o, t: float((o - t).abs().mean()), "goal": "min", "train": pair}
    with pytest.raises(TaskError, match=r"no loss to train with .*Task\(loss='cross_entropy'\)"):
        Task(nn.Linear(6, 1), x[:1], pair, **options).check_training()
    with pytest.raises(TaskError, match="must return a scalar tensor"):
        Task(nn.Linear(6, 1), x[:1], pair, loss=lambda o, t: 3.0, **options).check_training()
    with pytest.raises(TaskError, match="is a class, make an instance"):
        Task(nn.Linear(6, 1), x[:1], pair, loss=nn.MSELoss, **options)
    Task(nn.Linear(6, 1), x[:1], pair, loss=nn.MSELoss(), **options).check_training()


def test_goals_are_said_once():
    assert heads_task().goals == {"two_heads": "max"}
    with pytest.raises(TaskError, match="goal must be 'min' or 'max'"):
        heads_task(goal="up")
    with pytest.raises(TaskError, match="contradicts the metric 'accuracy'"):
        answered(lambda f, s: s, goal="min")
