"""Source of an export: a private copy of the module, its example, and what it answers in memory."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..evaluators.batches import Outputs
from ..model.counter import counted
from ..model.model_copy import plain_copy
from ..model.recurrent_shapes import recurrent_shapes
from ..spaces.kinds.splits.staged import PlacedStage
from .error import ExportError, first_line, quiet

# -- Outputs in plain containers ------------------------------------------------------------------------


def plain(output: Outputs) -> Any:
    """``output`` with dicts, lists and tuples in the place of containers that a library made up.

    Those need that library wherever the program is loaded, plain ones nothing.
    """
    if isinstance(output, Mapping):
        return {key: plain(value) for key, value in output.items()}
    if isinstance(output, list):
        return [plain(value) for value in output]
    return tuple(plain(value) for value in output) if isinstance(output, tuple) else output


def is_plain(output: Outputs) -> bool:
    return pytree.tree_structure(output) == pytree.tree_structure(plain(output))


class PlainOutput(nn.Module):
    """A model whose output is made :func:`plain`, called as the model is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

        def forward(*args: Any, **kwargs: Any) -> Any:
            return plain(self.model(*args, **kwargs))

        # Exporters name the inputs after the parameters of forward.
        forward.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]
        self.forward = forward


# -- Batches of inputs as ``(args, kwargs)``: where their samples are counted, and how to take some of them

Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # (args, kwargs)


def on_cpu(inputs: tuple[tuple[Any, ...], Mapping[str, Any]]) -> Inputs:
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf,
        (tuple(inputs[0]), dict(inputs[1])),
    )
    return args, kwargs


def batch_length(inputs: Inputs) -> int:
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return int(leaf.shape[0])
    raise ExportError("the inputs hold no tensor with a batch axis; give one batch of real inputs")


def batched(batches: Sequence[Inputs]) -> frozenset[int]:
    """Positions of the tensors whose first axis is as long as the batch, in all batches alike."""
    return frozenset.intersection(
        *(
            frozenset(
                position
                for position, leaf in enumerate(pytree.tree_leaves(one))
                if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == batch_length(one)
            )
            for one in batches
        )
    )


def resized(inputs: Inputs, length: int, positions: frozenset[int]) -> Inputs:
    """``inputs`` with ``length`` samples: the first ones, from the start again where there are too few.

    ``positions`` are those of the leaves that :func:`batched` found.
    """
    rows = torch.arange(length) % batch_length(inputs)
    leaves, structure = pytree.tree_flatten(inputs)
    args, kwargs = pytree.tree_unflatten(
        [leaf[rows] if position in positions else leaf for position, leaf in enumerate(leaves)], structure
    )
    return args, kwargs


def samples(inputs: Sequence[Inputs]) -> int:
    """Samples in all batches together."""
    return sum(batch_length(one) for one in inputs)


# -- What is exported: a private copy of the module, its example, and what it answers in memory ---------


