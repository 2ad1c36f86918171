"""Proofs are kept between processes, and only for exactly what was proven."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import netcarve
import pytest
import torch
from netcarve.model import facts, proof_cache
from netcarve.model.proof_cache import ProofCache, fingerprint
from torch import nn

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))
"""


@pytest.fixture(autouse=True)
def _kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETCARVE_PROOF_CACHE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _net(folder: Path, source: str = SOURCE, seed: int = 0) -> nn.Module:
    path = folder / "their_net.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("their_net", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["their_net"] = module
    spec.loader.exec_module(module)
    torch.manual_seed(seed)
    return module.Net()


def _traced(net: nn.Module, side: int = 6) -> netcarve.Blueprint:
    return netcarve.trace(net, torch.zeros(2, 3, side, side))


def _forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("proven again")

    monkeypatch.setattr(facts, "prove", fail)
    monkeypatch.setattr(facts, "own_differs", fail)


def test_a_second_space_of_the_same_model_is_not_proven_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = _traced(_net(tmp_path))
    space = first.space()
    _forbid(monkeypatch)
    second = _traced(_net(tmp_path))
    assert second.space().choices == space.choices
    assert second.prove() == first.prove()
    with pytest.raises(AssertionError, match="proven again"):
        second.space(ratios=5)  # other widths: the user's module has not been run at them


def test_whatever_a_proof_rests_on_changes_the_fingerprint(tmp_path: Path) -> None:
    def print_of(net: nn.Module, side: int = 6) -> str:
        captured = _traced(net, side)._captured
        assert captured is not None
        return fingerprint(captured)

    prints = [
        print_of(_net(tmp_path)),
        print_of(_net(tmp_path, seed=1)),
        print_of(_net(tmp_path), side=7),
        print_of(_net(tmp_path, SOURCE.replace("relu", "tanh"))),
        print_of(_net(tmp_path, SOURCE + "\nunused = 1\n")),  # could have been used at another width
    ]
    assert len(set(prints)) == 5
    assert print_of(_net(tmp_path)) == prints[0]


class Limited(nn.Module):
    """Branches on an attribute that neither the capture nor ``repr`` shows."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.limit, self.names = limit, {"some", "other", "third"}
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu()
        return self.head((x * 2 if x.shape[1] < self.limit else x).mean((2, 3)))


def test_an_attribute_that_forward_may_branch_on_is_part_of_the_fingerprint() -> None:
    free, bound = _traced(Limited(0)), _traced(Limited(7))
    free.space()
    bound.space()
    assert (free.artifact, bound.artifact) == ("module", "graph")
    captured, again = free._captured, _traced(Limited(0))._captured
    assert captured is not None
    assert again is not None
    assert fingerprint(captured) == fingerprint(again)


def test_damaged_and_unwritable_caches_only_cost_time(tmp_path: Path) -> None:
    net = _net(tmp_path)
    _traced(net).space()
    [kept] = (tmp_path / "cache" / "netcarve" / "proofs").iterdir()
    for damage in (b"", b"[1]", b"{", b"\xff\xfe"):
        kept.write_bytes(damage)
        assert len(_traced(net).space()) == 1
    blocked = tmp_path / "file"
    blocked.write_text("")
    captured = _traced(net)._captured
    assert captured is not None
    assert ProofCache(captured, folder=blocked / "no").once("x", lambda: 1) == 1


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETCARVE_PROOF_CACHE", "0")
    net = _net(tmp_path)
    _traced(net).space()
    assert not (tmp_path / "cache").exists()
    _forbid(monkeypatch)
    with pytest.raises(AssertionError, match="proven again"):
        _traced(net).space()


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(proof_cache, "MOST", 2)
    folder = tmp_path / "proofs"
    for seed in range(4):
        captured = _traced(_net(tmp_path, seed=seed))._captured
        assert captured is not None
        ProofCache(captured, folder=folder).once("x", lambda seed=seed: seed)
    assert len(list(folder.glob("*.json"))) == 2
    assert ProofCache(captured, folder=folder).once("x", lambda: "anew") == 3


def test_the_code_that_finds_and_cuts_is_part_of_what_a_proof_rests_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: set[str] = set()
    monkeypatch.setattr(proof_cache, "_file_hash", lambda path, changed: read.add(Path(path).name) or "")
    proof_cache._code(nn.Linear(1, 1))
    assert {"surgery.py", "walk.py", "blueprint.py", "proof.py"} <= read
