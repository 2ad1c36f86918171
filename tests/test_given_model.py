"""Trial 0 is the model that was given, bit for bit; re-estimation is repair; chance is noticed."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from netcarve import Task, load, sweep, trace
from netcarve.engine.settings import RunError
from netcarve.evaluators import Job, Quality, reestimate_batchnorm, resolve_task
from netcarve.evaluators.batchnorm import misfit, reestimate_if_better
from netcarve.model.capture import CaptureError
from torch import Tensor, nn


class Normed(nn.Module):
    """Running statistics 0 and 1, which are far from those of its activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.last(self.second(x))).mean((2, 3)))


def pictures(n: int, seed: int = 0) -> Tensor:
    return 3 + 2 * torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def own_answers(model: nn.Module, n: int = 200, **options: object) -> Task:
    """A task whose labels are the model's own answers, so that it scores 100 %."""
    x = pictures(n)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    return Task(model, x[:2], (x, y), calibration=pictures(256, 1), **options)  # type: ignore[arg-type]


def space_of(task: Task, repair: object = True, kinds: tuple[str, ...] = ("prune",)):  # type: ignore[no-untyped-def]
    calibration = None if repair is None else task.calibration_batches
    options = {} if repair is None else {"repair": repair}
    return trace(task.model, task.example).space(*kinds, calibration=calibration, ratios=4, **options)


@pytest.mark.parametrize("repair", [None, False, "once", True])
def test_the_given_model_reads_what_it_gives(repair: object) -> None:
    task = own_answers(Normed())
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    space = space_of(task, repair)
    job = Job(task, space, (Quality(),))
    outcome = job.evaluate(0, space.baseline)
    assert outcome.error is None
    assert outcome.scores is not None
    assert outcome.scores["accuracy"] == 1.0
    assert outcome.scores == task.measure(task.model(*args).detach() for args, _, _ in task.batches)
    x = pictures(10, 2)
    expected = task.model(x)
    for built in (job.build(space.baseline), space.build(space.baseline)):
        assert built is not task.model
        assert torch.equal(built(x), expected)
    with torch.no_grad():
        built.head.weight.zero_()  # type: ignore[union-attr, operator]
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())


def test_the_digits_net_is_scored_as_it_is() -> None:
    task = resolve_task("digits")
    space = trace(task.model, task.example).space("prune", calibration=task.calibration_batches)
    x = torch.cat([args[0] for args, _, _ in task.batches])
    y = torch.cat([targets for _, _, targets in task.batches])
    with torch.inference_mode():
        right = int((task.model(x).argmax(1) == y).sum())
    outcome = Job(task, space, (Quality(),)).evaluate(0, space.baseline)
    assert outcome.scores is not None
    assert outcome.scores["accuracy"] == right / len(y)


def test_wherever_it_is_cut() -> None:
    task = own_answers(Normed())
    space = space_of(task, kinds=("prune", "splits"))
    free = [i for i, choice in enumerate(space.choices) if space.neutral[i]]
    cut = [int(i in free) for i in range(len(space))]
    assert Job(task, space, (Quality(),)).evaluate(0, space.candidate(cut)).scores["accuracy"] == 1.0  # type: ignore[index]
    for i in set(range(len(space))) - set(free):
        changed = [int(j == i) for j in range(len(space))]
        assert not space.model.unchanged(space.candidate(changed))  # type: ignore[union-attr]


def test_evaluators_that_change_the_model_change_a_copy() -> None:
    task = own_answers(Normed())
    space = space_of(task)
    weights = task.model.head.weight.detach().clone()  # type: ignore[union-attr, operator]

    def spoil(task: Task, model: nn.Module, candidate: object) -> dict[str, float]:
        with torch.no_grad():
            model.head.weight.zero_()  # type: ignore[union-attr, operator]
        return {"n": 1.0}

    for _ in range(2):
        outcome = Job(task, space, (Quality(), spoil)).evaluate(0, space.baseline)
        assert outcome.scores is not None
        assert outcome.scores["accuracy"] == 1.0
        assert "differs" not in outcome.detail
    assert torch.equal(task.model.head.weight, weights)  # type: ignore[union-attr, arg-type]


