"""The page of an explained trial in headless Chromium. Skipped where there is none (docs/report.md)."""

import os
import shutil
from pathlib import Path

import pytest
from netcarve.explain.section import KINDS, Section, SectionFigure
from netcarve.report import write_explanation

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: docs/report.md")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOSTILE = "</script><img src=x onerror=alert(1)><b>name</b>{{data}}"
LAYERS = ["stem", HOSTILE, "stage1.0.a.long.name.of.a.layer.conv2"]


def figures():
    """One picture of each kind, with values that are missing and names that are hostile."""
    pixels = [[0.0, 1.0], [-1.0, 0.5]]
    both = [
        {"name": "original", "values": [1.0, 0.5, None]},
        {"name": "subnetwork", "values": [0.5, None, 0.1]},
    ]
    content = {
        "bars": {"labels": LAYERS, "series": both, "percent": True, "axis": "share"},
        "lines": {"labels": LAYERS, "series": both, "percent": False, "axis": "CKA"},
        "heat": {"across": LAYERS, "down": LAYERS[:2], "values": [[1, None, 0.2], [-1, 0, 1]], "signed": True,
                 "percent": False, "axis": "index"},
        "intervals": {"labels": LAYERS, "low": [-0.2, -0.1, 0.1], "middle": [-0.1, 0, 0.2],
                      "high": [-0.05, 0.1, 0.3], "percent": True, "axis": "change"},
        "images": {"rows": [{"name": HOSTILE, "pictures": [{"name": "x", "pixels": pixels, "signed": 1}]}]},
        "table": {"head": ["class", HOSTILE], "rows": [["1", HOSTILE], ["2", "3"]]},
        "text": {"lines": [HOSTILE, "accuracy 99 % where a = 1"]},
    }  # fmt: skip
    return tuple(
        SectionFigure(kind, f"{kind} {HOSTILE}", "This is how to read it.", content[kind]) for kind in KINDS
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    sections = [
        Section("one", "Everything", HOSTILE, "12 samples", figures(), seconds=0.5),
        Section("two", "Paths", "on a logarithmic scale", "", (
            SectionFigure("bars", "Live paths", "Each mark is a share.", {
                "labels": LAYERS, "series": [{"name": "subnetwork", "values": [1e-9, 0.0, 0.5]}], "log": True,
                "percent": True, "axis": "share"}),)),
        Section("three", "Maps", skipped="no layer gives maps"),
    ]  # fmt: skip
    document = {
        "made": "2026-01-02T03:04:05+00:00", "run": HOSTILE, "task": HOSTILE, "searcher": "random",
        "seed": "0", "trial": 7, "scores": [["accuracy", "98.00 %", "99.00 %", "0.99x"]],
        "sections": [s.to_json() for s in sections],
    }  # fmt: skip
    return write_explanation(document, tmp_path_factory.mktemp("page") / "explain.html")


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


@pytest.mark.quick("390-dark")
@pytest.mark.parametrize(("width", "scheme"), [(1360, "light"), (390, "dark")])
def test_every_picture_is_drawn_in_silence_at_any_width(browser, file, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
    tab, wrong = context.new_page(), []
    tab.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
    tab.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or wrong.append(r.url))
    tab.goto(file.resolve().as_uri())
    tab.wait_for_selector("html[data-ready]", timeout=20_000)
    assert wrong == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.inner_text("#title") == f"{HOSTILE}, trial 7"
    assert tab.locator("img").count() == 0
    kinds = tab.locator("figure[data-kind]").evaluate_all("all => all.map((e) => e.dataset.kind)")
    assert kinds == [*KINDS, "bars"]
    for kind in ("bars", "lines", "heat", "intervals"):
        assert tab.locator(f"[data-kind={kind}] .main-svg").count() >= 1
    marks = tab.locator("[data-kind=bars]").nth(0).locator(".bars .point path")
    assert marks.count() == 4 + 2  # a missing value is an empty bar
    assert tab.locator("#two .points path").count() == 2  # nothing is left of one layer: no mark
    assert tab.locator("[data-kind=images] canvas").count() == 1
    assert tab.inner_text("[data-kind=table] tbody tr:nth-child(1) td:nth-child(2)") == HOSTILE
    assert "accuracy 99 % where a = 1" in tab.inner_text("pre.rules")
    assert tab.locator(".read").all_inner_texts()[0] == "This is how to read it."
    assert "Left out: no layer gives maps." in tab.inner_text("#summary")
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    tab.emulate_media(color_scheme="dark" if scheme == "light" else "light")  # drawn again
    tab.wait_for_timeout(200)
    assert wrong == []
    context.close()
