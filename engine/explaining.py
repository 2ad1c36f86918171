"""Everything that explains one trial of a run, as one document."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..evaluators.errors import TaskError
from ..explain.section import Section, SectionFigure, Skipped
from ..explain.sensitivity import sensitivity_section
from ..results.table import HEADINGS, metric_text, ratio_text
from ..results.trial import comparable
from .rules import run_rules
from .settings import RunError

if TYPE_CHECKING:
    from ..results.trial import Trial
    from .run import Run

SAMPLES = 200  # of the validation data, for what looks at representations and coalitions
OF_THE_RUN = {"sensitivity": "Sensitivity to each choice", "rules": "Rules of a decision tree"}
OF_THE_NETWORK = ("layers", "decisions", "classes", "cka", "parts", "localisation", "attribution")
NAMES = ("sensitivity", *OF_THE_NETWORK, "rules")  # in the page's order


def explain(
    run: Run,
    number: int,
    *,
    only: Sequence[str] = (),
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """What the page of :func:`netcarve.report.write_explanation` shows, as plain JSON values.

    What does not apply to the run or its model is a section that says why.

    Args:
        number: of a trial that did not fail.
        only: some of :data:`NAMES`; by default all.
        samples: validation samples whose representations are looked at; scores are of all, if affordable.
        progress: told in a few words what is being done.

    Raises:
        RunError: no such trial, one that failed, an unknown name, or nothing of what was asked for applies.
    """
    check_names(only)
    if samples < 1:
        raise RunError(f"samples must be at least 1, got {samples}")
    trial = run.scored(number)
    wanted = [name for name in NAMES if not only or name in only]
    networks = [name for name in wanted if name in OF_THE_NETWORK]
    found = {name: _of_the_run(name, run, progress) for name in wanted if name in OF_THE_RUN}
    found |= _of_the_network(networks, run, trial, samples, seed, progress)
    sections = [found[name] for name in wanted]
    if all(section.skipped for section in sections):
        reasons = dict.fromkeys(section.skipped for section in sections)
        raise RunError(f"nothing about trial {number} of {run.path} can be explained: {'; '.join(reasons)}")
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.path.resolve().name,
        "task": run.settings.task,
        "searcher": run.settings.searcher,
        "seed": str(run.settings.seed),
        "trial": number,
        "scores": _scores(run, trial),
        "sections": [section.to_json() for section in sections],
    }


def check_names(only: Sequence[str]) -> None:
    """
    Raises:
        RunError: one is not among :data:`NAMES`.
    """
    if unknown := [name for name in only if name not in NAMES]:
        raise RunError(f"no explanation is called {unknown[0]!r}; known are {', '.join(NAMES)}")


def _of_the_run(name: str, run: Run, progress: Callable[[str], None]) -> Section:
    """What needs the trials alone."""
    progress(OF_THE_RUN[name])
    started = time.perf_counter()
    try:
        made = sensitivity_section(run.trials, run.objectives) if name == "sensitivity" else _rules(run)
    except Skipped as why:
        made = Section(name, OF_THE_RUN[name], skipped=str(why))
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        made = Section(name, OF_THE_RUN[name], skipped=f"it failed with {type(error).__name__}: {error}")
    return replace(made, seconds=time.perf_counter() - started)


def _of_the_network(
    names: Sequence[str],
    run: Run,
    trial: Trial,
    samples: int,
    seed: int,
    progress: Callable[[str], None],
) -> dict[str, Section]:
    """What needs the networks; where they cannot be had, sections that say why."""
    if not names:
        return {}
    if run.settings.task is None:
        return {name: Section(name, name, skipped="the run has no model") for name in names}
    from ..evaluators.pool import Job
    from ..explain.analyses import ANALYSES, analyse
    from ..explain.subject import Subject
    from ..model.threads import one_thread
    from ..spaces.choice import unsplit

    try:
        progress("reading the task of the run")
        task, space = run.task, run.space
    except (RunError, TaskError) as error:
        return {name: Section(name, ANALYSES[name][0], skipped=str(error)) for name in names}
    progress(f"building trial {trial.number}")
    # Whole: what is cut into stages computes the same, and is harder to look into.
    candidate = unsplit(space.from_values(trial.candidate.values))
    with one_thread():
        network = Job(task, space, (), rungs=run.rungs).build(candidate, trial.fidelity)
    subject = Subject(task, space, candidate, network, samples, seed, run.rungs, progress)
    return {name: analyse(name, subject) for name in names}


def _scores(run: Run, trial: Trial) -> list[list[str]]:
    base = comparable(trial, run.baseline)
    units = {o.name: o.unit for o in run.objectives}
    rows = []
    for name, value in trial.scores.items():
        was, unit = base.get(name), units.get(name, "")
        cells = ["", ""] if was is None else [metric_text(name, was, unit), ratio_text(value, was)]
        rows.append([HEADINGS.get(name, name), metric_text(name, value, unit), *cells])
    return rows


def _rules(run: Run) -> Section:
    """The rules by which a decision tree sums up the run's trials.

    Raises:
        Skipped: too few trials, or no rule that holds for trials left out.
    """
    lines = run_rules(run)
    if len(lines) < 2:
        raise Skipped(lines[0] if lines else "too few trials for a decision tree")
    about, rules = lines[0], lines[1:]
    return Section(
        "rules",
        OF_THE_RUN["rules"],
        about,
        "a regression tree over the run's trials",
        (
            SectionFigure(
                "text",
                "Rules, the best first",
                "Every candidate falls under exactly one line; the first is what good trials have in common.",
                {"lines": rules},
            ),
        ),
        {"about": about, "rules": rules},
    )
