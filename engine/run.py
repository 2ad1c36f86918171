"""A run that has been: its trials, its front, and what to do with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from ..results.database import being_written, last_word
from ..results.fidelity import Fidelity
from ..results.front import Front
from ..results.ledger import Ledger
from ..results.objective import Limit, Objective
from ..results.settings import held_back_since
from ..results.trial import Trial, in_full
from ..results.trust import trusted
from ..spaces import Space
from .rebuild import rebuild_space
from .settings import RunError, ledger_path, read_settings, sound_notes

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from ..deployment.serving import Deployment
    from ..devices import Device, Link
    from ..evaluators.task import Task
    from ..export import Receipt
    from ..search.exact.certificate import Certificate


NAMED = ("best", "knee", "smallest")  # trials that need no number


class Run:
    """Everything about one run, as its ledger has it at this moment.

    Looking at it needs neither the task nor torch; :meth:`model` and :meth:`export` do, and find the task
    again by the text it was started with.

    Args:
        path: folder of the run, or its ledger.
        task: the task it was made with, where it cannot be found again, or this user did not make the run;
            also the text that names it.
        space: likewise.

    Attributes:
        path: folder of the run.
        settings: what it was started with, :class:`.results.settings.RunSettings`.
        info: ``status`` (``"running"``, ``"finished"``, ``"interrupted"`` by Ctrl-C or an error,
            ``"killed"``: its process is gone), ``seconds`` spent, ``environments``: what each session ran on,
            machine and versions, ``complete``: the number of trials after which the search had nothing more
            to propose, 0 where the budget ended it.
        trials: every trial, in number order, with later measurements in their scores.

    Raises:
        RunError: there is no run.
        LedgerError: the ledger cannot be read.
    """

    def __init__(
        self, path: str | Path, *, task: Task | str | None = None, space: Space | None = None
    ) -> None:
        file = ledger_path(path)
        self.path = file.parent
        with Ledger(file) as ledger:
            held = ledger.settings
            if not held and not ledger.blank:
                raise RunError(
                    f"the settings of the run in {self.path} are lost; its trials are there, to be "
                    "looked at once it is resumed: the command that it was started with, and --resume --out "
                    f"{quote(str(self.path))}"
                )
            self.settings = read_settings(held, self.path)
            self.info: dict[str, Any] = sound_notes(ledger.info)
            if self.info.get("status") == "running" and not being_written(file):
                self.info["status"] = last_word(file) or "killed"
            self.trials: list[Trial] = ledger.trials(space)
        self._task = task
        self._space = space

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self.trials)} trials, front of {len(self.front)})"

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, number: int) -> Trial:
        """The trial with this number.

        Raises:
            RunError: there is none.
        """
        found = next((t for t in self.trials if t.number == number), None)
        if found is None:
            raise RunError(f"there is no trial {number} in {self.path}; {self._others()}")
        return found

    def number(self, trial: int | str) -> int:
        """The number of a trial, given as a number or by name.

        Args:
            trial: a number; ``"best"``: the front's best subnetwork in the first objective; ``"knee"``: its
                best compromise; ``"smallest"``: the one with the fewest parameters, or the least of the first
                cost where parameters are not known. The unchanged model is meant by none of the names, unless
                nothing else is on the front.

        Raises:
            RunError: neither a number of a trial nor one of the names, or the front is empty.
        """
        if isinstance(trial, int) or trial.isdecimal():
            return self[int(trial)].number
        if trial not in NAMED:
            raise RunError(f"{trial!r} is not a trial; give its number, or {', '.join(NAMED)}")
        if not len(self.front):
            raise RunError(f"the front of {self.path} is empty, so that it has no {trial} trial")
        others = [t for t in self.front if t.number != 0] or list(self.front)
        if trial == "knee":
            return self.front.knee.number
        if trial == "best":
            return others[0].number
        cost = next((o.name for o in self.objectives if o.goal == "min"), self.objectives[-1].name)
        size = "params" if all("params" in t.scores for t in others) else cost
        return min(others, key=lambda t: t.scores[size]).number

    def _others(self) -> str:
        front = ", ".join(str(t.number) for t in self.front)
        return f"it has {len(self.trials)}, on the front are {front or 'none'}"

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return self.settings.objectives

    @property
    def goals(self) -> dict[str, str]:
        """Which way the metrics that netcarve does not know are better, ``"min"`` or ``"max"`` by name."""
        return {**self.settings.goals, **{o.name: o.goal for o in self.objectives}}

    @property
    def limits(self) -> tuple[Limit, ...]:
        return self.settings.limits

    @property
    def devices(self) -> tuple[Device, ...]:
        """What runs the stages of its networks; empty where they are not split."""
        return self.settings.platform[0]

    @property
    def links(self) -> tuple[Link, ...]:
        """What joins :attr:`devices`."""
        return self.settings.platform[1]

    @property
    def rungs(self) -> tuple[Fidelity, ...]:
        """The fidelities on which trials were judged, the most thorough first; the full one in most runs."""
        return self.settings.fidelities

    @property
    def baseline(self) -> Trial | None:
        """The unchanged model's trial."""
        return next((t for t in self.trials if t.number == 0 and not t.failed), None)

    @cached_property
    def uniform(self) -> list[Trial]:
        """The trials of uniform cuts, whoever proposed them; none in runs of an older netcarve."""
        rows = set(self.settings.uniform)
        return [t for t in in_full(self.trials) if not t.failed and t.candidate.indices in rows]

    @property
    def unconfirmed(self) -> str:
        """Why no figure could be confirmed; empty where some were, or nobody knows."""
        return str(self.settings.unconfirmed or "")[:200]

    @cached_property
    def front(self) -> Front:
        """The non-dominated trials that keep the run's limits."""
        return Front(self.trials, self.objectives, limits=self.limits)

    @cached_property
    def certificate(self) -> Certificate | None:
        """What the search has proven (``branch-and-bound``); None where nothing is, or it cannot be read."""
        from ..search.exact.certificate import Certificate, CertificateError

        kept = self.info.get("certificate")
        with suppress(CertificateError):
            return Certificate.from_json(kept) if kept else None
        return None

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per trial (index ``trial``): scores, ``front``, ``fidelity``, ``seconds``, ``error``."""
        import pandas as pd

        frame = pd.DataFrame([dict(t.scores) for t in self.trials], index=[t.number for t in self.trials])
        frame.index.name = "trial"
        best = {t.number for t in self.front}
        frame["front"] = [t.number in best for t in self.trials]
        frame["fidelity"] = [t.fidelity for t in self.trials]
        frame["seconds"] = [t.seconds for t in self.trials]
        frame["error"] = [t.reason for t in self.trials]
        return frame

    def show(self, number: int) -> str:
        """What was cut where in one trial, against the unchanged model, as text.

        Raises:
            RunError: there is no such trial.
        """
        return str(_verb("showing", "trial_text")(self, number))

    def kept(self, number: int) -> dict[str, tuple[int, int]]:
        """By choice that cuts units (channels, heads) from a group: how many it kept in a trial, of how many.

        Raises:
            RunError: there is no such trial.
        """
        candidate, known = self[number].candidate, self.settings.kept
        return {
            choice.name: (known[choice.name][index], known[choice.name][0])
            for choice, index in zip(candidate.choices, candidate.indices, strict=True)
            if choice.name in known
        }

    @cached_property
    def task(self) -> Task:
        """The task of the run.

        Raises:
            RunError: the run has none, it cannot be found again, it names code that this user did not sign,
                or it is another one by now.
            TaskError: its file does not load.
        """
        given = self._task or self._own_spec()
        if isinstance(given, str):
            from ..evaluators.errors import TaskError
            from ..evaluators.resolve import resolve_task

            try:
                given = resolve_task(given)
            except TaskError as error:
                if self._task is None:
                    cure = "if it lies elsewhere now, name it: --task, or load(path, task=...)"
                    raise TaskError(f"{error}; {cure}", detail=error.detail) from None
                raise
        if given.fingerprint() != self.settings.fingerprint:
            raise RunError(
                f"the task {given.name!r} is not the one of {self.path}: the model's weights or the "
                f"validation data have changed since{held_back_since(self.settings)}; give the original one: "
                "--task, or load(path, task=...)"
            )
        return given

    def _own_spec(self) -> str:
        """The text by which the run itself names its task."""
        spec = self.settings.spec
        if not spec:
            raise RunError(
                f"{self.path} does not say where its task is; give it: --task, or load(path, task=...)"
            )
        if not trusted(spec, self.settings.signature):
            raise RunError(
                f"{self.path} says that its task is {spec}, and to go on that code would be executed; "
                "it was not you, here, who made this run. If you trust the code, name it yourself: "
                f"--task '{spec}', or load(path, task=...)"
            )
        return spec

    @cached_property
    def space(self) -> Space:
        """The space of the run, able to build.

        Raises:
            RunError: it cannot be made again from the task.
        """
        return (
            self._space
            if self._space is not None
            else rebuild_space(self.task, self.settings.space, self.settings.choices)
        )

    def model(self, number: int) -> torch.nn.Module:
        """The subnetwork of one trial: built, BatchNorm re-estimated, in eval mode.

        Raises:
            RunError: no such trial, or the task cannot be found again.
        """
        from ..evaluators.pool import Job
        from ..model.threads import one_thread

        trial = self[number]
        candidate = self.space.from_values(trial.candidate.values)
        with one_thread():
            return Job(self.task, self.space, (), rungs=self.rungs).build(candidate, trial.fidelity)

    def export(
        self,
        number: int,
        directory: str | Path,
        formats: Sequence[str] | None = None,
        *,
        model: torch.nn.Module | None = None,
        samples: bool = True,
        overwrite: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> Receipt:
        """Files of one trial's subnetwork, each proven in a fresh process; see :func:`export.export`.

        Where the task has test data, this is where they are looked at: the receipt and the model card state
        the metric on them, with an interval and against the unchanged model.

        Args:
            formats: of ``pt2``, ``onnx``, ``state``, ``int8``, ``executorch``; by default the first three.
            model: ``run.model(number)`` after further training, exported in its place with the same proof.
            samples: keep a few validation samples with their answers, to check the folder by anywhere.
            progress: told in a few words what is being done.

        Raises:
            RunError: no such trial, one that failed, another ``model``, or the task cannot be found again.
            ExportError: a file that cannot be made or does not reproduce; nothing is left behind.
        """
        receipt: Receipt = _verb("exporting", "export_trial")(
            self,
            number,
            directory,
            formats,
            model=model,
            samples=samples,
            overwrite=overwrite,
            progress=progress or (lambda _: None),
        )
        return receipt

    def deploy(self, number: int, *, simulate: bool = True, **options: Any) -> Deployment:
        """The stages of one trial as processes, to be used in a ``with`` block; see :class:`Deployment`.

        A trial without cuts is one stage.

        Args:
            simulate: slow down stages and hold back messages as the run's devices and links would.
            options: of :class:`Deployment`; ``link`` and ``speeds`` take the place of the run's.

        Raises:
            RunError: no such trial, one that failed, or the task cannot be found again.
            ServeError, ValueError: see :class:`Deployment`.
        """
        deployment: Deployment = _verb("deploying", "deploy")(self, number, simulate=simulate, **options)
        return deployment

    def report(self, path: str | Path = "report.html") -> Path:
        """Write one interactive HTML page about the run; see :func:`report.write_report`."""
        from ..report import write_report

        return write_report([self], path)

    def explain(
        self, number: int, path: str | Path = "explain.html", *, only: Sequence[str] = (), samples: int = 200
    ) -> dict[str, Any]:
        """Write one HTML page that explains one trial's subnetwork; see :func:`.explaining.explain`.

        Args:
            only: names of analyses, of :data:`.explaining.NAMES`; by default all.
            samples: validation samples whose representations are looked at.

        Returns what the page shows, as plain JSON values.

        Raises:
            RunError: no such trial, one that failed, or nothing that was asked for applies to the run.
            OSError: the file cannot be written.
        """
        from ..report import check_output, write_explanation

        check_output(path)
        document: dict[str, Any] = _verb("explaining", "explain")(self, number, only=only, samples=samples)
        write_explanation(document, path)
        return document

    def scored(self, number: int) -> Trial:
        """The trial with this number, which did not fail.

        Raises:
            RunError: there is none, or it failed.
        """
        trial = self[number]
        if trial.failed:
            raise RunError(f"trial {number} of {self.path} failed ({trial.reason}); {self._others()}")
        return trial


def _verb(module: str, function: str) -> Callable[..., Any]:
    """A function of a run, by name: its module imports this one."""
    return getattr(import_module(f".{module}", __package__), function)


def load(path: str | Path, task: Task | str | None = None, *, space: Space | None = None) -> Run:
    """A run from its folder (or its ledger), also one that is still going on; see :class:`Run`."""
    return Run(path, task=task, space=space)
