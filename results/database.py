"""Opening the SQLite file behind a ledger, and saying in plain words why it cannot be used."""

from __future__ import annotations

import errno
import itertools
import json
import os
import sqlite3
import stat
import tempfile
import zlib
from contextlib import closing, suppress
from pathlib import Path
from shlex import quote
from typing import IO

# Stored as SQLite's user_version and, so that neither can change alone, in the note ``schema``; raised when a
# table changes. 1 had no checksums, 2 none of notes and one copy of the settings, 3 no fidelity. The next is
# 8: two bits or more away from all of these, so that no turned bit makes one of another (:func:`flipped`).
SCHEMAS = (1, 2, 3, 4)
SCHEMA_VERSION = SCHEMAS[-1]
SCHEMA_NOTE = "schema"
APPLICATION_ID = 0x4E434C44  # "NCLD": tells a ledger from any other SQLite file

NOTHING_IN_IT = (  # never advise to remove it: what is missing may lie elsewhere
    "its run stopped before it began, or it was copied without its -wal file, which belongs beside it; "
    "copy that too, or start the run again"
)

_SCHEMA = """
CREATE TABLE settings (value TEXT NOT NULL, crc INTEGER);
CREATE TABLE info (key TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER);
CREATE TABLE proposals (number INTEGER PRIMARY KEY, candidate TEXT NOT NULL, crc INTEGER, fidelity TEXT);
CREATE TABLE outcomes (
    number INTEGER PRIMARY KEY, scores TEXT NOT NULL, error TEXT, seconds REAL NOT NULL, worker TEXT NOT NULL,
    crc INTEGER
);
CREATE TABLE measurements (
    id INTEGER PRIMARY KEY, number INTEGER NOT NULL, scores TEXT NOT NULL, detail TEXT NOT NULL, crc INTEGER
);
"""
# The row of settings once more, on pages of its own: without it no trial can be read.
_SPARE = "CREATE TABLE IF NOT EXISTS spare (value TEXT NOT NULL, crc INTEGER);"
# What a row says, by table; the column ``crc`` holds its checksum.
COLUMNS = {
    "settings": ("value",),
    "info": ("key", "value"),
    "proposals": ("number", "candidate", "fidelity"),  # NULL: in full
    "outcomes": ("number", "scores", "error", "seconds", "worker"),
    "measurements": ("number", "scores", "detail"),
}


def checksum(table: str, *values: str | int | float | None) -> int:
    """CRC-32 over a row without the NULLs at its end, as columns that came later are, and its table."""
    while values and values[-1] is None:
        values = values[:-1]
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
    if path.exists() and not path.is_file():
        raise _no_file(path)
    for end in ("-wal", "-shm", "-journal"):  # SQLite itself would wait for a pipe to end
        beside = Path(f"{path.resolve()}{end}")
        if os.path.lexists(beside) and (beside.is_symlink() or not beside.is_file()):
            raise LedgerError(
                f"{beside} is not a regular file; give the folder of a run that a sweep has written"
            )
    log = Path(f"{path}-wal")
    if (not path.exists() or not path.stat().st_size) and log.is_file() and log.stat().st_size:
        raise damaged(path, "it is missing or empty, its -wal file is not")  # which SQLite would delete
    try:
        return _open_checked(path, write=write, create=create)
    except sqlite3.Error as error:
        raise explain(error, path) from error


def _no_file(path: Path) -> LedgerError:
    return LedgerError(f"{path} is not a regular file; give the folder of a run that a sweep has written")


def _open_checked(path: Path, *, write: bool, create: bool) -> sqlite3.Connection:
    if write:
        uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        db = sqlite3.connect(uri, uri=True, timeout=30.0, isolation_level=None)
    else:
        db = _open_for_reading(path)
    try:
        if not _holds_anything(db):
            if not (write and create):
                raise LedgerError(f"the ledger {path} is empty: {NOTHING_IN_IT}")
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
        f"BEGIN IMMEDIATE; {_SCHEMA} {_SPARE} {_version_note()} PRAGMA application_id = {APPLICATION_ID}; "
        f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def _version_note() -> str:
    key, value = SCHEMA_NOTE, str(SCHEMA_VERSION)
    return f"INSERT OR REPLACE INTO info VALUES ('{key}', '{value}', {checksum('info', key, value)});"


