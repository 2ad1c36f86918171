"""The model card of an export, ``README.md``: what it is, how good, what it costs, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..results.significance import Figure
from ..results.table import metric_text, ratio_text
from .receipt import Receipt
from .samples import SAMPLES

if TYPE_CHECKING:
    from .source import Inputs

CARD = "README.md"
_COSTS = ("macs", "params", "size_mb", "memory_mb", "activation_mb", "latency_ms", "traffic_kb", "energy_mj")


def card(receipt: Receipt, code: str) -> str:
    """The page, in Markdown; names from the run are quoted, so that none can be markup.

    Args:
        code: lines of Python that load and call it, see :func:`snippet`; may be empty.
    """
    describe = receipt.describe
    task = describe.get("task")
    parts = [
        f"# {_plain(task or 'network')}, trial {describe['trial']}" if "trial" in describe else "# A network",
        _what(receipt),
        "## How good",
        _quality(receipt),
        "## What it costs",
        _costs(receipt),
        "## Files",
        _files(receipt),
    ]
    if code:
        parts += ["## Loading", "In this folder:", f"```python\n{code}```"]
    parts += ["## What was changed", _changes(describe), "## How it was checked", _checks(receipt)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(receipt: Receipt) -> str:
    describe = receipt.describe
    run = (
        f" It is trial {describe['trial']} of the run {_plain(describe['run'])}." if "run" in describe else ""
    )
    made = "A subnetwork that netcarve has cut out of a trained network"
    own = f" Its weights were {_plain(describe['weights'])}." if "weights" in describe else ""
    return f"{made}{' for the task ' + _plain(describe['task']) if describe.get('task') else ''}.{run}{own}"


def _quality(receipt: Receipt) -> str:
    rows = []
    for name, figure, about in (
        ("validation", receipt.figure, "the search chose by these data, so that this is flattered"),
        ("test", receipt.test, "seen by neither training nor search"),
    ):
        if figure is not None:
            rows.append((name, *figure_cells(receipt.metric, figure), str(figure.samples), about))
    if not rows and receipt.score is not None:
        rows.append(
            ("validation", metric_text(receipt.metric, receipt.score), "", "", str(receipt.samples), "")
        )
    if not rows:
        return "No metric was given."
    heads = ("data", receipt.metric, "95 % interval", "unchanged", "samples", "")
    lines = [_table(heads, rows)]
    if receipt.test is None:
        lines.append("The task has no test data; only those can say how good it is on data that are new.")
    elif receipt.test.paired is not None:
        lines.append(paired_text(receipt.test))
    return "\n\n".join(lines)


def figure_cells(metric: str, figure: Figure) -> tuple[str, str, str]:
    """Value, interval, and the unchanged model's value, as text."""
    was = "" if figure.baseline is None else metric_text(metric, figure.baseline)
    return metric_text(metric, figure.value), interval_text(metric, figure), was


def interval_text(metric: str, figure: Figure) -> str:
    return f"{metric_text(metric, figure.low)} to {metric_text(metric, figure.high)}"


def paired_text(figure: Figure) -> str:
    """One sentence on the paired test."""
    assert figure.paired is not None
    gained, lost, p = figure.paired.gained, figure.paired.lost, figure.paired.p
    if not gained + lost:
        return "On the test data it is right and wrong where the unchanged model is."
    verdict = "a difference that is no chance" if p < 0.05 else "which may be chance"
    return (
        f"Of the test samples it gets {gained} right that the unchanged model gets wrong, and {lost} wrong "
        f"that it gets right: {verdict} (McNemar's exact test, p = {p:.2g})."
    )


def _costs(receipt: Receipt) -> str:
    scores: Mapping[str, Any] = receipt.describe.get("scores") or {}
    base: Mapping[str, Any] = receipt.describe.get("baseline") or {}
    known = {"macs": receipt.macs, "params": receipt.params} | {
        k: v for k, v in scores.items() if k in _COSTS
    }
    rows = []
    for name in _COSTS:
        if name in known:
            was = base.get(name)
            ratio = "" if was is None else ratio_text(known[name], was)
            rows.append(
                (name, metric_text(name, known[name]), "" if was is None else metric_text(name, was), ratio)
            )
    return _table(("cost", "this", "unchanged", "ratio"), rows)


