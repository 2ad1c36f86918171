"""Task: a user's trained model, an example of its inputs, and the data to score it on."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import Device, Link, devices_of, links_of
from ..model.capture import Example
from ..model.refusal import unloaded
from ..results.objective import METRICS
from .batches import (
    Batch,
    Inputs,
    Outputs,
    Targets,
    arguments,
    batch_size,
    call_of,
    check_like,
    count_samples,
    describe_call,
    free_lengths,
    hash_into,
    held_back,
    part,
    recut,
    sample_digests,
    spread,
)
from .data import Data, read, sample_inputs
from .errors import TaskError, first_line
from .judge import Judge, Loss, Metric
from .outputs import Choice, check_finite

HELD_BACK = 0.25  # of validation: to confirm the front where there is nothing else that could
LEAST_TO_SPLIT = 1000  # validation samples; of fewer, a quarter would tell little and cost the search much


class Task:
    """A trained model with the data that says how good it and its subnetworks are.

    Everything is checked here, so that no mistake surfaces in the middle of a search.

    Args:
        model: trained; switched to eval mode and moved to the CPU, otherwise left as it is.
        example: inputs of one call, with a batch axis: a tensor, a tuple, a dict, or ``(args, kwargs)``.
        validation: a DataLoader, a Dataset, a list of ``(inputs, targets)`` batches, or a tuple
            ``(inputs, targets)`` of all. Kept in memory. Inputs may differ from the example in the batch
            axis, and in axes whose length differs between batches, where the model runs on them (sequences).
        train: the same, for calibration and fine-tuning; never read in full.
        calibration: inputs for statistics (BatchNorm), in any of these forms, targets not needed;
            by default about 512 samples spread over ``train``, else over ``validation``.
        test: the same as ``validation``, of samples that are in neither of the others. No search ever sees
            it; :meth:`Run.export` measures each exported network on it, once.
        confirm: what the front is scored on once more, at the end of a sweep, since a search picks networks
            that its validation samples flatter: data of their own, the same as ``validation``, or a share of
            ``validation``, in (0, 0.5], that the search then never sees; False for neither. By default
            ``test`` where it is given, else a quarter of ``validation`` where that has 1,000 samples or more.
        devices: what may run stages of the network, each a :class:`Device` or a text, ``"edge=0.2x"``; for
            sweeps whose space has splits.
        links: what joins the devices, each a :class:`Link` or a text, ``"20mbps,5ms"``: one for all, or one
            fewer than devices.
        metric: ``"accuracy"`` or ``"loss"`` (cross-entropy) for class scores as outputs and class indices as
            targets; or a function ``(outputs, targets) -> float``, called once with all samples, in the
            structure that the model and the data give (see :func:`outputs.joined`); or a running metric with
            ``update(outputs, targets)``, ``compute()`` and ``reset()``, as those of torchmetrics.
        goal: ``"min"`` or ``"max"``: which way a metric of your own is better.
        output: which tensor of several that the model returns is judged: ``"logits"``, ``"heads.0"``, a
            position, or a function of the outputs. Built-in and running metrics, losses of ``torch.nn``,
            explanations and attacks take this one; functions are given all that the model returns.
        loss: what fine-tuning minimises: ``"cross_entropy"``, the default of the built-in metrics, which also
            declares that outputs are class scores; or a function ``(outputs, targets) -> scalar tensor``.
        tolerance: by how much the metric may differ between two runs on the same data, for metrics (or
            models) that draw at random; by default not at all.
        name: for run folders and tables; by default the model's class.

    Attributes:
        model: the unchanged model.
        example: ``(args, kwargs)``.
        batches: ``(args, kwargs, targets)``, each at most 100 samples where they can be cut.
        calibration_batches: ``(args, kwargs)``.
        free: ``(argument, axis)`` of the inputs whose length differs between batches.
        test_batches: like ``batches``; empty without ``test``.
        confirm_batches: likewise, of ``confirm``; ``confirm_data`` says in words what they are, or why there
            are none.
        metric_name: ``"accuracy"``, ``"loss"`` or the function's name.
        judge: how outputs are scored: the metric, its goal, the output that it looks at, the loss.
        metrics: the names that :meth:`measure` gives.
        devices, links: as given, read; empty where none were.
        spec: text from which :func:`resolve_task` makes this task again, if it came from there.

    Raises:
        TaskError: what was wrong, what was got, how to mend it.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        validation: Data,
        *,
        train: Data | None = None,
        calibration: Data | None = None,
        test: Data | None = None,
        confirm: Data | float | None = None,
        metric: Metric = "accuracy",
        goal: str | None = None,
        output: Choice | None = None,
        loss: Loss | None = None,
        tolerance: float = 0.0,
        name: str | None = None,
        devices: Iterable[Device | str] | None = None,
        links: Iterable[Link | str] | Link | str | None = None,
    ) -> None:
        self.model = _checked_model(model)
        self.example: Inputs = call_of(example)
        self.judge = Judge.of(metric, output, goal, loss)
        self.metric, self.metric_name = metric, self.judge.name
        if not 0.0 <= tolerance < math.inf:
            raise TaskError(f"tolerance is how far the metric may be off, 0 or more, got {tolerance}")
        self.tolerance = tolerance
        self.name = name or type(model).__name__.lower()
        self.spec: str | None = None
        self.train = train
        self.devices, self.links = _platform(devices, links)
        self._check_example()

        batches = read(validation, "validation")
        self.free = free_lengths([batch[:2] for batch in batches])
        self._check_like([batch[:2] for batch in batches], "validation")
        self.batches: list[Batch] = recut(batches)
        self.test_batches: list[Batch] = [] if test is None else self._unseen(test, "test")
        self.confirm_batches, self.confirm_data = self._confirming(confirm)
        self.calibration_batches: list[Inputs] = self._calibration(calibration)
        self.metrics: tuple[str, ...] = self._trial_run()

    def __repr__(self) -> str:
        return (
            f"Task({self.name!r}, {type(self.model).__name__}, {len(self.batches)} validation batches, "
            f"metric {self.metric_name!r})"
        )

    @property
    def goals(self) -> dict[str, str]:
        """Which way a metric that netcarve does not know is better, by name; empty where nobody has said."""
        return (
            {} if self.metric_name in METRICS or not self.judge.goal else {self.metric_name: self.judge.goal}
        )

    def measure(self, outputs: Iterable[Any]) -> dict[str, float]:
        """Scores of a model's outputs for :attr:`batches`, in their order (a generator will do).

        Returns:
            The metric, and ``loss`` (mean cross-entropy in nats) where outputs are class scores.

        Raises:
            TaskError: outputs and targets do not fit, or the metric raises.
        """
        return self._measure(outputs, self.batches)

    def measure_on(self, outputs: Iterable[Any], batches: Iterable[Batch]) -> float:
        """The metric of outputs for other batches than :attr:`batches`."""
        return self._measure(outputs, batches)[self.metric_name]

    def score(self, outputs: Outputs, targets: Targets) -> float:
        """The metric for one batch."""
        return self.judge.measure([(outputs, targets, None)])[self.metric_name]

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the model's class and weights, validation and calibration data, metric's name.

        Equal for equal tasks in any process, so that a run is never continued with another model.
        """
        digest = hashlib.sha256(f"{type(self.model).__qualname__}|{self.metric_name}".encode())
        if self.judge.named:
            output = self.judge.output
            digest.update(f"|{getattr(output, '__name__', output)}".encode())
        for key, value in self.model.state_dict().items():
            hash_into(digest, key, value)
        for args, kwargs, targets in self.batches:
            for key, value in {**arguments((args, kwargs)), "targets": targets}.items():
                hash_into(digest, key, value)
        for call in self.calibration_batches:  # decides what repaired networks are
            for key, value in arguments(call).items():
                hash_into(digest, f"calibration {key}", value)
        return digest.hexdigest()

    def without_train(self) -> Task:
        """The same task without its training and test data: what scoring needs, cheap to send to a worker."""
        light = self.without_test()
        light.train = None
        return light

    def without_test(self) -> Task:
        """The same task without its test data: all that a search may see."""
        light = copy.copy(self)
        light.test_batches, light.confirm_batches = [], []
        return light

    def to_confirm(self) -> Task:
        """The same task on :attr:`confirm_batches` in place of its validation data."""
        other = self.without_test()
        other.batches = self.confirm_batches
        return other

    def part(self, share: float) -> Task:
        """The same task on a share of its validation data, in (0, 1]; see :func:`batches.part`."""
        smaller = copy.copy(self)
        smaller.batches = part(self.batches, share)
        return smaller

    def check_training(self) -> None:
        """Fine-tuning would work: there is training data, and a loss for it.

        Raises:
            TaskError: why not, and the cure.
        """
        from .finetuning import check_training

        check_training(self.model, self.train, self.judge.training_loss)

    def _measure(self, outputs: Iterable[Any], batches: Iterable[Batch]) -> dict[str, float]:
        pairs = zip(outputs, batches, strict=True)
        return self.judge.measure((given, batch[2], batch_size(batch[:2])) for given, batch in pairs)

    def _check_example(self) -> None:
        args, kwargs = self.example
        if not any(isinstance(v, Tensor) for v in arguments(self.example).values()):
            raise TaskError(f"the example holds no tensor: {describe_call(self.example)}")
        before = [v.clone() for v in arguments(self.example).values() if isinstance(v, Tensor)]
        try:
            with torch.no_grad():
                outputs = self.model(*args, **kwargs)
        except Exception as error:
            raise TaskError(
                f"the model does not run on its example ({describe_call(self.example)}): {first_line(error)}"
            ) from error
        after = [v for v in arguments(self.example).values() if isinstance(v, Tensor)]
        if not all(torch.equal(a, b) or a.isnan().any() for a, b in zip(before, after, strict=True)):
            raise TaskError(
                "the model overwrites its input, which would change the data for the next candidate; "
                "write `x = x - mean` instead of `x -= mean`, and no inplace=True on the input"
            )
        check_finite(outputs, "its example")

    def _check_like(self, calls: Sequence[Inputs], what: str) -> None:
        """Refuse inputs unlike the example, or of a length that the model does not run on.

        Where lengths differ, one batch of each is run.
        """
        free = self.free | free_lengths(calls)
        run = {tuple(v.shape[1:] for v in arguments(self.example).values() if isinstance(v, Tensor))}
        for number, call in enumerate(calls):
            where = f"{what} batch {number}"
            check_like(call, self.example, where, free)
            shapes = tuple(v.shape[1:] for v in arguments(call).values() if isinstance(v, Tensor))
            if shapes in run:
                continue
            run.add(shapes)
            try:
                with torch.no_grad():
                    self.model(*call[0], **call[1])
            except Exception as error:
                raise TaskError(
                    f"{where}: {describe_call(call)}, but the example has {describe_call(self.example)}, and "
                    f"the model does not run on this: {first_line(error)}; pad all to the example's length"
                ) from error

    def _unseen(self, given: Any, what: str) -> list[Batch]:
        """``test`` or ``confirm``: data by which nothing is chosen."""
        batches = read(given, what)
        self._check_like([batch[:2] for batch in batches], what)
        if sample_digests(batches) <= sample_digests(self.batches):
            raise TaskError(
                f"{what} holds only samples that are in validation, by which the search chooses; give "
                f"samples that are in neither validation nor train, or leave {what} out"
            )
        return recut(batches)

    def _confirming(self, confirm: Any) -> tuple[list[Batch], str]:
        """What the front is scored on at the end, and its name, or why there is nothing; see ``confirm``.

        Takes what is held back out of :attr:`batches`.
        """
        if confirm is False:
            return [], "the task says confirm=False"
        if confirm is None:
            if self.test_batches:
                return self.test_batches, "test data"
            count = count_samples(self.batches)
            if count < LEAST_TO_SPLIT:
                return [], (
                    f"{count:,} validation samples are too few to hold some back; give Task(confirm=...) or "
                    "Task(test=...)"
                )
            confirm = HELD_BACK
        if not isinstance(confirm, int | float) or isinstance(confirm, bool):
            return self._unseen(confirm, "confirm"), "data given to confirm"
        if not 0.0 < confirm <= 0.5:
            raise TaskError(f"confirm is a share of validation in (0, 0.5], or data, or False; got {confirm}")
        self.batches, held = held_back(self.batches, confirm)
        if not held or not self.batches:
            raise TaskError("validation is too small to hold a share of it back; give confirm=data, or False")
        return held, "validation data held back from the search"

    def _calibration(self, calibration: Data | None) -> list[Inputs]:
        if calibration is not None:
            source, what = calibration, "calibration"
        elif self.train is not None:
            source, what = self.train, "train"
        else:
            return spread(self.batches, like=self.example)
        if isinstance(source, Iterator):
            raise TaskError(
                f"{what} is {type(source).__name__}, which can be read only once; give a DataLoader"
            )
        inputs = sample_inputs(source, what, takes=len(self.example[0]))
        self._check_like(inputs, what)
        return inputs

    def _trial_run(self) -> tuple[str, ...]:
        """Score the unchanged model on the first batch: finds wrong targets and metrics at once."""
        args, kwargs, targets = self.batches[0]
        try:
            with torch.no_grad():
                outputs = self.model(*args, **kwargs)
        except Exception as error:
            raise TaskError(
                f"the model runs on its example ({describe_call(self.example)}) but not on a validation "
                f"batch ({describe_call((args, kwargs))}): {first_line(error)}"
            ) from error
        check_finite(outputs, "the first validation batch")
        try:
            self.judge = self.judge.fitted(outputs, targets)
            scores = self.judge.measure([(outputs, targets, batch_size((args, kwargs)))])
        except TaskError as error:
            if isinstance(self.metric, str) and "output" not in str(error).partition("(")[0]:
                raise TaskError(
                    f"the metric {self.metric!r} does not suit this task: {error}; for other targets give "
                    "your own, metric=lambda outputs, targets: ..."
                ) from None
            raise
        if self.judge.unsettled(outputs, targets):
            self.judge = self._settled(targets)
        return tuple(scores)

    def _settled(self, targets: Tensor) -> Judge:
        """The judge that knows the axis of the classes, from batches where only one is as long as they."""
        for args, kwargs, other in self.batches:
            if other.shape[1:] != targets.shape[1:]:
                with torch.no_grad():
                    outputs = self.model(*args, **kwargs)
                if not self.judge.unsettled(outputs, other):
                    return replace(self.judge, last=self.judge.judged(outputs).shape[:-1] == other.shape)
        return self.judge


def _platform(
    devices: Iterable[Device | str] | None, links: Iterable[Link | str] | Link | str | None
) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
    if devices is None:
        if links is not None:
            raise TaskError("links join devices: give devices=['edge=0.2x', 'server=1x'] too")
        return (), ()
    try:
        made = devices_of(devices)
        return made, links_of(links or (), made)
    except ValueError as error:
        raise TaskError(str(error)) from None


def _checked_model(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        if isinstance(model, type) and issubclass(model, nn.Module):
            cure = f"it is a class, make an instance: {model.__name__}(...)"
        elif isinstance(model, dict):
            cure = "it holds weights only: create the model, then model.load_state_dict(...)"
        else:
            cure = "give a trained torch.nn.Module"
        raise TaskError(f"the model is {type(model).__name__}; {cure}")
    if reason := unloaded(model):
        raise TaskError(reason)
    return model.eval().cpu()
