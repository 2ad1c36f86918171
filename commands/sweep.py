"""Launch a search."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.read_settings import REPAIRS, TRIALS, SweepSettings
from .arguments import AsJson, about, check_place, cores, kinds_of, rungs_of, traced
from .options import Platform, check_kind_options, platform_of, settings_of, with_options
from .terminal import CTRL_C, busy, program, proving, tell
from .views import print_busy, print_front, print_json, print_modelled, print_next

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..engine import Run
    from ..evaluators import Task
    from ..evaluators.shipping import Rehearsal
    from ..results import Limit, Objective
    from ..results.fidelity import Fidelity
    from ..results.settings import RunSettings
    from ..spaces import Space


@with_options(SweepSettings)
def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TASK", help="digits, file.py:function, package.module:function, or a recipe.toml"
        ),
    ] = None,
    *,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    """Search the Pareto front of a task. Every run keeps its options as a recipe.toml, another TASK."""
    from ..engine import Interrupted

    settings = settings_of(words or (), given)
    if given["trials"] is not None and given["minutes"] is not None:
        raise typer.BadParameter("give --trials or --minutes, not both")
    asked = _Asked.of(settings)  # what can be wrong without a model is said before the task loads
    made, space = _read(asked)
    try:
        with busy(spinner=False):
            run = _search(asked, made, space)
    except Interrupted as stop:
        tell(str(stop), err=True)
        if stop.path.exists():
            typer.echo(f"Go on: the same command with --resume --out {quote(str(stop.path))}", err=True)
        raise SystemExit(CTRL_C) from None  # said above; typer's own Exit would be said again
    _show(run, settings.searcher, as_json)


@dataclass
class _Asked:
    """The settings, with what their texts mean as far as that is known before the task is read."""

    settings: SweepSettings
    platform: Platform
    limits: tuple[Limit, ...]
    rungs: tuple[Fidelity, ...] | None
    workers: int
    settled: dict[str, Any]  # what a run that is resumed must have been started with
    goals: list[Objective] = field(default_factory=list)  # once the task is read; empty: its own
    stored: RunSettings | None = None  # settings of the run that is resumed

    @classmethod
    def of(cls, settings: SweepSettings) -> _Asked:
        """
        Raises:
            ValueError, typer.BadParameter: settings that cannot work, whatever the task.
        """
        from ..engine.mirrors import mirror
        from ..engine.settings import resumed_settings
        from ..engine.warm_start import read_source
        from ..evaluators.ray_session import check_reachable
        from ..search.base import parse_limits
        from ..search.registry import find_searcher

        kinds = kinds_of(settings.space)
        check_kind_options(kinds, settings.options)
        rungs, platform = rungs_of(settings.rungs, settings.searcher), platform_of(settings)
        limits = parse_limits(settings.limits)
        find_searcher(settings.searcher)
        if settings.resume and settings.seed_from:
            raise typer.BadParameter("--seed-from is for a new run; one that is resumed has begun already")
        for path in settings.seed_from:
            read_source(path)
        for text in settings.mirrors:
            mirror(text)
        workers = cores() if settings.workers is None else settings.workers
        if settings.address is not None and workers:
            check_reachable(settings.address)
        settled: dict[str, Any] = {"seed": settings.seed, "repeats": settings.repeats}
        if "splits" not in kinds:  # memories of devices are limits too
            settled["limits"] = limits
        out = None if settings.out is None else Path(settings.out)
        if not settings.resume:
            check_place(out)
        elif out is not None:
            resumed_settings(out, None, settings.searcher, settled)
        return cls(settings, platform, limits, rungs, workers, settled)

    def check(self, task: Task) -> None:
        """What can be refused once the task is read, before its model is traced.

        Raises:
            ValueError: see :func:`.plan.check_task`.
        """
        from ..engine.plan import check_task, choose_rungs
        from ..engine.settings import resumed_settings
        from ..results import Objective

        asked = self.settings
        self.goals = [Objective.parse(text, task.goals) for text in asked.objectives]
        tuned = any(level.epochs for level in self.rungs or ())
        check_task(
            task, asked.space, self.goals or None, self.limits, importance=asked.importance, tuned=tuned
        )
        if asked.resume:
            if self.goals:
                self.settled["objectives"] = tuple(self.goals)
            self.settled["rungs"] = choose_rungs(self.rungs, asked.searcher, task)
            self.stored = resumed_settings(asked.out, task, asked.searcher, self.settled)

    def wanted(self) -> set[str]:
        """Metrics that are objectives or limited."""
        from ..results import Objective

        return {Objective.name_in(text) for text in self.settings.objectives} | {
            m.metric for m in self.limits
        }


def _read(asked: _Asked) -> tuple[Task, Space]:
    """The task, and the space over its model."""
    from ..evaluators.shipping import Rehearsal
    from ..results.trust import known_tasks

    settings = asked.settings
    assert settings.task is not None
    rehearsals: list[Rehearsal] = []

    def check(task: Task) -> None:
        asked.check(task)
        ours = known_tasks().get(task.spec or "", "").startswith("netcarve.")  # known to reach workers
        if asked.workers and not ours:
            rehearsals.append(closing.enter_context(Rehearsal(task)))

    with busy() as say, ExitStack() as closing:
        task, blueprint = traced(settings.task, say, check)
        options: dict[str, Any] = {}
        if "splits" in settings.space:
            before = asked.stored.platform[0] if asked.stored is not None else ()
            wanted = asked.wanted()
            options = asked.platform.options(
                task, blueprint, settings.searcher, wanted=wanted, stored=before, say=say
            )
        space = blueprint.space(
            *settings.space,
            ratios=settings.ratios,
            round_to=settings.round_to,
            repair=REPAIRS[settings.repair],
            importance=settings.importance,
            calibration=task.calibration_batches if settings.calibrate else None,
            progress=_proven(rehearsals, proving(say)),
            **{**options, **settings.options},
        )
    return task, space


def _proven(rehearsals: list[Rehearsal], prove: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Told of the proof's progress; notices meanwhile that the task cannot be sent to workers."""

    def proven(done: int, total: int) -> None:
        for rehearsal in rehearsals:
            rehearsal.check()
        prove(done, total)

    return proven


