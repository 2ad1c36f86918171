"""Arguments of the command line: lists of names, tasks, fronts, and those that several commands take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..engine import Run
    from ..evaluators import Task
    from ..results import Front
    from ..results.fidelity import Fidelity
    from ..spaces import Blueprint


TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="digits, file.py:function or package.module:function")
]
# With the options of kinds of choices, which a command does not know itself: see `cli.load`.
TaskAndOptions = Annotated[
    list[str] | None,
    typer.Argument(metavar="TASK", help="digits, file.py:function or package.module:function"),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run, as `sweep` says at its end")]
TrialName = Annotated[
    str,
    typer.Argument(metavar="TRIAL", help="number of a trial (0 is unchanged), or best, knee, smallest"),
]
Objectives = Annotated[
    list[str] | None,
    typer.Option("--objective", metavar="M", help="metric to trade off, or NAME:min, NAME:max; repeat"),
]
RunTask = Annotated[
    str | None,
    typer.Option("--task", metavar="TASK", help="of the run, where it lies elsewhere or you did not make it"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of tables")]


# -- What arguments of the command line mean: lists of names, tasks, fronts -----------------------------


def traced(
    text: str, say: Callable[[str], None], check: Callable[[Task], object] = lambda task: None
) -> tuple[Task, Blueprint]:
    """The task and its model, traced; ``check`` may refuse the task before that."""
    say(f"reading the task {text}")  # and importing torch, a second or two
    from ..evaluators.resolve import resolve_task
    from ..spaces import trace

    task = _one_thread_after(resolve_task(text))
    check(task)
    say("tracing the model")
    return task, trace(task.model, task.example)


def _one_thread_after(task: Task) -> Task:
    """The task, with one thread from now on; the user's own code that made it had them all."""
    from ..model.threads import one_thread_from_now_on

    one_thread_from_now_on()
    return task


def kinds_of(names: Sequence[str]) -> tuple[str, ...]:
    """
    Raises:
        typer.BadParameter: no kind, or one that this version does not know.
    """
    from ..spaces.kinds import known_kinds

    known = known_kinds()
    for kind in names or [""]:
        if kind not in known:
            raise typer.BadParameter(f"--space {kind!r}: unknown; known: {', '.join(known)}")
    return tuple(names)


def rungs_of(names: Sequence[str], searcher: str) -> tuple[Fidelity, ...] | None:
    if not names:
        return None
    if searcher != "progressive":
        raise typer.BadParameter(f"--rungs is for --searcher progressive, got {searcher}")
    from ..results.fidelity import parse_rungs

    return parse_rungs(names)


def names_in(text: str) -> list[str]:
    """``"pt2, onnx"`` as a list, without repeats."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def front_of(run: Run, objectives: Iterable[Any] | None) -> Front:
    from ..results import Front
    from ..results.points import read_objectives

    if not objectives:
        return run.front
    front = Front(run.trials, read_objectives(list(objectives), run.goals), limits=run.limits)
    known = dict.fromkeys(name for trial in run.trials for name in trial.scores)
    if missing := [o.name for o in front.objectives if o.name not in known]:
        raise ValueError(f"no trial of {run.path} has {missing[0]!r}; known are {', '.join(known) or 'none'}")
    return front


def about(run: Run) -> dict[str, Any]:
    modelled = run.settings.modelled
    known = {key: getattr(run.settings, key) for key in ("task", "searcher", "seed")}
    return known | ({"modelled": modelled} if modelled else {})


def cores() -> int:
    """Workers by default: the cores this process may use, at most 4, since each worker holds the model."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 4)


def check_place(folder: Path | None) -> None:
    """Whether a new run could be kept there, before anything is made; ``None``: a new folder of ``runs/``.

    Raises:
        RunError: it holds a run, or cannot be made.
    """
    from ..engine.settings import HOME, RunError, check_free

    if folder is not None:
        check_free(folder)
    place = (folder or HOME).absolute()
    there = next(p for p in (place, *place.parents) if p.exists())
    if not there.is_dir():
        raise RunError(f"cannot make the run's folder {place}: {there} is a file; choose another")
    if not os.access(there, os.W_OK):
        raise RunError(f"cannot make the run's folder {place}: {there} may not be written to; choose another")
