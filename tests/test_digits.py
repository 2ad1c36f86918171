"""The bundled task: real data, a trained network, a cache that survives damage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from netcarve.evaluators import Quality, digits, resolve_task
from netcarve.spaces import Candidate


def test_the_task_is_accurate() -> None:
    task = resolve_task("digits")
    scores = Quality()(task, task.model, Candidate(()))
    assert scores["accuracy"] >= 0.985
    assert (task.name, task.spec) == ("digits", "digits")
    assert sum(len(targets) for *_, targets in task.batches) == 300
    assert sum(len(targets) for *_, targets in task.test_batches) == 150
    assert sum(p.numel() for p in task.model.parameters()) == 174_970


def test_the_splits_are_disjoint_and_stratified() -> None:
    (train, _), (held_out, all_classes) = digits.data()
    (validation, classes), (test, test_classes) = digits.held_out()
    assert len(train) + len(validation) + len(test) == 1797
    assert sorted(torch.cat([validation, test]).flatten(1).tolist()) == sorted(held_out.flatten(1).tolist())
    assert torch.equal(torch.bincount(classes) + torch.bincount(test_classes), torch.bincount(all_classes))
    assert torch.bincount(classes).min() >= 28
    assert torch.bincount(test_classes).min() >= 14
    assert 0 <= float(train.min()) <= float(train.max()) == 1
    known = {image.numpy().tobytes() for image in train}
    assert sum(image.numpy().tobytes() in known for image in held_out) == 0
    known = {image.numpy().tobytes() for image in validation}
    assert sum(image.numpy().tobytes() in known for image in test) == 0


def test_training_repeats_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = digits.train(3), digits.train(3)
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_cache_is_used_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 1)
    model = digits.trained(tmp_path)
    (path,) = tmp_path.iterdir()

    def never() -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(digits, "_train", never)
        # The recipe's hash reads the source of _train.
        patch.setattr(digits, "_recipe", lambda: path.stem.removeprefix("digits-"))
        again = digits.trained(tmp_path)
        assert torch.equal(model.classifier.weight, again.classifier.weight)
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(AssertionError):
            digits.trained(tmp_path)
    assert torch.equal(digits.trained(tmp_path).classifier.weight, model.classifier.weight)
    assert list(tmp_path.iterdir()) == [path]


def test_a_recipe_of_its_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digits._recipe()
    monkeypatch.setattr(digits, "EPOCHS", 1)
    assert digits._recipe() != before


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 1)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert not digits.trained(blocked).training
