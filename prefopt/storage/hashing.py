"""Hashes of files and of values as canonical JSON, and the seal that JSON files carry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefopt.storage.redact import redacted
from prefopt.storage.schema import SCHEMA


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` with the schema's number and the SHA-256 of all the rest, which ``ResultsFolder.read_json`` checks.

    Secrets are taken out first, as they would be when it is written.
    """
    whole: dict[str, Any] = {**redacted(value), "schema": SCHEMA}
    whole.pop("sha256", None)
    return {**whole, "sha256": sha256_json(whole)}


def sha256_json(value: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a value as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def file_hashes(folder: Path, names: Iterable[str]) -> Mapping[str, str]:
    """SHA-256 of the named files below ``folder``, by relative path; folders count file by file."""
    hashes = {}
    for name in names:
        path = folder / name
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            hashes[file.relative_to(folder).as_posix()] = sha256_file(file)
    return hashes
