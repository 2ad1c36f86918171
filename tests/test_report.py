"""The report without a browser: what it gathers, how it is packed, and what it refuses."""

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from netcarve import Limit, Objective
from netcarve.__main__ import run as main
from netcarve.engine import load
from netcarve.engine.settings import LEDGER, describe
from netcarve.report import report_document, write_report
from netcarve.report.convergence import convergence, dominating
from netcarve.results import Front, Ledger, Trial
from netcarve.spaces import Choice, Space
from netcarve.testing import ToyScorer, toy_space, toy_sweep

GOALS = (Objective("accuracy"), Objective("macs"))


def make_run(folder, trials, *, space=None, objectives=GOALS, limits=(), **changed):
    """A run whose ledger holds these trials; ``changed`` replaces settings."""
    folder.mkdir()
    bounds = [Limit(text) for text in limits]
    settings = describe(
        task=None,
        space=space or toy_space(2),
        searcher="random",
        seed=3,
        window=4,
        objectives=objectives,
        limits=bounds,
        metrics=[],
    )
    with Ledger(folder / LEDGER, write=True) as ledger:
        ledger.save_settings(settings.to_json() | changed)
        ledger.propose([(t.number, t.proposal) for t in trials])
        ledger.record(trials)
    return load(folder)


def scored(n, *, seed=0, space=None, objectives=("accuracy", "macs")):
    rng = np.random.default_rng(seed)
    space = space or toy_space(2)
    candidates = [space.baseline, *space.sample(rng, n - 1)] if n > 1 else [space.baseline]
    return [
        Trial(i, c, {name: float(rng.uniform(0.1, 1.0)) for name in objectives}, None, 0.5, f"w{i % 2}")
        for i, c in enumerate(candidates)
    ]


def unpacked(page, name="data"):
    packed = re.search(rf'id="{name}">([^<]*)</script>', page)[1]
    return gzip.decompress(base64.b64decode(packed)).decode()


def test_the_document_holds_every_trial(tmp_path):
    run = toy_sweep(tmp_path / "run", toy=ToyScorer(lambda c: c.indices[0] == 3), trials=30)
    found = report_document([run])["runs"][0]
    assert found["numbers"] == [t.number for t in run.trials]
    for position, trial in enumerate(run.trials):
        for choice, taken in zip(found["choices"], found["taken"], strict=True):
            assert choice["options"][taken[position]] == str(trial.candidate.values[choice["name"]])
        values = {m: column[position] for m, column in found["scores"].items()}
        assert values == {m: trial.scores.get(m) for m in found["scores"]}
        assert found["worker_names"][found["workers"][position]] == trial.worker
        if trial.failed:
            text = found["error_texts"][found["errors"][str(trial.number)]]
            assert text.endswith("ValueError: bad candidate")
    assert [run.trials[i] for i in found["front"]] == list(run.front)
    assert run.trials[found["knee"]] == run.front.knee
    failed = [t.number for t in run.trials if t.failed]
    assert failed
    assert found["failures"] == [["ValueError: bad candidate", failed]]
    assert set(map(int, found["errors"])) == set(failed)


@pytest.mark.parametrize("objectives", [("accuracy",), ("accuracy", "macs"), ("accuracy", "macs", "loss")])
def test_convergence_agrees_with_the_front_of_every_beginning(objectives):
    trials = scored(40, seed=5, objectives=objectives)
    trials[7] = Trial(7, trials[7].candidate, error="no", seconds=0.5)
    goals = [Objective(o) for o in objectives]
    limits = [Limit("accuracy>=0.3")]
    reference = dict.fromkeys(objectives, 1.0) | {"accuracy": 0.0}
    curve = convergence(trials, goals, limits, reference)
    assert curve["trials"][0] == 1
    assert curve["trials"][-1] == 40
    assert curve["volume"] == sorted(curve["volume"])
    for n in range(1, 41):
        at = max(i for i, count in enumerate(curve["trials"]) if count <= n)
        expected = Front(trials[:n], goals, limits=limits).hypervolume(reference)
        assert curve["volume"][at] == pytest.approx(expected, abs=1e-12)
    assert curve["seconds"] == [0.5 * n for n in curve["trials"]]