def _search(asked: _Asked, task: Task, space: Space) -> Run:
    from ..engine import sweep as run_sweep
    from ..engine.progress import RichProgress

    settings = asked.settings
    if settings.trials is None and settings.minutes is None:
        settings = replace(settings, trials=TRIALS)
    return run_sweep(
        task,
        space,
        settings.searcher,
        asked.goals or None,
        asked.limits,
        trials=settings.trials,
        minutes=settings.minutes,
        workers=asked.workers,
        seed=settings.seed,
        out=settings.out,
        resume=settings.resume,
        trial_timeout=settings.trial_timeout,
        address=settings.address,
        progress=RichProgress(),
        window=settings.window,
        seed_from=settings.seed_from,
        mirrors=settings.mirrors,
        repeats=settings.repeats,
        measure=settings.measure,
        rungs=asked.rungs,
    )


def _show(run: Run, searcher: str, as_json: bool) -> None:
    """The end of a sweep: its front, what it says of the search, and what to type next.

    Raises:
        typer.Exit: the front is empty.
    """
    from ..results.table import sweep_document

    front, failed = run.front, sum(t.failed for t in run.trials)
    if as_json:
        print_json(
            sweep_document(
                front,
                **about(run),
                out=str(run.path),
                evaluated=len(run.trials),
                failed=failed,
                seconds=run.info["seconds"],
            )
        )
    else:
        print_front(run, front)
        print_busy(front)
        print_modelled(run, [o.name for o in front.objectives])
        trials_text = "1 trial" if len(run.trials) == 1 else f"{len(run.trials)} trials"
        summary = f"{trials_text} in {run.info['seconds']:.0f} s, {len(front)} on the front"
        tell(f"{summary}, hypervolume {front.hypervolume():.4f}" + (f", {failed} failed" if failed else ""))
        if run.certificate is not None:
            tell(run.certificate.line())
        elif run.info.get("complete"):
            tell(f"The search is complete: {searcher} has nothing more to propose, whatever the budget")
        if failed:
            first = next(t for t in run.trials if t.failed)
            tell(f"Trial {first.number} failed: {first.reason}")
        tell(f"The run is in {run.path}")
    if not len(front):
        kept = " and ".join(m.text for m in run.limits)
        why = f"no trial keeps {kept}; loosen it, or" if kept else "every trial failed;"
        tell(f"error: the front is empty: {why} see `{program()} front {quote(str(run.path))}`", err=True)
        raise typer.Exit(1)
    if not as_json:
        print_next(run, front.knee.number, "front", "show", "export")
