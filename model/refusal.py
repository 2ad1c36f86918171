"""Why a model cannot be captured: the tensor, layer or line that stands in the way, and what to try."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

# Not the package's root itself, which may be a checkout with the user's own files in it.
_ROOT = Path(__file__).parent.parent
_LIBRARIES = (
    Path(torch.__file__).parent,
    *(_ROOT / f for f in ("standalone", "devices", "model", "spaces", "results", "evaluators")),
    *(_ROOT / f for f in ("search", "explain", "export", "deployment", "report", "engine")),
)


def unloaded(model: nn.Module) -> str:
    """Which tensor holds no numbers, and what to do, or ""."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            why = "lazy" if is_lazy(tensor) else "on the meta device"
            return f"{name} of {type(model).__name__} is {why}: it holds no numbers; load the weights first"
    return ""


def refusal(model: object) -> str:
    """Why no export follows this model, or ""."""
    if not isinstance(model, nn.Module):
        return f"the model must be an instance of torch.nn.Module, got {model!r:.80}"
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        return f"{kind} is TorchScript; give the torch.nn.Module that it was made from"
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            return (
                f"{name or 'the model'} is quantised ({type(module).__name__}), and packed integer weights "
                "have no channels to cut; prune the float model, then quantise what comes out"
            )
    if reason := unloaded(model):
        return reason
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout != torch.strided or tensor.is_quantized:
            return f"{name} of {kind} is sparse or quantised; make it dense first"
    return ""


def culprit(error: BaseException | None) -> str:
    """The last line of the user's own code on the way to the error: `` at file:line, "source"``, or ""."""
    while error is not None:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            path = Path(frame.filename)
            ours = path.parent == _ROOT or any(library in path.parents for library in _LIBRARIES)
            if path.is_file() and not ours:
                return f' at {frame.filename}:{frame.lineno}, "{frame.line}"'
        error = error.__cause__ or error.__context__
    return ""


def advice(error: BaseException) -> str:
    """What to try instead of what ``torch.export`` could not follow."""
    text = f"{type(error).__name__} {error}"
    if _packs(error):
        return (
            "A packed sequence (pack_padded_sequence) has as many rows as the data say, which a graph cannot "
            "follow: run the recurrent layer on padded sequences, and mask its outputs by the lengths"
        )
    if "ata-dependent" in text or "DataDependent" in text:
        return (
            "Data-dependent control flow: computed values decide there what Python does (if, while, range, "
            "float(), .item()), which a graph cannot follow; use torch.where, or move it out of forward"
        )
    if "numpy" in text:
        return "NumPy cannot be followed: write that line with torch operators"
    return (
        "Write that line with torch operators on tensors, or move it out of forward (preparation before the "
        "model, choices into __init__)"
    )


def _packs(error: BaseException | None) -> bool:
    """Was a packed sequence made, or given to a recurrent layer, on the way to the error?"""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if Path(frame.f_code.co_filename).name == "rnn.py" and (
                frame.f_code.co_name.startswith("pack") or frame.f_locals.get("batch_sizes") is not None
            ):
                return True
        error = error.__cause__ or error.__context__
    return False
