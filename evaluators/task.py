"""What a user brings: a trained model, an example of its inputs, data to score it on."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..results.objective import METRICS
from ..spaces.devices import Device, Link, devices_of, links_of
from .batches import Batch, Inputs, arguments, call_of, check_like, describe_call, part, recut, spread
from .data import read, sample_inputs
from .errors import TaskError, first_line
from .metrics import Classification, Custom, tensor_of

Metric = str | Callable[[Any, Any], Any]


class Task:
    """A trained model with the data that says how good it and its subnetworks are.

    Everything is checked here, so that no mistake surfaces in the middle of a search.

    Args:
        model: trained; switched to eval mode and moved to the CPU, otherwise left as it is.
        example: inputs of one call, with a batch axis: a tensor, a tuple, a dict, or ``(args, kwargs)``.
        validation: a DataLoader, a Dataset, a list of ``(inputs, targets)`` batches, or a tuple of two
            tensors. Kept in memory. Inputs may differ from the example in the batch axis alone.
        train: the same, for calibration and fine-tuning; never read in full.
        calibration: inputs for statistics (BatchNorm), in any of these forms, targets not needed;
            by default about 512 samples spread over ``train``, else over ``validation``.
        test: the same as ``validation``, of samples that are in neither of the others. No search ever sees
            it; :meth:`Run.export` measures each exported network on it, once.
        devices: what may run stages of the network, each a :class:`Device` or a text, ``"edge=0.2x"``; for
            sweeps whose space has splits.
        links: what joins the devices, each a :class:`Link` or a text, ``"20mbps,5ms"``: one for all, or one
            fewer than devices.
        metric: ``"accuracy"`` or ``"loss"`` (cross-entropy) for class indices as targets, or a function
            ``(outputs, targets) -> float`` that is called once with all validation samples.
        tolerance: by how much the metric may differ between two runs on the same data, for metrics (or
            models) that draw at random; by default not at all.
        name: for run folders and tables; by default the model's class.

    Attributes:
        model: the unchanged model.
        example: ``(args, kwargs)``.
        batches: ``(args, kwargs, targets)``, each at most 100 samples where they can be cut.
        calibration_batches: ``(args, kwargs)``.
        test_batches: like ``batches``; empty without ``test``.
        metric_name: ``"accuracy"``, ``"loss"`` or the function's name.
        metrics: the names that :meth:`measure` gives.
        devices, links: as given, read; empty where none were.
        spec: text from which :func:`resolve_task` makes this task again, if it came from there.

    Raises:
        TaskError: what was wrong, what was got, how to mend it.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        validation: Any,
        *,
        train: Any = None,
        calibration: Any = None,
        test: Any = None,
        metric: Metric = "accuracy",
        tolerance: float = 0.0,
        name: str | None = None,
        devices: Iterable[Device | str] | None = None,
        links: Iterable[Link | str] | Link | str | None = None,
    ) -> None:
        self.model = _checked_model(model)
        self.example: Inputs = call_of(example)
        self.metric = metric
        self.metric_name = _metric_name(metric)
        if not 0.0 <= tolerance < math.inf:
            raise TaskError(f"tolerance is how far the metric may be off, 0 or more, got {tolerance}")
        self.tolerance = tolerance
        self.name = name or type(model).__name__.lower()
        self.spec: str | None = None
        self.train = train
        self.devices, self.links = _platform(devices, links)
        self._check_example()

        batches = read(validation, "validation")
        for number, (args, kwargs, _) in enumerate(batches):
            check_like((args, kwargs), self.example, f"validation batch {number}")
        self.batches: list[Batch] = recut(batches)
        self.test_batches: list[Batch] = [] if test is None else self._test(test)
        self.calibration_batches: list[Inputs] = self._calibration(calibration)
        self.metrics: tuple[str, ...] = self._trial_run()

    def __repr__(self) -> str:
        return (
            f"Task({self.name!r}, {type(self.model).__name__}, {len(self.batches)} validation batches, "
            f"metric {self.metric_name!r})"
        )

    def measure(self, outputs: Iterable[Any]) -> dict[str, float]:
        """Scores of a model's outputs for :attr:`batches`, in their order (a generator will do).

        Returns:
            The metric, and ``loss`` (mean cross-entropy in nats) where the targets are class indices.

        Raises:
            TaskError: outputs and targets do not fit, or the metric raises.
        """
        return self._measure(zip(outputs, (targets for _, _, targets in self.batches), strict=True))

    def measure_on(self, outputs: Iterable[Any], targets: Iterable[Any]) -> float:
        """The metric of outputs for other batches than :attr:`batches`, with these targets."""
        return self._measure(zip(outputs, targets, strict=True))[self.metric_name]

    def score(self, outputs: Any, targets: Any) -> float:
        """The metric for one batch."""
        return self._measure([(outputs, targets)])[self.metric_name]

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the model's class and weights, validation and calibration data, metric's name.

        Equal for equal tasks in any process, so that a run is never continued with another model.
        """
        digest = hashlib.sha256(f"{type(self.model).__qualname__}|{self.metric_name}".encode())
        for key, value in self.model.state_dict().items():
            _hash(digest, key, value)
        for args, kwargs, targets in self.batches:
            for key, value in {**arguments((args, kwargs)), "targets": targets}.items():
                _hash(digest, key, value)
        for call in self.calibration_batches:  # decides what repaired networks are
            for key, value in arguments(call).items():
                _hash(digest, f"calibration {key}", value)
        return digest.hexdigest()

    def without_train(self) -> Task:
        """The same task without its training and test data: what scoring needs, cheap to send to a worker."""
        light = self.without_test()
        light.train = None
        return light

    def without_test(self) -> Task:
        """The same task without its test data: all that a search may see."""
        light = copy.copy(self)
        light.test_batches = []
        return light

    def part(self, share: float) -> Task:
        """The same task on a share of its validation data, in (0, 1]; see :func:`batches.part`."""
        smaller = copy.copy(self)
        smaller.batches = part(self.batches, share)
        return smaller

    def _measure(self, pairs: Iterable[tuple[Any, Any]]) -> dict[str, float]:
        classes: Classification | None = Classification()
        custom = None if isinstance(self.metric, str) else Custom(self.metric, self.metric_name)
        for raw, targets in pairs:
            outputs = tensor_of(raw).detach()
            if custom is not None:
                custom.add(outputs, targets)
                if classes is not None and classes.refusal(outputs, targets):
                    classes = None
            if classes is not None:
                classes.add(outputs, targets)
        scores = classes.scores() if classes is not None else {}
        if custom is not None:
            return {"loss": scores["loss"], **custom.scores()} if scores else custom.scores()
        return scores

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
        _check_finite(outputs, "its example")

    def _test(self, test: Any) -> list[Batch]:
        batches = read(test, "test")
        for number, (args, kwargs, _) in enumerate(batches):
            check_like((args, kwargs), self.example, f"test batch {number}")
        if _samples(batches) <= _samples(self.batches):
            raise TaskError(
                "test holds only samples that are in validation, by which the search chooses; give samples "
                "that are in neither validation nor train, or leave test out"
            )
        return recut(batches)

    def _calibration(self, calibration: Any) -> list[Inputs]:
        if calibration is not None:
            source, what = calibration, "calibration"
        elif self.train is not None:
            source, what = self.train, "train"
        else:
            return spread(self.batches)
        if isinstance(source, Iterator):
            raise TaskError(
                f"{what} is {type(source).__name__}, which can be read only once; give a DataLoader"
            )
        inputs = sample_inputs(source, what)
        for number, call in enumerate(inputs):
            check_like(call, self.example, f"{what} batch {number}")
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
        _check_finite(outputs, "the first validation batch")
        try:
            return tuple(self._measure([(outputs, targets)]))
        except TaskError as error:
            if isinstance(self.metric, str):
                raise TaskError(
                    f"the metric {self.metric!r} does not suit this task: {error}; for other targets give "
                    "your own, metric=lambda outputs, targets: ..."
                ) from None
            raise


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


def _checked_model(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        if isinstance(model, type) and issubclass(model, nn.Module):
            cure = f"it is a class, make an instance: {model.__name__}(...)"
        elif isinstance(model, dict):
            cure = "it holds weights only: create the model, then model.load_state_dict(...)"
        else:
            cure = "give a trained torch.nn.Module"
        raise TaskError(f"the model is {type(model).__name__}; {cure}")
    return model.eval().cpu()


def _metric_name(metric: Any) -> str:
    if isinstance(metric, str):
        if metric not in ("accuracy", "loss"):
            raise TaskError(
                f"unknown metric {metric!r}: known are 'accuracy' and 'loss'; or give a function "
                "(outputs, targets) -> float"
            )
        return metric
    if not callable(metric):
        raise TaskError(f"metric must be a name or a function (outputs, targets) -> float, got {metric!r}")
    name = getattr(metric, "__name__", type(metric).__name__)
    name = "metric" if name == "<lambda>" else name
    if name in METRICS and name != "accuracy":
        raise TaskError(f"the metric function is called {name!r}, which netcarve itself reports; rename it")
    return name


def _check_finite(outputs: Any, where: str) -> None:
    tensor = tensor_of(outputs)
    bad = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
    if bad:
        raise TaskError(
            f"the model's output on {where} holds {bad} NaN or infinite values of {tensor.numel()}; "
            "check that the trained weights were loaded and that the inputs are scaled as in training"
        )


def _samples(batches: Iterable[Batch]) -> set[bytes]:
    """Digests of the first tensor input of every sample."""
    found = set()
    for args, kwargs, _ in batches:
        tensors = [v for v in arguments((args, kwargs)).values() if isinstance(v, Tensor) and v.dim()]
        for row in tensors[0] if tensors else ():
            digest = hashlib.sha256()
            _hash(digest, "", row)
            found.add(digest.digest())
    return found


def _hash(digest: Any, key: str, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(f"{key}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    else:
        digest.update(f"{key}|{value!r}|".encode())
