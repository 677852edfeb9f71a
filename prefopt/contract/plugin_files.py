"""Which files decide what a foreign loss computes, and their hashes as they were when they were loaded.

A foreign loss depends on its file and on every file that this imports, directly or not, from outside
Python's own library and the installed packages. The latter count by version. Bytes are hashed as they are read
for execution, so that an edit under way changes neither what runs nor what is recorded.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
import types
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path

from prefopt.errors import UsageError

PACKAGE = Path(__file__).resolve().parent.parent
# Part of every run's key already.
_EVERY_RUN = {
    *sys.stdlib_module_names, "prefopt", "torch", "transformers", "peft", "tokenizers", "numpy", "safetensors",
    "sklearn",
}  # fmt: skip
_LOADED: dict[Path, bytes] = {}  # what was read for execution, or when it was first asked for
_BROUGHT_BY: dict[type, str] = {}  # the module of the plugin in whose loading a class was registered


class RecordingLoader(SourceFileLoader):
    """Compiles what it reads, past every cache of byte code, and remembers it."""

    def get_code(self, fullname: str) -> types.CodeType:
        """The code of the module, from the bytes that are remembered."""
        data = self.get_data(self.path)
        _LOADED[Path(self.path).resolve()] = data
        return self.source_to_code(data, self.path)


class _Recorder:
    """Has every module from outside the installed packages loaded by a ``RecordingLoader``."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if type(spec.loader) is SourceFileLoader and not _is_installed(Path(spec.loader.path)):
                    spec.loader = RecordingLoader(name, spec.loader.path)
                return spec
        return None


_RECORDER = _Recorder()


def record_imports() -> None:
    """From now on, remember the source of whatever is imported from outside the installed packages."""
    if _RECORDER not in sys.meta_path:
        sys.meta_path.insert(0, _RECORDER)


def brought_by(classes: Iterable[type], module: str) -> None:
    """Note that a plugin's module registered these classes, wherever they are defined."""
    _BROUGHT_BY.update(dict.fromkeys(classes, module))


@functools.cache
def code_of(cls: type) -> tuple[tuple[str, str], ...]:
    """What a loss class computes with: (module, SHA-256 of its file) and (installed package, version), sorted.

    Empty for a class of this package. Computed once, so that it stays what it was when the class came.
    """
    return _code_of({base.__module__ for base in cls.__mro__} | {_BROUGHT_BY.get(cls, cls.__module__)})


@functools.cache
def code_of_module(name: str) -> tuple[tuple[str, str], ...]:
    """The same for whatever a module defines: a reward, or a task."""
    return _code_of({name})


def _code_of(names: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Hashes of the modules, and of what they import, as ``code_of`` gives them."""
    roots = {name: file for name in names if (file := _file_of(name)) is not None and not _is_ours(file)}
    own = {name.partition(".")[0] for name in roots} - _EVERY_RUN
    waiting = [(name, file) for name, file in roots.items() if name.partition(".")[0] in own]
    parts: dict[str, str] = {}
    seen: set[Path] = set()
    while waiting:
        name, file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        data = source_of(file)
        parts[file.name if name in roots else name] = hashlib.sha256(data).hexdigest()
        for imported in sorted(set(_imported(name, file, data))):
            top, target = imported.partition(".")[0], _file_of(imported)
            if target is not None and not _is_ours(target) and (top in own or not _is_installed(target)):
                waiting.append((imported, target))
            elif target is not None and top not in _EVERY_RUN:
                parts |= _versions(top)
    return tuple(sorted(parts.items()))


def source_of(file: Path) -> bytes:
    """The bytes of a file as they were when it was loaded, or else when they were first asked for."""
    if file not in _LOADED:
        _LOADED[file] = file.read_bytes()
    return _LOADED[file]


def refuse_borrowed(module: str, before: Collection[str]) -> None:
    """Refuse a plugin that was handed another plugin's helper in place of its own of the same name.

    Args:
        module: The plugin's module, just loaded.
        before: Names of the modules that were loaded before it.

    Raises:
        UsageError: Naming both files.
    """
    file = _file_of(module)
    if file is None:
        return
    for name in sorted(set(_imported(module, file, source_of(file))) & set(before)):
        used = _file_of(name)
        beside = [file.parent / f"{name}.py", file.parent / name / "__init__.py"]
        own = next((path.resolve() for path in beside if path.is_file()), None)
        if used is not None and own is not None and own != used and not _is_installed(used):
            raise UsageError(f"its helper {own} has the name of {used}, which is loaded already; rename one of the two")


def _imported(name: str, file: Path, data: bytes) -> Iterator[str]:
    """Names of modules that a file's text imports, anywhere in it, with the packages that they lie in."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(data if file.suffix == ".py" else b"")  # an extension module has no text
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1]] if node.level else [])
            whole = ".".join(filter(None, (base, node.module)))
            names = [f"{whole}.{alias.name}" if whole else alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for one in names:
            parts = one.strip(".").split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))
    yield from (package.rsplit(".", i)[0] for i in range(package.count(".") + bool(package)))


def _file_of(name: str) -> Path | None:
    """The file of a module, loaded or not; None for one without, and for what is no module."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        return Path(file).resolve() if file else None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
        for i in range(1, len(parts)):  # not find_spec of the whole name, which would import the packages
            spec = PathFinder.find_spec(".".join(parts[: i + 1]), spec.submodule_search_locations) if spec else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).resolve() if spec and spec.has_location and spec.origin else None


@functools.cache
def _installed_roots() -> tuple[Path, ...]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(path).resolve() for path in [*paths, *site.getsitepackages(), site.getusersitepackages()])


def _is_installed(file: Path) -> bool:
    """Whether a file is Python's own or of a package that was installed, other than in editable form."""
    return any(file.resolve().is_relative_to(root) for root in _installed_roots())


def _is_ours(file: Path) -> bool:
    return file.is_relative_to(PACKAGE)


def _versions(top: str) -> dict[str, str]:
    names = sorted(set(_distributions().get(top, [])))
    return {f"{name} (installed)": importlib.metadata.version(name) for name in names}


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())
