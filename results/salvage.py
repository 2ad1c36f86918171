"""What is intact in a damaged ledger, found page by page.

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

from .database import COLUMNS, LedgerError, checksum
from .ledger import Ledger

LEAF = 0x0D  # first byte of a page that holds rows of a table
SIZES = (4096, 1024, 2048, 8192, 16384, 32768, 65536, 512)  # of pages; the first is ours
WAL_HEADER, FRAME_HEADER = 32, 24
LONGEST = 256_000_000  # bytes of a row: a damaged length must not ask for more

Row = tuple[str | int | float | None, ...]


@dataclass(frozen=True)
class Salvage:
    """What was saved from a damaged ledger, and what was not."""

    outcomes: int  # trials saved with what came of them
    proposals: int  # candidates saved, those without an outcome among them
    measurements: int
    lost: tuple[int, ...]  # numbers below the highest seen of which nothing was found
    unscored: tuple[int, ...]  # numbers whose candidate was found and no outcome: lost, or never scored


def salvage(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Salvage:
    """Write a new ledger with all that is intact in a damaged one, which stays as it is.

    Args:
        path: the damaged file; its ``-wal`` file is read too.
        out: the new one; must not exist.

    Raises:
        LedgerError: there is no such file, ``out`` exists, or the settings of the run are lost, without
            which no candidate can be read.
    """
    path, out = Path(path), Path(out)
    if not path.is_file():
        raise LedgerError(f"there is no ledger at {path}; give the folder of a run")
    if out.exists():
        raise LedgerError(f"{out} exists already; salvage to a new folder")
    found = _rows(path)
    if not found["settings"]:
        raise LedgerError(
            f"nothing can be salvaged from {path}: the settings of its run are not intact, and without them "
            "its candidates mean nothing (ledgers before version 2 have no checksums to tell by)"
        )
    proposals = {int(str(row[0])): row for row in found["proposals"]}
    outcomes = {int(str(row[0])): row for row in found["outcomes"] if int(str(row[0])) in proposals}
    later = [row for row in found["measurements"] if int(str(row[0])) in outcomes]
    with Ledger(out, write=True) as ledger:
        ledger.restore(
            {
                "settings": found["settings"][-1:],
                "proposals": sorted(proposals.values(), key=lambda row: int(str(row[0]))),
                "outcomes": sorted(outcomes.values(), key=lambda row: int(str(row[0]))),
                "measurements": later,
            }
        )
    seen = range(max(proposals, default=-1) + 1)
    return Salvage(
        len(outcomes),
        len(proposals),
        len(later),
        tuple(n for n in seen if n not in proposals),
        tuple(n for n in seen if n in proposals and n not in outcomes),
    )


def _rows(path: Path) -> dict[str, list[Row]]:
    """Intact rows by table, each once, in the order in which they were written as far as that can be told."""
    data = path.read_bytes()
    wal_path = Path(f"{path}-wal")
    wal = wal_path.read_bytes() if wal_path.is_file() else b""
    best: dict[str, dict[Row, int]] = {}
    for size in SIZES:
        found: dict[str, dict[Row, int]] = {table: {} for table in COLUMNS}
        for table, rowid, row in _scan(_Pages(data, wal, size)):
            found[table].setdefault(row, rowid)
        if sum(map(len, found.values())) > sum(map(len, best.values())):
            best = found
        if best.get("settings"):
            break  # the right page size
    best = best or {table: {} for table in COLUMNS}
    return {
        table: [row for row, _ in sorted(rows.items(), key=lambda r: r[1])] for table, rows in best.items()
    }


class _Pages:
    """Every version of every page: of the file, then those in its write-ahead log, oldest first."""

    def __init__(self, data: bytes, wal: bytes, size: int) -> None:
        self.size = size
        self.versions: dict[int, list[bytes]] = {}
        for at in range(0, len(data), size):
            self.versions[at // size + 1] = [data[at : at + size]]
        for at in range(WAL_HEADER, len(wal) - FRAME_HEADER, FRAME_HEADER + size):
            (number,) = struct.unpack_from(">I", wal, at)
            page = wal[at + FRAME_HEADER : at + FRAME_HEADER + size]
            self.versions.setdefault(number, []).append(page)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        for number, pages in self.versions.items():
            for page in pages:
                yield number, page


def _scan(pages: _Pages) -> Iterator[tuple[str, int, Row]]:
    """(table, rowid, row) of everything whose checksum holds."""
    for number, page in pages:
        start = 100 if number == 1 else 0  # the file's header
        if len(page) < start + 8 or page[start] != LEAF:
            continue
        (count,) = struct.unpack_from(">H", page, start + 3)
        for i in range(min(count, pages.size // 4)):
            # Whatever a damaged pointer or length leads to: the next cell may be sound.
            with suppress(IndexError, struct.error, ValueError, UnicodeDecodeError):
                (at,) = struct.unpack_from(">H", page, start + 8 + 2 * i)
                yield from _cell(pages, page, at)


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
    header, at = _varint(payload, 0)
    types = []
    while at < header:
        kind, at = _varint(payload, at)
        types.append(kind)
    values: list[str | int | float | None] = []
    at = header
    for kind in types:
        if kind == 0:
            values.append(None)
        elif kind in (8, 9):
            values.append(kind - 8)
        elif kind == 7:
            values.append(struct.unpack_from(">d", payload, at)[0])
            at += 8
        elif kind < 7:
            size = (0, 1, 2, 3, 4, 6, 8)[kind]
            values.append(int.from_bytes(payload[at : at + size], "big", signed=True))
            at += size
        elif kind >= 13 and kind % 2:
            size = (kind - 13) // 2
            values.append(payload[at : at + size].decode())
            at += size
        else:
            raise ValueError(f"a ledger has no values of type {kind}")
    return values


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of SQLite's variable length, and where it ends."""
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9
