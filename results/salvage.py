"""Salvage: the intact part of a damaged ledger, found page by page.

Rows are read from SQLite's pages themselves (format: sqlite.org/fileformat2.html, sections 1.6, 2.1 and 4),
not through its trees, so that a broken header, index or neighbour does not matter. A row counts when its
checksum does.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .database import (
    APPLICATION_ID,
    COLUMNS,
    SCHEMA_NOTE,
    SCHEMA_VERSION,
    LedgerError,
    checksum,
    flipped,
    newer,
)
from .ledger import Ledger

LEAF = 0x0D  # first byte of a page that holds rows of a table
HEADER_SIZES = range(3, 12)  # bytes of a record's header in a ledger; rare among those of JSON text
LONGEST_VARINT = 4  # bytes of a length that is looked for without a pointer
SIZES = (4096, 1024, 2048, 8192, 16384, 32768, 65536, 512)  # of pages; the first is ours
WAL_HEADER, FRAME_HEADER = 32, 24
LONGEST = 256_000_000  # bytes of a row: a damaged length must not ask for more

Row = tuple[str | int | float | None, ...]


@dataclass(frozen=True)
class Salvage:
    """What was saved from a damaged ledger, and what was not."""

    settings: bool  # saved; without them a run can be resumed, and looked at no sooner
    outcomes: int  # trials saved with what came of them
    proposals: int  # candidates saved, those without an outcome among them
    measurements: int
    lost: tuple[int, ...]  # numbers below the highest seen of which nothing was found
    unscored: tuple[int, ...]  # numbers whose candidate was found and no outcome: lost, or never scored


def salvage(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Salvage:
    """Write a new ledger with all that is intact in a damaged one, which stays as it is.

    Args:
        path: the damaged file; its ``-wal`` file is read too, and may be all that there is.
        out: the new one; must not exist.

    Raises:
        LedgerError: there is no such file, ``out`` exists, a newer netcarve wrote it, or nothing is intact.
    """
    path, out = Path(path), Path(out)
    if not path.is_file() and not _log(path).is_file():
        raise LedgerError(f"there is no ledger at {path}; give the folder of a run")
    if out.exists():
        raise LedgerError(f"{out} exists already; salvage to a new folder")
    found = _rows(path)
    proposals = {int(str(row[0])): row for row in found["proposals"]}
    if not found["settings"] and not proposals:
        raise LedgerError(
            f"nothing can be salvaged from {path}: neither settings nor candidates of a run are in it, or "
            f"none is intact; if it was copied, copy {path.name}-wal too (ledgers before version 2 have no "
            "checksums to tell by)"
        )
    outcomes = {int(str(row[0])): row for row in found["outcomes"] if int(str(row[0])) in proposals}
    later = [row for row in found["measurements"] if int(str(row[0])) in outcomes]
    with Ledger(out, write=True) as ledger:
        try:
            ledger.restore(
                {
                    "settings": found["settings"][-1:],
                    "info": [row for row in found["info"] if row[0] != SCHEMA_NOTE],
                    "proposals": sorted(proposals.values(), key=lambda row: int(str(row[0]))),
                    "outcomes": sorted(outcomes.values(), key=lambda row: int(str(row[0]))),
                    "measurements": later,
                }
            )
        except BaseException:
            ledger.discard()
            raise
    seen = range(max(proposals, default=-1) + 1)
    return Salvage(
        bool(found["settings"]),
        len(outcomes),
        len(proposals),
        len(later),
        tuple(n for n in seen if n not in proposals),
        tuple(n for n in seen if n in proposals and n not in outcomes),
    )


def _log(path: Path) -> Path:
    return Path(f"{path}-wal")


def _rows(path: Path) -> dict[str, list[Row]]:
    """Intact rows by table, each once, in the order in which they were written as far as that can be told.

    Of a note the latest.

    Raises:
        LedgerError: a newer netcarve wrote them: they may mean something else.
    """
    data = path.read_bytes() if path.is_file() else b""
    wal = _log(path).read_bytes() if _log(path).is_file() else b""
    best: dict[str, dict[Row, int]] = {table: {} for table in COLUMNS}
    for size in SIZES:
        found: dict[str, dict[Row, int]] = {table: {} for table in COLUMNS}
        pages = _Pages(data, wal, size)
        for table, rowid, row in _scan(pages):
            found[table].setdefault(row, rowid)
        notes = {row[0]: row for row in found["info"]}  # in the order of the log
        for table, rowid, row in _search(pages):
            if table != "info" or row[0] not in notes:  # a note's earlier values lie about as well
                found[table].setdefault(row, rowid)
        found["info"] = dict.fromkeys(({row[0]: row for row in found["info"]} | notes).values(), 0)
        if sum(map(len, found.values())) > sum(map(len, best.values())):
            best = found
        if best["settings"]:
            break  # the right page size
    _check_schema(path, data[:100], {row[0]: row[1] for row in best["info"]}.get(SCHEMA_NOTE))
    return {
        table: [row for row, _ in sorted(rows.items(), key=lambda r: r[1])] for table, rows in best.items()
    }


def _check_schema(path: Path, header: bytes, noted: object) -> None:
    """
    Raises:
        LedgerError: a newer netcarve wrote it, by the note of its schema or, unless that is one turned bit
            away from an older one, by its header (section 1.3 of the file format).
    """
    if isinstance(noted, str) and noted.isdecimal() and int(noted) > SCHEMA_VERSION:
        raise newer(path, int(noted))
    if len(header) < 100 or not header.startswith(b"SQLite format 3"):
        return
    version, application = struct.unpack_from(">I4xI", header, 60)
    if application == APPLICATION_ID and version > SCHEMA_VERSION and not flipped(version):
        raise newer(path, version)


class _Pages:
    """Every version of every page: of the file, then those in its write-ahead log, oldest first."""

    def __init__(self, data: bytes, wal: bytes, size: int) -> None:
        self.size = size
        self.ordered = [(at // size + 1, data[at : at + size]) for at in range(0, len(data), size)]
        before: list[tuple[int, bytes]] = []
        now: list[
            tuple[int, bytes]
        ] = []  # frames from before the log was last begun anew are older than the file
        for at in range(WAL_HEADER, len(wal) - FRAME_HEADER, FRAME_HEADER + size):
            (number,) = struct.unpack_from(">I", wal, at)
            current = wal[at + 8 : at + 16] == wal[16:24]  # the salts of section 4.1
            (now if current else before).append((number, wal[at + FRAME_HEADER : at + FRAME_HEADER + size]))
        self.ordered = [*before, *self.ordered, *now]
        self.versions: dict[int, list[bytes]] = {}
        for number, page in self.ordered:
            self.versions.setdefault(number, []).append(page)


def _scan(pages: _Pages) -> Iterator[tuple[str, int, Row]]:
    """(table, rowid, row) of everything that a page points to and whose checksum holds."""
    for number, page in pages.ordered:
        start = 100 if number == 1 else 0  # the file's header
        if len(page) < start + 8 or page[start] != LEAF:
            continue
        (count,) = struct.unpack_from(">H", page, start + 3)
        for i in range(min(count, pages.size // 4)):
            # Whatever a damaged pointer or length leads to: the next cell may be sound.
            with suppress(IndexError, struct.error, ValueError, UnicodeDecodeError):
                (at,) = struct.unpack_from(">H", page, start + 8 + 2 * i)
                yield from _cell(pages, page, at)


def _search(pages: _Pages) -> Iterator[tuple[str, int, Row]]:
    """(table, rowid, row) of every record whose checksum holds, pointed to or not.

    A page's own header may be damaged, or one of its pointers. A cell is a length, a rowid and a record,
    which begins with the size of its header: a byte that JSON text does not have.
    """
    for page in dict.fromkeys(page for _, page in pages.ordered):
        values = np.frombuffer(page, dtype=np.uint8)
        header, first = values[:-1], values[1:]  # the type of the first value: none, or a text's
        text = (first >= 13) & (first % 2 == 1) | (first >= 0x80)
        found = (header >= HEADER_SIZES.start) & (header < HEADER_SIZES.stop) & ((first == 0) | text)
        for at in (np.flatnonzero(found[2:]) + 2).tolist():
            with suppress(IndexError, struct.error, ValueError, UnicodeDecodeError):
                types, content = _types(page, at)
                size = content - at + sum(map(_length, types))
                for begin in _begins(page, at):
                    if _varint(page, begin)[0] == size:
                        yield from _cell(pages, page, begin)


def _begins(page: bytes, at: int) -> Iterator[int]:
    """Where the cell of a record at ``at`` may begin: two numbers of variable length earlier.

    All bytes of such a number but the last have the highest bit.
    """
    if page[at - 1] >= 0x80:
        return
    rowid = at - 1
    while rowid > 1 and page[rowid - 1] >= 0x80:
        rowid -= 1
    for begin in range(rowid - 1, max(-1, rowid - 1 - LONGEST_VARINT), -1):
        yield begin
        if not begin or page[begin - 1] < 0x80:
            return


def _cell(pages: _Pages, page: bytes, at: int) -> Iterator[tuple[str, int, Row]]:
    length, at = _varint(page, at)
    rowid, at = _varint(page, at)
    if length > LONGEST:
        return
    usable = pages.size
    local, least = usable - 35, (usable - 12) * 32 // 255 - 23
    if length <= local:
        payloads = [page[at : at + length]]
    else:
        stored = least + (length - least) % (usable - 4)
        stored = stored if stored <= local else least
        (following,) = struct.unpack_from(">I", page, at + stored)
        head = page[at : at + stored]
        payloads = [head + _overflow(pages, following, length - stored, v) for v in (-1, 0)]
    for payload in payloads:
        if len(payload) == length:
            yield from _row(payload, rowid)
            return


def _overflow(pages: _Pages, number: int, length: int, version: int) -> bytes:
    """The rest of a long row, from the latest (-1) or the first (0) version of its pages."""
    out = bytearray()
    while number and len(out) < length and number in pages.versions:
        page = pages.versions[number][version]
        if len(page) < 4:
            break
        (number,) = struct.unpack_from(">I", page)
        out += page[4 : 4 + length - len(out)]
    return bytes(out)


def _row(payload: bytes, rowid: int) -> Iterator[tuple[str, int, Row]]:
    values = _record(payload)
    for table, columns in COLUMNS.items():
        # Leading integer keys are not stored in the row: they are its rowid.
        own = values[1:] if table == "measurements" else values
        if table == "proposals" and len(own) in (3, 4):  # its last column came later, behind the checksum
            own = [*own[:2], *(own[3:] or [None]), own[2]]
        if len(own) != len(columns) + 1:
            continue
        *row, crc = own
        if columns[0] == "number" and table != "measurements":
            row[0] = rowid
        if table == "outcomes" and isinstance(row[3], int):
            row[3] = float(row[3])  # SQLite stores whole seconds as an integer
        if isinstance(crc, int) and crc == checksum(table, *row):
            yield table, rowid, tuple(row)


def _record(payload: bytes) -> list[str | int | float | None]:
    """Values of one record (section 2.1 of the file format)."""
    types, at = _types(payload, 0)
    values: list[str | int | float | None] = []
    for kind in types:
        raw = payload[at : at + _length(kind)]
        at += len(raw)
        if kind == 0:
            values.append(None)
        elif kind in (8, 9):
            values.append(kind - 8)
        elif kind == 7:
            values.append(struct.unpack(">d", raw)[0])
        elif kind < 7:
            values.append(int.from_bytes(raw, "big", signed=True))
        else:
            values.append(raw.decode())
    return values


def _types(data: bytes, at: int) -> tuple[list[int], int]:
    """Types of the values of the record at ``at``, and where the values begin."""
    header, middle = _varint(data, at)
    types = []
    while middle < at + header:
        kind, middle = _varint(data, middle)
        types.append(kind)
    return types, middle


def _length(kind: int) -> int:
    """Bytes of a value of this type."""
    if kind < 10:
        return (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind]
    if kind >= 13 and kind % 2:
        return (kind - 13) // 2
    raise ValueError(f"a ledger has no values of type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of SQLite's variable length, and where it ends."""
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9