def test_a_long_convergence_is_thinned_but_ends_right():
    space = toy_space(2)
    # Every trial enters the front: accuracy and cost both fall.
    trials = [Trial(i, space.baseline, {"accuracy": 1 - i / 2000, "macs": 1 - i / 1999}) for i in range(1999)]
    curve = convergence(trials, GOALS, (), {"accuracy": 0.0, "macs": 2.0})
    assert len(curve["trials"]) <= 402
    assert curve["trials"][0] == 1
    whole = Front(trials, GOALS).hypervolume({"accuracy": 0.0, "macs": 2.0})
    assert curve["volume"][-1] == pytest.approx(whole)


def test_quartiles_are_in_the_units_of_the_score(tmp_path):
    trials = scored(3, objectives=("accuracy", "latency_ms"))
    objectives = (Objective("accuracy"), Objective("latency_ms"))
    make_run(tmp_path / "run", trials, objectives=objectives)
    with Ledger(tmp_path / "run" / LEDGER, write=True) as ledger:
        clock = {"median_ms": 4.0, "q25_ms": 3.0, "q75_ms": 6.0, "device": "Abacus", "repeats": 50}
        ledger.measure(1, {"latency_ms": 2.0}, clock)  # half of what the clock read
        ledger.measure(2, {"latency_ms": 2.0}, {"median_ms": "?", "q25_ms": None, "q75_ms": 6.0})
    found = report_document([load(tmp_path / "run")])["runs"][0]
    assert found["spread"] == {"latency_ms": [[None, 1.5, None], [None, 3.0, None]]}
    about = dict(found["about"])
    assert about["Latency"].startswith("median of 50 calls")
    assert "on Abacus" in about["Latency"]


def test_machines_and_versions_of_all_sessions_are_told(tmp_path):
    make_run(tmp_path / "run", scored(3))
    with Ledger(tmp_path / "run" / LEDGER, write=True) as ledger:
        first = {"machine": "Abacus, 2 cores", "system": "Linux", "python": "3.12.1", "torch": "2.13"}
        ledger.note("environments", [first, {**first, "torch": "2.14"}])
    about = dict(report_document([load(tmp_path / "run")])["runs"][0]["about"])
    assert about["Machine"] == "Abacus, 2 cores, Linux"
    assert about["Versions"] == "python 3.12.1, torch 2.13; python 3.12.1, torch 2.14"


def test_what_is_not_recorded_is_not_guessed(tmp_path):
    about = dict(report_document([make_run(tmp_path / "run", scored(4))])["runs"][0]["about"])
    assert about["Machine"].startswith("not recorded")
    assert about["Time"].startswith("duration not recorded")
    assert about["Task"] == "none: a space without a model"
    assert "Latency" not in about


