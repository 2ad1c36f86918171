"""Recipes: how a space was made, written down, and made again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results.fidelity import FIDELITIES, NAME, Fidelity, RungChoice
from ..results.objective import METRICS, Limit, Objective
from ..spaces import Choice, Option, Space
from ..spaces.kinds import kind_class
from .read_settings import RECIPE, REPAIRS, SweepSettings
from .settings import RunError

if TYPE_CHECKING:
    import torch

    from ..evaluators.task import Task


log = logging.getLogger(__name__)


def rebuild_space(task: Task, recipe: Mapping[str, Any] | None, choices: Sequence[Choice]) -> Space:
    """Trace the task's model again and make the space of a recipe.

    Args:
        recipe: ``{"kinds": [...], "options": {...}}`` as given to ``Blueprint.space``, ``"calibrated"``:
            whether it was given the task's calibration batches.
        choices: that it must have; names and options are compared.

    Raises:
        RunError: the model gives another space today, or the run does not say how its space was made.
    """
    from ..model.threads import one_thread
    from ..spaces import trace

    if not recipe:
        raise RunError("the run does not say how its space was made; give it: load(path, task, space=...)")
    calibration = task.calibration_batches if recipe.get("calibrated") else None
    with one_thread():
        blueprint = trace(task.model, task.example)
        try:
            space = blueprint.space(*recipe["kinds"], **recipe["options"], calibration=calibration)
        except (AttributeError, LookupError, TypeError) as error:  # options of other names or types
            raise RunError(
                f"the options of the run's space are not understood ({error}); if another netcarve made the "
                "run, use that one, or give the space: load(path, task=..., space=...)"
            ) from error
    if [(c.name, c.options) for c in space.choices] != [(c.name, c.options) for c in choices]:
        raise RunError(
            f"the model now gives a space of other choices ({len(space.choices)}) than the run had "
            f"({len(choices)}); use the model and the netcarve of that run"
        )
    return space


def recipe_of(
    task: Task | None,
    space: Space,
    asked: SweepSettings,
    searcher: str,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    rungs: Sequence[Fidelity] = (),
) -> SweepSettings | None:
    """The settings with which ``netcarve sweep`` repeats a run.

    Args:
        asked: those that are not of task, space and search.

    Returns:
        None where they cannot be written down: a task that no text names, a space made otherwise than by
        ``Blueprint.space``, with an importance of the user's own, or with rungs that have no names.
    """
    recipe = space.recipe
    if task is None or task.spec is None or recipe is None:
        return None
    if any(FIDELITIES.get(rung.name) != rung for rung in rungs):
        return None
    options = dict(recipe["options"])
    made = {name: options.pop(name) for name in ("ratios", "importance", "round_to")}
    repair = options.pop("repair")
    plain = {name: value for kind in recipe["kinds"] for name, value in kind_class(kind)().recorded().items()}
    options = {name: value for name, value in options.items() if value != plain.get(name)}
    platform = {name: options.pop(name) for name in ("devices", "links") if name in options}
    if any("profile" in device for device in platform.get("devices", ())):
        made |= platform  # else they have names alone
    made |= {n: options.pop(n) for n in ("placement", "parts", "forced", "forbidden") if n in options}
    return SweepSettings.from_dict(
        {
            **asked.to_dict(),
            **made,
            "task": task.spec,
            "space": recipe["kinds"],
            "repair": next(name for name, how in REPAIRS.items() if how == repair),
            "rungs": [rung.name for rung in rungs],
            "options": {name: value for name, value in options.items() if value is not None},
            "calibrate": bool(recipe.get("calibrated")),
            "searcher": searcher,
            "objectives": [o.name if o.name in METRICS else f"{o.name}:{o.goal}" for o in objectives],
            "limits": [m.text for m in limits],
        }
    )


def write_recipe(folder: Path, recipe: SweepSettings) -> None:
    """Keep the settings of a run in its folder, as ``recipe.toml``. A run goes on without them."""
    repeats = replace(recipe, out=None, resume=False)
    text = f"# netcarve {metadata.version('netcarve')}: `netcarve sweep {RECIPE}` repeats this run.\n"
    try:
        (folder / RECIPE).write_text(text + repeats.to_toml(), encoding="utf-8")
    except OSError as error:
        log.warning("cannot write %s: %s", folder / RECIPE, error.strerror or error)


def rebuild(
    *, spec: str | Task, space: Mapping[str, Any], choices: list[Any], candidate: Mapping[str, Option]
) -> torch.nn.Module:
    """The module of an exported candidate, for its weights to be loaded into.

    Args:
        spec: text that names the task, or the task.
        space: recipe of the space; choices: ``[[name, [options...]], ...]``.
        candidate: option of each choice, by name.

    Raises:
        RunError: the task's model gives another space today.
        TaskError: the task cannot be found.
    """
    from ..evaluators.resolve import resolve_task
    from ..model.threads import one_thread

    task = resolve_task(spec) if isinstance(spec, str) else spec
    written: dict[str, Any] = {"space": space, "choices": choices}
    if old := RungChoice.of(written):
        written, candidate = old.settings(written), {k: v for k, v in candidate.items() if k != NAME}
    own = [Choice(name, tuple(options)) for name, options in written["choices"]]
    made = rebuild_space(task, written["space"], own)
    with one_thread():
        return made.build(made.from_values(candidate)).eval()
