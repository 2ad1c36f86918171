"""Plan of a sweep: what is asked for, checked and completed before any work starts."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..results.fidelity import DEFAULT_RUNGS, Fidelity, parse_rungs
from ..results.objective import ALIASES, METRICS, Limit, Objective
from ..results.settings import RunSettings
from ..results.trial import Trial
from ..search.base import Searcher, innermost, parse_limits, parse_objectives
from ..search.progressive import warn_of_few
from ..search.registry import guard
from ..search.registry import searcher as searcher_by_name
from ..spaces import Candidate, Space
from ..spaces.kinds.splits.plan import plan_of
from .platform import memory_limits, modelled
from .read_settings import SweepSettings
from .rebuild import recipe_of
from .settings import describe
from .uniform import opening
from .warm_start import Source, warm_start

if TYPE_CHECKING:
    from ..evaluators.base import Evaluator, Scorer
    from ..evaluators.task import Task

log = logging.getLogger(__name__)

METRICS_OF_A_PLACE = ("latency_ms",)  # measured; of no meaning for another time or machine
MOST_KEPT = 20_000  # samples of which a trial keeps whether each was right: 5 kB a trial in the ledger
# Metrics of networks that are split.
OF_SPLITS = (
    "traffic_kb",
    "stages",
    "throughput_per_s",
    "energy_mj",
    "latency_change",
    "throughput_change",
)


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that can begin."""

    task: Task | None
    space: Space
    search: Searcher  # guarded: distinct candidates that keep the limits
    scorers: Sequence[Evaluator]
    asked: SweepSettings  # how long, where, and with how many workers; of the rest what plain data can say
    settings: RunSettings  # what decides the run, for its ledger
    recipe: SweepSettings | None  # with which `netcarve sweep` repeats it, where there is such a one
    given: tuple[Candidate, ...]  # first trials after the unchanged model
    scored: Mapping[Candidate, Trial]  # what is known of them, and of the unchanged model, already


def prepare(
    task: Task | None,
    space: Space,
    searcher: str | Searcher,
    objectives: Iterable[Objective | str] | None,
    limits: Iterable[Limit | str],
    asked: SweepSettings,
    evaluators: Sequence[Scorer] | None = None,
    seed_from: Iterable[Source] = (),
    rungs: Iterable[Fidelity | str] | None = None,
) -> SweepPlan:
    """The plan of a sweep; its arguments are those of :func:`.sweep.sweep`.

    Raises:
        TypeError, ValueError: what cannot work.
    """
    check_types(task, space)
    check_inputs(task, space)
    levels = choose_rungs(rungs, searcher, task)
    goals = choose_objectives(objectives, searcher, task, space)
    wanted = parse_limits(limits)
    bounds = (*wanted, *parse_limits(memory_limits(space)))
    chosen = choose_evaluators(task, evaluators, goals, bounds, space, rungs=bool(levels))
    scorers = with_measured_costs(space, chosen)
    check_metrics(space, scorers, task, goals, bounds)
    if isinstance(searcher, Searcher):
        search, name = guard(searcher, bounds), type(innermost(searcher)).__name__.lower()
    else:
        search, name = (
            searcher_by_name(searcher, space, goals, seed=asked.seed, limits=bounds, rungs=levels),
            searcher,
        )
    settings = describe(
        task=task,
        space=space,
        searcher=name,
        seed=search.seed,
        window=asked.window,
        objectives=goals,
        limits=search.limits,
        metrics=metrics_of(scorers, task),
        repeats=asked.repeats,
        rungs=levels,
    )
    if asked.trials is not None and levels:
        warn_of_few(asked.trials, levels)
    begin = warm_start(() if asked.resume else seed_from, space, settings, measured=METRICS_OF_A_PLACE)
    given = dict.fromkeys([*begin.candidates, *opening(space, search.limits, asked.trials)])
    recipe = None
    if isinstance(searcher, str) and evaluators is None:
        recipe = recipe_of(task, space, asked, searcher, goals, wanted, levels)
    return SweepPlan(task, space, search, scorers, asked, settings, recipe, tuple(given), begin.scored)


def check_types(task: object, space: object) -> None:
    """
    Raises:
        TypeError: a model in place of its task, a blueprint in place of its space, and the like.
    """
    if task is not None and not hasattr(task, "fingerprint"):
        raise TypeError(f"task must be a netcarve.Task, got {type(task).__name__}; write Task(model, ...)")
    if not isinstance(space, Space):
        raise TypeError(
            f"space must be a netcarve.Space, got {type(space).__name__}; write trace(model, example).space()"
        )


