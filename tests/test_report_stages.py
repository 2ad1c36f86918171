"""Cuts and devices of a trial on the report's page, in headless Chromium; see docs/report.md."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from netcarve import Objective
from netcarve.engine import load
from netcarve.engine.settings import LEDGER, describe
from netcarve.report import write_report
from netcarve.report.document import report_document
from netcarve.results import Ledger, Trial
from netcarve.spaces import Choice, Space

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: docs/report.md")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
GOALS = (Objective("accuracy"), Objective("macs"))


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


def test_cuts_and_devices_of_a_trial(browser, tmp_path):
    space = Space(
        [
            Choice("prune:stem", (0.0, 0.5)),
            Choice("cut:1", ("end", "body", "stem", "start")),
            Choice("place:1", ("edge", "server")),
            Choice("place:2", ("server", "edge")),
        ]
    )
    rows = ([0, 0, 0, 0], [1, 2, 0, 0], [0, 1, 1, 1], [0, 3, 0, 0])
    known = {
        "measured": {"stages": [], "devices": [], "stage_ms": [3.25, 0.5]},
        "sensitivity": {"latency_change": 0.444, "throughput_change": 0.3},
    }
    trials = [
        Trial(
            i,
            space.candidate(row),
            {"accuracy": 0.9 - i / 10, "macs": 9.0 - i},
            detail=known if i == 1 else {},
        )
        for i, row in enumerate(rows)
    ]
    plan = {
        "places": ["stem", "body"],
        "encoding": "positions",
        "placement": "free",
        "parts": 2,
        "forced": [],
    }
    plan["devices"] = ["edge", "server"]
    fixed = {"task": None, "searcher": "random", "seed": 0, "window": 4, "limits": [], "metrics": []}
    settings = describe(space=space, objectives=GOALS, **fixed)
    with Ledger(tmp_path / LEDGER, write=True) as ledger:
        ledger.save_settings(
            {**settings.to_json(), "task": "digits", "kept": {"prune:stem": [16, 8]}, "split": plan}
        )
        ledger.propose([(t.number, t.proposal) for t in trials])
        ledger.record(trials)
    made = load(tmp_path)
    tab, wrong, found = browser.new_page(), [], []
    tab.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto(write_report([made], tmp_path / "r.html").resolve().as_uri())
    tab.wait_for_selector("html[data-ready]", timeout=20_000)
    for number in range(4):
        tab.locator("#table tbody tr").nth(number).click()
        found.append([text.split("\t") for text in tab.locator("#trial .stages tbody tr").all_inner_texts()])
        if number == 1:
            assert "rises by 44 % and throughput falls by 30 %" in tab.inner_text("#trial")
        assert "Other choices" not in tab.inner_text("#trial")
    assert found == [
        [["input..output", "edge"]],
        [["input..stem", "edge", "3.25 ms"], ["stem..output", "server", "0.500 ms"]],
        [["input..body", "server"], ["body..output", "edge"]],
        [["input..output", "server"]],
    ]
    assert not wrong
    for senseless in ({**plan, "places": 5}, {**plan, "devices": ["<b>"]}, {**plan, "parts": "2"}, "plan"):
        made.settings = replace(made.settings, split=senseless)
        assert report_document([made])["runs"][0]["stages"] is None
    tab.close()
