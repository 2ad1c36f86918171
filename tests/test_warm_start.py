"""A sweep that begins with earlier runs or given candidates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import netcarve
import pytest
from netcarve.engine import Interrupted
from netcarve.engine.settings import RunError
from netcarve.results.ledger import Ledger
from netcarve.spaces import Choice, Space
from netcarve.testing import OBJECTIVES, ToyScorer, toy_space


def _sweep(folder: Path, scorer: ToyScorer | None = None, **options: Any) -> netcarve.Run:
    scorer = scorer or ToyScorer()
    arguments: dict[str, Any] = {
        "space": toy_space(),
        "searcher": "random",
        "objectives": OBJECTIVES,
        "trials": 12,
        "workers": 0,
        "evaluators": [scorer],
        "out": folder,
    }
    return netcarve.sweep(None, **{**arguments, **options})


def test_a_run_of_the_same_space_is_taken_over_and_not_scored_again(tmp_path: Path) -> None:
    first = _sweep(tmp_path / "first")
    scorer = ToyScorer()
    second = _sweep(tmp_path / "second", scorer, seed_from=first, seed=5)
    assert [t.candidate for t in second.trials[:12]] == [t.candidate for t in first.trials]
    assert [t.scores for t in second.trials[:12]] == [t.scores for t in first.trials]
    assert len(second) == 24  # those taken over do not count
    assert len(scorer.calls) == 12
    assert not {t.candidate for t in first.trials} & set(scorer.calls)
    assert second.front.hypervolume() >= first.front.hypervolume()


def test_the_searcher_hears_of_all_before_it_is_asked(tmp_path: Path) -> None:
    first = _sweep(tmp_path / "first", trials=20)
    heard: list[int] = []
    inner = netcarve.searcher("random", toy_space(), OBJECTIVES, seed=1)
    ask, tell = inner.ask, inner.tell
    inner.ask = lambda n: heard.append(-1) or ask(n)  # type: ignore[method-assign,func-returns-value]
    inner.tell = lambda trials: heard.extend(t.number for t in trials) or tell(trials)  # type: ignore[method-assign,func-returns-value]
    _sweep(tmp_path / "second", searcher=inner, seed_from=[tmp_path / "first"])
    assert heard[:21] == [*range(len(first)), -1]


def test_of_several_runs_every_success_is_taken_over_once(tmp_path: Path) -> None:
    """With failures, overlaps, a run that was seeded itself, and a limit that none of them had."""
    first = _sweep(tmp_path / "first", ToyScorer(fail=lambda c: c.indices[0] == 1), trials=20)
    second = _sweep(tmp_path / "second", seed_from=first, seed=3)
    failed = {t.candidate for t in first.trials if t.failed}
    known = {t.candidate for run in (first, second) for t in run.trials if not t.failed}
    assert len(failed) > 2
    assert len(second) > 12  # its own and those taken over
    scorer = ToyScorer()
    third = _sweep(
        tmp_path / "third", scorer, searcher="nsga2", seed_from=[second, first], limits=["quality>=0.8x"]
    )
    assert third.settings.imported == len(known)
    assert {t.candidate for t in third.trials[: len(known)]} == known
    assert not known & set(scorer.calls)
    assert len(third) == len({t.candidate for t in third.trials}) == len(known) + 12
    assert all(t.scores["quality"] >= 0.8 for t in third.front)


def test_candidates_come_first_in_their_order(tmp_path: Path) -> None:
    space = toy_space()
    mine = [space.candidate([3, 0, 1, 2]), space.baseline, space.candidate([1, 1, 1, 1])]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([c.values for c in mine]))
    for n, given in enumerate((mine, [c.values for c in mine], file, [mine[0], str(file)])):
        run = _sweep(tmp_path / str(n), seed_from=given)
        assert [t.candidate for t in run.trials[:3]] == [space.baseline, mine[0], mine[2]]
        assert len(run) == 12


def test_another_space_gives_its_front_in_the_nearest_options(tmp_path: Path) -> None:
    first = _sweep(tmp_path / "first", trials=40)
    other = Space([Choice("c0", (0, 2.4)), Choice("new", (0, 1)), Choice("c3", (0, 1, 2, 3))])
    scorer = ToyScorer()
    run = _sweep(tmp_path / "other", scorer, space=other, seed_from=first)
    wanted = {(int(c["c0"] >= 2), 0, c["c3"]) for c in (t.candidate for t in first.front)} - {(0, 0, 0)}  # type: ignore[operator]
    assert {t.candidate.indices for t in run.trials[1 : 1 + len(wanted)]} == wanted
    assert len(scorer.calls) == len(run) == 12
    stranger = Space([Choice("elsewhere", (0, 1, 2, 3))])
    with pytest.raises(RunError, match="nothing to begin with"):
        _sweep(tmp_path / "stranger", space=stranger, seed_from=first)
    assert not (tmp_path / "stranger").exists()


def test_the_front_as_printed_can_be_begun_with(tmp_path: Path) -> None:
    from netcarve.results.table import front_document

    first = _sweep(tmp_path / "first", trials=40)
    file = tmp_path / "front.json"
    file.write_text(json.dumps(front_document(first.front, task=None, searcher="random", seed=0)))
    run = _sweep(tmp_path / "second", seed_from=file, trials=40)
    front = {t.candidate for t in first.front}
    assert front <= {t.candidate for t in run.trials[: 1 + len(front)]}


@pytest.mark.parametrize("kept", [12, 13, 20])
def test_resumed_anywhere_it_is_the_same_run(tmp_path: Path, kept: int) -> None:
    """Stopped after so many trials; resuming needs no word about where it began."""
    first = _sweep(tmp_path / "first")
    whole = _sweep(tmp_path / "whole", seed_from=first, searcher="nsga2")

    class Stops(ToyScorer):
        def __call__(self, task: Any, model: Any, candidate: Any) -> dict[str, float]:
            if len(self.calls) == kept - len(first):
                raise KeyboardInterrupt
            return super().__call__(task, model, candidate)

    with pytest.raises(Interrupted):
        _sweep(tmp_path / "cut", Stops(), seed_from=first, searcher="nsga2")
    with Ledger(tmp_path / "cut" / "ledger.sqlite") as ledger:
        assert len(ledger.trials()) == kept
    run = _sweep(tmp_path / "cut", searcher="nsga2", resume=True)
    assert [(t.candidate, t.scores) for t in run.trials] == [(t.candidate, t.scores) for t in whole.trials]


def test_what_cannot_be_read_is_said_before_any_work(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    for text in ("", "{", "[]", "[1]", '"c0"'):
        bad.write_text(text)
        with pytest.raises(RunError, match=r"bad\.json"):
            _sweep(tmp_path / "run", seed_from=bad)
    bad.write_text('[{"c0": 1}]')
    with pytest.raises(ValueError, match="missing"):
        _sweep(tmp_path / "run", seed_from=bad)
    with pytest.raises(RunError, match="there is no run"):
        _sweep(tmp_path / "run", seed_from=tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()
