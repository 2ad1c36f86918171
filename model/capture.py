"""Capture of a module as a graph of ATen calls, by ``torch.export``."""

from __future__ import annotations

import inspect
import io
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from .model_copy import PrivateCopy, private_copy
from .modules import ModuleState
from .recurrent_shapes import recurrent_shapes
from .refusal import advice, culprit, refusal

aten = torch.ops.aten
log = logging.getLogger(__name__)

REPEATABLE = 1e-4  # of the largest output: two runs that differ by more are random

# One batch of inputs: a tensor, a tuple of inputs, a dict of keyword inputs or (args, kwargs).
Example = torch.Tensor | Sequence[Any] | Mapping[str, Any]


class CaptureError(ValueError):
    """The model cannot be captured; the message says where and what to try."""


@dataclass(frozen=True)
class Captured:
    """A captured forward pass.

    ``graph_module`` calls ATen operators on the *same* parameters as ``source`` and keeps the shape
    guards of the capture.
    """

    program: torch.export.ExportedProgram
    graph_module: fx.GraphModule
    copied: PrivateCopy  # of the user's module
    args: tuple[Any, ...]  # example inputs, batch axis of at least 2 where it is dynamic
    kwargs: dict[str, Any]
    batch: int  # length of the example's batch axis
    dynamic_batch: bool
    unreturned: tuple[str, ...] = ()  # types of outputs that are no tensors, such as caches: not captured

    @property
    def source(self) -> nn.Module:
        """The private copy of the user's module, in eval mode."""
        return self.copied.model


def normalise_example(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``(args, kwargs)`` from a tensor, a tuple of inputs, a dict of keyword inputs, or (args, kwargs).

    Raises:
        TypeError: none of these, or no tensor inside.
    """
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    if isinstance(example, torch.Tensor):
        args, kwargs = (example,), {}
    elif isinstance(example, dict):
        args, kwargs = (), dict(example)
    elif (
        isinstance(example, tuple)
        and len(example) == 2
        and isinstance(example[0], tuple)
        and isinstance(example[1], dict)
    ):
        args, kwargs = example[0], dict(example[1])
    elif isinstance(example, (tuple, list)):
        args, kwargs = tuple(example), {}
    else:
        raise TypeError(
            "the example must be a tensor, a tuple of inputs, a dict of keyword inputs or (args, kwargs); "
            f"got {type(example).__name__}"
        )
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves((args, kwargs))):
        raise TypeError("the example holds no tensor; give one batch of real inputs")
    if batch_length(args, kwargs) == 0:
        raise CaptureError(
            f"the example has {describe_example(args, kwargs)}: no sample, so that nothing can be proven"
        )
    return args, kwargs


def batch_length(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Length of the first axis shared by every tensor input with axes, or ``None``."""
    lengths = {tensor.shape[0] for tensor in tensors_of((args, kwargs)) if tensor.dim()}
    return lengths.pop() if len(lengths) == 1 else None


def capture(model: nn.Module, example: Example) -> Captured:
    """Export ``model`` in eval mode on a private copy, with a dynamic batch axis where the model allows it.

    The exported graph is in the training IR: composite operators such as ``conv2d`` and ``batch_norm``.

    Raises:
        CaptureError: the model does not run on its example, or ``torch.export`` cannot follow it.
    """
    args, kwargs = normalise_example(example)
    if reason := refusal(model):
        raise CaptureError(reason)
    copied, output = _copied(model, args, kwargs)
    source = copied.model
    leaves = pytree.tree_leaves(output)
    _check_output(model, output, leaves)
    held = [ModuleState(m) for m in source.modules()]
    if reason := _unrepeatable(source, args, kwargs, output):
        raise CaptureError(reason)
    for state in held:
        state.reset()
    unreturned = tuple(dict.fromkeys(type(leaf).__name__ for leaf in leaves if not _plain(leaf)))
    failure: Exception | None = None
    # What a forward keeps from call to call would stand in the graph as a constant, if it was called before;
    # some can only be captured so.
    warmings = (False, True) if copied.keeps else (False,)
    for (a, k, dynamic), warm in product(_attempts(args, kwargs), warmings):
        try:
            with _returning_tensors(source, bool(unreturned)):
                program, module = _exported(source, a, k, dynamic=dynamic, warm=warm)
        except Exception as error:
            failure = failure or error
            continue
        finally:
            for state in held:
                state.reset()
        return Captured(program, module, copied, a, k, batch_length(a, k) or 1, dynamic, unreturned)
    assert failure is not None
    raise CaptureError(
        f"torch.export cannot capture {type(model).__name__}{culprit(failure)}: {_first_line(failure)}. "
        + advice(failure)
    ) from failure


def _check_output(model: nn.Module, output: object, leaves: Sequence[Any]) -> None:
    """
    Raises:
        CaptureError: the output holds no tensor, or NaN.
    """
    if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise CaptureError(
            f"{type(model).__name__} returns no tensor but {_kind(output)}; return a tensor, or a tuple, "
            "list or dict of tensors (torch.utils._pytree.register_pytree_node makes other containers known)"
        )
    if any(t.is_floating_point() and t.isnan().any() for t in tensors_of(output)):
        raise CaptureError(
            f"{type(model).__name__} gives NaN on its example, so that nothing can be proven; check its "
            "weights and the scale of the inputs"
        )


def _attempts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, Any, bool]]:
    """Inputs to export with, and whether their batch axis is dynamic, in the order in which to try them."""
    batch = batch_length(args, kwargs)
    if batch is None:
        log.warning(
            "the inputs share no first axis that could count samples: %s; costs are of the whole call",
            describe_example(args, kwargs),
        )
        return [(args, kwargs, False)]
    # torch.export specialises sizes of 0 and 1, so a batch of one is doubled to stay dynamic.
    wide = pytree.tree_map(_doubled, (args, kwargs)) if batch == 1 else (args, kwargs)
    return [(*wide, True), (args, kwargs, False)]


