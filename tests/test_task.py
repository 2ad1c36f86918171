"""Tasks and their errors, as a newcomer meets them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from netcarve import Task
from netcarve.evaluators import TaskError, resolve_task
from netcarve.evaluators.batches import resize
from netcarve.evaluators.data import sample_inputs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

EXAMPLE = torch.zeros(1, 4)


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def _data(n: int = 250) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def _refused(text: str, *args: object, **kwargs: object) -> TaskError:
    with pytest.raises(TaskError, match=text) as caught:
        Task(*args, **kwargs)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return caught.value


# -- what is accepted


def test_every_form_of_data_gives_the_same_task() -> None:
    x, y = _data()
    forms = [
        (x, y),
        [x, y],
        (x.numpy(), y.numpy()),
        TensorDataset(x, y),
        DataLoader(TensorDataset(x, y), batch_size=7),
        [(x[:200], y[:200]), (x[200:], y[200:])],
        ((x[i : i + 10], y[i : i + 10].tolist()) for i in range(0, 250, 10)),
        {"x": x, "labels": y},
    ]
    example = [EXAMPLE] * 7 + [{"x": EXAMPLE}]
    tasks = [Task(Net(), e, form) for e, form in zip(example, forms, strict=True)]
    for task in tasks:
        assert [len(targets) for *_, targets in task.batches] == [84, 83, 83]
        joined = torch.cat([v for args, kwargs, _ in task.batches for v in (*args, *kwargs.values())])
        assert torch.equal(joined, x)
    assert len({task.fingerprint() for task in tasks[:7]}) == 1


def test_scores_equal_closed_forms() -> None:
    x, y = _data()
    task = Task(Net(), EXAMPLE, (x, y))
    logits = task.model(x)
    scores = task.measure(task.model(*args) for args, _, _ in task.batches)
    assert scores["accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert scores["loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert task.metrics == ("accuracy", "loss")
    assert task.score(logits, y) == pytest.approx(scores["accuracy"])


def test_a_custom_metric_sees_all_samples_at_once() -> None:
    seen = []

    def agreement(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((outputs.shape, targets.shape))
        return (outputs.argmax(1) == targets).float().mean()

    task = Task(Net(), EXAMPLE, _data(), metric=agreement)
    scores = task.measure(task.model(*args) for args, _, _ in task.batches)
    assert seen[-1] == ((250, 3), (250,))
    assert set(scores) == set(task.metrics) == {"agreement"}


def test_a_regression_task_has_no_cross_entropy() -> None:
    x, _ = _data()
    task = Task(Net(1), EXAMPLE, (x, x[:, :1]), metric=lambda o, t: -float((o - t).abs().mean()))
    assert task.metrics == ("metric",)


def test_outputs_of_transformers_and_segmenters() -> None:
    class Many(nn.Module):
        def __init__(self, wrap) -> None:  # type: ignore[no-untyped-def]
            super().__init__()
            self.wrap = wrap

        def forward(self, x: Tensor) -> object:
            return self.wrap(torch.stack([x, -x], 1))  # [N, 2, 4]

    x = torch.randn(10, 4)
    y = (x < 0).long()  # argmax over (x, -x)
    for wrap in (
        lambda s: s,
        lambda s: (s, None),
        lambda s: {"hidden": s * 0, "logits": s},
        lambda s: {"out": s},
        lambda s: s.transpose(1, 2),  # classes last, as language models have them
    ):
        task = Task(Many(wrap), EXAMPLE, (x, y))
        assert task.score(task.model(x), y) == 1.0


def test_ignored_targets_do_not_count() -> None:
    x, y = _data(100)
    kept = y.clone()
    kept[50:] = -100
    task = Task(Net(), EXAMPLE, (x, kept))
    scores = task.measure(task.model(*args) for args, _, _ in task.batches)
    assert scores["accuracy"] == pytest.approx(
        (task.model(x[:50]).argmax(1) == y[:50]).double().mean().item()
    )
    assert scores["loss"] == pytest.approx(
        nn.functional.cross_entropy(task.model(x[:50]), y[:50]).item(), rel=1e-5
    )


def test_ragged_batches_stay_as_they_are() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor, scale: float) -> Tensor:
            return scale * x.mean((2, 3))

    images = [(torch.randn(150, 3, 8, 8), 2.0), (torch.randn(2, 3, 8, 8), 3.0)]
    task = Task(
        Mean(),
        (torch.zeros(1, 3, 8, 8), 1.0),
        [(i, torch.zeros(len(i[0]), dtype=torch.long)) for i in images],
    )
    assert [len(t) for *_, t in task.batches] == [150, 2]
    assert len(task.calibration_batches) == 2


def test_the_model_is_only_switched_to_eval() -> None:
    net = Net().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    task = Task(net, EXAMPLE, _data())
    assert task.model is net
    assert not net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_calibration_is_spread_over_data_sorted_by_class() -> None:
    x = torch.arange(4000.0)[:, None].expand(-1, 4).contiguous()
    y = torch.zeros(4000, dtype=torch.long)
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    for source in (loader, TensorDataset(x, y), (x, y), x):
        batches = sample_inputs(source, "train")
        values = torch.cat([args[0][:, 0] for args, _ in batches])
        assert 500 <= len(values) <= 512
        assert abs(values.mean().item() - 1999.5) < 5
        assert all(len(args[0]) > 100 for args, _ in batches)
    task = Task(Net(), EXAMPLE, _data(), train=loader)
    assert torch.equal(torch.cat([a[0][:, 0] for a, _ in task.calibration_batches]), values)


def test_shuffled_and_augmented_data_give_the_same_task_twice() -> None:
    class Noisy(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 30

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return torch.randn(4) + np.random.rand(), i % 3

    make = lambda: Task(Net(), EXAMPLE, DataLoader(Noisy(), batch_size=8, shuffle=True))  # noqa: E731
    state = torch.get_rng_state()
    assert make().fingerprint() == make().fingerprint()
    assert torch.equal(state, torch.get_rng_state())


def test_the_fingerprint_tells_tasks_apart() -> None:
    x, y = _data()
    base = Task(Net(), EXAMPLE, (x, y)).fingerprint()
    other = Net()
    other.layer.bias.data[0] += 1e-6
    assert Task(other, EXAMPLE, (x, y)).fingerprint() != base
    assert Task(Net(), EXAMPLE, (x, y.flip(0))).fingerprint() != base
    assert Task(Net(), EXAMPLE, (x, y), metric="loss").fingerprint() != base
    assert Task(Net().bfloat16(), EXAMPLE.bfloat16(), (x.bfloat16(), y)).fingerprint() != base


def test_a_task_pickles() -> None:
    task = Task(Net(), EXAMPLE, _data(), train=DataLoader(TensorDataset(*_data())))
    assert pickle.loads(pickle.dumps(task)).fingerprint() == task.fingerprint()
    assert task.without_train().train is None
    assert task.train is not None


def test_resize() -> None:
    x = torch.arange(3)[:, None]
    (grown,), _ = resize(((x,), {}), 5)
    assert grown[:, 0].tolist() == [0, 1, 2, 0, 1]
    _, named = resize(((), {"x": x, "n": 2}), 1)
    assert named["x"].tolist() == [[0]]
    assert named["n"] == 2


# -- what is refused, and how


def test_a_wrong_model_is_refused() -> None:
    _refused(r"it is a class, make an instance: Net\(", Net, EXAMPLE, _data())
    _refused("it holds weights only", Net().state_dict(), EXAMPLE, _data())
    _refused("the model is str; give a trained torch.nn.Module", "model.pt", EXAMPLE, _data())


def test_a_model_that_does_not_run_says_so_in_one_line() -> None:
    error = _refused(
        r"does not run on its example \(input float32\[1, 5\]\): RuntimeError: mat1",
        Net(),
        torch.zeros(1, 5),
        _data(),
    )
    assert error.__cause__ is not None
    _refused("does not run on its example .*input 'y'.*TypeError", Net(), {"y": EXAMPLE}, _data())
    _refused("holds no tensor", Net(), "hello", _data())


def test_empty_data_is_refused() -> None:
    x, y = _data()
    _refused("validation is empty", Net(), EXAMPLE, [])
    _refused("validation is empty", Net(), EXAMPLE, DataLoader(TensorDataset(x[:0], y[:0])))
    _refused("holds no samples", Net(), EXAMPLE, (x[:0], y[:0]))
    _refused("train is empty", Net(), EXAMPLE, (x, y), train=DataLoader(TensorDataset(x[:0], y[:0])))
    _refused("calibration is empty", Net(), EXAMPLE, (x, y), calibration=[])


@pytest.mark.parametrize("nonsense", [None, 3, "data/", torch.zeros(5, 4), object()])
def test_what_is_not_data_is_refused(nonsense: object) -> None:
    _refused("validation is .*give a DataLoader", Net(), EXAMPLE, nonsense)


def test_wrongly_shaped_data_is_refused_with_the_cure() -> None:
    x, y = _data()
    _refused(
        r"input is float32\[250, 3\], but the example has float32\[1, 4\]", Net(), EXAMPLE, (x[:, :3], y)
    )
    _refused(r"the example needs a batch axis: example.unsqueeze\(0\)", Net(), EXAMPLE[0], (x, y))
    _refused("single samples, not batches", Net(), EXAMPLE, list(zip(x, y, strict=True)))
    _refused(r"\.to\(torch\.float32\)", Net(), EXAMPLE, (x.double(), y))
    _refused("250 inputs but 249 targets", Net(), EXAMPLE, (x, y[:-1]))
    _refused("must call the model in the same way", Net(), EXAMPLE, [({"x": x}, y)])
    _refused("3 things, not a pair", Net(), EXAMPLE, [(x, x, y)])
    _refused("not a pair", Net(), EXAMPLE, [x, x, x])
    _refused("no targets", Net(), EXAMPLE, {"x": x})
    _refused("calibration batch 0", Net(), EXAMPLE, (x, y), calibration=x[:, :2])


def test_targets_that_do_not_suit_the_metric_are_refused() -> None:
    x, y = _data()
    _refused(
        "'accuracy' does not suit.*targets run 0..12.*metric=lambda", Net(), EXAMPLE, (x, y + 10 * (y > 1))
    )
    _refused("does not suit this task: targets must be class indices", Net(), EXAMPLE, (x, y.float()))
    _refused("at least two classes", Net(1), EXAMPLE, (x, y % 2))
    _refused("unknown metric 'f1'", Net(), EXAMPLE, (x, y), metric="f1")
    _refused("metric must be a name or a function", Net(), EXAMPLE, (x, y), metric=3)
    _refused("must return one number", Net(), EXAMPLE, (x, y), metric=lambda o, t: o)
    _refused("raises ZeroDivisionError", Net(), EXAMPLE, (x, y), metric=lambda o, t: 1 / 0)

    def latency_ms(outputs: Tensor, targets: Tensor) -> float:
        return 0.0

    _refused("'latency_ms', which netcarve itself reports", Net(), EXAMPLE, (x, y), metric=latency_ms)


def test_nan_outputs_are_refused() -> None:
    broken = Net()
    broken.layer.bias.data[0] = float("nan")
    _refused("output on its example holds 1 NaN or infinite values of 3", broken, EXAMPLE, _data())
    x, y = _data()
    x[3, 0] = float("nan")
    _refused("output on the first validation batch holds 3 NaN", Net(), EXAMPLE, (x, y))


def test_a_model_that_overwrites_its_input_is_refused() -> None:
    class Overwrites(Net):
        def forward(self, x: Tensor) -> Tensor:
            x -= 1.0
            return self.layer(x)

    _refused("overwrites its input", Overwrites(), EXAMPLE.clone(), _data())


def test_a_loader_that_raises_names_the_batch() -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield _data()
        raise OSError("file 7.png is truncated")

    _refused(
        "reading validation failed at batch 1: OSError: file 7.png is truncated", Net(), EXAMPLE, batches()
    )


def test_a_generator_cannot_be_training_data() -> None:
    x, y = _data()
    _refused("read only once", Net(), EXAMPLE, (x, y), train=iter([(x, y)]))


def test_a_model_with_a_fixed_batch_is_refused() -> None:
    class Fixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.view(1, 4))

    _refused("runs on its example .* but not on a validation batch", Fixed(), EXAMPLE, _data())


def test_iterable_datasets_are_read() -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            x, y = _data(50)
            return iter(zip(x, y, strict=True))

    loader = DataLoader(Stream(), batch_size=20)
    task = Task(Net(), EXAMPLE, loader, train=loader)
    assert sum(len(t) for *_, t in task.batches) == 50


# -- tasks by name

FILE = """
import torch
import neighbour_{n}
from netcarve import Task

