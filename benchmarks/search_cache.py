"""What the search benchmark keeps between runs: tables, weights, scores, in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from netcarve import Candidate


def cache_folder() -> Path:
    """Where tables, weights, scores and peers' runs are kept."""
    folder = Path(platformdirs.user_cache_dir("netcarve")) / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_path(name: str, recipe: Mapping[str, Any], suffix: str) -> Path:
    """The file that holds what ``recipe`` decides."""
    return cache_folder() / f"{name}-{digest(recipe)}{suffix}"


def digest(recipe: Any) -> str:
    """Sixteen hexadecimal digits that stand for ``recipe``, plain data."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def store(path: Path, **arrays: np.ndarray) -> None:
    """Whole or not at all: others may be reading."""
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
    np.savez(part, **arrays)
    part.replace(path)


class Table:
    """Accuracy by look-up."""

    def __init__(self, accuracy: np.ndarray, counts: np.ndarray) -> None:
        self.accuracy = accuracy.reshape(tuple(counts))

    def __call__(self, candidate: Candidate) -> float:
        return float(self.accuracy[candidate.indices])


class Memo:
    """Accuracy by a real evaluation, made once for all processes: every outcome is kept in SQLite."""

    def __init__(self, path: Path, make_job: Callable[[], Any]) -> None:
        self.path, self.make_job = path, make_job
        self._job: Any = None
        self._known: dict[tuple[int, ...], float] = {}
        with closing(self._connect()) as db, db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE IF NOT EXISTS scores (indices TEXT PRIMARY KEY, accuracy REAL)")
            rows = db.execute("SELECT indices, accuracy FROM scores").fetchall()
        self._known.update((tuple(json.loads(text)), accuracy) for text, accuracy in rows)

    def __call__(self, candidate: Candidate) -> float:
        key = candidate.indices
        if key not in self._known:
            self._known[key] = self._look_up(key)
        return self._known[key]

    def _look_up(self, key: tuple[int, ...]) -> float:
        text = json.dumps(key)
        with closing(self._connect()) as db, db:
            row = db.execute("SELECT accuracy FROM scores WHERE indices = ?", (text,)).fetchone()
        if row:
            return row[0]
        if self._job is None:
            self._job = self.make_job()
        outcome = self._job.evaluate(0, self._job.space.candidate(key))
        if outcome.scores is None:
            raise RuntimeError(f"{key} failed: {outcome.error}")
        accuracy = outcome.scores["accuracy"]
        with closing(self._connect()) as db, db:
            db.execute("INSERT OR IGNORE INTO scores VALUES (?, ?)", (text, accuracy))
        return accuracy

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60.0)
