"""From a trial of a run to a folder of files, and back to the question whether they still hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results.ledger import Ledger, LedgerError
from ..results.trial import Trial
from ..results.trust import trusted
from .settings import LEDGER, RunError

if TYPE_CHECKING:
    from torch import nn

    from ..evaluators.task import Task
    from ..export import Receipt, Verdict
    from ..spaces.kinds.splits.staged import PlacedStage
    from .run import Run


def export_trial(
    run: Run,
    number: int,
    directory: str | Path,
    formats: Sequence[str] | None,
    *,
    model: nn.Module | None,
    samples: bool,
    overwrite: bool,
    progress: Callable[[str], None],
) -> Receipt:
    """See :meth:`Run.export`."""
    from ..export import USUAL, Test, check_target, export, known_formats, require

    trial = run.scored(number)
    if formats is None:
        formats = USUAL
    known_formats(formats)
    # Before the task is loaded, which may take a while.
    check_target(Path(directory).expanduser(), overwrite)
    target = Path(directory).expanduser().resolve()
    require(formats, _description(run, trial, run.settings.spec))
    progress("reading the task of the run")
    from ..evaluators.heldout import answers, figure
    from ..model.threads import one_thread

    task = run.task
    args, kwargs = task.example
    with one_thread():
        progress(f"building trial {number}")
        built = run.model(number)
        about = _description(run, trial, _spec(run))
        if model is None:
            model = built
        else:
            _check_like(model, built, number)
            costs = {name: value for name, value in trial.scores.items() if name not in task.metrics}
            about |= {"weights": "given by the user, trained further than the trial", "scores": costs}
        was, was_tested = (answers(task.model, batches) for batches in (task.batches, task.test_batches))
        receipt = export(
            model,
            example_args=args,
            example_kwargs=kwargs,
            inputs=[(a, k) for a, k, _ in task.batches],
            score=lambda outputs: task.measure_on(outputs, task.batches),
            figure=lambda outputs: figure(task, task.batches, outputs, was),
            metric_name=task.metric_name,
            test=Test(
                [(a, k) for a, k, _ in task.test_batches],
                lambda outputs: task.measure_on(outputs, task.test_batches),
                lambda outputs: figure(task, task.test_batches, outputs, was_tested),
            )
            if task.test_batches
            else None,
            calibration=task.calibration_batches,
            stages=stages_of(run, model, number) if "stages" in formats else (),
            directory=target,
            formats=formats,
            describe=about,
            samples=samples,
            overwrite=overwrite,
            progress=progress,
        )
    if model is built:  # figures of other weights are not the trial's
        _note_test(run, number, receipt)
    return receipt


def _check_like(model: nn.Module, built: nn.Module, number: int) -> None:
    """Is it the trial's network, but for its weights?

    Raises:
        RunError: its parameters and buffers have other names or shapes.
    """
    given, wanted = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, built))
    if wrong := sorted(k for k in given.keys() | wanted.keys() if given.get(k) != wanted.get(k)):
        name = wrong[0]
        raise RunError(
            f"the model is not the network of trial {number}: {name!r} is {given.get(name, 'missing')}, not "
            f"{wanted.get(name, 'missing')} ({len(wrong)} differ); give run.model({number}), trained further"
        )


def stages_of(run: Run, model: nn.Module, number: int) -> list[PlacedStage]:
    """The stages of a trial's built model.

    Raises:
        RunError: the space of the run has no splits.
        CutError: the model cannot be cut where the trial says.
    """
    from ..spaces.kinds.splits.plan import plan_of

    if plan_of(run.space.choices) is None:
        raise RunError(
            f"{run.path} has no splits, so its trials have no stages; sweep with --space prune,splits"
        )
    candidate = run.space.from_values(run[number].candidate.values)
    return run.space.side.cut(model, candidate)


def verify(
    directory: str | Path,
    *,
    task: Task | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Check an export again, here: hashes, answers to the samples it keeps, and with the task its metric.

    Args:
        directory: of the export.
        task: the task or the text that names it. It makes it possible to measure the metric again and, as a
            text, to rebuild the format ``state``.

    Raises:
        ValueError: the folder has no receipt, or the task is another one than that of the export.
        TaskError: the task does not load.
    """
    from ..export import Receipt, recheck

    if task is None:
        return recheck(directory, progress=progress)
    from torch.utils import _pytree as pytree

    from ..evaluators.heldout import answers
    from ..evaluators.resolve import resolve_task
    from ..model.threads import one_thread

    receipt = Receipt.load(Path(directory).expanduser())
    given = resolve_task(task) if isinstance(task, str) else task
    if given.fingerprint() != receipt.describe.get("fingerprint"):
        raise RunError(
            f"the task {given.name!r} is not the one of {directory}: the model's weights or the validation "
            "data differ; give the original one, or none to check the files alone"
        )
    with one_thread():
        structure = pytree.tree_structure(answers(given.model, given.batches[:1])[0])

        def score(outputs: list[list[Any]]) -> float:
            return given.measure_on(
                [pytree.tree_unflatten(leaves, structure) for leaves in outputs], given.batches
            )

        return recheck(
            directory,
            inputs=[(a, k) for a, k, _ in given.batches],
            score=score,
            task=given.spec,
            progress=progress,
        )


def _spec(run: Run) -> str | None:
    """The text that names the task: that by which it was loaded, else that of the run, but no stranger's."""
    own: str | None = run.settings.spec
    return run.task.spec or (own if own and trusted(own, run.settings.signature) else None)


def _description(run: Run, trial: Trial, spec: str | None) -> dict[str, Any]:
    settings, held = run.settings, run.settings.to_json()
    about = {
        "run": run.path.resolve().name,  # an export may travel, the folders around it do not
        "trial": trial.number,
        "candidate": trial.candidate.values,
        **({"fidelity": trial.fidelity} if len(run.rungs) > 1 else {}),
        "scores": dict(trial.scores),
        "baseline": dict(run.baseline.scores) if run.baseline else {},
        "choices": held["choices"],
        "task": settings.task,
        "fingerprint": settings.fingerprint,
    }
    if spec:
        arguments = {"spec": spec, **{key: held[key] for key in ("space", "choices")}}
        about["rebuild"] = {
            "function": "netcarve.engine.rebuild:rebuild",
            "arguments": {**arguments, "candidate": trial.candidate.values},
        }
    return about


def _note_test(run: Run, number: int, receipt: Receipt) -> None:
    """Keep the test figure with the run, for its report. A run that cannot be written now goes without."""
    if receipt.test is None:
        return
    try:
        with Ledger(run.path / LEDGER, write=True, create=False) as ledger:
            figure = {"metric": receipt.metric, "figure": receipt.to_json()["test"]}
            ledger.note("test", {**ledger.info.get("test", {}), str(number): figure})
    except LedgerError:
        return
