"""Files that anybody may have written, read by netcarve's readers: understood, or refused in words."""

from __future__ import annotations

import json
import sqlite3
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from netcarve import Choice, Limit, Objective, Space, load, sweep
from netcarve.devices import Profile
from netcarve.devices.reading import parse_device, parse_link
from netcarve.engine.warm_start import read_source, warm_start
from netcarve.export.receipt import SCHEMA, Receipt
from netcarve.results import LedgerError
from netcarve.results.database import COLUMNS, checksum
from netcarve.results.salvage import salvage

REFUSALS = (ValueError, LedgerError)  # every error of ours that is about input is one of these
ODD = (
    None, True, -1, 2**70, 1e308, float("inf"), float("nan"), "", "..", "../../etc/passwd", "/", "\0",
    "\ud800", "<script>", "a" * 10_000, [], {}, [[]], {"": {}}, "file.py:f", "é", "'; DROP TABLE outcomes",
)  # fmt: skip


@dataclass(frozen=True)
class Fuzzed:
    """What a reader made of its inputs."""

    reader: str
    inputs: int
    understood: int
    refused: int
    broke: Counter[str]  # other exceptions, by type and text


class Mutator:
    """Changes plain JSON here and there."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, value: Any) -> Any:
        rng = self.rng
        if rng.random() < 0.15:
            return self._odd()
        if isinstance(value, dict) and value:
            out = dict(value)
            key = list(out)[int(rng.integers(len(out)))]
            what = rng.random()
            if what < 0.15:
                del out[key]
            elif what < 0.25:
                out[str(self._odd())] = out.pop(key)
            else:
                out[key] = self(out[key])
            return out
        if isinstance(value, list) and value:
            out = list(value)
            at, what = int(rng.integers(len(out))), rng.random()
            if what < 0.15:
                del out[at]
            elif what < 0.25:
                out.insert(at, out[at])
            else:
                out[at] = self(out[at])
            return out
        if isinstance(value, str) and value and rng.random() < 0.5:
            at = int(rng.integers(len(value)))
            return value[:at] + string.printable[int(rng.integers(100))] + value[at + 1 :]
        return self._odd()

    def bits(self, data: bytes) -> bytes:
        """A few bits turned over, now and then a part cut off."""
        raw = np.frombuffer(data, dtype=np.uint8).copy()
        at = self.rng.integers(0, len(raw), self.rng.integers(1, 30))
        raw[at] ^= np.uint8(1) << self.rng.integers(0, 8, len(at), dtype=np.uint8)
        cut = len(raw) if self.rng.random() < 0.8 else int(self.rng.integers(1, len(raw)))
        return raw[:cut].tobytes()

    def _odd(self) -> Any:
        return ODD[int(self.rng.integers(len(ODD)))]


def fuzz(folder: Path, *, inputs: int, seed: int = 0) -> list[Fuzzed]:
    """``inputs`` in all, shared among the readers; files are made in ``folder`` (best in memory)."""
    space = Space([Choice("prune:a", (0.0, 0.25, 0.5)), Choice("drop:b", (False, True))])
    out = folder / "run"
    made = sweep(
        None, space, "grid", ("accuracy", "macs"), limits=["macs<=0.9x"], trials=6, workers=0, out=out,
        evaluators=[_scored],
    )  # fmt: skip
    file = made.path / "ledger.sqlite"
    ledger = file.read_bytes()
    settings = made.settings.to_json()
    mutate = Mutator(seed)
    texts = ["macs<=0.5x", "accuracy>=0.9", "accuracy:max", "edge=0.2x,memory=64mb,power=5w", "20mbps,5ms"]

    def settings_row() -> None:
        _rewrite(file, "settings", (json.dumps(mutate(settings)),))
        _use(load(out))

    def outcome_row() -> None:
        scores = mutate({"accuracy": 0.5, "macs": 3.0})
        _rewrite(file, "outcomes", (2, json.dumps(scores), mutate(None), 0.1, "w"))
        _use(load(out))

    def file_bits() -> None:
        file.write_bytes(mutate.bits(ledger))
        _use(load(out))

    def salvaged() -> None:
        file.write_bytes(mutate.bits(ledger))
        target = folder / "salvaged.sqlite"
        for path in folder.glob("salvaged.sqlite*"):
            path.unlink()
        salvage(file, target)

    def candidate() -> None:
        space.from_values(mutate(dict(made.trials[3].candidate.values)))

    def beginning() -> None:
        path = folder / "begin.json"
        document = mutate([dict(t.candidate.values) for t in made.trials])
        path.write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")
        warm_start([read_source(path)], space, made.settings)

    def option_text() -> None:
        text = mutate(texts[int(mutate.rng.integers(len(texts)))])
        for read in (Limit, Objective.parse, parse_device, parse_link):
            try:
                read(text if isinstance(text, str) else str(text))
            except REFUSALS:
                continue

    def profile() -> None:
        Profile.from_json(mutate(PROFILE))

    def receipt() -> None:
        (folder / "receipt.json").write_text(
            json.dumps(mutate(RECEIPT)), encoding="utf-8", errors="surrogatepass"
        )
        read = Receipt.load(folder)
        assert all(set(record.files) <= set(read.files) for record in read.formats.values())
        assert not any("/" in name or name.startswith("..") for name in read.files)

    readers: dict[str, tuple[Callable[[], None], float]] = {
        "settings of a run": (settings_row, 0.15),
        "outcomes of a run": (outcome_row, 0.1),
        "ledger, bits turned": (file_bits, 0.1),
        "salvage, bits turned": (salvaged, 0.05),
        "candidates": (candidate, 0.2),
        "files of --seed-from": (beginning, 0.1),
        "limits, objectives, devices, links": (option_text, 0.2),
        "profiles": (profile, 0.05),
        "receipts of exports": (receipt, 0.05),
    }
    found = []
    for name, (reader, share) in readers.items():
        file.write_bytes(ledger)
        found.append(_try(name, reader, round(inputs * share)))
    return found


PROFILE = Profile(
    operators={
        "conv2d 3x3/1": np.array([[1e6, 1e5, 0.5], [2e6, 2e5, 0.9]]),
        "add": np.array([[0, 1e5, 0.1]]),
    },
    machine="a cpu",
    versions={"torch": "2.13.0"},
    error=(0.03, 0.1),
).to_json()


RECEIPT = {
    "schema": SCHEMA,
    "created": "2026-01-01T00:00:00+00:00",
    "describe": {"candidate": {"prune:a": 0.25}, "task": "digits"},
    "metric": "accuracy",
    "score": 0.98,
    "figure": {"value": 0.98, "low": 0.96, "high": 0.99, "samples": 300, "method": "Wilson"},
    "test": None,
    "samples": 300,
    "batches": [1, 3],
    "macs": 1000,
    "params": 100,
    "formats": {
        "onnx": {
            "files": ["model.onnx"], "needs": "onnxruntime", "exact": True, "max_relative_difference": 1e-7,
            "score": 0.98, "test": None, "latency": {"median_ms": 0.4}, "write_seconds": 1.0,
            "check_seconds": 1.0,
        }
    },
    "files": {"model.onnx": {"bytes": 10, "sha256": "0" * 64}},
    "versions": {"netcarve": "0.1.0"},
    "machine": "a machine",
}  # fmt: skip


def _try(name: str, reader: Callable[[], None], times: int) -> Fuzzed:
    understood = refused = 0
    broke: Counter[str] = Counter()
    for _ in range(times):
        try:
            reader()
            understood += 1
        except REFUSALS:
            refused += 1
        except Exception as error:
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = (
                f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace else ""
            )
            broke[f"{type(error).__name__} at {where}: {str(error)[:60]}"] += 1
    return Fuzzed(name, times, understood, refused, broke)


def _scored(task: object, model: object, candidate: Any) -> dict[str, float]:
    a, b = candidate.indices
    return {"accuracy": 1.0 - 0.1 * a - 0.05 * b, "macs": 10.0 - 3 * a - 2 * b}


def _use(run: Any) -> None:
    """Whatever people do with a run that executes none of its task's code."""
    assert len(run.table) == len(run.trials) >= len(run.front)
    for trial in run.trials[:2]:
        run.show(trial.number)
    assert run.certificate is None


def _rewrite(file: Path, table: str, row: tuple[Any, ...]) -> None:
    """Put one row in place of a table's, with the checksum that it asks for."""
    try:
        crc = checksum(table, *row)
    except (TypeError, UnicodeEncodeError):
        crc = 0
    names = ", ".join((*COLUMNS[table], "crc"))
    with sqlite3.connect(file) as db:
        db.execute("DELETE FROM settings" if table == "settings" else f"DELETE FROM {table} WHERE number = 2")
        try:
            db.execute(
                f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * (len(row) + 1))})", (*row, crc)
            )
        except (sqlite3.Error, OverflowError, UnicodeEncodeError):
            db.rollback()  # SQLite itself does not take it
    db.close()
