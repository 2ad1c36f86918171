"""Settings of a sweep: recipe files, the command line and Python say the same."""

import math
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netcarve import load
from netcarve.cli import load as load_command
from netcarve.engine.read_settings import FREE, SweepSettings, default_of, option_of
from netcarve.testing import facts

DATA = Path(__file__).parent / "data"
TASK = f"{DATA / 'stored_task.py'}:task"
SHOWN = [one for one in fields(SweepSettings) if "option" in one.metadata]

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
numbers = st.floats(allow_nan=False) | st.integers(-(2**62), 2**62)
plain = st.booleans() | texts | numbers
tables = st.dictionaries(texts, plain | st.lists(plain, max_size=3), max_size=3)


@given(
    task=texts,
    objectives=st.lists(texts, max_size=3).map(tuple),
    trials=st.none() | st.integers(1, 10**9),
    minutes=st.none() | st.floats(1e-300, math.inf),
    devices=st.lists(texts | tables, max_size=3).map(tuple),
    options=st.dictionaries(texts, plain | tables | st.lists(tables, min_size=1, max_size=2), max_size=4),
    resume=st.booleans(),
)
def test_what_is_written_is_read_as_it_was(**held):
    settings = SweepSettings(**held)
    text = settings.to_toml()
    assert SweepSettings.from_dict(tomllib.loads(text)) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trails = 3", "unknown setting 'trails'; did you mean 'trials'"),
        ("colour = 3", "unknown setting 'colour'; `netcarve sweep --help` lists them"),
        ("trials = '3'", "trials is a whole number, got '3'"),
        ("trials = 2.5", "trials is a whole number, got 2.5"),
        ("trials = 0", "trials must be at least 1, got 0"),
        ("objectives = 'macs'", "objectives is a list, each a text, got 'macs'"),
        ("measure = 1", "measure is true or false, got 1"),
        ("minutes = -1", "minutes must be more than 0"),
        ("repair = 'some'", "repair is one of full, once, none, merge, got 'some'"),
        ("ratios = [0.5]", "a list that starts with 0"),
        ("ratios = 'many'", "ratios is a whole number or a list, each a number, got 'many'"),
        ("options = 3", "options is a table, got 3"),
        ("version = 99", "version 99 is not one that this netcarve reads"),
        ("task = ", "Invalid value"),
    ],
)
def test_a_mistake_in_a_recipe_is_told_before_any_work(call, tmp_path, text, said):
    (tmp_path / "recipe.toml").write_text(f"task = 'no_such_file.py:task'\n{text}\n")
    if text.startswith("task"):
        (tmp_path / "recipe.toml").write_text(text)
    done = call("sweep", str(tmp_path / "recipe.toml"))
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "recipe.toml" in done.err
    assert len(done.err.splitlines()) <= 2


def test_a_recipe_needs_a_task(call, tmp_path):
    (tmp_path / "recipe.toml").write_text("trials = 3\n")
    assert "names no task" in call("sweep", str(tmp_path / "recipe.toml")).err
    assert "cannot read the recipe" in call("sweep", str(tmp_path / "none.toml")).err


def test_a_run_writes_its_recipe_and_repeating_it_gives_the_same_trials(call, tmp_path):
    """Kinds with options of their own, a limit, a list of ratios; then the same in fewer trials."""
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    options = "--space prune,mask --ratios 0,0.25,0.5 --sparsities 0,0.5 --repair once --importance l1"
    search = "--searcher nsga2 --seed 3 --limit macs<=0.95x --objective accuracy --objective nonzeros"
    where = "--workers 0 --no-measure"
    done = call("sweep", TASK, *f"{options} {search} {where} --trials 10 --out {first}".split())
    assert done.code == 0, done.err
    recipe = SweepSettings.read(first / "recipe.toml")
    assert recipe == SweepSettings(
        task=TASK,
        space=("prune", "mask"),
        objectives=("accuracy", "nonzeros"),
        limits=("macs<=0.95x",),
        searcher="nsga2",
        trials=10,
        workers=0,
        seed=3,
        ratios=(0.0, 0.25, 0.5),
        importance="l1",
        repair="once",
        options={"sparsities": [0.0, 0.5]},
        measure=False,
    )
    for folder, more in ((second, ()), (third, ("--trials", "9"))):
        done = call("sweep", str(first / "recipe.toml"), *more, "--out", str(folder))
        assert done.code == 0, done.err
    assert facts(load(second).trials) == facts(load(first).trials)
    assert (second / "recipe.toml").read_text() == (first / "recipe.toml").read_text()
    assert facts(load(third).trials) == facts(load(first).trials)[:9]


def test_devices_with_their_profiles_are_in_the_recipe(call, tmp_path):
    """Modelled times follow from the profile that the run was made with, so that the trials are the same."""
    first, second = tmp_path / "first", tmp_path / "second"
    stored = load(DATA / "runs-0.1" / "split.sqlite", TASK)
    from netcarve import sweep

    goals = ["accuracy", "latency", "traffic"]
    where = {"trials": 8, "workers": 0, "measure": False, "out": first}
    sweep(stored.task, stored.space, "random", goals, **where)
    done = call("sweep", str(first / "recipe.toml"), "--out", str(second))
    assert done.code == 0, done.err
    assert facts(load(second).trials) == facts(load(first).trials)


def test_command_line_recipe_and_python_have_one_table(call):
    made = load_command("sweep")
    taken = {p.name: p for p in made.params}
    for one in SHOWN:
        assert taken[one.name].rich_help_panel == option_of(one).panel
    assert set(taken) - {one.name for one in SHOWN} == {"words", "as_json"}
    assert {one.name for one in fields(SweepSettings)} >= FREE


def test_the_first_screen_of_help_has_what_people_use_daily(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = call("sweep", "--help").out
    first, rest = "\n".join(text.splitlines()[:25]), "\n".join(text.splitlines()[25:])
    for flag in ("--space", "--objective", "--limit", "--searcher", "--trials", "--workers", "--resume"):
        assert flag in first
    for flag in ("--ratios", "--device", "--rungs", "--address"):
        assert flag in rest
    assert max(map(len, text.splitlines())) <= 80


def test_defaults_are_said_in_the_help(call):
    text = " ".join(call("sweep", "--help").out.split())
    for one in SHOWN:
        assert option_of(one).help in text
        assert default_of(one) in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--sparsities 0,0.5", "'sparsities' is of the kind 'mask', which --space does not name"),
        ("--space prune,mask --sparsites 0,0.5", "No such option: --sparsites; did you mean '--sparsities'"),
        ("--trails 3", "No such option: --trails; did you mean '--trials'"),
        ("digits", "one TASK, got"),
        ("--trials 3 --minutes 3", "not both"),
    ],
)
def test_a_mistake_in_the_options_is_told_before_any_work(call, options, said):
    done = call("sweep", "no_such_file.py:task", *options.split())
    assert done.code == 2
    assert said in done.err
