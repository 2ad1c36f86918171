"""What may be changed in a model."""

from __future__ import annotations

from .arguments import traced
from .terminal import busy, proving
from .types import AsJson, TaskName
from .views import print_inspection, print_json


def inspect(task: TaskName, as_json: AsJson = False) -> None:
    """Show what may be changed in a model, and what its layers cost."""
    with busy() as say:
        from ..evaluators.inspection import inspection

        found = inspection(*traced(task, say), progress=proving(say))
    if as_json:
        print_json(found)
    else:
        print_inspection(found)
