"""The page: templates, data and plotly.js in one HTML file.

Everything that comes from a run travels as compressed base64, so that no name, however hostile, is ever seen
by the HTML parser; the script inserts it as text. The policy in the page's head lets the browser run two
scripts alone, which it knows by their hashes, and forbids every connection.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Templates:
    """The files that a page is made of, in their order."""

    html: str
    styles: tuple[str, ...]
    scripts: tuple[str, ...]


REPORT = Templates(
    "report.html",
    ("report.css",),
    (
        "base.js",
        "core.js",
        "front.js",
        "choices.js",
        "table.js",
        "layers.js",
        "trial.js",
        "runs.js",
        "main.js",
    ),
)
EXPLANATION = Templates(
    "explain.html", ("report.css", "explain.css"), ("base.js", "figures.js", "explain.js")
)


def render(document: Mapping[str, Any], templates: Templates = REPORT) -> str:
    """The page for a document, by default one of :func:`report_document`."""
    script = "(() => {\n" + "\n".join(map(_template, templates.scripts)) + "})();\n"
    plotly, plotly_hash = _plotly()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src {_hash(script)} {plotly_hash}"
    )
    page = _template(templates.html)
    parts = {
        "policy": policy,
        "style": "".join(map(_template, templates.styles)),
        "data": _packed(json.dumps(document, allow_nan=False, separators=(",", ":"))),
        "plotly": plotly,
        "script": script,
    }
    for name, text in parts.items():
        page = page.replace(f"{{{{{name}}}}}", text)
    return page


def _template(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> tuple[str, str]:
    """plotly.js, packed, and its hash."""
    from plotly.offline import get_plotlyjs

    text = str(get_plotlyjs())
    return _packed(text), _hash(text)


def _packed(text: str) -> str:
    """Gzip in base64. No time stamp: the same run gives the same bytes."""
    # Level 6: 9 takes seven times as long for 5,000 trials and saves 2 % of the size.
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode("ascii")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"
