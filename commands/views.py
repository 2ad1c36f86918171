"""Views of the commands, beside fronts (`results/table.py`): JSON and plain tables on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

from ..standalone import Json
from .terminal import printer, program, tell

if TYPE_CHECKING:
    from rich.table import Table

    from ..engine import Run
    from ..export import Receipt
    from ..results import Front
    from ..results.trial import Trial


SPARE_BUDGETS = ("0.75x", "0.35x", "0.15x")  # where a table has no room for all


def print_json(value: Json) -> None:
    """One JSON object on stdout, and nothing else."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, spare: Sequence[str] = ()
) -> None:
    """A plain table on stdout below its title; columns of figures stand to the right and are never cut.

    Where the terminal is too narrow, headings take two lines, then columns are left out, then texts fold.

    Args:
        spare: headings of the columns to leave out, the least important first.
    """
    from rich.measure import Measurement

    if title:
        tell(title)
    console = printer()
    left_out: list[str] = []
    table = _table(headings, rows)
    for heading in (None, *spare):
        if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
            break
        left_out += [heading] if heading is not None else []
        kept = [i for i, h in enumerate(headings) if h not in left_out]
        short = [headings[i].replace(" ", "\n") for i in kept]
        table = _table(short, [[row[i] for i in kept] for row in rows])
    console.print(table)
    if left_out:
        tell(f"Left out, for want of room: {', '.join(left_out)}; a wider terminal shows all")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    from ..results.table import literal

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, heading in enumerate(headings):
        figures = all(row[position][:1].isdigit() or row[position] in ("", "-") for row in rows)
        justify: Literal["left", "right"] = "right" if figures and rows else "left"
        table.add_column(literal(heading), justify=justify, no_wrap=justify == "right", overflow="fold")
    for row in rows:
        table.add_row(*map(literal, row))
    return table


def print_front(run: Run, front: Front) -> None:
    """The front as a table, uniform cuts below it, and what one has to know to read it."""
    from ..results.comparison import sentence
    from ..results.confirmation import notes
    from ..results.table import render_front

    console = printer()
    table = render_front(front, run.baseline, uniform=run.uniform, noise=True, width=console.width)
    console.print(table)
    for text in (*notes(front, run.unconfirmed), sentence(front, run.uniform)):
        if text:
            console.print(text, highlight=False, markup=False)


def print_sketch(front: Front, trials: Sequence[Trial]) -> None:
    """The front as a small picture, where a person looks at a terminal that can show it."""
    console = printer()
    if not console.is_terminal or console.legacy_windows or not console.encoding.startswith("utf"):
        return
    from rich.text import Text

    from ..results.plot import COLUMNS, sketch

    for line in sketch(front, trials, columns=min(COLUMNS, console.width - 16)):
        console.print(Text.assemble(*line))


def print_modelled(run: Run, names: Sequence[str]) -> None:
    """Which of these metrics (and of those that tables always show) are modelled, and for what; if any."""
    from ..devices import platform_text
    from ..results.table import HEADINGS, USUAL

    shown = [n for n in run.settings.modelled if n in (*names, *USUAL)]
    if shown:
        metrics = ", ".join(HEADINGS.get(name, name) for name in shown)
        tell(f"Modelled: {metrics}, for {platform_text(run.devices, run.links)}; `show` has measured times")


def print_next(run: Run, number: int, *commands: str) -> None:
    """What to type next about a run and one of its trials."""
    name, path = program(), quote(str(run.path))
    lines = {
        "front": f"{name} front {path} --plot front.png",
        "show": f"{name} show {path} {number}",
        "report": f"{name} report {path}",
        "explain": f"{name} explain {path} {number}",
        "export": f"{name} export {path} {number} --format pt2,onnx,state",
    }
    print("Next:")
    for command in commands:
        print(f"  {lines[command]}")


def print_busy(front: Front) -> None:
    """Where its latencies were measured on a busy machine, that."""
    from ..results.table import busy_text

    if text := busy_text([*front, *([front.baseline] if front.baseline else [])]):
        tell(text)


def print_inspection(found: Mapping[str, Any]) -> None:
    """What :func:`evaluators.inspection.inspection` found."""
    from ..results.table import si

    def cost(layer: Mapping[str, Any], name: str) -> tuple[str, str]:
        return si(layer[name]), f"{100 * layer[name] / found[name]:.1f} %" if found[name] else ""

    sizes = f"{si(found['macs'])} MACs a sample, {si(found['params'])} parameters"
    tell(f"{found['task']}: {found['model']}, {sizes}\n")
    tell(_artifact(found["graph"]) + "\n")
    if found["folded"]:
        tell(_folded(found["folded"]) + "\n")
    if found["misfit"]:
        tell(f"Note: {found['misfit']}\n")
    print_table(
        "Coupled groups: channels that can only be removed together",
        ("group", "kind", "units", "made and read by"),
        [(g["name"], g["kind"], str(g["units"]), ", ".join(g["modules"])) for g in found["groups"]],
    )
    if found["blocks"]:
        print_table(
            "Residual blocks that can be dropped, and what goes with each",
            ("block", "MACs", "share", "parameters", "share"),
            [(b["name"], *cost(b, "macs"), *cost(b, "params")) for b in found["blocks"]],
        )
    if found["cuts"]:
        _print_cuts(found["cuts"])
    else:
        tell(f"{found['no_cuts']}\n")
    if found["choices"]:
        rows = [(c["name"], ", ".join(str(o) for o in c["options"])) for c in found["choices"]]
        print_table("Choices: unchanged first", ("choice", "options"), rows)
    if found["left_out"]:
        print_table("Left as they are", ("what", "why"), list(found["left_out"].items()))
    print_table(
        "Layers",
        ("layer", "kind", "MACs", "share", "parameters", "share"),
        [(y["name"], y["kind"], *cost(y, "macs"), *cost(y, "params")) for y in found["layers"]],
    )


