"""Opening the SQLite file behind a ledger, and saying in plain words why it cannot be used."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import zlib
from pathlib import Path
from typing import IO

SCHEMA_VERSION = 2  # stored as SQLite's user_version; raised when a table changes. 1 had no checksums
APPLICATION_ID = 0x4E434C44  # "NCLD": tells a ledger from any other SQLite file

_SCHEMA = """
CREATE TABLE settings (value TEXT NOT NULL, crc INTEGER);
CREATE TABLE info (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE proposals (number INTEGER PRIMARY KEY, candidate TEXT NOT NULL, crc INTEGER);
CREATE TABLE outcomes (
    number INTEGER PRIMARY KEY, scores TEXT NOT NULL, error TEXT, seconds REAL NOT NULL, worker TEXT NOT NULL,
    crc INTEGER
);
CREATE TABLE measurements (
    id INTEGER PRIMARY KEY, number INTEGER NOT NULL, scores TEXT NOT NULL, detail TEXT NOT NULL, crc INTEGER
);
"""
# What a row says, by table; the column ``crc`` holds its checksum.
COLUMNS = {
    "settings": ("value",),
    "proposals": ("number", "candidate"),
    "outcomes": ("number", "scores", "error", "seconds", "worker"),
    "measurements": ("number", "scores", "detail"),
}


def checksum(table: str, *values: str | int | float | None) -> int:
    """CRC-32 over a row, and the table that it is of."""
    return zlib.crc32(json.dumps([table, *values]).encode())


class LedgerError(RuntimeError):
    """A ledger that cannot be opened, read or written; the message says how to mend it."""


def connect(path: Path, *, write: bool, create: bool) -> sqlite3.Connection:
    """Open, check and (for a writer that may create) initialise the database at ``path``.

    Raises:
        LedgerError: missing, empty, damaged, not a ledger, of a newer schema, or not writable.
    """
    if path.is_dir():
        raise LedgerError(f"{path} is a folder; give the ledger file inside it")
    if not path.exists() and not (write and create):
        raise LedgerError(f"there is no ledger at {path}; give the folder of a run that a sweep has written")
    try:
        return _open_checked(path, write=write, create=create)
    except sqlite3.Error as error:
        raise explain(error, path) from error


def _open_checked(path: Path, *, write: bool, create: bool) -> sqlite3.Connection:
    if write:
        uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        db = sqlite3.connect(uri, uri=True, timeout=30.0, isolation_level=None)
    else:
        db = _open_for_reading(path)
    try:
        if not _holds_anything(db):
            if not (write and create):
                raise LedgerError(
                    f"the ledger {path} is empty: its run stopped before it began, or the file was cut "
                    "off; remove the folder and start the run again"
                )
            _create_schema(db)
        _check(db, path)
        if write:  # only now: the file of another program must stay as it is
            # A commit survives the death of the process at once, and a power cut from the next checkpoint
            # on: that can lose the last commits, never tear one. 200 times cheaper than FULL.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            _upgrade(db)
    except BaseException:
        db.close()
        raise
    return db


def _open_for_reading(path: Path) -> sqlite3.Connection:
    uri = path.absolute().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=30.0, isolation_level=None)
    try:
        db.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError:
        # SQLite wants to make its -shm file even to read; a cleanly closed ledger on a read-only disk has
        # no -wal file and nobody can change it, so it can be read as it lies.
        db.close()
        if Path(f"{path}-wal").exists() or os.access(path.parent, os.W_OK):
            raise
        db = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None)
    except BaseException:
        db.close()
        raise
    return db


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _holds_anything(db: sqlite3.Connection) -> bool:
    return (
        _pragma(db, "application_id") != 0 or db.execute("SELECT 1 FROM sqlite_master").fetchone() is not None
    )


def _create_schema(db: sqlite3.Connection) -> None:
    db.executescript(
        f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
        f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def _upgrade(db: sqlite3.Connection) -> None:
    """Give an older ledger the columns of this version; its rows stay without a checksum."""
    if _pragma(db, "user_version") == 1:
        added = " ".join(f"ALTER TABLE {table} ADD COLUMN crc INTEGER;" for table in COLUMNS)
        db.executescript(f"BEGIN IMMEDIATE; {added} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _check(db: sqlite3.Connection, path: Path) -> None:
    if _pragma(db, "application_id") != APPLICATION_ID:
        raise LedgerError(f"{path} is an SQLite file of another program, not a netcarve ledger; give a run's")
    version = _pragma(db, "user_version")
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"the ledger {path} was written by a newer netcarve (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}); upgrade with: pip install --upgrade netcarve"
        )
    verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise damaged(path, verdict)


def damaged(path: Path, what: str) -> LedgerError:
    """The error for contents that cannot be trusted."""
    what = " ".join(what.split())
    return LedgerError(
        f"the ledger {path} is damaged ({what}); restore it from a copy, or save what is intact with: "
        f"netcarve salvage '{path.parent}'"
    )


def explain(error: sqlite3.Error, path: Path) -> LedgerError:
    """Cause and cure of an SQLite error, in one or two sentences."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF  # the primary code of the extended one
    if code == sqlite3.SQLITE_NOTADB:
        return LedgerError(
            f"{path} is not a netcarve ledger (not an SQLite file, or its beginning was overwritten); "
            "give the folder of a run, or restore the file from a copy"
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return LedgerError(
            f"no room on disk for the ledger {path}; free some and resume the run: what was recorded is kept"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return LedgerError(
            f"cannot open the ledger {path} ({error}); make the file and its folder accessible to you, "
            "or choose another folder for the run"
        )
    if code == sqlite3.SQLITE_BUSY:
        return LedgerError(f"the ledger {path} is kept busy by another program; close it and try again")
    return LedgerError(f"cannot use the ledger {path}: {error}")


def lock(path: Path) -> IO[str]:
    """Become the only writer of ``path``: hold ``<path>.lock`` until the returned file is closed.

    The kernel lets go of the lock when the process dies, however it dies.

    Raises:
        LedgerError: another process (or this one, elsewhere) writes already, or the folder is not writable.
    """
    import fcntl  # not on Windows; readers there need no lock

    beside = Path(f"{path}.lock")  # never removed: two writers could each lock "the" file otherwise
    try:
        file = beside.open("a+", encoding="utf-8")
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), str(os.getpid()).encode())  # unbuffered: closing must not fail a second time
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise LedgerError(
            f"another process{f' ({owner})' if owner else ''} is writing the ledger {path}; wait until that "
            "run ends or stop it, or choose another folder for this one"
        ) from error
    except OSError as error:
        file.close()
        raise _cannot_write(path, error) from error
    return file


def being_written(path: Path) -> bool:
    """Does a living process hold the ledger at ``path`` open for writing?"""
    import fcntl

    try:
        with Path(f"{path}.lock").open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or not for us to read: nobody who could tell
        return False
    return False


def _cannot_write(path: Path, error: OSError) -> LedgerError:
    if error.errno == errno.ENOSPC:
        return LedgerError(f"no room on disk for the ledger {path}; free some, or choose another folder")
    return LedgerError(
        f"cannot write the ledger {path} ({error.strerror or error}); choose a local folder that exists and "
        "that you may write to"
    )
