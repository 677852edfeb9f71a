"""What a disk may hold after a power failure, worked out from which files and folders were synced.

The rules are those that file systems give: the content of a file is safe once the file has been synced, and a name
in a folder once the folder has been. What is not safe may be there, or not, or in part: new names may be lost and
removed ones come back, one by one and in any order; a file may be as it was before, empty, half there, zeros, or end
in garbage.

``Disk`` watches a process from within: it replaces ``os.fsync``, so a sync that the code only announces does not
count.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Node = tuple[int, int]  # device and inode
Names = dict[Node, dict[str, Node]]

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: data[: len(data) // 2] + hashlib.shake_256(data).digest(len(data) - len(data) // 2),
}


@dataclass(frozen=True)
class State:
    """Files (bytes) and folders (None) by path below each root, and what was assumed."""

    label: str
    trees: tuple[dict[str, bytes | None], ...]

    def digest(self, keep: Callable[[str], bool] = lambda path: True) -> str:
        total = hashlib.sha256()
        for tree in self.trees:
            total.update(b"root")
            for path in sorted(filter(keep, tree)):
                total.update(path.encode() + b"\0" + hashlib.sha256(tree[path] or b"").digest())
        return total.hexdigest()

    def write(self, *roots: Path) -> None:
        """Make folders of it."""
        for root, tree in zip(roots, self.trees, strict=True):
            root.mkdir(parents=True, exist_ok=True)
            for path, data in sorted(tree.items()):
                if data is None:
                    (root / path).mkdir(parents=True, exist_ok=True)
                else:
                    (root / path).write_bytes(data)


@dataclass
class Disk:
    """What lies below some folders, and how much of it is safe."""

    roots: tuple[Path, ...]
    held: dict[Node, int] = field(default_factory=dict)  # open, so that no inode's number is used again
    data: dict[Node, bytes] = field(default_factory=dict)
    names: Names = field(default_factory=dict)

    def __post_init__(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
        folders, files = self.look()
        self.names = {node: dict(names) for node, names in folders.items()}
        self.data = {node: self.content(node) for node in files}

    def watch(self) -> None:
        """Take the place of ``os.fsync`` in this process."""
        os.fsync = self.sync  # type: ignore[assignment]

    def sync(self, handle: Any) -> None:
        number = handle if isinstance(handle, int) else handle.fileno()
        status = os.fstat(number)
        node = (status.st_dev, status.st_ino)
        folders, files = self.look()
        if node in folders:
            self.names[node] = dict(folders[node])
        elif node in files:
            self.data[node] = self.content(node)

    def look(self) -> tuple[Names, set[Node]]:
        """The names in every folder as they are now, and the files."""
        folders: Names = {}
        files: set[Node] = set()

        def visit(path: Path) -> Node:
            status = path.lstat()
            node = (status.st_dev, status.st_ino)
            if node not in self.held:
                self.held[node] = os.open(path, os.O_RDONLY)
            if stat.S_ISDIR(status.st_mode):
                folders[node] = {child.name: visit(child) for child in sorted(path.iterdir())}
            else:
                files.add(node)
            return node

        self.tops = tuple(visit(root) for root in self.roots)
        return folders, files

    def content(self, node: Node) -> bytes:
        size = os.fstat(self.held[node]).st_size
        return os.pread(self.held[node], size, 0) if size else b""

    def states(self, seed: int = 0) -> Iterator[State]:
        """What may be found if the power fails now."""
        now, files = self.look()
        every = set(now) | set(self.names)
        safe: Names = {node: self.names.get(node, {}) for node in every}
        changed = [
            (node, name)
            for node in sorted(now)
            for name in sorted(now[node].keys() | safe[node].keys())
            if now[node].get(name) != safe[node].get(name)
        ]
        unsafe = sorted(node for node in files if self.data.get(node) != self.content(node))
        whole: dict[Node, str] = {}
        modes = [("all names kept", set(changed)), ("all names lost", set())]
        if len(changed) > 1:
            some = random.Random(seed).sample(changed, min(6, len(changed)))
            modes += [(f"only {name} kept", {(node, name)}) for node, name in some]
            modes += [(f"only {name} lost", set(changed) - {(node, name)}) for node, name in some]
        for i, (label, kept) in enumerate(modes):
            folders = {node: self._mixed(node, now, safe, kept) for node in every}
            spoiled = [("whole", whole)]
            if unsafe:
                hows = ("old", *DAMAGE) if i == 0 else ("old", "garbage")
                spoiled += [(how, dict.fromkeys(unsafe, how)) for how in hows]
            if len(unsafe) > 1 and i == 0:
                spoiled += [(f"one {how}", {node: how}) for node in unsafe for how in ("old", "garbage")]
            for how, damage in spoiled:
                yield State(f"{label}, unsynced files {how}", tuple(self._tree(t, folders, damage) for t in self.tops))

    def _spoiled(self, node: Node, how: str) -> bytes:
        if how == "old":
            return self.data.get(node, b"")
        data = self.content(node)
        return DAMAGE[how](data) if how else data

    def _mixed(self, node: Node, now: Names, safe: Names, kept: set[tuple[Node, str]]) -> dict[str, Node]:
        if node not in now:
            return safe[node]
        new, old = now[node], safe[node]
        names = {}
        for name in new.keys() | old.keys():
            child = new.get(name) if new.get(name) == old.get(name) or (node, name) in kept else old.get(name)
            if child is not None:
                names[name] = child
        return names

    def _tree(self, top: Node, folders: Names, damage: dict[Node, str]) -> dict[str, bytes | None]:
        tree: dict[str, bytes | None] = {}

        def visit(node: Node, prefix: str) -> None:
            for name, child in folders.get(node, {}).items():
                if child in folders:
                    tree[prefix + name] = None
                    visit(child, f"{prefix}{name}/")
                else:
                    tree[prefix + name] = self._spoiled(child, damage.get(child, ""))

        visit(top, "")
        return tree