def _files(receipt: Receipt) -> str:
    rows = []
    for name, record in receipt.formats.items():
        size = sum(receipt.files[file].bytes for file in record.files) / 1e6
        score = "" if record.score is None else metric_text(receipt.metric, record.score)
        if record.test is not None:
            score += f" (test {metric_text(receipt.metric, record.test)})"
        time = "" if record.latency is None else f"{record.latency['median_ms']:.3g} ms"
        files = ", ".join(f"`{file}`" for file in record.files)
        difference = f"{record.max_relative_difference:.1e}"
        rows.append((name, files, f"{size:.2f} MB", record.needs, difference, score, time))
    heads = ("format", "files", "size", "needs", "largest difference", receipt.metric, "time of a call")
    times = [r.latency["batch"] for r in receipt.formats.values() if r.latency is not None]
    lines = [_table(heads, rows)]
    lines += (
        [f"A call has a batch of {times[0]}, on one thread of {_plain(receipt.machine)}."] if times else []
    )
    lines += [
        f"{name} does not answer exactly as the network does: its {receipt.metric} on the validation data is "
        f"{metric_text(receipt.metric, record.score)} where that of the network is "
        f"{metric_text(receipt.metric, receipt.score)}."
        for name, record in receipt.formats.items()
        if not record.exact and record.score is not None and receipt.score is not None
    ]
    return "\n\n".join(lines)


def _changes(describe: Mapping[str, Any]) -> str:
    options = {name: values[0] for name, values in describe.get("choices", []) if values}
    rows = [
        (_plain(name), _plain(value), _plain(options[name]) if name in options else "")
        for name, value in describe.get("candidate", {}).items()
        if name not in options or value != options[name]
    ]
    return _table(("choice", "taken", "unchanged"), rows) if rows else "Nothing."


def _checks(receipt: Receipt) -> str:
    lengths = ", ".join(map(str, receipt.batches))
    shape = f"{lengths} and" if len(receipt.batches) > 1 else f"{lengths}, the only length it takes, with"
    kept = (
        f"`{SAMPLES}` holds a few of those samples with their answers, which are real data of the task: "
        "think before you pass it on. "
        if SAMPLES in receipt.files
        else ""
    )
    return (
        f"Each file was loaded in a process of its own and asked batches of {shape} all {receipt.samples} "
        "validation samples; the difference is to the network in memory, relative to its largest output. "
        f"{kept}`netcarve verify .` checks the files again, on any machine; hashes and versions are in "
        "`receipt.json`."
    )


def snippet(receipt: Receipt, call: Inputs) -> str:
    """At most five lines of Python that load what is in the folder and call it on zeros.

    ``""`` where nothing in it makes a module, or the call is more than tensors and constants.

    Args:
        call: ``(args, kwargs)`` of one batch.
    """
    written = _written(call)
    if written is None:
        return ""
    if "pt2" not in receipt.formats and "model.py" in receipt.files:
        return (
            f"import torch\nfrom model import load\n\nmodel = load()\noutputs = model({', '.join(written)})\n"
        )
    if {"pt2", "state"} & receipt.formats.keys():
        spec = receipt.describe.get("rebuild", {}).get("arguments", {}).get("spec")
        needs_task = "pt2" not in receipt.formats and spec is not None and ":" in str(spec)
        task = f", task={json.dumps(spec)}" if needs_task else ""
        load = f'import netcarve\nimport torch\n\nmodel = netcarve.load("."{task})\n'
        return f"{load}outputs = model({', '.join(written)})\n"
    return ""


def _written(call: Inputs) -> list[str] | None:
    """The arguments as Python text; None where they are more than tensors and constants."""
    import torch

    def text(value: object) -> str | None:
        if isinstance(value, torch.Tensor):
            kind = "" if value.dtype == torch.float32 else f", dtype={value.dtype}"
            return f"torch.zeros({', '.join(map(str, value.shape))}{kind})" if value.dim() else None
        return repr(value) if value is None or isinstance(value, bool | int | float | str) else None

    args, kwargs = call
    texts = [text(value) for value in args] + [
        None if (t := text(value)) is None else f"{name}={t}" for name, value in kwargs.items()
    ]
    return None if any(t is None for t in texts) else [t for t in texts if t is not None]


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

    return "\n".join([line(heads), line(("---",) * len(heads)), *map(line, rows)])


def _plain(value: object) -> str:
    """A name as code: markup and line ends in it mean nothing."""
    text = "".join(c if c.isprintable() else " " for c in str(value)).replace("`", "'")
    return f"`{text}`"
