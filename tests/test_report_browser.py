"""The report in a real headless Chromium. Skipped where there is none; docs/report.md says how to get one."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from netcarve import Choice, Ledger, Objective, Space, Trial
from netcarve.engine import load
from netcarve.engine.settings import LEDGER, describe
from netcarve.report import write_report
from netcarve.results.table import metric_text, plain, ratio_text

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: docs/report.md")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
GOALS = (Objective("accuracy"), Objective("macs"))
SPACE = Space(
    [
        Choice("prune:stem", (0.0, 0.25, 0.5, 0.75)),
        Choice("prune:body.conv1", (0.0, 0.5)),
        Choice("drop:body", (False, True)),
        Choice("device", ("cpu", "gpu", "npu")),
    ]
)
KEPT = {"prune:stem": [16, 12, 8, 4], "prune:body.conv1": [64, 32]}
TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 3\nRuntimeError: out of memory'


def make_run(folder, trials, *, space=SPACE, objectives=GOALS, **changed):
    fixed = {"task": None, "searcher": "random", "seed": 0, "window": 4, "limits": [], "metrics": []}
    settings = describe(space=space, objectives=objectives, **fixed).to_json()
    folder.mkdir(parents=True)
    with Ledger(folder / LEDGER, write=True) as ledger:
        ledger.save_settings(settings | {"task": "digits", "spec": "digits", "kept": KEPT, **changed})
        ledger.propose([(t.number, t.proposal) for t in trials])
        ledger.record(trials)
    return load(folder)


def scored(n, seed=0):
    """Accuracy falls with compression, MACs too; every eighth fails; latency with quartiles for some."""
    rng = np.random.default_rng(seed)
    trials = []
    for i, c in enumerate([SPACE.baseline, *SPACE.sample(rng, n - 1)]):
        cut = float(np.mean([k / max(1, len(o) - 1) for k, o in zip(c.indices, SPACE.choices, strict=True)]))
        scores = {"accuracy": 0.99 - cut**2 / 3 + rng.normal(0, 0.01), "macs": 1e6 * (1.05 - cut) + i}
        detail = {}
        if i % 3 == 0:
            scores["latency_ms"] = 2.0 - cut
            detail = {"median_ms": 1.0, "q25_ms": 0.9, "q75_ms": 1.2, "device": "Abacus"}
        if i % 8 == 7:
            trials.append(Trial(i, c, error=TRACEBACK, seconds=0.1, worker="w1"))
        else:
            trials.append(Trial(i, c, scores, None, 0.25 + i / 100, "w0", detail))
    return trials


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        if found is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed; docs/report.md says how")
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox refuses root
        options = {"executable_path": found, "args": ["--no-sandbox"] if root else []}
        launched = driver.chromium.launch(**options)
        yield launched
        launched.close()


class Page:
    """An opened report, and all that went wrong in it."""

    def __init__(self, browser, file, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1360, "height": 900}, **options})
        self.tab = self.context.new_page()
        self.wrong = []
        self.tab.on("console", lambda m: m.type in ("error", "warning") and self.wrong.append(m.text))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.wrong.append("dialog"), dialog.dismiss()))
        self.tab.on("request", self._request)
        self.tab.goto(file.resolve().as_uri())
        self.ready()

    def ready(self):
        try:
            self.tab.wait_for_selector("html[data-ready]", timeout=20_000)
        except playwright.TimeoutError:
            pytest.fail(f"the page was never drawn: {self.wrong}")

    def _request(self, request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(request.url)

    def text(self, selector):
        return self.tab.inner_text(selector)

    def texts(self, selector):
        return self.tab.locator(selector).all_inner_texts()

    def rows(self):
        """Numbers of the trials in the table, after any pending frame."""
        frames = "requestAnimationFrame(() => requestAnimationFrame(done))"
        self.tab.evaluate(f"() => new Promise((done) => {frames})")
        self.tab.evaluate("() => { while (more.offsetParent) more.click() }")
        return sorted(int(t) for t in self.texts("#table tbody th"))

    def lit(self):
        """What the picture shows undimmed: rows of the front, and how many dominated ones."""
        code = """() => document.getElementById('front').data.filter((t) => t.meta === 'front')
            .flatMap((t) => t.selectedpoints.map((i) => t.customdata[i]))"""
        count = self.tab.locator("#cloud").get_attribute("aria-label").split()[0]
        return sorted(self.tab.evaluate(code)), int(count)

    def pixel(self, x, y):
        """Where a point of the picture is on the screen."""
        code = """([x, y]) => { const g = document.getElementById('front'), l = g._fullLayout;
            const { left, top } = g.getBoundingClientRect();
            return [left + l.xaxis._offset + l.xaxis.d2p(x), top + l.yaxis._offset + l.yaxis.d2p(y)]; }"""
        self.tab.evaluate("scrollTo(0, 0)")
        return self.tab.evaluate(code, [x, y])

    def drag(self, start, end):
        self.tab.mouse.move(*start)
        self.tab.mouse.down()
        self.tab.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=4)
        self.tab.mouse.move(*end, steps=4)
        self.tab.mouse.up()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("report") / "it's a run", scored(60))


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    return write_report([run], tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def opened(browser, file):
    page = Page(browser, file, permissions=["clipboard-read", "clipboard-write"])
    yield page
    page.context.close()


@pytest.fixture
def page(opened):
    """The one page of this module, as it opens."""
    opened.tab.reload()
    opened.ready()
    opened.wrong.clear()
    yield opened
    assert opened.wrong == []


@pytest.mark.quick("390-dark")
@pytest.mark.parametrize(("width", "scheme"), [(1360, "light"), (390, "dark")])
def test_opens_in_silence_at_any_width(browser, run, file, width, scheme):
    size, phone = {"width": width, "height": 850}, width < 500
    opened = Page(browser, file, viewport=size, color_scheme=scheme, has_touch=phone, is_mobile=phone)
    assert opened.wrong == []
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.tab.locator("#front .main-svg").count()
    background = opened.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    if phone:
        first = run.front.trials[0]
        opened.tab.touchscreen.tap(*opened.pixel(first.scores["macs"], first.scores["accuracy"]))
        opened.tab.wait_for_selector(f"#trial-heading:has-text('Trial {first.number} ')", timeout=5000)
    opened.context.close()


def test_everything_is_on_the_page(page, run):
    assert page.text("#title") == "digits, random"
    assert f"60 trials · {len(run.front)} on the front · 7 failed" in page.text("#facts")
    assert page.rows() == list(range(60))
    assert "Abacus" in page.text("#about")
    assert page.tab.locator("#by-trials .main-svg").count()
    assert page.tab.locator("#by-seconds .main-svg").count()


def test_numbers_read_as_on_the_command_line(page, run):
    page.rows()
    headings = page.texts("#table thead th")
    column = {name: headings.index(title) for name, title in (("accuracy", "Accuracy"), ("macs", "MACs"))}
    for line in page.tab.locator("#table tbody tr").all():
        cells = [cell.inner_text() for cell in line.locator("th, td").all()]
        trial = run[int(cells[0])]
        for name, at in column.items():
            assert cells[at] == (metric_text(name, trial.scores[name]) if trial.scores else "")


def test_a_click_on_a_point_opens_its_trial(page, run):
    places = np.array([page.pixel(t.scores["macs"], t.scores["accuracy"]) for t in run.front])
    apart = np.hypot(*(places[:, None] - places[None]).T) + np.diag(np.full(len(places), np.inf))
    alone = [t for t, nearest in zip(run.front, apart.min(axis=0), strict=True) if nearest > 12 and t.number]
    assert len(alone) > 3
    page.rows()  # all of them, so that the open one is among them
    for trial in alone:  # quickly one after the other
        page.tab.mouse.click(*page.pixel(trial.scores["macs"], trial.scores["accuracy"]))
        page.tab.wait_for_selector(f"#trial-heading:has-text('Trial {trial.number} ')")
        base = run.baseline.scores
        for name in trial.scores:
            cells = page.texts(f"#trial tr[data-metric={name}] td")
            assert cells[1].split("\n")[0] == metric_text(name, trial.scores[name])
            assert cells[2] == metric_text(name, base[name])
            assert cells[3] == ratio_text(trial.scores[name], base[name])
        assert f"{plain(trial.seconds)} s on w0" in page.text("#trial .log")
        assert page.texts("#table tr.open th") == [str(trial.number)]


def test_widths_blocks_and_other_choices(page, run):
    dropped = next(t for t in run.trials if not t.failed and t.candidate.values["drop:body"])
    whole = next(t for t in run.trials if t.number and not t.failed and not t.candidate.values["drop:body"])
    page.rows()
    for trial in (dropped, whole):
        page.tab.click(f"#table tr[data-row='{trial.number}']")
        now, of = run.kept(trial.number)["prune:stem"]
        assert page.text(".width[data-choice='prune:stem'] .units") == f"{now} of {of}"
        bar, track = (
            page.tab.locator(f".width[data-choice='prune:stem'] .{part}").bounding_box()["width"]
            for part in ("part", "whole")
        )
        assert bar / track == pytest.approx(now / of, abs=0.02)
        inner = page.text(".width[data-choice='prune:body.conv1'] .units")
        assert (inner == "dropped") == trial.candidate.values["drop:body"]
        order = page.tab.locator(".width").evaluate_all("all => all.map((e) => e.dataset.choice)")
        assert order == ["prune:stem", "prune:body.conv1"]
        device = trial.candidate.values["device"]
        if device != "cpu":
            assert device in page.text("#trial tr[data-choice=device]")


def test_copy_gives_the_exact_command(page, run):
    number = run.front.knee.number
    path = str(run.path).replace("'", "'\"'\"'")
    expected = f"netcarve export '{path}' {number} --format pt2,onnx,state"
    assert page.text("#command") == expected
    page.tab.click("#command + button.copy")
    page.tab.wait_for_selector("#command + button.copy:has-text('Copied')")
    assert page.tab.evaluate("navigator.clipboard.readText()") == expected


def lit(run, numbers):
    front = {t.number for t in run.front}
    others = [n for n in numbers if n not in front and n and not run[n].failed]
    return sorted(front & set(numbers)), len(others)


def test_brushing_an_axis_filters_everything(page, run):
    axis = page.tab.locator(".axis[data-axis='choice prune:stem']")
    axis.scroll_into_view_if_needed()
    box = axis.bounding_box()
    across = box["x"] + box["width"] / 2
    page.drag(
        (across, box["y"] + 0.7 * box["height"]), (across, box["y"] + box["height"] - 2)
    )  # 8 and 4 units
    expected = [t.number for t in run.trials if t.candidate.values["prune:stem"] >= 0.5]
    assert 0 < len(expected) < 60
    assert page.rows() == expected
    assert page.text("#count") == f"{len(expected)} of 60 trials"
    assert page.text("#chips") == "prune:stem: 8 to 4 ×"
    assert page.lit() == lit(run, expected)
    axis.scroll_into_view_if_needed()
    box = axis.bounding_box()
    page.tab.mouse.click(across, box["y"] + 0.8 * box["height"])  # clears it
    assert page.rows() == list(range(60))
    assert page.text("#chips") == ""


def test_brushing_the_picture_filters_everything(page, run):
    low, high = (3e5, 0.85), (8e5, 0.97)
    page.drag(page.pixel(low[0], high[1]), page.pixel(high[0], low[1]))
    page.tab.wait_for_selector(".chip")
    inside = [
        t.number
        for t in run.trials
        if t.scores and low[0] < t.scores["macs"] < high[0] and low[1] < t.scores["accuracy"] < high[1]
    ]
    assert 0 < len(inside) < 53
    assert page.rows() == inside
    assert page.lit() == lit(run, inside)
    page.tab.click("#scope button[data-scope=front]")
    front = {t.number for t in run.front}
    assert page.rows() == [n for n in inside if n in front]
    page.tab.click(".chip")
    assert page.rows() == sorted(front)


def test_other_axes_a_colour_and_error_bars(page, run):
    page.tab.select_option("#axis-x", "latency_ms")
    page.tab.select_option("#axis-colour", "macs")
    measured = [t.number for t in run.trials if "latency_ms" in t.scores]
    front = {t.number for t in run.front}
    assert page.lit() == (sorted(front & set(measured)), len(set(measured) - front - {0}))
    assert f"{60 - len(measured)} trials without both metrics" in page.text("#front-note")
    code = """() => document.getElementById('front').data
        .filter((t) => t.meta === 'front' && t.error_x.visible)
        .flatMap((t) => t.customdata.map((row, i) => [row, t.error_x.arrayminus[i], t.error_x.array[i]]))"""
    bars = page.tab.evaluate(code)
    assert {row for row, *_ in bars} == {t.number for t in run.front if "latency_ms" in t.scores}
    for row, below, above in bars:
        score = run[row].scores["latency_ms"]
        assert below == pytest.approx(0.1 * score)
        assert above == pytest.approx(0.2 * score)


def test_the_table_sorts_and_the_front_is_walked(page, run):
    page.tab.click("#table thead button:has-text('MACs')")
    first = page.texts("#table tbody th")[0]
    assert int(first) == min((t for t in run.trials if t.scores), key=lambda t: t.scores["macs"]).number
    knee = run.front.trials.index(run.front.knee)
    page.tab.click("#next")
    assert page.text("#trial-heading").startswith(f"Trial {run.front.trials[knee + 1].number} ")


def test_failures_lead_to_their_tracebacks(page, run):
    assert "RuntimeError: out of memory" in page.text("#failures")
    page.tab.click("#failures button.link >> nth=2")
    failed = [t.number for t in run.trials if t.failed]
    assert page.text("#trial-heading").startswith(f"Trial {failed[2]}")
    assert page.text("#trial pre") == TRACEBACK
    assert page.tab.locator("#command").count() == 0


def test_several_runs(browser, run, tmp_path):
    other = make_run(tmp_path / "b", scored(60, seed=1))
    opened = Page(browser, write_report([run, other], tmp_path / "r.html"))
    assert opened.text("#title") == "digits: 2 runs"
    assert len(opened.texts("#hypervolumes tbody tr")) == 2
    ours, theirs = ([(t.scores["macs"], -t.scores["accuracy"]) for t in r.front] for r in (run, other))
    beaten = sum(any(p[0] <= q[0] and p[1] <= q[1] and p != q for p in ours) for q in theirs)
    assert f"dominates {beaten} of the {len(other.front)} points" in opened.texts("#rivals summary")[0]
    assert len(opened.rows()) == 60 * 2
    lines = "document.getElementById('front').data.filter((t) => t.mode === 'lines' && t.x.length).length"
    assert opened.tab.evaluate(lines) == 2
    assert opened.wrong == []
    opened.context.close()


HOSTILE = "</script><img src=x onerror=alert(1)><b>name</b>&lt;i&gt;{{data}}\u202e"


def test_a_hostile_run_is_only_text(browser, tmp_path):
    image = "<img src=x onerror=alert(2)>"
    space = Space([Choice(HOSTILE, (0, image, "javascript:alert(3)")), *SPACE.choices])
    goals = (Objective(image, "max"), Objective("macs"), Objective("__proto__", "min"))
    values = [1e308, -1e308, 1e-320, 0.0, 1.5, 1e200, -3.25, 12345.678, 0.125, 1e-7]
    trials = []
    for i, (c, v) in enumerate(zip(space.sample(np.random.default_rng(1), 10), values, strict=True)):
        scores = {image: v, "macs": abs(v), "accuracy": i / 8, "__proto__": v / 2, "constructor": v}
        trials.append(Trial(i, c, scores, None, 1e300))
    trials.append(Trial(10, space.baseline, error=HOSTILE))
    names = {"task": HOSTILE, "searcher": HOSTILE}
    made = make_run(tmp_path / "<img src=x>", trials, space=space, objectives=goals, **names)
    made.settings = replace(made.settings, kept={HOSTILE: [3, 2, "<b>"]})  # reading would refuse it
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "samples": 9, "method": HOSTILE}
    made.info |= {"status": HOSTILE, "environments": [{"machine": HOSTILE, HOSTILE: image}, HOSTILE]}
    made.info["test"] = {"1": {"metric": HOSTILE, "figure": figure}, HOSTILE: {"figure": image}}
    opened = Page(browser, write_report([made], tmp_path / "r.html"))
    assert opened.tab.inner_text("#title") == f"{HOSTILE}, {HOSTILE}"
    assert opened.rows() == list(range(11))
    for trial in made.trials:  # every panel, every number
        opened.tab.click(f"#table tr[data-row='{trial.number}'] th")
        found = opened.texts("#trial .scores td:nth-child(2)")
        assert {metric_text(name, value) for name, value in trial.scores.items()} == set(found)
    for number in range(4):
        opened.tab.select_option("#axis-x", index=number)
        opened.tab.select_option("#axis-colour", index=number)
    opened.tab.mouse.move(600, 400)
    assert opened.tab.locator("img").count() == 0
    assert opened.tab.locator("a").count() == 0
    assert opened.tab.locator("main b:has-text('name')").count() == 0
    assert opened.wrong == []
    opened.context.close()


@pytest.mark.quick("all failed")
@pytest.mark.parametrize(
    ("trials", "changed", "said"),
    [
        pytest.param(scored(1), {}, "1 trial", id="a single trial"),
        pytest.param([Trial(0, SPACE.baseline, error=TRACEBACK)], {}, "Every trial failed", id="all failed"),
        pytest.param(scored(20), {"limits": ["accuracy>=2"]}, "The front is empty", id="an empty front"),
        pytest.param(scored(20), {"task": None, "spec": None}, "The run has no model", id="no model"),
        pytest.param(scored(20), {"spec": None}, "task=task).export(", id="a task that was made in a script"),
    ],
)
def test_runs_with_little_to_show(browser, tmp_path, trials, changed, said):
    made = make_run(tmp_path / "run", trials, **changed)
    opened = Page(browser, write_report([made], tmp_path / "r.html"))
    assert said in opened.text("body")
    assert opened.rows() == [t.number for t in trials]
    assert opened.wrong == []
    opened.context.close()