def check_inputs(task: Task | None, space: Space) -> None:
    """
    Raises:
        ValueError: validation data of lengths that the networks of the space do not take.
    """
    if task is None:
        return
    data: dict[str, Sequence[Any]] = {
        "validation": task.batches,
        "confirm": task.confirm_batches,
        "test": task.test_batches,
        "calibration": task.calibration_batches,
    }
    inputs = {what: [batch[:2] for batch in batches] for what, batches in data.items()}
    space.side.check_lengths(space, inputs)


def choose_objectives(
    given: Iterable[Objective | str] | None, searcher: str | Searcher, task: Task | None, space: Space
) -> tuple[Objective, ...]:
    """The objectives given, else those of a searcher that is given, else the task's metric and costs.

    The costs follow the kinds of choices (:func:`default_costs`). For networks that are split it is latency,
    or traffic where no times are known.

    Raises:
        ValueError: others than the searcher was made with; an unknown metric without a goal.
    """
    own = searcher.objectives if isinstance(searcher, Searcher) else None
    goals = task.goals if task is not None else {}
    if given is None:
        if own:
            return own
        metric = quality_objective(task)
        if plan_of(space.choices) is None:
            return parse_objectives((metric, *default_costs(space)), goals)
        return parse_objectives((metric, "latency_ms" if modelled(space) else "traffic_kb"), goals)
    objectives = parse_objectives(given, goals)
    if own is not None and own != objectives:
        raise ValueError(
            f"the searcher was made for {[o.name for o in own]}, the sweep is asked for "
            f"{[o.name for o in objectives]}; give the objectives once"
        )
    return objectives


def quality_objective(task: Task | None) -> str:
    """The task's metric, as an objective.

    Raises:
        ValueError: a metric of the user's of which nobody says which way is better.
    """
    metric = task.metric_name if task is not None else "accuracy"
    if metric not in METRICS and metric not in (task.goals if task is not None else {}):
        raise ValueError(
            f"{metric!r} is a metric of your own, so say which way is better: Task(..., goal='max') or "
            f"goal='min', or objectives '{metric}:max' and 'macs'"
        )
    return metric


def default_costs(space: Space) -> tuple[str, ...]:
    """``"macs"``, ``"nonzeros"`` or both, so that each choice changes one of them (masks change no MACs)."""
    ends = [space.baseline.indices]
    for place, choice in enumerate(space.choices):
        ends.append(tuple(len(choice) - 1 if i == place else 0 for i in range(len(space))))
    costs = space.cost_arrays([space.candidate(indices) for indices in ends])
    if "macs" not in costs or "nonzeros" not in costs:
        return ("macs",)
    fewer, emptier = (costs[name][1:] != costs[name][0] for name in ("macs", "nonzeros"))
    masks = ~fewer & emptier  # [choices]
    if not masks.any():
        return ("macs",)
    return ("macs", "nonzeros") if fewer.any() else ("nonzeros",)


def choose_evaluators(
    task: Task | None,
    given: Sequence[Scorer] | None,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    space: Space,
    *,
    rungs: bool = False,
) -> list[Evaluator]:
    """What scores a candidate: ``given`` or the task's quality; latency and robustness where they are wanted.

    Which samples a candidate got right is kept where they are not too many, and on ``rungs``, which compare
    candidates by them. The latency of a split network is none of these: it is computed, for the devices of
    the space.

    Raises:
        ValueError: neither a task nor evaluators; latency of a split network without devices.
        TaskError: robustness is wanted, and means nothing for the task's inputs.
    """
    from ..evaluators.base import as_evaluators

    if task is None:
        if not given:
            raise ValueError("a sweep without a task needs evaluators=[...] that score its candidates")
        return list(as_evaluators(given))
    from ..evaluators.batches import count_samples
    from ..evaluators.latency import Latency
    from ..evaluators.quality import Quality

    # Which samples each candidate got right is kept, so that a front can say what it cannot tell apart.
    each = rungs or count_samples(task.batches) <= MOST_KEPT
    scorers: list[Evaluator] = [Quality(each=each)] if given is None else list(as_evaluators(given))
    if rungs:
        scorers = [Quality(each=True) if type(scorer) is Quality else scorer for scorer in scorers]
    wanted = {o.name for o in objectives} | {m.metric for m in limits}
    if "latency_ms" in wanted.difference(metrics_of(scorers, task), modelled(space)):
        if plan_of(space.choices) is not None:
            raise ValueError(
                "the latency of a split network depends on what runs its stages: give devices and what joins "
                "them, --device edge=0.2x --device server=1x --link 20mbps,5ms"
            )
        scorers.append(Latency())
    if "robust_accuracy" in wanted and "robust_accuracy" not in metrics_of(scorers, task):
        from ..evaluators.robustness import Robustness

        robustness = Robustness()
        robustness.applied(task)  # refused now, and not by every candidate
        scorers.append(robustness)
    return scorers