class Source:
    """A module in eval mode on the CPU, with one batch of example inputs.

    Args:
        model: is copied; the copy is switched to eval mode.
        args, kwargs: example inputs. The batch is the first axis of the first tensor; every tensor with a
            first axis of that length carries it.
        inputs: real batches; axes that differ between batches are exported as dynamic, like the batch.
        describe: what the description and the receipt say about the module (JSON).
        calibration: batches for the ranges of activations; by default ``inputs``.
        stages: of the same model.

    Raises:
        ExportError: the inputs have no batch axis or not all the same structure, or the model fails on them.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        inputs: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]],
        describe: Mapping[str, Any],
        calibration: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]] = (),
        stages: Sequence[PlacedStage] = (),
    ) -> None:
        self.describe = describe
        self.stages = tuple(stages)
        with quiet():  # copies of captured graphs warn
            self.model = _evaluating(plain_copy(model)).cpu()
        self.inputs: list[Inputs] = [on_cpu(one) for one in inputs]
        self.calibration: list[Inputs] = [on_cpu(one) for one in calibration] or self.inputs
        example = on_cpu((args, kwargs))
        self._check_structure(example)
        self.batch = batch_length(example)  # samples in the example
        self._batched = batched([example, *self.inputs])  # positions of the leaves with the batch axis
        self.dynamic = self._takes_other_batches()
        # torch.export takes lengths of 0 and 1 for constants: a batch of one is doubled to stay dynamic.
        self.example = resized(example, max(2, self.batch), self._batched) if self.dynamic else example

    @property
    def lengths(self) -> tuple[int, ...]:
        """Batch lengths to check: 1, 3 and the example's; the last alone when the module takes no other."""
        return tuple(sorted({1, 3, self.batch})) if self.dynamic else (self.batch,)

    def checks(self) -> list[Inputs]:
        """Batches of these lengths, of real samples."""
        return [resized(self.inputs[0], length, self._batched) for length in self.lengths]

    def one(self) -> Inputs:
        """A call of the shortest batch."""
        return resized(self.inputs[0], min(self.lengths), self._batched)

    def answer(self, inputs: Inputs) -> Any:
        """The module's output on ``(args, kwargs)``.

        Raises:
            ExportError: the module fails.
        """
        args, kwargs = inputs
        try:
            with torch.inference_mode():
                return self.model(*args, **kwargs)
        except Exception as error:
            raise ExportError(f"the model does not run on its inputs: {first_line(error)}") from error

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """Captured once, shared by the formats that start from it."""
        program = self._captured(self.dynamic_shapes)
        # A file that is passed on shall not carry the user's data.
        program.example_inputs = None
        return program

    @cached_property
    def bounded_program(self) -> torch.export.ExportedProgram:
        """The same for runtimes that plan memory ahead: for at most the samples of the largest batch."""
        if not self.dynamic:
            return self.program
        most = max(2, self.batch, *map(batch_length, self.inputs))
        # Captured with so many, since ExecuTorch plans for what the example has, whatever the bound.
        return self._captured(self._shapes(most), resized(self.example, most, self._batched))

    def _captured(
        self, shapes: dict[str, Any] | tuple[Any, ...] | list[Any] | None, example: Inputs | None = None
    ) -> torch.export.ExportedProgram:
        module = self.captured_module
        try:
            with quiet(), recurrent_shapes(), torch.no_grad():
                args, kwargs = example or self.example
                program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise ExportError(
                f"torch.export cannot capture {type(self.model).__name__}: {first_line(error)}"
            ) from error
        return program

    @cached_property
    def dynamic_shapes(self) -> Any:
        """``torch.export``'s description of the axes whose length may change; ``None``: none may."""
        return self._shapes(None)

    def _shapes(self, most: int | None) -> Any:
        batch = torch.export.Dim("batch", min=1, max=most)
        shapes = torch.export.ShapesCollection()
        others = [pytree.tree_leaves(one) for one in self.inputs]
        for position, leaf in enumerate(pytree.tree_leaves(self.example)):
            if not isinstance(leaf, torch.Tensor):
                continue
            axes: dict[int, Any] = {
                axis: torch.export.Dim.DYNAMIC
                for axis in range(leaf.dim())
                if any(leaves[position].shape[axis] != leaf.shape[axis] for leaves in others)
            }
            if position in self._batched:
                axes.pop(0, None)
                axes |= {0: batch} if self.dynamic else {}
            if axes:
                shapes[leaf] = axes
        if len(shapes) == 0:
            return None
        args, kwargs = self.example
        return shapes.dynamic_shapes(self.captured_module, args, kwargs)

    @cached_property
    def output_names(self) -> list[str]:
        """One name per output tensor: ``output``, or its keys and positions joined by ``_``."""
        paths, _ = pytree.tree_flatten_with_path(plain(self.answer(self.example)))
        names = [
            "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
            for path, leaf in paths
            if isinstance(leaf, torch.Tensor)
        ]
        return [f"output_{name}" if name.isdigit() else name or "output" for name in names]

    @cached_property
    def bytes(self) -> int:
        """Of parameters and buffers."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def input_bytes(self) -> int:
        """Of all real batches."""
        leaves = pytree.tree_leaves(self.inputs)
        return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, torch.Tensor))

    @cached_property
    def params(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, counted as it runs."""
        one = resized(self.inputs[0], 1, self._batched) if self.dynamic else self.inputs[0]
        args, kwargs = one
        return round(counted(self.model, *args, **kwargs)[1] / batch_length(one))

    @cached_property
    def captured_module(self) -> nn.Module:
        """The model, or a :class:`PlainOutput` around it: what :attr:`program` is captured from."""
        output = self.answer(self.example)
        return self.model if is_plain(output) else PlainOutput(self.model)

    def _check_structure(self, example: Inputs) -> None:
        structure, ranks = pytree.tree_structure(example), _ranks(example)
        for number, one in enumerate(self.inputs):
            if pytree.tree_structure(one) != structure or _ranks(one) != ranks:
                raise ExportError(
                    f"batch {number} of the inputs is not built like the example: its tensors have "
                    f"{_ranks(one)} axes, those of the example {ranks}; give the example as the data come"
                )

    def _takes_other_batches(self) -> bool:
        args, kwargs = resized(self.inputs[0], 1 if self.batch != 1 else 3, self._batched)
        try:
            with torch.inference_mode():
                self.model(*args, **kwargs)
        except Exception:
            return False
        return True


def _evaluating(model: nn.Module) -> nn.Module:
    try:
        return model.eval()
    except NotImplementedError:  # graph modules of torch.export have no such switch: they are as captured
        return model


def _ranks(inputs: Inputs) -> list[int | None]:
    """Number of axes per leaf, ``None`` for constants."""
    return [leaf.dim() if isinstance(leaf, torch.Tensor) else None for leaf in pytree.tree_leaves(inputs)]
