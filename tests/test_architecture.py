"""What may import what: ten lines, from the command line down. A file imports from its room and from lines below."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import prefopt

PACKAGE = Path(prefopt.__file__).parent
RULE = """
cli
launch tuning
comparison selftest
prepare
train evaluate judges
model
config testing report
losses data tasks analysis
contract storage runtime
errors stats
"""
LINES = [line.split() for line in RULE.split("\n") if line]
LEVEL = {room: len(LINES) - number for number, line in enumerate(LINES) for room in line}
NO_TORCH = ("errors", "stats", "storage", "analysis", "report", "cli", "judges")


def room(name: str) -> str:
    """The room (or file of the root) of a module such as ``prefopt.model.base``; empty for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def resolved(node: ast.ImportFrom) -> set[str]:
    """The modules that ``from x import y`` reads: ``x.y`` where that is one, else ``x``."""
    assert node.module is not None
    return {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in FILES else node.module for a in node.names}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules that a file imports, anywhere but under TYPE_CHECKING."""
    tree = parsed(path)
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for item in node.body
        for child in ast.walk(item)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= resolved(node)
    return frozenset(names)


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "prefopt"}


def test_every_room_has_a_place_in_the_rule() -> None:
    rooms = {room(name) for name in FILES} - {"", "__main__"}
    assert rooms == set(LEVEL)
    assert len(LINES) == 10
    # README.md and py.typed hold no code: nobody has to learn what is in them to find their way.
    entries = [p for p in PACKAGE.iterdir() if p.name not in ("__pycache__", "README.md", "py.typed")]
    assert len(entries) <= 25, sorted(path.name for path in entries)


@pytest.mark.parametrize("name", FILES)
def test_arrows_point_down(name: str) -> None:
    mine = room(name)
    for target in ours(FILES[name]):
        other = room(target)
        if mine == "__main__":
            assert other == "cli"
        elif mine == "":  # the package itself shows what a plug-in implements
            assert other in ("contract", "losses")
        else:
            # the package itself has one name that any room may read: its version
            assert other in ("", mine) or LEVEL[other] < LEVEL[mine], f"{name} imports {target}"


def test_no_circle() -> None:
    """Within a room, too, so that every file can be read after those it uses."""
    waiting = {name: ours(path) & FILES.keys() - {name, "prefopt"} for name, path in FILES.items()}
    while waiting:
        free = [name for name, needs in waiting.items() if not needs & waiting.keys()]
        assert free, f"a circle among {sorted(waiting)}"
        for name in free:
            del waiting[name]


@pytest.mark.parametrize("name", [name for name in FILES if room(name) == "losses"])
def test_loss_families_import_the_contract_alone(name: str) -> None:
    if name in ("prefopt.losses", "prefopt.losses.catalogue"):
        return  # the list of the families, and the pages about them
    assert {room(target) for target in ours(FILES[name])} <= {"contract", "losses"}
    assert {target for target in ours(FILES[name]) if room(target) == "losses"} <= {"prefopt.losses.numerics"}


@pytest.mark.parametrize("name", NO_TORCH)
def test_reading_results_needs_no_torch(name: str) -> None:
    modules = [other for other in FILES if room(other) == name] if name in ("storage", "analysis", "report") else []
    script = (
        "import sys, importlib\n"
        "class Block:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'peft'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"for name in {[f'prefopt.{name}', *modules]!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_pinned() -> None:
    assert sorted(prefopt.__all__) == [
        "ChosenRejected", "GroupLogps", "GroupLoss", "Loss", "OffScaleWarning", "PairLogps", "Results", "TokenStats",
        "__version__", "across", "compare", "export", "hyper", "judge", "load", "loss_names", "losses", "make_loss",
        "register", "register_task", "run", "tune",
    ]  # fmt: skip
    assert all(hasattr(prefopt, name) for name in prefopt.__all__)


def test_nothing_unpickles_or_evaluates() -> None:
    banned = ("pickle", "dill", "joblib", "shelve", "marshal")
    for path in FILES.values():
        assert not {name.split(".")[0] for name in imports(path)} & set(banned), path
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "yaml.load"), f"{path}: {called}"
                assert not any(k.arg == "shell" and ast.unparse(k.value) == "True" for k in node.keywords), path
                assert not any(k.arg == "trust_remote_code" and ast.unparse(k.value) != "False" for k in node.keywords)


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def n_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters that a caller gives, ``self`` and ``cls`` not among them."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if a]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_files_functions_and_parameter_lists_are_short() -> None:
    """The sizes that ``prefopt/README.md`` promises; only typer's commands take an option a parameter."""
    longest = {name: path.read_text(encoding="utf-8").count("\n") for name, path in FILES.items()}
    assert {name: lines for name, lines in longest.items() if lines > 320} == {}
    every = {(name, f.name, f.lineno): f for name, path in FILES.items() for f in functions(path)}
    lists = {key: n_parameters(f) for key, f in every.items() if room(key[0]) != "cli"}
    assert {key: count for key, count in lists.items() if count > 8} == {}
    sizes = sorted((f.end_lineno or f.lineno) - f.lineno + 1 for f in every.values())
    assert len(sizes) > 500
    assert sizes[len(sizes) // 2] <= 10
    assert sizes[len(sizes) * 9 // 10] <= 40
