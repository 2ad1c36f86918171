"""All analyses of a pair of networks, by name, and how they are run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from ..model.threads import one_thread
from .attribution import attribution_section
from .classes import classes_section
from .decisions import decisions_section
from .layers import layers_section
from .localisation import localisation_section
from .parts import parts_section
from .section import Section, Skipped
from .similarity import similarity_section
from .subject import Subject

log = logging.getLogger(__name__)

ANALYSES: dict[str, tuple[str, Callable[[Subject], Section]]] = {  # in the page's order
    "layers": ("What is left, layer by layer", layers_section),
    "decisions": ("What each choice costs", decisions_section),
    "classes": ("Who pays for it", classes_section),
    "cka": ("Similarity by depth", similarity_section),
    "parts": ("What each part is worth", parts_section),
    "localisation": ("Where feature maps look", localisation_section),
    "attribution": ("What the answer rests on", attribution_section),
}


@one_thread()
def analyse(name: str, subject: Subject) -> Section:
    """One analysis; what does not apply, or fails in the user's own code, is a section that says why."""
    title, function = ANALYSES[name]
    started = time.perf_counter()
    subject.say(title)
    try:
        section = function(subject)
    except Skipped as why:
        section = Section(name, title, skipped=str(why))
    except (
        ArithmeticError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        torch.OutOfMemoryError,
    ) as error:
        log.debug("%s failed", name, exc_info=True)
        first = str(error).strip().partition("\n")[0]
        section = Section(name, title, skipped=f"it failed with {type(error).__name__}: {first}")
    return replace(section, seconds=time.perf_counter() - started)
