"""Keeps what is slow to make, with a checksum; whatever no longer fits its checksum is made again."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from filelock import FileLock

from prefopt.errors import MachineError, UsageError, did_you_mean
from prefopt.storage import durable, folders


def cache_dir() -> Path:
    """``$PREFOPT_CACHE``, or ``~/.cache/prefopt``."""
    return Path(os.environ.get("PREFOPT_CACHE") or Path.home() / ".cache" / "prefopt")


def require_writable() -> Path:
    """The cache folder, made if it is not there.

    Raises:
        MachineError: If nothing can be written there, naming PREFOPT_CACHE.
    """
    path = cache_dir()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as problem:
        raise MachineError(
            f"the cache {path} cannot be written ({problem.strerror}): set PREFOPT_CACHE to a folder that can"
        ) from None


def sizes() -> dict[str, int]:
    """Bytes of each part of the cache, by name."""
    parts = sorted(cache_dir().glob("*"))
    return {part.name: sum(file.stat().st_size for file in _files(part)) for part in parts if part.name[0] != "."}


def _files(part: Path) -> list[Path]:
    return [file for file in part.rglob("*") if file.is_file()] if part.is_dir() else [part]


def clear(part: str) -> int:
    """Remove a part of the cache, or all of it with ``all``; the bytes that are free now.

    Raises:
        UsageError: If there is no such part.
        MachineError: If the system refuses.
    """
    there = sizes()
    if part != "all" and part not in there:
        raise UsageError(f"--clear {part}: no such part of {cache_dir()}{did_you_mean(part, [*there, 'all'])}")
    names = list(there) if part == "all" else [part]
    for name in names:
        durable.remove(cache_dir() / name)
    return sum(there[name] for name in names)


def kept_frame(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The frame that is kept at ``path``, made and kept if it is missing or damaged.

    Raises:
        MachineError: If it cannot be written.
    """
    try:
        data = durable.read_sealed(path)
    except durable.DamagedError:
        buffer = io.BytesIO()
        make().to_parquet(buffer, index=False)
        data = buffer.getvalue()
        durable.write_sealed(path, data)
    return pd.read_parquet(io.BytesIO(data))  # read back even when just made: the same frame the first time as later


def kept_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """``path`` itself, once it holds what ``fill`` wrote; a damaged one is set aside.

    Processes that want the same folder wait for the first of them, which makes it.

    Raises:
        MachineError: If it cannot be written.
    """
    durable.make_folder(path.parent)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire()
    except OSError as problem:
        if _is_whole(path):
            return path  # of a cache that can be read and not written
        raise durable.refused("write", path, problem) from None
    try:
        if path.is_dir() and not _is_whole(path):
            durable.set_aside(path)
        if not path.is_dir():
            folders.fill_folder(path, fill, manifest=True)
    finally:
        lock.release()
    return path


def _is_whole(path: Path) -> bool:
    """Whether a kept folder is there, as it was written."""
    try:
        folders.check_folder(path)
    except durable.DamagedError:
        return False
    return True
