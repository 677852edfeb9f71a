"""Folders that appear whole or not at all, with a manifest that says whether they are still as they were written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from prefopt.storage.durable import (
    DamagedError,
    ensure_folder,
    operation,
    permissions,
    refused,
    remove,
    rename_synced,
    sync,
    sync_folder,
    temporary_name,
)

MANIFEST = "MANIFEST.json"


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
        ensure_folder(path.parent)
        temporary = temporary_name(path)
        operation("make", temporary)
        temporary.mkdir()
        try:
            operation("write", temporary)
            _call(fill, temporary)
            if manifest:
                names = [file.relative_to(temporary).as_posix() for file in temporary.rglob("*") if file.is_file()]
                entries = {name: file_entry(temporary / name) for name in names}
                (temporary / MANIFEST).write_bytes(manifest_bytes(entries, name=path.name))
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    file.chmod(permissions(path / file.name))
                    sync(file)
            for folder in sorted({temporary, *(q for q in temporary.rglob("*") if q.is_dir())}):
                sync_folder(folder)
            remove(path)
            rename_synced(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as problem:
        raise refused("write", path, problem) from None


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make folder ``path`` of ``files`` (relative name: content) and a manifest of their sizes and SHA-256.

    Raises:
        MachineError: As ``fill_folder``.
    """
    listed = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}

    def fill(folder: Path) -> None:
        for name, data in {**files, MANIFEST: manifest_bytes(listed)}.items():
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
    files = {}
    for name, (size, expected) in _listed(path).items():
        try:
            data = (path / name).read_bytes()
        except OSError as problem:
            raise DamagedError(f"{path / name}: {problem.strerror}") from None
        if len(data) != size or hashlib.sha256(data).hexdigest() != expected:
            raise DamagedError(f"{path / name} has other bytes than were written")
        files[name] = data
    return files


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
            entry = file_entry(path / name)
        except OSError as problem:
            raise DamagedError(f"{path / name}: {problem.strerror}") from None
        if (entry["size"], entry["sha256"]) != wanted:
            raise DamagedError(f"{path / name} has other bytes than were written")
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    if more := sorted(present - {*listed, MANIFEST}):
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


def file_entry(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as a manifest lists them."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def manifest_bytes(entries: Mapping[str, Mapping[str, Any]], **facts: str) -> bytes:
    """A manifest of the files in ``entries`` (name: size and SHA-256), with ``facts`` beside them."""
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