# -- re-estimation ---------------------------------------------------------------------------------------


def trained() -> nn.Module:
    """Statistics that fit its activations."""
    model = Normed().eval()
    reestimate_batchnorm(model, [((pictures(500, 7),), {})])
    return model


def shifted(model: nn.Module) -> nn.Module:
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.first.bias.add_(4.0)  # type: ignore[union-attr, operator]
    return moved


def test_statistics_are_re_estimated_where_that_helps_and_put_back_where_not() -> None:
    task = own_answers(trained())
    x = pictures(50, 3)
    broken = shifted(task.model)
    before = (broken(x) - task.model(x)).square().mean()
    assert reestimate_if_better(broken, task)
    assert (broken(x) - task.model(x)).square().mean() < 0.1 * before

    same = copy.deepcopy(task.model)
    state = {k: v.clone() for k, v in same.state_dict().items()}
    assert not reestimate_if_better(same, task)  # nothing is nearer than the original itself
    assert all(torch.equal(v, state[k]) for k, v in same.state_dict().items())
    assert not same.training
    assert not same.norm.training


def test_without_norms_nothing_runs() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 5))
    task = own_answers(net)
    assert not reestimate_if_better(net, task)
    assert misfit(task) == ""


@pytest.mark.parametrize("repair", [None, "once", True])
@pytest.mark.parametrize("graph", [False, True])
def test_switched_built_and_exported_networks_score_alike(repair: object, graph: bool) -> None:
    task = own_answers(trained())
    space = space_of(task, repair)
    if graph:
        space.model.own_reason = "a test"  # type: ignore[union-attr]
    job = Job(task, space, (Quality(),))
    for candidate in space.sample(np.random.default_rng(0), 4):
        built = Quality()(task, job.build(candidate), candidate)
        scores = job.evaluate(1, candidate).scores
        assert scores == pytest.approx(built, rel=1e-6)


def test_after_the_layer_by_layer_repair_a_built_network_is_what_is_scored() -> None:
    task = own_answers(trained())
    space = space_of(task)
    job = Job(task, space, (Quality(),))
    for candidate in space.sample(np.random.default_rng(0), 3):
        a, b = space.build(candidate).state_dict(), job.build(candidate).state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)


def samples_seen(task: Task) -> tuple[str, int]:
    """What is said of a misfit, and how many samples the networks were run on for it."""
    seen = []
    with nn.modules.module.register_module_forward_hook(
        lambda module, args, _: seen.append(len(args[0])) if isinstance(module, Normed) else None
    ):
        return misfit(task), sum(seen)


def test_a_clear_fit_or_misfit_is_told_from_few_samples_and_a_doubtful_one_from_all() -> None:
    far = Normed()
    far.last.running_var.fill_(0.01)  # type: ignore[union-attr, operator]
    few = 3 * 64  # the original, re-estimation, its result
    assert samples_seen(own_answers(trained())) == ("", few)
    told, samples = samples_seen(own_answers(far))
    assert "do not fit" in told
    assert samples == few
    told, samples = samples_seen(own_answers(Normed()))  # its outputs move by 44 % of their spread
    assert "do not fit" in told
    assert samples == few + 128 + 256 + 128


