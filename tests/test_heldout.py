"""The figure on test data: what it is made of, and that no search sees these data."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from netcarve import Task, sweep, trace
from netcarve.evaluators import TaskError
from netcarve.evaluators.heldout import answers, figure, metric_on_rows
from netcarve.evaluators.metrics import IGNORED
from netcarve.results.significance import bootstrap, mcnemar, wilson
from torch import nn


def data(n, seed, mark=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, (x[:, :3].sum(1) > 0).long()


class Net(nn.Sequential):
    """Remembers which inputs it was ever given."""

    seen: ClassVar[list] = []

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        if type(x) is torch.Tensor and x.device.type == "cpu":  # not while the model is traced
            Net.seen.append(x.detach())
        return super().forward(x)


def task(**options):
    given = {"validation": data(90, 1), "test": data(230, 2), **options}
    return Task(nn.Sequential(*Net()), torch.zeros(1, 6), **given)


def test_accuracy_has_wilsons_interval_and_the_paired_test():
    made = task()
    torch.manual_seed(5)
    other = nn.Linear(6, 2)
    ours, theirs = answers(other, made.test_batches), answers(made.model, made.test_batches)
    found = figure(made, made.test_batches, ours, theirs)
    x, y = data(230, 2)
    right, was = (m(x).argmax(1) == y for m in (other, made.model))
    assert found.value == pytest.approx(float(right.double().mean()))
    assert found.baseline == pytest.approx(float(was.double().mean()))
    assert (found.low, found.high) == wilson(int(right.sum()), 230)
    assert found.paired == mcnemar(right.numpy(), was.numpy())
    assert (found.samples, found.method) == (230, "wilson")


def test_ignored_targets_do_not_count():
    x, y = data(40, 3)
    y[:10] = IGNORED
    made = task(test=(x, y))
    given = answers(made.model, made.test_batches)
    assert figure(made, made.test_batches, given, given).samples == 30


def test_other_metrics_have_a_bootstrap_over_samples():
    def error(outputs, targets):
        return (outputs[:, 0] - targets).abs().mean()

    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    made = task(validation=(x + 1, x[:, 0]), test=(x, x[:, 0]), metric=error)
    given = answers(made.model, made.test_batches)
    found = figure(made, made.test_batches, given, given)
    apart = (made.model(x)[:, 0] - x[:, 0]).abs().detach().numpy()
    low, high = bootstrap(lambda rows: apart[rows].mean(), 50)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-5)
    assert found.paired is None
    assert found.method == "bootstrap"


def test_pixels_of_an_image_are_not_independent_samples():
    x = torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    y = (x[:, 0] > 0).long()
    made = Task(nn.Conv2d(1, 2, 3, padding=1), x[:1], (x + 1, y), test=(x, y))
    given = answers(made.model, made.test_batches)
    found = figure(made, made.test_batches, given, given)
    assert (found.samples, found.method, found.paired) == (12, "bootstrap", None)
    pixels = wilson(round(found.value * y.numel()), y.numel())
    assert found.low < found.value < found.high
    metric, count = metric_on_rows(made, made.test_batches, given)
    assert count == 12
    assert metric(np.arange(12)) == pytest.approx(found.value)
    assert pixels[0] < found.value < pixels[1]


def test_test_data_are_read_as_validation_data_are():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data(230, 2)), batch_size=64)
    assert [len(y) for *_, y in task(test=loader).test_batches] == [77, 77, 76]
    assert task(test=None).test_batches == []
    with pytest.raises(TaskError, match=r"test batch 0: input is float32\[5, 7\]"):
        task(test=(torch.zeros(5, 7), torch.zeros(5).long()))
    with pytest.raises(TaskError, match="only samples that are in validation"):
        task(test=tuple(part[10:40] for part in data(90, 1)))
    with pytest.raises(TaskError, match="test is empty"):
        task(test=[])


def test_the_fingerprint_is_that_of_what_a_search_sees():
    assert task().fingerprint() == task(test=None).fingerprint() == task(test=data(10, 4)).fingerprint()


def test_no_search_sees_the_test_data(tmp_path):
    Net.seen.clear()
    model = Net()
    made = Task(model, torch.zeros(1, 6), data(90, 1), train=data(60, 7), test=data(50, 2), name="seen")
    assert made.without_train().test_batches == made.without_test().test_batches == []
    assert made.without_test().train is not None
    given = []

    def spy(task, model, candidate):
        given.append(task)
        return {"accuracy": task.measure(answers(model, task.batches))["accuracy"]}

    space = trace(made.model, made.example).space(calibration=made.calibration_batches)
    run = sweep(made, space, "random", ["accuracy:max", "macs"], trials=5, workers=0, out=tmp_path / "run",
                evaluators=[spy])  # fmt: skip
    assert len(run.trials) == 5
    assert all(task.test_batches == [] for task in given)
    rows = {tuple(row) for x in Net.seen for row in x.reshape(-1, 6).tolist()}
    assert rows
    assert not rows & {tuple(row) for row in data(50, 2)[0].tolist()}
    assert rows & {tuple(row) for row in data(90, 1)[0].tolist()}
