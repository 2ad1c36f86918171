"""Settings of a run, the folder it lives in, and what may change when it is resumed."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluators.machine import environment
from ..results.database import NOTHING_IN_IT, being_written
from ..results.fidelity import Fidelity, Proposal
from ..results.ledger import Ledger, LedgerError
from ..results.objective import Limit, Objective
from ..results.settings import RunSettings, differences
from ..results.trial import Trial
from ..results.trust import sign
from ..spaces import Candidate, Choice, Space
from ..spaces.kinds.splits.plan import plan_of
from .platform import modelled
from .read_settings import RECIPE
from .uniform import ladder

if TYPE_CHECKING:
    from ..evaluators import Task

log = logging.getLogger(__name__)
LEDGER = "ledger.sqlite"  # in the folder of a run
HOME = Path("runs")  # folders of runs are made here, in the working directory
SCORING = 2  # rules by which networks are repaired and scored; 1: BatchNorm re-estimated for all of them
LONGEST = 1e10  # seconds of a run: three centuries
NEEDED_BYTES = 16_000_000  # free on disk, to start: far more than a ledger of ten thousand trials


class RunError(ValueError):
    """A run that cannot be started, resumed or read as asked; the message says why and how to mend it.

    ``detail`` is the traceback where an evaluation raised, else empty.
    """

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


def describe(
    *,
    task: Task | None,
    space: Space,
    searcher: str,
    seed: int,
    window: int,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    metrics: Sequence[str],
    repeats: int = 1,
    rungs: Sequence[Fidelity] = (),
) -> RunSettings:
    """The settings of a run that begins."""
    plan = plan_of(space.choices)
    return RunSettings(
        task=task.name if task is not None else None,
        spec=task.spec if task is not None else None,
        signature=sign(task.spec) if task is not None and task.spec else None,
        fingerprint=task.fingerprint() if task is not None else None,
        searcher=searcher,
        seed=seed,
        window=window,
        objectives=tuple(objectives),
        goals=dict(task.goals) if task is not None else {},
        limits=tuple(limits),
        metrics=tuple(metrics),
        scoring=SCORING,
        repeats=repeats,
        rungs=tuple(rungs),
        choices=tuple(Choice(c.name, c.options) for c in space.choices),
        unconfirmed=task.confirm_data if task is not None and not task.confirm_batches else "",
        uniform=tuple(c.indices for c in ladder(space)),
        kept=kept_units(space),
        layers=space.side.layers(space.choices),
        space=space.recipe,
        modelled=tuple(modelled(space)),
        split=plan.to_json() if plan is not None else None,
        version=_version(),
    )


def kept_units(space: Space) -> dict[str, list[int]]:
    """By choice, how many units each option keeps; for choices that keep some of many."""
    return {c.name: [int(n) for n in c.kept] for c in space.choices if c.kept is not None}


def read_settings(held: Mapping[str, Any], path: object) -> RunSettings:
    """The settings in a ledger.

    Raises:
        RunError: they are not those of a run: none, or a value of another kind than netcarve writes.
    """
    if not held:
        raise RunError(f"the ledger in {path} is empty: {NOTHING_IN_IT}")
    try:
        return RunSettings.from_json(held)
    except ValueError as error:
        raise RunError(f"{path} holds no run that this netcarve can read: of its settings, {error}") from None


def open_run(
    out: str | Path | None,
    settings: RunSettings,
    *,
    resume: bool,
    given: Sequence[Candidate] = (),
    scored: Mapping[Candidate, Trial] | None = None,
    home: Path = HOME,
) -> Ledger:
    """The ledger of a new run, or of the one to resume, open for writing.

    Args:
        out: folder of the run. By default ``runs/<task>-<searcher>-<n>``: the next free one, or when
            resuming the latest.
        resume: whether the run is there already.
        given: candidates that a new run begins with, after the unchanged model.
        scored: what is known of them, and of the unchanged model, already.

    Raises:
        RunError: the folder holds another run; nothing to resume; or other settings than the stored ones.
            A run that stopped before it began (a ledger with nothing in it) is begun anew, not resumed. One
            whose settings alone are lost (:mod:`..results.salvage`) is resumed with those given: its
            trials must be of the space, and replay finds any other difference.
        LedgerError: no room on disk, not writable, damaged, or in use by another process.
    """
    folder = Path(out) if out is not None else _default_folder(settings.task, settings.searcher, resume, home)
    path = folder / LEDGER
    if resume:
        _check_resumable(folder)
        ledger = Ledger(path, write=True, create=False)
        try:
            stored = read_settings(ledger.settings, folder) if ledger.settings else None
            if stored is None or (stored.taken and differences(stored, vars(settings))):
                _take_settings(ledger, settings)
            else:
                _check_same(stored, vars(settings), folder)
        except BaseException:
            ledger.close()
            raise
        return ledger
    check_free(folder)
    _make_room(folder)
    ledger = Ledger(path, write=True)
    try:
        if not ledger.blank:  # of somebody who was quicker
            raise _taken(folder)
        _begin(ledger, settings, given, scored or {})
    except BaseException:
        ledger.close()
        raise
    return ledger


def _take_settings(ledger: Ledger, settings: RunSettings) -> None:
    """Those of a run whose own are lost. Only replay shows whether they are right: others may follow.

    Raises:
        LedgerError: its trials are of another space.
    """
    with ledger.transaction():
        ledger.save_settings(replace(settings, taken=True).to_json(), replace=True)
        ledger.trials()
    log.warning("the settings of %s were lost; from now on they are those given", ledger.path.parent)


def _begin(
    ledger: Ledger,
    settings: RunSettings,
    given: Sequence[Candidate],
    scored: Mapping[Candidate, Trial],
) -> None:
    """The settings of a run and, where they are known already, its first trials: all at once, or nothing."""
    if not given and not scored:
        ledger.save_settings(settings.to_json())
        return
    choices = settings.choices
    first = [Candidate((0,) * len(choices), choices), *given]
    top = settings.fidelities[0].name
    known = [(n, scored[c]) for n, c in enumerate(first) if c in scored]
    with ledger.transaction():
        ledger.save_settings(replace(settings, given=len(given), imported=len(scored)).to_json())
        ledger.propose([(n, Proposal(c, top)) for n, c in enumerate(first)])
        ledger.record([replace(trial, number=n, candidate=first[n]) for n, trial in known])


def resumed_settings(
    out: str | Path | None,
    task: Task | None,
    searcher: str,
    known: Mapping[str, Any] | None = None,
    *,
    home: Path = HOME,
) -> RunSettings | None:
    """The settings of the run that resuming would go on with; None where they are lost.

    Args:
        task: by now; None where it has not been read yet, and ``out`` is given.
        known: settings of the resumed run that are known already, by field.

    Raises:
        RunError: there is none, or it was made with other settings.
    """
    about = {"task": task.name, "fingerprint": task.fingerprint()} if task is not None else {}
    now = {**about, "searcher": searcher, **(known or {})}
    folder = Path(out) if out is not None else _default_folder(now["task"], searcher, True, home)
    _check_resumable(folder)
    with Ledger(folder / LEDGER) as ledger:
        held = ledger.settings
    stored = read_settings(held, folder) if held else None
    if stored is not None and not stored.taken:
        _check_same(stored, now, folder)
    return stored


def check_free(folder: Path) -> None:
    """Raise a :class:`RunError` where the folder holds a run, be it one that cannot be read."""
    if (folder / LEDGER).exists() and not _is_blank(folder / LEDGER):
        raise _taken(folder)


def _taken(folder: Path) -> RunError:
    return RunError(f"{folder} holds another run; resume it, or choose another folder")


def _is_blank(path: Path) -> bool:
    """Did the run stop before it began? What cannot be read did not."""
    try:
        if path.is_file() and path.stat().st_size == 0 and not Path(f"{path}-wal").exists():
            return True
        with Ledger(path) as ledger:
            return ledger.blank
    except (LedgerError, OSError):
        return False


def note_environment(ledger: Ledger) -> None:
    """Keep what this session runs on: ``info["environments"]``, each different one once."""
    held, now = ledger.info.get("environments", []), environment()
    if now not in held:
        ledger.note("environments", [*held, now])


def close_run(ledger: Ledger, status: str, seconds: float) -> None:
    """Note how it ended and close it; a run in which nothing was scored is not left behind.

    Raises:
        LedgerError: it finished, and that cannot be noted. Whoever was interrupted is told something else.
    """
    try:
        if status != "finished" and not ledger.trials():
            (ledger.path.parent / RECIPE).unlink(missing_ok=True)
            ledger.discard()
            return
        ledger.note("seconds", seconds)
        ledger.note("status", status)
    except LedgerError:
        ledger.leave_word(status)
        if status == "finished":
            raise
    finally:
        ledger.close()


def sound_notes(info: Mapping[str, Any]) -> dict[str, Any]:
    """The notes of a run without those that are not of the kind that netcarve writes: they decide nothing."""
    notes = dict(info)
    if not isinstance(notes.get("status", ""), str):
        del notes["status"]
    seconds = notes.get("seconds", 0.0)
    if not isinstance(seconds, int | float) or not 0 <= seconds < LONGEST:
        del notes["seconds"]
    return notes


def ledger_path(path: str | Path) -> Path:
    """The ledger of a run, given its folder or the ledger itself.

    Raises:
        RunError: there is none.
    """
    path = Path(path)
    ledger = path if path.is_file() else path / LEDGER
    if not ledger.exists():
        known = sorted(str(p.parent) for p in HOME.glob(f"*/{LEDGER}"))
        hint = f"; runs here: {', '.join(known[-5:])}" if known else ""
        raise RunError(f"there is no run in {path}{hint}")
    return ledger


def _version() -> str:
    try:
        return metadata.version("netcarve")
    except metadata.PackageNotFoundError:
        return "unknown"


def _check_resumable(folder: Path) -> None:
    path = folder / LEDGER
    if not path.exists():
        raise RunError(f"nothing to resume: there is no run in {folder}; leave out resume to start one")
    if _is_blank(path) and not being_written(path):
        raise RunError(
            f"nothing to resume: the run in {folder} stopped before it began; leave out resume to start it"
        )


def _check_same(stored: RunSettings, now: Mapping[str, Any], folder: Path) -> None:
    if found := differences(stored, now):
        raise RunError(
            f"cannot resume {folder} with other settings: {'; '.join(found)}; "
            "give the same, or start a new run"
        )


def _default_folder(task: str | None, searcher: str, resume: bool, home: Path) -> Path:
    stem = re.sub(r"[^\w.-]+", "_", f"{task or 'space'}-{searcher}")
    pattern = re.compile(re.escape(stem) + r"-(\d+)")
    found = [pattern.fullmatch(p.name) for p in home.glob(f"{stem}-*")] if home.is_dir() else []
    last = max(
        (int(m.group(1)) for m in found if m and (not resume or (home / m.group() / LEDGER).exists())),
        default=0,
    )
    if resume and not last:
        raise RunError(f"nothing to resume: there is no {home / stem}-*; name the folder of the run")
    return home / f"{stem}-{last if resume else last + 1}"


def _make_room(folder: Path) -> None:
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise LedgerError(
            f"cannot make the run's folder {folder} ({error.strerror or error}); choose another"
        ) from error
    if free < NEEDED_BYTES:
        if new:
            folder.rmdir()
        raise LedgerError(
            f"no room on disk for a run in {folder}: {free / 1e6:.1f} MB free, {NEEDED_BYTES / 1e6:.0f} MB "
            "needed; free some, or choose another folder"
        )