def _upgrade(db: sqlite3.Connection) -> None:
    """Give an older ledger the tables and columns of this version; its rows stay without a checksum."""
    if _pragma(db, "user_version") < SCHEMA_VERSION:
        added = " ".join(
            f"ALTER TABLE {table} ADD COLUMN crc INTEGER;"
            for table in COLUMNS
            if table not in with_checksums(db)
        )
        if not has_column(db, "proposals", "fidelity"):
            added += " ALTER TABLE proposals ADD COLUMN fidelity TEXT;"
        db.executescript(
            f"BEGIN IMMEDIATE; {added} {_SPARE} DELETE FROM spare; INSERT INTO spare SELECT value, crc FROM "
            f"settings; {_version_note()} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )


def with_checksums(db: sqlite3.Connection) -> set[str]:
    """Tables whose rows have a checksum: all, but in an older ledger."""
    return {table for table in COLUMNS if has_column(db, table, "crc")}


def has_column(db: sqlite3.Connection, table: str, name: str) -> bool:
    """Is it there? Older ledgers lack some, and are read as they are."""
    return any(column == name for _, column, *_ in db.execute(f"PRAGMA table_info({table})"))


def _check(db: sqlite3.Connection, path: Path) -> None:
    if _pragma(db, "application_id") != APPLICATION_ID:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if set(COLUMNS) <= tables:
            raise damaged(path, "its header has changed")
        raise LedgerError(f"{path} is an SQLite file of another program, not a netcarve ledger; give a run's")
    version = _pragma(db, "user_version")
    if version > SCHEMA_VERSION:
        noted = db.execute("SELECT value FROM info WHERE key = ?", (SCHEMA_NOTE,)).fetchone()
        older = noted is not None and noted[0] == str(SCHEMA_VERSION)
        raise damaged(path, "its header has changed") if older and flipped(version) else newer(path, version)
    verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise damaged(path, verdict)


def flipped(version: int) -> bool:
    """Is it one turned bit away from a schema that this netcarve writes or has written?"""
    return any((version ^ known).bit_count() == 1 for known in SCHEMAS)


def newer(path: Path, version: int) -> LedgerError:
    """The error for a ledger of a later schema."""
    return LedgerError(
        f"the ledger {path} was written by a newer netcarve (schema {version}, this one reads up to "
        f"{SCHEMA_VERSION}); upgrade with: pip install --upgrade netcarve"
    )


def damaged(path: Path, what: str) -> LedgerError:
    """The error for contents that cannot be trusted."""
    what = " ".join(what.split())
    return LedgerError(
        f"the ledger {path} is damaged ({what}); restore it from a copy, or save what is intact with: "
        f"{_salvage(path)}"
    )


def _salvage(path: Path) -> str:
    return f"netcarve salvage {quote(str(path.parent))}"


def explain(error: sqlite3.Error, path: Path) -> LedgerError:
    """Cause and cure of an SQLite error, in one or two sentences."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF  # the primary code of the extended one
    if code == sqlite3.SQLITE_NOTADB:
        return LedgerError(
            f"{path} is not a netcarve ledger (not an SQLite file, or its beginning was overwritten); give "
            f"the folder of a run, restore the file, or save what is intact with: {_salvage(path)}"
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

    The kernel lets go of the lock when the process dies, however it dies. Only its holder may remove
    the file.

    Raises:
        LedgerError: another process (or this one, elsewhere) writes already, or the folder is not writable.
    """
    import fcntl  # not on Windows; readers there need no lock

    beside = Path(f"{path}.lock")
    while True:
        try:
            file = _open_lock(beside, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_at(beside, os.fstat(file.fileno())):  # its run was discarded between the two calls
                file.close()
                continue
            leave_word(file, str(os.getpid()))
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read(WORD).strip()
            file.close()
            raise LedgerError(
                f"another process{f' ({owner})' if owner else ''} is writing the ledger {path}; wait until "
                "that run ends or stop it, or choose another folder for this one"
            ) from error
        except OSError as error:
            file.close()
            raise _cannot_write(path, error) from error
        return file


def _open_lock(beside: Path, flags: int) -> IO[str]:
    """A lock file. Not through a link, by which another file would be written; not a pipe, which has no end.

    Raises:
        OSError: it is one of these, missing, or not accessible.
    """
    try:
        fd = os.open(beside, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.EINVAL, f"{beside.name} is a link", str(beside)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, f"{beside.name} is not a regular file", str(beside))
    mode = "r+" if flags & os.O_RDWR else "r"
    return os.fdopen(fd, mode, encoding="utf-8", errors="replace")


def is_at(path: Path, file: os.stat_result) -> bool:
    """Does ``path`` lead to that very file (device and inode)?"""
    try:
        there = path.stat()
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (file.st_dev, file.st_ino)


WORD = 64  # bytes of a lock file; all are written at once, so that later words fit where the disk is full


def leave_word(lock: IO[str], text: str) -> None:
    """Write into a lock file: who holds it or, where the ledger itself has no room, how the run ended."""
    os.pwrite(lock.fileno(), text.encode()[:WORD].ljust(WORD), 0)  # unbuffered: close() must not fail again


def last_word(path: Path) -> str:
    """How the last writer of the ledger at ``path`` ended, where it could only say so in its lock file."""
    try:
        with _open_lock(Path(f"{path}.lock"), os.O_RDONLY) as file:
            text = file.read(WORD).strip()
    except OSError:
        return ""
    return text if text.isalpha() else ""


def rescue(db: sqlite3.Connection, path: Path) -> tuple[sqlite3.Connection, IO[str], Path]:
    """Copy an open ledger that is no longer at its path to a new folder beside its own, ``<folder>-saved``.

    Returns:
        The copy, open for writing; its lock; where it is.

    Raises:
        LedgerError: it can be written nowhere.
    """
    name = f"{path.parent.name or 'run'}-saved"
    for home in (lambda: path.absolute().parents[1], Path.cwd, lambda: Path(tempfile.gettempdir())):
        with suppress(OSError):  # gone as well, or not writable: try the next
            copy = _new_folder(home(), name) / path.name
            held = lock(copy)
            with closing(sqlite3.connect(copy)) as new:
                db.backup(new)
            return connect(copy, write=True, create=False), held, copy
    raise LedgerError(
        f"the folder of the run, {path.parent}, was removed or replaced, and what it held can be saved "
        f"nowhere else: neither beside it nor in {tempfile.gettempdir()}"
    )


def _new_folder(home: Path, name: str) -> Path:
    for i in itertools.count(1):
        with suppress(FileExistsError):
            (folder := home / (name if i == 1 else f"{name}-{i}")).mkdir()
            return folder
    raise AssertionError


def being_written(path: Path) -> bool:
    """Does a living process hold the ledger at ``path`` open for writing?"""
    import fcntl

    try:
        with _open_lock(Path(f"{path}.lock"), os.O_RDONLY) as file:
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
