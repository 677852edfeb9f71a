"""One writer for each results folder, and what is looked at before hours of work: locks, rights and room.

The system frees a lock at once when its process ends, however it ends; the file stays and means nothing by itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from prefopt.errors import BusyError, MachineError, UsageError
from prefopt.storage import durable
from prefopt.storage.schema import LOCK

POLL_S = 0.2


@contextmanager
def hold(root: Path, *, wait: bool = False, say: Callable[[str], None] = lambda text: None) -> Iterator[int]:
    """Hold a results folder for this process and those it hands the descriptor to; the folder is made if need be.

    A folder in which nothing was written meanwhile is removed again.

    Args:
        root: The results folder.
        wait: Wait for another process that holds it, rather than give up.
        say: Called with a line that names the process that holds it, if there is one to wait for.

    Yields:
        The lock's descriptor: who inherits it holds the folder, too.

    Raises:
        BusyError: If another process holds it.
        MachineError: If files cannot be written, renamed or locked there, or the folder is removed meanwhile.
    """
    require_no_links(root)
    new_folders = [path for path in (root, *root.parents) if not path.exists()]
    before = {path.name for path in root.iterdir()} if root.is_dir() else set()
    path = root / LOCK
    descriptors: list[int] = []
    lock = FileLock(path, fallback_to_soft=False, on_acquired=descriptors.append)
    _acquire(lock, root, wait=wait, say=say)
    try:
        _name_holder(descriptors[-1], path)
        if (root / "manifest.json").is_file():
            _sweep(root)
        with durable.watched(root, LOCK):
            yield descriptors[-1]
    finally:
        with suppress(OSError):
            if LOCK not in before and {path.name for path in root.iterdir()} == {LOCK, *before}:
                path.unlink()
                for folder in new_folders:
                    folder.rmdir()
        lock.release()


def _acquire(lock: BaseFileLock, root: Path, *, wait: bool, say: Callable[[str], None]) -> None:
    """Make the folder and lock it, after whoever holds it now if ``wait``; errors as for ``hold``."""
    path = root / LOCK
    told = False
    while not lock.is_locked:
        durable.make_folder(root)
        try:
            lock.acquire(timeout=POLL_S if told else 0, poll_interval=POLL_S / 4)
        except Timeout:
            holder = _holder(path)
            if not wait:
                raise BusyError(
                    f"{root} is in use by {holder}; wait for it to end, or give --wait and this command waits"
                ) from None
            if not told:
                say(f"waiting for {holder}, which uses {root}")
            told = True
        except FileNotFoundError:
            continue  # the other process had nothing to write and removed the folder
        except OSError as problem:
            raise MachineError(
                f"cannot lock {path}: {problem.strerror}; give --results on a disk that can lock files"
            ) from None


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8").strip() or "another process"
    return "another process"


def _name_holder(descriptor: int, path: Path) -> None:
    """Write who holds the lock into its file, and see whether a file can be written and renamed beside it."""
    text = f"process {os.getpid()} since {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}\n".encode()
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
    except OSError as problem:
        raise MachineError(f"cannot write {path}: {problem.strerror}; free space or fix rights") from None
    probe = path.with_name(".probe.tmp")
    durable.write_bytes(probe, text)
    durable.remove(probe)


def _sweep(root: Path) -> None:
    """Remove what killed processes left half written; nobody else writes here now."""
    for path in list(root.rglob(".*.tmp")):
        if durable.is_temporary(path) and path.exists():
            with suppress(OSError):  # in the way of nothing
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def require_no_links(root: Path) -> None:
    """Refuse a results folder in which a link leads elsewhere: what is written, removed or read would not lie in it.

    Raises:
        UsageError: Naming the link.
    """
    below = (Path(folder) / name for folder, folders, files in os.walk(root) for name in (*folders, *files))
    for path in (root, *below):
        if path.is_symlink():
            raise UsageError(f"{path} is a link to somewhere else; remove it, or choose another --name")


def require_room(root: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        root: The results folder.
        needed: Bytes.

    Raises:
        MachineError: Naming the folder, what is needed and what is free.
    """
    free = shutil.disk_usage(root).free
    if free < needed:
        raise MachineError(
            f"{root} needs {needed / 1e9:.2f} GB for checkpoints and results, and {free / 1e9:.2f} GB are free on its "
            "disk; free space, or give --results on another disk"
        )