@pytest.mark.slow
def test_calibration_that_does_not_fit_the_model_is_told_once(
    tmp_path, caplog: pytest.LogCaptureFixture
) -> None:  # type: ignore[no-untyped-def]
    assert misfit(own_answers(trained())) == ""
    task = own_answers(Normed())
    assert "do not fit" in misfit(task)
    out = tmp_path / "run"
    with caplog.at_level(logging.WARNING, logger="netcarve"):
        run = sweep(task, space_of(task), "random", trials=3, workers=0, out=out)
        assert sum("do not fit" in r.getMessage() for r in caplog.records) == 1
        run = sweep(task, space_of(task), "random", trials=4, workers=0, out=out, resume=True)
        assert sum("do not fit" in r.getMessage() for r in caplog.records) == 1
    assert "do not fit" in run.info["misfit"]
    assert run.baseline is not None
    assert run.baseline.scores["accuracy"] == 1.0
    x = pictures(10, 2)
    assert torch.equal(load(out, task).model(0)(x), task.model(x))


def test_a_run_scored_by_older_rules_opens_but_is_not_gone_on_with(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    task = own_answers(trained())
    out = tmp_path / "run"
    with monkeypatch.context() as older:
        older.setattr("netcarve.engine.settings.SCORING", 1)
        sweep(task, space_of(task), "random", trials=3, workers=0, out=out)
    assert len(load(out, task)) == 3
    with pytest.raises(RunError, match="scored candidates in another way"):
        sweep(task, space_of(task), "random", trials=4, workers=0, out=out, resume=True)
    again = sweep(task, space_of(task), "random", trials=3, workers=0, out=tmp_path / "2", seed_from=[out])
    assert again.settings.imported == 0  # its candidates are scored anew


# -- chance ----------------------------------------------------------------------------------------------


def noisy(outputs: Tensor, targets: Tensor) -> float:
    hits = (outputs.argmax(1) == targets).double().mean()
    return float(hits + 0.01 * torch.randn(()))


def test_a_metric_that_draws_is_refused_with_the_cure(tmp_path) -> None:  # type: ignore[no-untyped-def]
    task = own_answers(trained(), metric=noisy)
    with pytest.raises(RunError, match=r"noisy differs .*--repeats 5.*Task\(tolerance=0.0") as refused:
        sweep(task, space_of(task), "random", ["noisy:max", "macs"], trials=3, workers=0, out=tmp_path / "a")
    assert "then" in str(refused.value)
    assert not (tmp_path / "a").exists()


def test_repeats_give_the_mean_and_its_spread(tmp_path) -> None:  # type: ignore[no-untyped-def]
    task = own_answers(trained(), metric=noisy)
    objectives = ["noisy:max", "macs"]
    run = sweep(
        task, space_of(task), "random", objectives, trials=3, workers=0, out=tmp_path / "a", repeats=30
    )
    assert run.settings.repeats == 30
    for trial in run.trials:
        assert trial.detail["spread"]["noisy"] == pytest.approx(0.01, rel=0.5)
    assert run.baseline is not None
    assert run.baseline.scores["noisy"] == pytest.approx(1.0, abs=4 * 0.01 / 30**0.5)
    with pytest.raises(RunError, match="repeats was 30, is now 1"):
        sweep(
            task, space_of(task), "random", objectives, trials=4, workers=0, out=tmp_path / "a", resume=True
        )


def test_a_declared_tolerance_lets_it_pass(tmp_path) -> None:  # type: ignore[no-untyped-def]
    task = own_answers(trained(), metric=noisy, tolerance=0.1)
    run = sweep(
        task, space_of(task), "random", ["noisy:max", "macs"], trials=3, workers=0, out=tmp_path / "a"
    )
    assert len(run) == 3
    with pytest.raises(ValueError, match="tolerance"):
        own_answers(trained(), tolerance=-1.0)


@pytest.mark.parametrize("kind", ["dropout", "noise"])
def test_a_random_forward_is_called_so_before_anything_is_proven(kind: str) -> None:
    class Random(Normed):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return nn.functional.dropout(x, 0.5) if kind == "dropout" else x + 0.1 * torch.rand(5)

    with pytest.raises(CaptureError, match=r"random in eval mode: two runs on the same input differ by"):
        trace(Random(), pictures(4))
