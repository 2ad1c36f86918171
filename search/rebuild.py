"""From what a run or an export has written down back to a space and a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..results.rung_choice import NAME, RungChoice
from ..spaces import Option, Space
from .settings import RunError

if TYPE_CHECKING:
    import torch

    from ..evaluators.task import Task


def rebuild_space(task: Task, settings: Mapping[str, Any]) -> Space:
    """Trace the task's model again and make the space that ``settings`` tell of.

    Args:
        settings: ``choices`` (``[[name, [options...]], ...]``) and ``space``, the space's ``recipe``:
            ``{"kinds": [...], "options": {...}}`` as given to ``Blueprint.space``, ``"calibrated"``:
            whether it was given the task's calibration batches.

    Raises:
        RunError: the model gives another space today, or the run does not say how its space was made.
    """
    from ..spaces import trace
    from ..spaces.threads import one_thread

    recipe = settings.get("space")
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
    choices = [[c.name, list(c.options)] for c in space.choices]
    if choices != settings["choices"]:
        raise RunError(
            f"the model now gives a space of other choices ({len(choices)}) than the run had "
            f"({len(settings['choices'])}); use the model and the netcarve of that run"
        )
    return space


def rebuild(
    *, spec: str | Task, space: Mapping[str, Any], choices: list[Any], candidate: Mapping[str, Option]
) -> torch.nn.Module:
    """The module of an exported candidate, for its weights to be loaded into.

    Args:
        spec: text that names the task, or the task.
        space, choices: as for :func:`rebuild_space`.
        candidate: option of each choice, by name.

    Raises:
        RunError: the task's model gives another space today.
        TaskError: the task cannot be found.
    """
    from ..evaluators.resolve import resolve_task
    from ..spaces.threads import one_thread

    task = resolve_task(spec) if isinstance(spec, str) else spec
    settings = {"space": space, "choices": choices}
    if old := RungChoice.of(settings):
        settings, candidate = old.settings(settings), {k: v for k, v in candidate.items() if k != NAME}
    made = rebuild_space(task, settings)
    with one_thread():
        return made.build(made.from_values(candidate)).eval()
