"""The one module that changes files: atomic, synced to disk, and counted so that a fault can be put at each operation.

A file or folder appears whole under its name or not at all: it is written under a hidden temporary name in the same
folder, synced, renamed, and the folder that holds the name is synced. Leftovers of a process that was killed begin
with a dot and end in ``.tmp``; readers never look at them.

Every operation that a power failure or a full disk can break passes ``operation`` first. Tests set ``hook`` there to
kill the process, raise an ``OSError`` or record the state of the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from prefopt.errors import MachineError

MANIFEST = "MANIFEST.json"

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
        _make_folder(path.parent)
        temporary = _temporary(path)
        try:
            _write_synced(temporary, data, _permissions(path))
            _rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as problem:
        raise _refused("write", path, problem) from None


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there.

    Raises:
        MachineError: If the system refuses.
    """
    try:
        _make_folder(path)
    except OSError as problem:
        raise _refused("make", path, problem) from None


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


def fill_folder(path: Path, fill: Callable[[Path], None], *, manifest: bool = False) -> None:
    """Make folder ``path``, letting ``fill`` write its files by whatever library it likes.

    A folder of that name that is there already is removed before the new one takes its name.

    Args:
        path: The folder to make.
        fill: Called with an empty temporary folder; what it writes there is synced and becomes ``path``.
        manifest: Whether to add a manifest of its name and its files, for ``check_folder``.

    Raises:
        MachineError: If the system refuses; then ``path`` is as it was, or gone if the very last step failed.
    """
    try:
        _make_folder(path.parent)
        temporary = _temporary(path)
        operation("make", temporary)
        temporary.mkdir()
        try:
            operation("write", temporary)
            _call(fill, temporary)
            if manifest:
                names = [file.relative_to(temporary).as_posix() for file in temporary.rglob("*") if file.is_file()]
                entries = {name: _entry(temporary / name) for name in names}
                (temporary / MANIFEST).write_bytes(_manifest(entries, name=path.name))
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    file.chmod(_permissions(path / file.name))
                    _sync(file)
            for folder in sorted({temporary, *(q for q in temporary.rglob("*") if q.is_dir())}):
                _sync_folder(folder)
            remove(path)
            _rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as problem:
        raise _refused("write", path, problem) from None


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make folder ``path`` of ``files`` (relative name: content) and a manifest of their sizes and SHA-256.

    Raises:
        MachineError: As ``fill_folder``.
    """
    listed = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}

    def fill(folder: Path) -> None:
        for name, data in {**files, MANIFEST: _manifest(listed)}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            operation("write", folder / name)
            (folder / name).write_bytes(data)

    fill_folder(path, fill)


def read_folder(path: Path) -> dict[str, bytes]:
    """The files of a folder that ``write_folder`` made, after checking every size and SHA-256.

    Raises:
        DamagedError: If the manifest is missing, or a file that it names is, or has other bytes. Other files are
            never opened.
    """
    found = {}
    for name, (size, expected) in _listed(path).items():
        try:
            data = (path / name).read_bytes()
        except OSError as problem:
            raise DamagedError(f"{path / name}: {problem.strerror}") from None
        if len(data) != size or hashlib.sha256(data).hexdigest() != expected:
            raise DamagedError(f"{path / name} has other bytes than were written")
        found[name] = data
    return found


def check_folder(path: Path) -> None:
    """Check name, sizes and SHA-256 of a folder that ``fill_folder`` made, without keeping its files in memory.

    Raises:
        DamagedError: As ``read_folder``, and if the folder had another name, or has a file that the manifest does not
            name, since a library may read it.
    """
    listed = _listed(path)
    if (name := json.loads((path / MANIFEST).read_bytes()).get("name")) != path.name:
        raise DamagedError(f"{path} was written as {name}")
    for name, wanted in listed.items():
        try:
            entry = _entry(path / name)
        except OSError as problem:
            raise DamagedError(f"{path / name}: {problem.strerror}") from None
        if (entry["size"], entry["sha256"]) != wanted:
            raise DamagedError(f"{path / name} has other bytes than were written")
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    if more := sorted(found - {*listed, MANIFEST}):
        raise DamagedError(f"{path / more[0]} is not in the manifest")


def _listed(path: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each file that a folder's manifest names."""
    try:
        listed: Any = json.loads((path / MANIFEST).read_bytes())["files"]
        wanted = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DamagedError(f"{path / MANIFEST} cannot be read: {problem!r}") from None
    for name in wanted:
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise DamagedError(f"{path / MANIFEST} names {name!r}, which is outside the folder")
    return wanted


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _manifest(entries: Mapping[str, Mapping[str, Any]], **facts: str) -> bytes:
    return json.dumps({**facts, "files": entries}, indent=1, sort_keys=True).encode()


def _call(fill: Callable[[Path], None], folder: Path) -> None:
    """Call ``fill``; what the system refused comes out as ``OSError`` from libraries that only say it in words too."""
    try:
        fill(folder)
    except OSError:
        raise
    except Exception as problem:
        if number := re.search(r"\(os error (\d+)\)", str(problem)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from None
        raise


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there; a folder vanishes from its name at once.

    Raises:
        MachineError: If the system refuses.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            hidden = _temporary(path)
            try:
                _rename(path, hidden)
                operation("remove", hidden)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)  # its name is gone, so nobody reads what may be left
        elif path.exists() or path.is_symlink():
            operation("remove", path)
            path.unlink()
            _sync_folder(path.parent)
    except OSError as problem:
        raise _refused("remove", path, problem) from None


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to ``<name>.corrupt-<n>`` so that it is kept and never read; the new path.

    Raises:
        MachineError: If the system refuses.
    """
    number = 1
    while (target := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    try:
        _rename(path, target)
    except OSError as problem:
        raise _refused("rename", path, problem) from None
    return target


def is_temporary(path: Path) -> bool:
    """Whether ``path`` is what a killed process may have left behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:12]}.tmp")


_safe: set[Path] = set()  # folders whose names this process knows to be on the disk


def _make_folder(path: Path) -> None:
    """Make a folder and those above it; one that is there may be of a process that was killed before it synced."""
    if path.is_dir():
        if path not in _safe:
            with suppress(PermissionError):  # of a folder above that we may not read, and so did not make
                _sync_folder(path.parent)
            _safe.add(path)
        return
    _make_folder(path.parent)
    operation("make", path)
    path.mkdir(exist_ok=True)
    _sync_folder(path.parent)
    _safe.add(path)


def _write_synced(path: Path, data: bytes, permissions: int) -> None:
    operation("write", path)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    _sync(path)


def _rename(old: Path, new: Path) -> None:
    operation("rename", new)
    os.replace(old, new)  # noqa: PTH105 - the one call whose atomicity all of this rests on
    _sync_folder(new.parent)


def _sync_folder(path: Path) -> None:
    _sync(path, "sync-folder")


def _sync(path: Path, kind: str = "sync") -> None:
    operation(kind, path)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _permissions(path: Path) -> int:
    """Those of the file that is replaced, else what the umask leaves of rw-rw-rw-."""
    with suppress(OSError):
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _refused(what: str, path: Path, problem: OSError) -> MachineError:
    return MachineError(f"cannot {what} {path}: {problem.strerror}; free space or fix rights, then run again")