def _exported(
    source: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool, warm: bool
) -> tuple[torch.export.ExportedProgram, fx.GraphModule]:
    """The program, and its module with parameters as attributes; ``warm``: after one call."""
    with quiet(), recurrent_shapes(), torch.no_grad(), state_kept(source):
        if warm:
            source(*fresh(args), **fresh(kwargs))
        program = torch.export.export(
            source,
            fresh(args),
            fresh(kwargs),
            dynamic_shapes=_batch_shapes(source, args, kwargs) if dynamic else None,
            strict=False,
        )
        return program, unlift(program)


def _copied(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[PrivateCopy, Any]:
    """A private copy, and what it returns on the example."""
    outputs: list[Any] = []

    def run(made: nn.Module) -> Any:
        try:
            with torch.no_grad(), state_kept(made):
                outputs.append(made(*fresh(args), **fresh(kwargs)))
        except Exception as error:
            raise CaptureError(
                f"the model does not run on its example: {_first_line(error)}; "
                f"the example has {describe_example(args, kwargs)}"
            ) from error
        return outputs[-1]

    try:
        return private_copy(model, run), outputs[0]
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied: {_first_line(error)}; copy.deepcopy(model) must work"
        ) from error


def of_traced_length(captured: Captured, batches: Sequence[Any]) -> list[Any]:
    """Those of the inputs, ``(args, kwargs)`` each, that the graph takes: all axes but the first as traced.

    Raises:
        ValueError: there are inputs, and none of that length.
    """
    taken = [one for one in batches if lengths_of(one) == lengths_of((captured.args, captured.kwargs))]
    if batches and not taken:
        common, count = Counter(map(lengths_of, batches)).most_common(1)[0]
        like = next(one for one in batches if lengths_of(one) == common)
        raise ValueError(
            "no calibration batch is as long as the example, at which the model was traced: "
            f"{describe_example(captured.args, captured.kwargs)}; {count} of {len(batches)} have "
            f"{describe_example(*like)}: make one of these the example, or pad all data to one length"
        )
    return taken


def lengths_of(inputs: object) -> tuple[torch.Size, ...]:
    """Of all axes but the first of the tensors among the inputs, in order."""
    return tuple(tensor.shape[1:] for tensor in tensors_of(inputs))


