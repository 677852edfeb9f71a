"""Keeps what is slow to make, with a checksum; whatever no longer fits its checksum is made again."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from filelock import FileLock

from prefopt.storage import durable, folders


def cache_dir() -> Path:
    """``$PREFOPT_CACHE``, or ``~/.cache/prefopt``."""
    return Path(os.environ.get("PREFOPT_CACHE") or Path.home() / ".cache" / "prefopt")


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
