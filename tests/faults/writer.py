"""A script of writes through ``durable``, what a reader may see when it stops half-way, and broken writers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from prefopt.errors import MachineError
from prefopt.storage import durable, folders

ONE, TWO = ({"a.bin": bytes(range(256)) * n, "in/b.json": b"[%d]" % n} for n in (3, 5))
GONE = "gone"


def _fill(*sizes: int) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "in").mkdir()
        for size in sizes:
            (folder / "in" / f"{size}.txt").write_bytes(b"x" * size)

    return fill


STEPS: tuple[Callable[[Path], Any], ...] = (
    lambda root: durable.write_bytes(root / "x" / "y" / "note", b"first"),
    lambda root: folders.write_folder(root / "x" / "step-1", ONE),
    lambda root: durable.write_bytes(root / "x" / "y" / "note", b"the second, longer one"),
    lambda root: folders.fill_folder(root / "filled", _fill(5, 7000)),
    lambda root: folders.write_folder(root / "x" / "step-1", TWO),
    lambda root: folders.fill_folder(root / "filled", _fill(9)),
    lambda root: durable.write_bytes(root / "extra", b"to be removed"),
    lambda root: durable.remove(root / "extra"),
    lambda root: durable.remove(root / "filled"),
    lambda root: folders.write_folder(root / "x" / "step-2", ONE),
    lambda root: durable.write_sealed(root / "x" / "sealed", bytes(range(200))),
    lambda root: folders.fill_folder(root / "model", _fill(5, 7000), manifest=True),
)
REPLACED = {4: "step-1", 5: "filled"}  # steps that replace a folder, which may be gone if they stop


def seen(root: Path) -> dict[str, Any]:
    """What a reader finds: contents, or what is wrong with them."""
    found: dict[str, Any] = {}
    for name, path in (("note", root / "x" / "y" / "note"), ("extra", root / "extra")):
        found[name] = path.read_bytes().decode("latin-1") if path.is_file() else GONE
    for name in ("step-1", "step-2"):
        path = root / "x" / name
        try:
            files = folders.read_folder(path) if path.is_dir() else None
        except durable.DamagedError as problem:
            found[name] = f"damaged: {problem}"
        else:
            found[name] = GONE if files is None else {k: hashlib.sha256(v).hexdigest() for k, v in files.items()}
    for name, path, read in (
        ("sealed", root / "x" / "sealed", lambda path: durable.read_sealed(path).decode("latin-1")),
        ("model", root / "model", folders.check_folder),
    ):
        try:
            found[name] = read(path) if path.exists() else GONE
        except durable.DamagedError as problem:
            found[name] = f"damaged: {problem}"
    path = root / "filled"
    files = {str(p.relative_to(path)): p.read_bytes().decode("latin-1") for p in path.rglob("*") if p.is_file()}
    found["filled"] = files if path.is_dir() else GONE
    return json.loads(json.dumps(found))


def work(root: Path, after: Callable[[int], None] = lambda done: None) -> None:
    """All steps, as a fresh process does them; ``after`` is called when one has returned."""
    durable.forget_synced()
    for number, step in enumerate(STEPS):
        step(root)
        after(number + 1)


def expected(folder: Path) -> list[dict[str, Any]]:
    """What a reader sees after 0, 1, ... steps."""
    found = [seen(folder)]
    work(folder, lambda done: found.append(seen(folder)))
    return found


def problem(root: Path, want: list[dict[str, Any]], done: int) -> str | None:
    """What is wrong with a folder whose writer stopped after ``done`` whole steps, or None."""
    now = seen(root)
    allowed = [want[done], want[min(done + 1, len(STEPS))]]
    if done in REPLACED:
        allowed.append({**want[done], REPLACED[done]: GONE})
    if now in allowed:
        return None
    before = want[done]
    differ = {k: (before[k], now[k]) for k in now if now[k] not in [one[k] for one in allowed]}
    return f"after {done} steps: {str(differ or 'a mixture')[:300]}"


# Each breaks the writer in one way; a test shows that the faults find it.


@contextmanager
def _instead_of(name: str, value: Callable[..., Any]) -> Iterator[None]:
    """``value`` in a function's place, in every module of the writer that knows the function by its name."""
    modules = [module for module in (durable, folders) if hasattr(module, name)]
    assert modules, f"the writer has no {name}"
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def _no_sync(kinds: tuple[str, ...]) -> Any:
    real = durable.sync
    return _instead_of(
        "sync", lambda path, kind="sync": durable.operation(kind, path) if kind in kinds else real(path, kind)
    )


