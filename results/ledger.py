"""The ledger of a run: every proposal and every outcome, durable before anybody hears of it."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ..spaces import Candidate, Choice, Space
from .database import COLUMNS, LedgerError, checksum, connect, damaged, explain, lock
from .trial import Trial

__all__ = ["Ledger", "LedgerError", "Measurement"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Scores of a trial that were taken after it was recorded (latency of the front, for example)."""

    number: int  # of the trial
    scores: Mapping[str, float]  # metric name -> value
    detail: Mapping[str, Any] = field(default_factory=dict)  # quartiles, device, ...: plain JSON


class Ledger:
    """An append-only SQLite file. A write is committed when its method returns, all of it or nothing.

    Whatever was written is there after the process is killed. There is one writer at a time; any number
    of readers may look while it works. The file must lie on a local disk.

    Args:
        path: the file. SQLite keeps ``-wal`` and ``-shm`` files beside it while it is open, and
            ``<path>.lock`` tells writers of each other.
        write: open for writing (the run's driver); otherwise nothing is ever changed.
        create: a writer makes the file when it is missing.

    Raises:
        LedgerError: missing, damaged, not a ledger, written by a newer netcarve, not accessible, no room on
            disk, or already being written. Every method raises it for the same reasons.
    """

    def __init__(self, path: str | os.PathLike[str], *, write: bool = False, create: bool = True) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None
        self._proposed: dict[int, Candidate] = {}  # what this object has proposed: spares record() a look
        if write and (create or self.path.exists()):  # resuming what is not there must leave no lock file
            self._lock = lock(self.path)
        try:
            self._db = connect(self.path, write=write, create=create)
            version = self._read("PRAGMA user_version")[0][0]
        except BaseException:
            self._release()
            raise
        self._crc = "crc" if version > 1 else "NULL"  # an old ledger is read as it is

    def close(self) -> None:
        """Let go of the file; the ledger cannot be used afterwards. Twice does no harm."""
        self._db.close()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What the run is.

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was started with; empty until :meth:`save_settings`."""
        rows = self._rows("settings")
        settings = self._json(rows[0][0]) if rows else {}
        if not isinstance(settings, dict):
            raise damaged(self.path, f"unreadable settings {rows[0][0][:40]!r}")
        return settings

    def save_settings(self, settings: Mapping[str, Any]) -> None:
        """Keep the run's settings (plain JSON), once. The same again is ignored.

        ``settings["choices"] = [[name, [options...]], ...]`` lets :meth:`trials` work without a space.

        Raises:
            LedgerError: other settings are kept already.
        """
        text = json.dumps(dict(settings), allow_nan=False)
        with self._writing() as db:
            kept = self.settings
            if kept and kept != json.loads(text):
                raise LedgerError(f"the ledger {self.path} holds a run with other settings; use a new folder")
            if not kept:
                db.execute("INSERT INTO settings VALUES (?, ?)", (text, checksum("settings", text)))

    @property
    def info(self) -> dict[str, Any]:
        """The latest value of every note: elapsed seconds, status, ..."""
        return {key: self._json(value) for key, value in self._read("SELECT key, value FROM info")}

    def note(self, key: str, value: Any) -> None:
        """Set one note (plain JSON); unlike all else in the ledger it may change."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO info VALUES (?, ?)", (key, json.dumps(value, allow_nan=False)))

    # What was asked and what came of it.

    def propose(self, proposals: Sequence[tuple[int, Candidate]]) -> None:
        """Keep numbered candidates, in one transaction, before they are evaluated.

        Raises:
            LedgerError: a number that stands for another candidate already.
        """
        rows = [(int(number), candidate.to_json()) for number, candidate in proposals]
        with self._writing() as db:
            for row in rows:
                if not self._add(db, "proposals", row):
                    self._must_equal("proposals", row, "was proposed as another candidate")
        self._proposed.update(proposals)

    def record(self, trials: Sequence[Trial]) -> None:
        """Keep outcomes, in one transaction. The same outcome again is ignored.

        Raises:
            ValueError: a trial with neither scores nor error, with both, or with a score that is not finite.
            LedgerError: a trial that was not proposed, or has another outcome already.
        """
        rows = [_outcome(trial) for trial in trials]
        with self._writing() as db:
            for trial, row in zip(trials, rows, strict=True):
                if self._proposed.get(row[0]) != trial.candidate:
                    proposal = (row[0], trial.candidate.to_json())
                    self._must_equal("proposals", proposal, "was proposed as another candidate")
                if not self._add(db, "outcomes", row):
                    self._must_equal("outcomes", row, "is recorded with another outcome")
                elif trial.detail and not trial.failed:
                    self._add_measurement(db, trial.number, "{}", trial.detail)  # the outcome's own

    def measure(
        self, number: int, scores: Mapping[str, float], detail: Mapping[str, Any] | None = None
    ) -> None:
        """Append scores that were measured later for a successful trial.

        Raises:
            ValueError: a score that is not finite; neither scores nor detail.
            LedgerError: the trial is not recorded, or failed.
        """
        number = int(number)
        with self._writing() as db:
            found = db.execute("SELECT error FROM outcomes WHERE number = ?", (number,)).fetchone()
            if found is None or found[0] is not None:
                what = "is not recorded" if found is None else "failed"
                raise LedgerError(f"trial {number} of {self.path} {what}; measure trials that have scores")
            text = _scores_text(number, scores) if scores or not detail else "{}"
            self._add_measurement(db, number, text, detail or {})

    def _add_measurement(
        self, db: sqlite3.Connection, number: int, scores: str, detail: Mapping[str, Any]
    ) -> None:
        self._add(db, "measurements", (number, scores, json.dumps(dict(detail), allow_nan=False)))

    def proposals(self, space: Space | None = None) -> dict[int, Candidate]:
        """Every proposal by number, in number order. ``space`` as in :meth:`trials`."""
        rows = self._rows("proposals", "ORDER BY number")
        rebuild = self._rebuild(space) if rows else None
        return {number: rebuild(text) for number, text in rows} if rebuild else {}

    def trials(self, space: Space | None = None, *, measured: bool = True) -> list[Trial]:
        """Every outcome, in number order.

        Args:
            space: the space of the candidates; without it their choices are taken from the settings.
            measured: merge later measurements into scores and detail (the latest wins). Replay needs
                False: what the searcher was told.

        Raises:
            LedgerError: a candidate does not fit the space, or neither space nor settings tell the choices.
        """
        rows = self._rows("outcomes", "ORDER BY number")
        asked = dict(self._rows("proposals"))
        if not rows:
            return []
        rebuild = self._rebuild(space)
        later: dict[int, dict[str, float]] = {}
        details: dict[int, dict[str, Any]] = {}
        for number, scores, detail in self._rows("measurements", "ORDER BY id"):
            found = self._scores(scores)
            if measured or not found:
                later.setdefault(number, {}).update(found)
                details.setdefault(number, {}).update(self._detail(detail))
        return [
            Trial(
                number,
                rebuild(asked[number]),
                self._scores(scores) | later.get(number, {}),
                error,
                seconds,
                worker,
                details.get(number, {}),
            )
            for number, scores, error, seconds, worker in rows
            if number in asked
        ]

    def measurements(self, number: int) -> list[Measurement]:
        """The later measurements of one trial, oldest first."""
        rows = self._rows("measurements", "WHERE number = ? ORDER BY id", (int(number),))
        return [Measurement(n, self._scores(scores), self._detail(detail)) for n, scores, detail in rows]

    def restore(self, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
        """Fill a new ledger with rows of another, by table (see :mod:`.salvage`), in one transaction."""
        with self._writing() as db:
            for table, found in rows.items():
                for row in found:
                    self._add(db, table, row)

    # Inside.

    def _read(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    def _rows(self, table: str, rest: str = "", values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of a table, each seen to be as it was written."""
        rows = self._read(f"SELECT {', '.join(COLUMNS[table])}, {self._crc} FROM {table} {rest}", values)
        for *row, crc in rows:
            blob = any(isinstance(value, bytes) for value in row)  # never written: a turned bit in its type
            if blob or (crc is not None and crc != checksum(table, *row)):
                raise damaged(self.path, f"a row of {table} has changed: {row[0]!r:.40}")
        return [row[:-1] for row in rows]

    def _add(self, db: sqlite3.Connection, table: str, row: tuple[Any, ...]) -> bool:
        """Insert a row, unless its number is there already; was it inserted?"""
        names = ", ".join((*COLUMNS[table], "crc"))
        marks = ", ".join("?" * (len(row) + 1))
        sql = f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING"
        return bool(db.execute(sql, (*row, checksum(table, *row))).rowcount)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed at the end, undone by any exception."""
        if self._lock is None:
            raise LedgerError(f"the ledger {self.path} is not open for writing; use Ledger(path, write=True)")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    def _must_equal(self, table: str, row: tuple[Any, ...], otherwise: str) -> None:
        columns = ", ".join(COLUMNS[table])
        kept = self._db.execute(f"SELECT {columns} FROM {table} WHERE number = ?", row[:1]).fetchone()
        if kept is None:
            raise LedgerError(f"trial {row[0]} of {self.path} was never proposed; call propose() first")
        if kept != row:
            raise LedgerError(
                f"trial {row[0]} of {self.path} {otherwise} already; a ledger only grows: use a new number"
            )

    def _json(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise damaged(self.path, f"unreadable entry {text[:40]!r}") from error

    def _scores(self, text: str) -> dict[str, float]:
        scores = self._json(text)
        if not isinstance(scores, dict) or not all(_is_score(value) for value in scores.values()):
            raise damaged(self.path, f"scores that are not finite numbers: {text[:60]!r}")
        return scores

    def _detail(self, text: str) -> dict[str, Any]:
        detail = self._json(text)
        if not isinstance(detail, dict):
            raise damaged(self.path, f"a detail that is no object: {text[:60]!r}")
        return detail

    def _rebuild(self, space: Space | None) -> Callable[[str], Candidate]:
        if space is None:
            choices = self.settings.get("choices")
            if not choices:
                raise LedgerError(
                    f"the settings in {self.path} do not tell the choices of its run; give the space"
                )
            space = Space([Choice(name, tuple(options)) for name, options in choices])
        given = space

        def rebuild(text: str) -> Candidate:
            try:
                return given.from_values(self._json(text))
            except ValueError as error:
                raise LedgerError(f"the ledger {self.path} was written for another space: {error}") from error

        return rebuild

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _is_score(value: Any) -> bool:
    largest = sys.float_info.max  # JSON knows integers beyond it, which are no floats
    return isinstance(value, int | float) and -largest <= value <= largest


def _scores_text(number: int, scores: Mapping[str, float]) -> str:
    if not scores:
        raise ValueError(f"trial {number} has no scores; a trial that failed needs an error text instead")
    bad = {name: value for name, value in scores.items() if not math.isfinite(value)}
    if bad:
        raise ValueError(f"trial {number} has scores that are not finite: {bad}; record it as failed instead")
    return json.dumps({name: float(value) for name, value in scores.items()})


def _outcome(trial: Trial) -> tuple[int, str, str | None, float, str]:
    """The row of a trial in the table ``outcomes``."""
    number, error = int(trial.number), trial.error
    if not math.isfinite(trial.seconds):
        raise ValueError(f"trial {number} took {trial.seconds} seconds; give a finite number")
    if error is None:
        return number, _scores_text(number, trial.scores), None, float(trial.seconds), trial.worker
    if trial.scores:
        raise ValueError(f"trial {number} has both scores and an error; a failed trial has no scores")
    error = error.encode("utf-8", "backslashreplace").decode()  # tracebacks may hold lone surrogates
    return number, "{}", error, float(trial.seconds), trial.worker