def _folded(folded: Mapping[str, str]) -> str:
    kinds = ", ".join(dict.fromkeys(folded.values()))
    names = ", ".join(list(folded)[:3]) + (", ..." if len(folded) > 3 else "")
    many = f"{len(folded)} weights are" if len(folded) > 1 else "1 weight is"
    return (
        f"{many} computed at each call by {kinds} ({names}); in built networks, ordinary parameters hold "
        "the computed values."
    )


def _print_cuts(cuts: Sequence[Mapping[str, Any]]) -> None:
    """The places to cut that no other beats in both bytes and balance."""
    best: list[tuple[str, str, str]] = []
    least = 101.0
    for c in sorted(cuts, key=lambda c: (c["bytes"], abs(c["macs"][0] - c["macs"][1]), not c["module_ends"])):
        share = 100 * c["macs"][0] / (sum(c["macs"]) or 1)
        if abs(2 * share - 100) < least:
            least = abs(2 * share - 100)
            best.append((c["name"], f"{c['bytes'] / 1000:.3g} kB", f"{share:.0f} %"))
    print_table(
        f"Places to cut: the best of {len(cuts)}, by bytes and balance",
        ("after", "crosses, a sample", "MACs before"),
        best,
    )


def _artifact(graph: Mapping[str, str]) -> str:
    """Which module a built network is."""
    if not graph:
        return "Built networks are of your own class"
    if "prune" in graph:
        return f"Built networks are the captured graph, an ordinary module: {graph['prune']}"
    return (
        f"Built networks are of your own class; the captured graph where blocks are dropped: {graph['drop']}"
    )


def print_receipt(receipt: Receipt) -> None:
    """What was exported, and how well each format was seen to reproduce."""
    from ..export.card import figure_cells
    from ..results.table import metric_text

    print_table(
        f"Exported to {receipt.directory}",
        ("format", "files", "size", "max relative difference", receipt.metric, "latency"),
        [
            (
                name,
                ", ".join(record.files),
                f"{sum(receipt.files[file].bytes for file in record.files) / 1e6:.2f} MB",
                f"{record.max_relative_difference:.1e}",
                "" if record.score is None else metric_text(receipt.metric, record.score),
                "" if record.latency is None else f"{record.latency['median_ms']:.3g} ms",
            )
            for name, record in receipt.formats.items()
        ],
    )
    tell(
        f"Checked in fresh processes on {receipt.samples} samples; all is in receipt.json and README.md there"
    )
    if receipt.test is not None:
        value, interval, was = figure_cells(receipt.metric, receipt.test)
        tell(
            f"On {receipt.test.samples} test samples, which chose nothing: {receipt.metric} {value}, 95 % "
            f"interval {interval}; the unchanged model has {was}"
        )


def print_comparison(
    figures: Mapping[str, Any], fronts: Mapping[str, Front], runs: Mapping[str, Run]
) -> None:
    """The runs by hypervolume, and what each reaches within a budget.

    Args:
        figures: of :func:`results.comparison.compare_fronts`.
        fronts, runs: by the names in it.
    """
    from ..results.comparison import budget_rows
    from ..results.table import metric_text

    goals = next(iter(fronts.values())).objectives
    headings = ("run", "task", "searcher", "seed", "trials", "front")
    rows: list[Sequence[str]] = []
    sure = any(row["confirmed"] is not None for row in figures["runs"])
    shown = ("hypervolume", "confirmed") if sure else ("hypervolume",)
    for row in figures["runs"]:
        run, best = runs[row["run"]], row["best"]
        about = [str(getattr(run.settings, key)) for key in ("task", "searcher", "seed")]
        reached = [metric_text(o.name, best[o.name], o.unit) if best else "-" for o in goals]
        sizes = (str(len(run)), str(row["size"]))
        cells = ["-" if row[name] is None else f"{row[name]:.4f}" for name in shown]
        rows.append((row["run"], *about, *sizes, *reached, *cells))
    spare = ("seed", "task", "searcher", "front", "trials")
    print_table("", (*headings, *(f"best {o.name}" for o in goals), *shown), rows, spare=spare)
    metric, cost, budgets = budget_rows(fronts)
    if budgets:
        title = f"Best {metric} within a budget of {cost}"
        by_run = list(zip(*budgets, strict=True))  # a line for each run, however many there are
        shares = list(by_run[0])
        lines = [[name, *cells] for name, cells in zip(fronts, by_run[1:], strict=True)]
        print_table(title, ("run", *shares), lines, spare=[s for s in SPARE_BUDGETS if s in shares])