def _in_place(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.operation("write", path)
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
        durable.operation("write", path)
        file.flush()
        file.write(data[len(data) // 2 :])
    durable.sync(path)


def _fill_in_place(path: Path, fill: Callable[[Path], None], *, manifest: bool = False) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    durable.operation("write", path)
    fill(path)
    if manifest:
        entries = {str(file.relative_to(path)): folders.file_entry(file) for file in path.rglob("*") if file.is_file()}
        (path / folders.MANIFEST).write_bytes(folders.manifest_bytes(entries, name=path.name))
    for file in path.rglob("*"):
        durable.sync(file)
    durable.sync_folder(path.parent)


def _sync_after_rename(path: Path, data: bytes) -> None:
    durable.ensure_folder(path.parent)
    temporary = durable.temporary_name(path)
    durable.operation("write", temporary)
    temporary.write_bytes(data)
    durable.rename_synced(temporary, path)
    durable.sync(path)


def _swallow(name: str) -> Any:
    real = getattr(folders, name, None) or getattr(durable, name)

    def quiet(*values: Any, **named: Any) -> None:
        with suppress(MachineError):
            real(*values, **named)

    return _instead_of(name, quiet)


def unchecked(path: Path) -> dict[str, bytes]:
    listed = json.loads((path / folders.MANIFEST).read_bytes())["files"]
    return {name: (path / name).read_bytes() for name in listed}


def _sizes_only(path: Path) -> dict[str, bytes]:
    listed = json.loads((path / folders.MANIFEST).read_bytes())["files"]
    found = unchecked(path)
    if any(len(found[name]) != entry["size"] for name, entry in listed.items()):
        raise durable.DamagedError(f"{path} has another size")
    return found


def _remove_slowly(path: Path) -> None:
    if path.is_dir():
        for file in sorted(path.rglob("*"), reverse=True):
            durable.operation("remove", file)
            file.rmdir() if file.is_dir() else file.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    durable.sync_folder(path.parent)


def _forgiving_sync(path: Path, kind: str = "sync") -> None:
    with suppress(OSError):
        durable.operation(kind, path)
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _patch(name: str, value: Callable[..., Any]) -> Any:
    """Put ``value`` in a function's place; what the system refuses is said as the function itself would."""

    def polite(*values: Any, **named: Any) -> Any:
        try:
            return value(*values, **named)
        except OSError as refused:
            if name in ("sync", "temporary_name"):  # these let the system's own error through
                raise
            raise MachineError(str(refused)) from None

    return _instead_of(name, polite)


MUTANTS: dict[str, Callable[[], Any]] = {
    "files are not synced": lambda: _no_sync(("sync",)),
    "folders are not synced": lambda: _no_sync(("sync-folder",)),
    "files are written in place": lambda: _patch("write_bytes", _in_place),
    "folders are written in place": lambda: _patch("fill_folder", _fill_in_place),
    "synced after the rename": lambda: _patch("write_bytes", _sync_after_rename),
    "a full disk is ignored for files": lambda: _swallow("write_bytes"),
    "a full disk is ignored for folders": lambda: _swallow("fill_folder"),
    "an error of fsync is ignored": lambda: _patch("sync", _forgiving_sync),
    "no checksum": lambda: _patch("read_folder", unchecked),
    "sizes only, no checksum": lambda: _patch("read_folder", _sizes_only),
    "folders removed file by file": lambda: _patch("remove", _remove_slowly),
    "one name for all temporary files": lambda: _patch(
        "temporary_name", lambda path: path.with_name(f".{path.name}.tmp")
    ),
}