def test_who_dominates_whom_by_brute_force(tmp_path):
    runs = [make_run(tmp_path / name, scored(60, seed=seed)) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
    document = report_document(runs)
    fronts = dict(zip("abc", (r.front for r in runs), strict=True))
    for pair in document["rivals"]["pairs"]:
        ours, theirs = fronts[pair["a"]], fronts[pair["b"]]

        def beats(p, q):
            better = [o.sign * p.scores[o.name] <= o.sign * q.scores[o.name] for o in GOALS]
            return all(better) and any(p.scores[o.name] != q.scores[o.name] for o in GOALS)

        expected = [[p.number, [q.number for q in theirs if beats(p, q)]] for p in ours]
        assert pair["dominates"] == [line for line in expected if line[1]]
    assert len(document["rivals"]["pairs"]) == 6
    assert any(pair["dominates"] for pair in document["rivals"]["pairs"])
    assert dominating(fronts["a"], fronts["a"]) == []  # equal points do not dominate each other
    reference = document["rivals"]["reference"]
    for line in document["rivals"]["table"]:
        assert line["hypervolume"] == pytest.approx(fronts[line["run"]].hypervolume(reference))
    for name, found in zip("abc", document["runs"], strict=True):  # the curve ends where the table says
        assert found["convergence"]["volume"][-1] == pytest.approx(fronts[name].hypervolume(reference))


def test_runs_without_a_common_objective(tmp_path):
    a = make_run(tmp_path / "a", scored(5))
    other = (Objective("loss"), Objective("params"))
    b = make_run(tmp_path / "b", scored(5, objectives=("loss", "params")), objectives=other)
    document = report_document([a, b])
    assert document["rivals"] == {}
    assert {m["name"] for m in document["metrics"]} == {"accuracy", "macs", "loss", "params"}


def test_runs_of_one_name_are_told_apart(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    a, b = (make_run(tmp_path / folder / "run", scored(4)) for folder in ("x", "y"))
    assert [r["name"] for r in report_document([a, b])["runs"]] == [str(a.path), str(b.path)]
    names = [r["name"] for r in report_document([a, a])["runs"]]
    assert len(set(names)) == 2


HOSTILE = "</script><script>window.pwned = 1</script>\"'&{{script}}\u202e\ud800"


KEPT = {HOSTILE: ["<b>", 1], "n": [10**400, -1], "no such choice": [1]}


def test_hostile_names_and_numbers_never_reach_the_markup(tmp_path):
    space = Space([Choice(HOSTILE, (0, "NaN", "<b>", 10**400)), Choice("n", (0, 1))])
    goals = (Objective("<img src=x>", "min"), Objective("macs"))
    trials = [
        Trial(i, c, {"<img src=x>": value, "macs": 1.7e308 if i % 2 else 5e-324})
        for i, (c, value) in enumerate(
            zip(list(space.sample(np.random.default_rng(0), 4)), (1e308, -1e308, 0.0, 5e-324), strict=True)
        )
    ]
    trials.append(Trial(4, space.baseline, error=f"Traceback\n{HOSTILE}".encode("utf-8", "replace").decode()))
    run = make_run(tmp_path / "run", trials, space=space, objectives=goals, task=HOSTILE)
    run.settings = replace(run.settings, kept=KEPT)  # reading refuses it; the page stands it too
    page = write_report([run], tmp_path / "r.html").read_text(encoding="utf-8")
    empty = make_run(tmp_path / "plain", scored(4))
    usual = write_report([empty], tmp_path / "p.html").read_text(encoding="utf-8")
    assert "pwned" not in page
    assert page.count("<script") == usual.count("<script")  # names add no element
    document = json.loads(unpacked(page))
    assert document["runs"][0]["task"] == HOSTILE
    assert document["runs"][0]["choices"][0]["name"] == HOSTILE
    assert [c["kept"] for c in document["runs"][0]["choices"]] == [None, None]


def test_the_page_is_whole_and_closed(tmp_path):
    page = write_report([make_run(tmp_path / "run", scored(9))], tmp_path / "r.html").read_text(
        encoding="utf-8"
    )
    assert not re.search(r"{{\w+}}", page)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    for text in (script, unpacked(page, "plotly")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_five_thousand_trials_stay_small(tmp_path):
    space = Space([Choice(f"prune:layer{i}", tuple(k / 8 for k in range(8))) for i in range(24)])
    metrics = ("accuracy", "macs", "flops", "params", "size_mb", "memory_mb", "loss")
    trials = scored(5000, space=space, objectives=metrics)
    noise = "\n".join(f"  line {i}" for i in range(200))
    trials[9::10] = [Trial(t.number, t.candidate, error=f"{noise}\nError {t.number}") for t in trials[9::10]]
    path = write_report([make_run(tmp_path / "run", trials, space=space)], tmp_path / "r.html")
    assert path.stat().st_size < 5_000_000
    found = json.loads(unpacked(path.read_text(encoding="utf-8")))["runs"][0]
    assert len(found["numbers"]) == 5000
    assert sum(map(len, found["error_texts"])) < 500_000
    assert found["error_texts"][found["errors"]["4999"]].endswith("Error 4999")


def test_the_same_run_gives_the_same_page_but_for_the_date(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", scored(9))
    run.report(tmp_path / "a.html")
    load(tmp_path / "run").report(tmp_path / "b.html")
    a, b = ((tmp_path / name).read_text(encoding="utf-8") for name in ("a.html", "b.html"))
    one, two = (json.loads(unpacked(page)) for page in (a, b))
    assert one.pop("made")
    assert two.pop("made")
    assert one == two


# the command


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    return code, *capsys.readouterr()


def test_the_command_writes_one_page_for_all_runs(tmp_path, capsys):
    paths = [make_run(tmp_path / name, scored(9, seed=seed)).path for name, seed in (("a", 1), ("b", 2))]
    code, out, err = call(capsys, "report", *paths, "-o", tmp_path / "both.html")
    assert (code, err) == (0, "")
    assert f"The report is in {tmp_path / 'both.html'}" in out
    document = json.loads(unpacked((tmp_path / "both.html").read_text(encoding="utf-8")))
    assert [r["name"] for r in document["runs"]] == ["a", "b"]
    assert document["program"]


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "run", scored(3)).path
    bad = [
        ((tmp_path / "none",), "there is no run in", 2),
        ((run, "-o", tmp_path / "no" / "r.html"), "there is no folder", 1),
        ((tmp_path / "none", "-o", tmp_path), "it is a folder", 1),  # said before any run is read
        ((), "Missing argument", 2),
    ]
    for arguments, text, expected in bad:
        code, out, err = call(capsys, "report", *arguments)
        assert (code, out) == (expected, "")
        assert text in err
        assert err.count("\n") == 1


# what is refused, and what is not


def test_places_that_cannot_be_written(tmp_path):
    run = make_run(tmp_path / "run", scored(3))
    with pytest.raises(IsADirectoryError, match="it is a folder; name a file in it"):
        run.report(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        run.report(tmp_path / "nowhere" / "r.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_failure_leaves_the_earlier_page(tmp_path, monkeypatch):
    target = tmp_path / "r.html"
    target.write_text("earlier")
    empty = make_run(tmp_path / "run", [])
    with pytest.raises(ValueError, match="has no trials yet"):
        empty.report(target)
    assert target.read_text() == "earlier"
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], target)


@pytest.mark.parametrize(
    "trials",
    [
        pytest.param(scored(1), id="a single trial"),
        pytest.param([Trial(0, toy_space(2).baseline, error="RuntimeError: no")], id="all failed"),
        pytest.param(scored(5, objectives=("accuracy",)), id="an objective nobody has"),
    ],
)
def test_runs_with_little_to_show(tmp_path, trials):
    run = make_run(tmp_path / "run", trials)
    assert run.report(tmp_path / "r.html").stat().st_size > 100_000
    found = report_document([run])["runs"][0]
    assert found["knee"] is None
    assert len(found["front"]) == len(run.front)


def test_an_empty_front(tmp_path):
    run = make_run(tmp_path / "run", scored(9), limits=["accuracy>=2"])
    found = report_document([run])["runs"][0]
    assert found["front"] == []
    assert found["hypervolume"] == 0.0
    two = report_document([run, make_run(tmp_path / "other", scored(9))])
    assert two["rivals"]["table"][-1] == {
        "run": "run",
        "size": 0,
        "hypervolume": 0.0,
        "confirmed": None,
        "best": {},
    }


@pytest.mark.parametrize("name", ["convergence", "indistinct", "notes", "_spread"])
def test_an_analysis_that_cannot_be_had_is_left_out_with_its_reason(tmp_path, monkeypatch, name):
    run = make_run(tmp_path / "run", scored(12))

    def constant(*_):
        raise ValueError("the function is constant")

    monkeypatch.setattr(f"netcarve.report.document.{name}", constant)
    (shown,) = report_document([run])["runs"]
    assert [text for text in shown["notes"] if "the function is constant" in text]
    assert len(shown["numbers"]) == 12
    assert write_report([run], tmp_path / "r.html").stat().st_size > 1000


@pytest.mark.parametrize("value", [1e-300, 1.7e308, -1.7e308, 0.0])
def test_scores_of_any_size_are_reported(tmp_path, value):
    trials = [Trial(t.number, t.candidate, {"accuracy": value, "macs": value}) for t in scored(12)]
    (shown,) = report_document([make_run(tmp_path / "run", trials)])["runs"]
    assert len(shown["numbers"]) == 12
