"""The one module that changes files: atomically, synced to disk, and announced so that tests can put a fault anywhere.

A file or folder appears whole under its name or not at all: it is written under a hidden temporary name in the same
folder, synced, renamed, and the folder that holds the name is synced. Leftovers of a process that was killed begin
with a dot and end in ``.tmp``; readers never look at them.

Every operation that a power failure or a full disk can break passes ``operation`` first. Tests set ``hook`` there to
kill the process, raise an ``OSError`` or record the state of the disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefopt.errors import MachineError, PrefoptError

# Called with the kind ("make", "write", "sync", "rename", "sync-folder" or "remove") and path of the coming operation.
hook: Callable[[str, Path], None] | None = None


class DamagedError(Exception):
    """A folder whose manifest is missing or does not fit its files; the text says which file and how."""


def operation(kind: str, path: Path) -> None:
    """Announce an operation on the disk that is about to happen."""
    if hook is not None:
        hook(kind, path)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` with ``data``: a reader sees the old content or the new one, never a part.

    Raises:
        MachineError: If the system refuses the write; the old content is intact.
    """
    try:
        ensure_folder(path.parent)
        temporary = temporary_name(path)
        try:
            _write_synced(temporary, data, permissions(path))
            rename_synced(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as problem:
        raise refused("write", path, problem) from None


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there.

    Raises:
        MachineError: If the system refuses.
    """
    try:
        ensure_folder(path)
    except OSError as problem:
        raise refused("make", path, problem) from None


def write_sealed(path: Path, data: bytes) -> None:
    """``write_bytes`` of ``data`` behind a line with the SHA-256 of it and the file's name, for ``read_sealed``.

    Raises:
        MachineError: As ``write_bytes``.
    """
    write_bytes(path, _seal(path, data) + b"\n" + data)


def read_sealed(path: Path) -> bytes:
    """What ``write_sealed`` was given.

    Raises:
        DamagedError: If the file is missing, or has other bytes than were written under this name.
    """
    try:
        seal, _, data = path.read_bytes().partition(b"\n")
    except OSError as problem:
        raise DamagedError(f"{path}: {problem.strerror}") from None
    if seal != _seal(path, data):
        raise DamagedError(f"{path} has other bytes than were written")
    return data


def _seal(path: Path, data: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + b"\n" + data).hexdigest().encode()


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there; a folder loses its name first, so that no half of it is ever read.

    Raises:
        MachineError: If the system refuses.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            hidden = temporary_name(path)
            try:
                rename_synced(path, hidden)
                operation("remove", hidden)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)  # its name is gone, so nobody reads what may be left
        elif path.exists() or path.is_symlink():
            operation("remove", path)
            path.unlink()
            sync_folder(path.parent)
    except OSError as problem:
        raise refused("remove", path, problem) from None


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to ``<name>.corrupt-<n>`` so that it is kept and never read; the new path.

    Raises:
        MachineError: If the system refuses.
    """
    number = 1
    while (target := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    try:
        rename_synced(path, target)
    except OSError as problem:
        raise refused("rename", path, problem) from None
    return target


def is_temporary(path: Path) -> bool:
    """Whether ``path`` is what a killed process may have left behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path`` that nobody else has."""
    return path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:12]}.tmp")


# Files whose folders must stay while they are written to, with their device and inode.
_watched: dict[Path, tuple[int, int] | None] = {}


@contextmanager
def watched(root: Path, marker: str) -> Iterator[None]:
    """Inside, nothing is written below a folder once its file ``marker`` is gone, or is another one.

    Whoever has removed the folder does not want it back, and whoever has made it anew writes there now.

    Raises:
        MachineError: If that has happened, in place of what has come of it.
    """
    path = root / marker
    before = _watched.get(path)
    _watched[path] = _identity(path)
    try:
        _require_watched(root)
        yield
        _require_watched(root)
    except (PrefoptError, OSError):
        _require_watched(root)
        raise
    finally:
        _watched.pop(path)
        if before is not None:
            _watched[path] = before


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        place = path.stat()
    except OSError:
        return None
    return place.st_dev, place.st_ino


def _require_watched(path: Path) -> None:
    for marker, known in _watched.items():
        root = marker.parent
        if not path.is_relative_to(root) or (known is not None and _identity(marker) == known):
            continue
        rest = f"remove what is left of it with rm -r {root}, and" if root.exists() else "nothing is left of it;"
        raise MachineError(
            f"{root} was removed, moved or replaced while this command used it; {rest} run the same command again, "
            "which begins anew"
        )


_safe: set[Path] = set()  # folders whose names this process knows to be on the disk


def forget_synced() -> None:
    """Forget which folders are known to be on the disk, as a new process would; tests play new processes."""
    _safe.clear()


def ensure_folder(path: Path) -> None:
    """Make a folder and those above it. One that exists is synced once, since its maker may have been killed before.

    Raises:
        MachineError: If it lies in a watched folder that is gone.
    """
    _require_watched(path)
    if path.is_dir():
        if path not in _safe:
            with suppress(PermissionError):  # of a folder above that we may not read, and so did not make
                sync_folder(path.parent)
            _safe.add(path)
        return
    ensure_folder(path.parent)
    operation("make", path)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)
    _safe.add(path)


def _write_synced(path: Path, data: bytes, permissions: int) -> None:
    operation("write", path)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    sync(path)


def rename_synced(old: Path, new: Path) -> None:
    """Give a file or folder its name, and sync the folder above."""
    operation("rename", new)
    os.replace(old, new)  # noqa: PTH105 - the one call whose atomicity all of this rests on
    sync_folder(new.parent)


def sync_folder(path: Path) -> None:
    """Sync the names in a folder to disk."""
    sync(path, "sync-folder")


def sync(path: Path, kind: str = "sync") -> None:
    """Sync a file's content to disk."""
    operation(kind, path)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def permissions(path: Path) -> int:
    """The permissions of the file that is replaced, else what the umask leaves of rw-rw-rw-."""
    with suppress(OSError):
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def refused(what: str, path: Path, problem: OSError) -> MachineError:
    """The system's refusal as an error that says what to do."""
    _require_watched(path)
    return MachineError(f"cannot {what} {path}: {problem.strerror}; free space or fix rights, then run again")
