"""Keeps verdicts and scores in one SQLite file, under a key made from the question.

The key is a hash of the judge's fingerprint and of every text that it saw. Only numbers are kept, each with a checksum
since SQLite has none; no text and no key of a service. Failures and unusable replies are never kept, so that asking
again can mend them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

from prefopt.errors import MachineError

_AT_ONCE = 500  # keys of one statement


def key_of(fingerprint: str, *texts: str) -> str:
    """The address of an answer."""
    value = json.dumps([fingerprint, *texts], ensure_ascii=True)
    return hashlib.sha256(value.encode("ascii")).hexdigest()


def _seal(key: str, value: float) -> str:
    return hashlib.sha256(f"{key} {value!r}".encode()).hexdigest()[:16]


class Cache:
    """Numbers by key; each ``put`` outlives this process when it returns. Threads may share it.

    Args:
        path: The SQLite file, made if it is not there.

    Raises:
        MachineError: If the file cannot be opened or written, or is not one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # outlives the process, which is what can be killed
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS sealed (key TEXT PRIMARY KEY, value REAL NOT NULL, seal TEXT NOT NULL)"
            )
        except (sqlite3.Error, OSError) as problem:
            raise self._failure(problem) from None

    def get(self, keys: Iterable[str]) -> dict[str, float]:
        """The values of those keys that the file has unchanged."""
        wanted = list(dict.fromkeys(keys))
        answers: dict[str, float] = {}
        try:
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                question = "SELECT key, value, seal FROM sealed WHERE key IN (SELECT value FROM json_each(?))"
                with self._lock, closing(self._db.execute(question, (json.dumps(part),))) as rows:
                    answers.update((key, value) for key, value, seal in rows if seal == _seal(key, value))
        except sqlite3.Error as problem:
            raise self._failure(problem) from None
        return answers

    def put(self, values: Mapping[str, float]) -> None:
        """Add values, all or none of them."""
        rows = [(key, float(value), _seal(key, float(value))) for key, value in values.items()]
        try:
            with self._lock:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("INSERT OR REPLACE INTO sealed VALUES (?, ?, ?)", rows)
                self._db.execute("COMMIT")
        except sqlite3.Error as problem:
            raise self._failure(problem) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _failure(self, problem: Exception) -> MachineError:
        return MachineError(f"cache of verdicts {self.path}: {problem}; move it away, or free space, and run again")