def with_measured_costs(space: Space, scorers: Sequence[Evaluator]) -> list[Evaluator]:
    """The evaluators, and who measures costs that the data decide (see ``Kind.measured``)."""
    if not any(choice.measured for choice in space.choices):
        return list(scorers)
    from ..evaluators.quality import reached

    return reached(space, scorers)


def choose_rungs(
    given: Iterable[Fidelity | str] | None, searcher: str | Searcher, task: Task | None
) -> tuple[Fidelity, ...]:
    """Fidelities that a searcher given by name is to climb; empty: it judges all in full.

    Raises:
        ValueError: fewer than two, an unknown one, or a searcher that was made already.
        TaskError: one that fine-tunes, without training data or without a loss for it.
    """
    if given is None and searcher == "progressive" and task is not None:
        given = DEFAULT_RUNGS
    if given is not None and isinstance(searcher, Searcher):
        raise ValueError(
            "rungs are for a searcher given by name; make this one with them: Progressive(rungs=...)"
        )
    rungs = searcher.rungs if isinstance(searcher, Searcher) else parse_rungs(given) if given else ()
    if task is not None and any(rung.epochs for rung in rungs):
        task.check_training()
    return rungs if len(rungs) > 1 else ()


def metrics_of(scorers: Sequence[Evaluator], task: Task | None) -> list[str]:
    """Names of the scores that evaluators say they give; plain functions say nothing."""
    return [name for scorer in scorers for name in scorer.gives(task)]


def check_metrics(
    space: Space,
    scorers: Sequence[Evaluator],
    task: Task | None,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
) -> None:
    """Everything wanted must be measured or computed by somebody.

    Raises:
        ValueError: names the metric, and what there is.
    """
    if any(not s.declared for s in scorers):
        return  # a plain function: what it gives is seen on the unchanged model
    known = [*metrics_of(scorers, task), *space.cost_arrays([space.baseline])]
    wanted = [("objective", o.name) for o in objectives] + [("limit on", m.metric) for m in limits]
    for what, name in wanted:
        if name not in known:
            raise ValueError(
                f"nothing measures the {what} {name!r}; this sweep knows {', '.join(dict.fromkeys(known))}. "
                "Add an evaluator that gives it"
            )


def check_task(
    task: Task,
    kinds: Collection[str],
    objectives: Iterable[Objective | str] | None,
    limits: Iterable[Limit],
    *,
    importance: str | None = None,
    tuned: bool = False,
) -> None:
    """What can be refused once the task is read: before its model is traced and proven, which takes a while.

    The rest needs the space, and is refused by :func:`check_metrics` and others when the sweep begins.

    Args:
        kinds: of choices, as :meth:`Blueprint.space` takes them.
        objectives: None: those of :func:`choose_objectives`.
        tuned: do candidates get fine-tuned?

    Raises:
        ValueError: an unknown importance; a metric that nobody gives, or that needs another kind; fine-tuning
            without training data; an own metric of which nobody says which way is better.
        TaskError: robustness is wanted, and means nothing for the task's inputs.
    """
    if importance is not None:
        from ..model.importance import check_name

        check_name(importance)
    if tuned:
        task.check_training()
    given = [quality_objective(task)] if objectives is None else objectives
    wanted = [("objective", o.name) for o in parse_objectives(given, task.goals)]
    wanted += [("limit on", m.metric) for m in limits]
    for what, name in wanted:
        metric = name.partition(":")[0]
        if metric in OF_SPLITS and "splits" not in kinds:
            raise ValueError(
                f"the {what} {name!r} is of networks that are split; add splits to the kinds of choices: "
                f"--space {','.join([*kinds, 'splits'])}"
            )
        if metric not in METRICS and name not in task.metrics:
            near = difflib.get_close_matches(name, [*task.metrics, *METRICS, *ALIASES], 1)
            raise ValueError(
                f"nothing measures the {what} {name!r}{f'; did you mean {near[0]!r}?' if near else ''} Known "
                f"are {', '.join(dict.fromkeys([*task.metrics, *METRICS]))}"
            )
        if metric == "robust_accuracy":
            from ..evaluators.robustness import Robustness

            Robustness().applied(task)