def build():
    return Task(torch.nn.Linear(4, 3), torch.zeros(1, 4), (torch.randn(20, 4), torch.arange(20) % 3))

def wrong():
    return 3

def raises():
    return 1 / 0
"""


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / f"neighbour_{tmp_path.name}.py".replace("-", "_")).write_text("")
    path = tmp_path / "my_task.py"
    path.write_text(FILE.format(n=tmp_path.name.replace("-", "_")))
    return path


def test_a_task_file_is_resolved(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = resolve_task(f"{task_file}:build")
    assert task.spec == f"{task_file.resolve()}:build"
    monkeypatch.chdir(task_file.parent)
    again = resolve_task("my_task.py:build")
    assert again.spec == task.spec
    assert resolve_task("my_task:build").spec == "my_task:build"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digitz", "unknown task 'digitz': known are digits"),
        ("{folder}/none.py:build", "there is no file"),
        ("{file}:missing", "no 'missing' in it; it defines build, wrong, raises"),
        ("{file}:wrong", "wrong must return a netcarve.Task, got int"),
        ("{file}:raises", r"raises\(\) raised ZeroDivisionError"),
        ("no_such_package.module:task", "there is no module 'no_such_package'"),
        ("{file}", "which function"),
    ],
)
def test_unresolvable_tasks_are_refused(text: str, message: str, task_file: Path) -> None:
    with pytest.raises(TaskError, match=message):
        resolve_task(text.format(folder=task_file.parent, file=task_file))


def test_a_file_that_fails_to_import_shows_their_traceback_without_ours(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import torch\n\ndef f():\n    import not_installed_here\n\nf()\n")
    with pytest.raises(
        TaskError, match="ModuleNotFoundError: No module named 'not_installed_here'"
    ) as caught:
        resolve_task(f"{path}:task")
    assert 'broken.py", line 6' in caught.value.detail
    assert "resolve.py" not in caught.value.detail
    assert "importlib" not in caught.value.detail