def unlift(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program as a graph module on its own parameters, guards kept, in a form that can be rewritten."""
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    _normalise(module)
    return module


def flat_inputs(module: fx.GraphModule, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The graph's placeholders' values, in order: copies, since a model may write on its inputs."""
    return fx_pytree.tree_flatten_spec((fresh(args), fresh(kwargs)), module._in_spec)


def fresh(inputs: object) -> Any:
    """``inputs`` with their tensors copied."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)


def describe_example(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Shapes and types of the example's tensors, for messages."""
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in leaves)


@contextmanager
def state_kept(module: nn.Module) -> Iterator[None]:
    """Undo what happens to the module's buffers within: a model may count or average in eval mode too."""
    saved = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in saved:
                buffer.copy_(old)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the capture machinery's own chatter; exceptions still carry everything."""
    loggers = [
        logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.fx", "torch._dynamo")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        # torch.export prints the graph that it could not finish.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def tensors_of(output: object) -> list[torch.Tensor]:
    """The tensors in whatever a model returned, in order."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _unrepeatable(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> str:
    """What to say where another run on the same input does not give ``output`` again, else ""."""
    with torch.no_grad(), state_kept(model):
        again = model(*fresh(args), **fresh(kwargs))
    pairs = [
        (was.double(), now.double())
        for was, now in zip(tensors_of(output), tensors_of(again), strict=False)
        if was.shape == now.shape and was.is_floating_point() and was.numel()
    ]
    apart = max((float((now - was).abs().max()) for was, now in pairs), default=0.0)
    largest = max((float(was.abs().max()) for was, _ in pairs), default=0.0)
    if not apart > REPEATABLE * largest:
        return ""
    return (
        f"{type(model).__name__} is random in eval mode: two runs on the same input differ by {apart:.3g}, "
        f"where outputs reach {largest:.3g}, so that nothing can be proven; look for dropout that stays on "
        "(F.dropout without training=self.training) or torch.rand in forward"
    )


def _plain(leaf: object) -> bool:
    """May torch.export return it?"""
    return leaf is None or isinstance(leaf, (torch.Tensor, bool, int, float, complex, str))


def _kind(output: object) -> str:
    held = ", ".join(sorted({type(leaf).__name__ for leaf in pytree.tree_leaves(output)}))
    return type(output).__name__ + (f" of {held}" if pytree.tree_structure(output).num_children else "")


@contextmanager
def _returning_tensors(model: nn.Module, needed: bool) -> Iterator[None]:
    """Within: the model returns ``None`` in place of what is no tensor (a key-value cache, for instance)."""
    if not needed:
        yield
        return
    keep = lambda leaf: leaf if _plain(leaf) else None  # noqa: E731
    handle = model.register_forward_hook(lambda module, args, output: pytree.tree_map(keep, output))
    try:
        yield
    finally:
        handle.remove()


def _doubled(leaf: object) -> Any:
    return torch.cat([leaf, leaf]) if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf


def _batch_shapes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    batch = torch.export.Dim("batch", min=1)
    shapes = pytree.tree_map(
        lambda leaf: {0: batch} if isinstance(leaf, torch.Tensor) and leaf.dim() else None, (args, kwargs)
    )
    # torch.export wants the shapes of positional and keyword inputs in one structure, by parameter name.
    bound = inspect.signature(model.forward).bind(*shapes[0], **shapes[1]).arguments
    parameters = inspect.signature(model.forward).parameters
    named: dict[str, Any] = {}
    for name, value in bound.items():
        if parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        else:
            named[name] = value
    return named


def _normalise(module: fx.GraphModule) -> None:
    """State the length of each piece of a split, which is what surgery rewrites; ask no layout of a view.

    A ``chunk`` or ``split`` with constant sizes becomes ``split_with_sizes``. Whether a ``view`` is possible
    depends on strides, which change where axes get shorter; ``reshape`` is the same where it is possible.
    """
    for node in module.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        if node.target not in (
            aten.chunk.default,
            aten.split.Tensor,
            aten.split.sizes,
            aten.tensor_split.sections,
        ):
            continue
        pieces = node.meta["val"]
        dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        sizes = [piece.shape[dim] for piece in pieces]
        if all(isinstance(size, int) for size in sizes):
            node.target = aten.split_with_sizes.default
            node.args = (node.args[0], sizes, dim)
            node.kwargs = {}
    module.recompile()


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no message'}"


UNBOUNDED = sys.maxsize // 2  # slices to the end of an axis carry a huge `end`
