"""The ledger of a run: every proposal and every outcome, durable before anybody hears of it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import IO, Any, Self

from ..spaces import Choice, Space
from ..standalone import Json
from .database import (
    COLUMNS,
    SCHEMA_NOTE,
    LedgerError,
    checksum,
    connect,
    damaged,
    explain,
    has_column,
    is_at,
    leave_word,
    lock,
    rescue,
    with_checksums,
)
from .fidelity import FULL, Proposal, RungChoice, proposal_row
from .trial import Measurement, Trial, is_score, outcome_row, scores_text

__all__ = ["Ledger", "LedgerError"]


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
        self.rescuing = False  # its file is gone, and a copy is made or used
        self._proposed: dict[int, Proposal] = {}  # what this object has proposed: spares record() a look
        if write and (create or self.path.exists()):  # resuming what is not there must leave no lock file
            self._lock = lock(self.path)
        try:
            self._db = connect(self.path, write=write, create=create)
            self._checked = with_checksums(self._db)  # an old ledger is read as it is
            self._fidelity = "fidelity" if has_column(self._db, "proposals", "fidelity") else "NULL"
            self._file = self.path.stat()
        except BaseException as error:
            if self._lock is not None and not self.path.exists():  # discarded while we waited for the lock
                Path(f"{self.path}.lock").unlink(missing_ok=True)
            self._release()
            if isinstance(error, sqlite3.Error):
                raise explain(error, self.path) from error
            raise

    def close(self) -> None:
        """Let go of the file; the ledger cannot be used afterwards. Twice does no harm."""
        self._db.close()
        self._release()

    def discard(self) -> None:
        """Remove the ledger with all that is kept beside it, and its folder where nothing else is in it.

        Under the lock, so that nobody else can have begun to write it.
        """
        self._db.close()
        if self._lock is not None and is_at(self.path, self._file):
            for end in ("", "-wal", "-shm", "-journal", ".lock"):
                Path(f"{self.path}{end}").unlink(missing_ok=True)
            with suppress(OSError):  # not empty: it was there before
                self.path.parent.rmdir()
        self._release()

    def leave_word(self, status: str) -> None:
        """Say how the run ended where the ledger itself cannot take another note."""
        if self._lock is not None:
            with suppress(OSError):
                leave_word(self._lock, status)

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
        settings = self._written_settings()
        old = RungChoice.of(settings)
        return old.settings(settings) if old else settings

    def _written_settings(self) -> dict[str, Any]:
        rows = self._rows("settings")
        settings = self._json(rows[0][0]) if rows else {}
        if not isinstance(settings, dict):
            raise damaged(self.path, f"unreadable settings {rows[0][0][:40]!r}")
        return settings

    def save_settings(self, settings: Mapping[str, Any], *, replace: bool = False) -> None:
        """Keep the run's settings (plain JSON), once. The same again is ignored.

        With ``replace`` they take the place of what is kept.
        ``settings["choices"] = [[name, [options...]], ...]`` lets :meth:`trials` work without a space.

        Raises:
            LedgerError: other settings are kept already.
        """
        text = json.dumps(dict(settings), allow_nan=False)
        with self._writing() as db:
            if replace:
                db.execute("DELETE FROM settings")
                db.execute("DELETE FROM spare")
            kept = self.settings
            if kept and kept != json.loads(text):
                raise LedgerError(f"the ledger {self.path} holds a run with other settings; use a new folder")
            if not kept:
                self._add_settings(db, text)

    @property
    def info(self) -> dict[str, Any]:
        """The latest value of every note: elapsed seconds, status, ..."""
        return {key: self._json(value) for key, value in self._rows("info") if key != SCHEMA_NOTE}

    def note(self, key: str, value: Json) -> None:
        """Set one note (plain JSON); unlike all else in the ledger it may change."""
        row = (key, json.dumps(value, allow_nan=False))
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO info VALUES (?, ?, ?)", (*row, checksum("info", *row)))

    @property
    def blank(self) -> bool:
        """Nothing was ever proposed, and there are no settings: its run stopped before it began."""
        return not self._rows("settings") and not self._rows("proposals", "LIMIT 1")

    # What was asked and what came of it.

    def propose(self, proposals: Sequence[tuple[int, Proposal]]) -> None:
        """Keep numbered proposals, in one transaction, before they are evaluated.

        Raises:
            LedgerError: a number that stands for another candidate already.
        """
        rows = [proposal_row(number, proposal) for number, proposal in proposals]
        with self._writing() as db:
            for row in rows:
                if not self._add(db, "proposals", row):
                    self._must_equal("proposals", row, "was proposed as another candidate")
        self._proposed.update(proposals)

    def transaction(self) -> AbstractContextManager[object]:
        """Everything written in its ``with`` block is kept, or nothing of it."""
        return self._writing()

    def record(self, trials: Sequence[Trial]) -> None:
        """Keep outcomes, in one transaction. The same outcome again is ignored.

        Raises:
            ValueError: a trial with neither scores nor error, with both, or with a score that is not finite.
            LedgerError: a trial that was not proposed, or has another outcome already.
        """
        rows = [outcome_row(trial) for trial in trials]
        with self._writing() as db:
            for trial, row in zip(trials, rows, strict=True):
                if self._proposed.get(row[0]) != trial.proposal:
                    proposal = proposal_row(row[0], trial.proposal)
                    self._must_equal("proposals", proposal, "was proposed as another candidate")
                if not self._add(db, "outcomes", row):
                    self._must_equal("outcomes", row, "is recorded with another outcome")
                elif trial.detail and not trial.failed:
                    self._add(db, "measurements", (row[0], "{}", _text(trial.detail)))  # the outcome's own

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
            text = scores_text(number, scores) if scores or not detail else "{}"
            self._add(db, "measurements", (number, text, _text(detail or {})))

    def proposals(self, space: Space | None = None) -> dict[int, Proposal]:
        """Every proposal by number, in number order. ``space`` as in :meth:`trials`."""
        rows = self._read_rows("proposals", "ORDER BY number")
        if not rows:
            return {}
        space = space or self._own_space()
        return {n: self._proposal(space, text, fidelity) for n, text, fidelity in rows}

    def trials(self, space: Space | None = None, *, measured: bool = True) -> list[Trial]:
        """Every outcome, in number order.

        Args:
            space: the space of the candidates; without it their choices are taken from the settings.
            measured: merge later measurements into scores and detail (the latest wins). Replay needs
                False: what the searcher was told.

        Raises:
            LedgerError: a candidate does not fit the space, or neither space nor settings tell the choices.
        """
        rows = self._read_rows("outcomes", "ORDER BY number")
        if not rows:
            return []
        asked = self.proposals(space)
        later: dict[int, dict[str, float]] = {}
        details: dict[int, dict[str, Any]] = {}
        for number, scores, detail in self._read_rows("measurements", "ORDER BY id"):
            found = self._scores(scores)
            if measured or not found:
                later.setdefault(number, {}).update(found)
                details.setdefault(number, {}).update(self._detail(detail))
        return [
            Trial(
                number,
                asked[number].candidate,
                self._scores(scores) | later.get(number, {}),
                error,
                seconds,
                worker,
                details.get(number, {}),
                asked[number].fidelity,
            )
            for number, scores, error, seconds, worker in rows
            if number in asked
        ]

    def measurements(self, number: int) -> list[Measurement]:
        """The later measurements of one trial, oldest first."""
        rows = self._read_rows("measurements", "WHERE number = ? ORDER BY id", (int(number),))
        return [Measurement(n, self._scores(scores), self._detail(detail)) for n, scores, detail in rows]

    def restore(self, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
        """Fill a new ledger with rows of another, by table (see :mod:`.salvage`), in one transaction."""
        with self._writing() as db:
            for table, found in rows.items():
                for row in found:
                    if table == "settings":
                        self._add_settings(db, str(row[0]))
                    else:
                        self._add(db, table, row)

    def _read(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    def _rows(self, table: str, rest: str = "", values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of a table, each seen to be as it was written."""
        crc = "crc" if table in self._checked else "NULL"
        columns = [self._fidelity if name == "fidelity" else name for name in COLUMNS[table]]
        rows = self._read(f"SELECT {', '.join(columns)}, {crc} FROM {table} {rest}", values)
        for *row, crc in rows:
            blob = bytes in map(type, row)  # never written: a turned bit in its type
            if blob or (crc is not None and crc != checksum(table, *row)):
                raise damaged(self.path, f"a row of {table} has changed: {row[0]!r:.40}")
        return [row[:-1] for row in rows]

    def _read_rows(self, table: str, rest: str = "", values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of a table as this netcarve writes them; those of a run of 0.1 with rungs are translated."""
        rows = self._rows(table, rest, values)
        old = RungChoice.of(self._written_settings()) if rows else None
        try:
            return [old.row(table, row) for row in rows] if old else rows
        except ValueError as error:
            raise damaged(self.path, f"an unreadable entry among the {table}") from error

    def _add_settings(self, db: sqlite3.Connection, text: str) -> None:
        for table in ("settings", "spare"):
            db.execute(f"INSERT INTO {table} VALUES (?, ?)", (text, checksum("settings", text)))

    def _add(self, db: sqlite3.Connection, table: str, row: tuple[Any, ...]) -> bool:
        """Insert a row, unless its number is there already; was it inserted?"""
        names = ", ".join((*COLUMNS[table], "crc"))
        marks = ", ".join("?" * (len(row) + 1))
        sql = f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING"
        return bool(db.execute(sql, (*row, checksum(table, *row))).rowcount)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, or a part of the one around it: committed at the end, undone by any exception."""
        if self._lock is None:
            raise LedgerError(f"the ledger {self.path} is not open for writing; use Ledger(path, write=True)")
        if self._db.in_transaction:
            yield self._db
            return
        moved = None if is_at(self.path, self._file) else self._rescue()
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
        if moved is not None:
            raise moved

    def _rescue(self) -> LedgerError:
        """Go on in a copy, since the file is no longer at its path; what to raise when that is written."""
        self.rescuing = True
        gone, was = self.path, self._db
        self._db, self._lock, self.path = rescue(was, gone)
        self._file = self.path.stat()
        if gone.exists():  # never closed: SQLite would remove the -wal file of whoever is there now
            import ctypes

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(was))
        else:
            was.close()
        return LedgerError(
            f"the folder of the run, {gone.parent}, was removed, moved or replaced while the run went on; "
            f"all that it has scored is saved in {self.path.parent}: go on there with --resume --out "
            f"{quote(str(self.path.parent))}"
        )

    def _must_equal(self, table: str, row: tuple[Any, ...], otherwise: str) -> None:
        kept = self._read_rows(table, "WHERE number = ?", row[:1])
        if not kept:
            raise LedgerError(f"trial {row[0]} of {self.path} was never proposed; call propose() first")
        if kept[0] != row:
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
        if not isinstance(scores, dict) or not all(is_score(value) for value in scores.values()):
            raise damaged(self.path, f"scores that are not finite numbers: {text[:60]!r}")
        return scores

    def _detail(self, text: str) -> dict[str, Any]:
        detail = self._json(text)
        if not isinstance(detail, dict):
            raise damaged(self.path, f"a detail that is no object: {text[:60]!r}")
        return detail

    def _own_space(self) -> Space:
        choices = self.settings.get("choices")
        if not choices:
            raise LedgerError(
                f"the settings in {self.path} do not tell the choices of its run; give the space"
            )
        return Space([Choice(name, tuple(options)) for name, options in choices])

    def _proposal(self, space: Space, text: str, fidelity: str | None) -> Proposal:
        try:
            return Proposal(space.from_values(self._json(text)), fidelity or FULL.name)
        except ValueError as error:
            raise LedgerError(f"the ledger {self.path} was written for another space: {error}") from error

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _text(detail: Mapping[str, Any]) -> str:
    return json.dumps(dict(detail), allow_nan=False)
