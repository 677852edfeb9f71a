"""What may import what. This table is the architecture: a new module is placed here first."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prefopt

PACKAGE = Path(prefopt.__file__).parent

ANY = frozenset({"*"})
LOW = {"durable", "errors", "places", "kept", "redact", "results", "seeding"}
MODEL = {
    *LOW,
    "config",
    "interface",
    "data",
    "flash",
    "packing",
    "head",
    "lora",
    "model",
    "scoring",
    "signals",
    "vetting",
}
TRAIN = {*MODEL, "step", "fit", "harness", "tasks", "sampling", "pairs", "reference", "evaluate"}
ALLOWED: dict[str, frozenset[str] | set[str]] = {
    "__init__": {"interface", "registry", "losses"},
    "__main__": {"cli"},
    "cli": ANY,
    "commands": {"__init__", "console", "errors", "judges", "judging", "locks", "power", "selftest", "stats"},
    "errors": set(),
    "redact": set(),
    "interface": {"errors"},
    "registry": {"errors", "interface"},
    "examples": {"errors", "interface"},
    "testing_fields": {"errors", "examples", "interface", "registry"},
    "testing": {"errors", "examples", "interface", "registry", "testing_fields"},
    "losses": {"interface", "registry"},
    "trl_peer": {"errors"},
    "doctor": {"errors", "interface", "losses", "registry", "trl_peer"},
    "catalogue": {"errors", "examples", "interface", "losses", "registry"},
    "seeding": set(),
    "durable": {"errors"},
    "places": set(),
    "kept": {"durable", "errors"},
    "results": {"durable", "errors"},
    "config": {"interface", "redact", "registry", "results"},
    "settings": {"config", "errors", "registry"},
    "console": set(),
    "tasks": LOW,
    "data": LOW,
    "flash": set(),
    "packing": {"flash"},
    "head": set(),
    "lora": LOW,
    "vetting": {"errors"},
    "model": {*LOW, "config", "packing", "vetting"},
    "scoring": {*LOW, "data", "head", "model", "packing"},
    "signals": {*LOW, "data", "head", "interface", "lora", "model", "packing", "scoring"},
    "step": MODEL,
    "fit": {*MODEL, "step"},
    "stopping": set(),
    "harness": {*MODEL, "memory", "step", "stopping"},
    "checkpoint": {*MODEL, "step"},
    "determinism": {*MODEL, "harness", "losses", "step"},
    "sampling": MODEL - {"signals"},
    "pairs": {*MODEL, "sampling", "tasks"},
    "reference": {*MODEL, "tasks"},
    "evaluate": {*TRAIN, "stats"},
    "environment": LOW,
    "materials": {*TRAIN, "environment"},
    "memory": set(),
    "plan": {*TRAIN, "materials", "memory"},
    "identity": {*TRAIN, "environment", "materials", "redact"},
    "outcome": {*TRAIN, "materials", "memory"},
    "locks": LOW,
    "runner": {
        *TRAIN,
        "checkpoint",
        "determinism",
        "environment",
        "identity",
        "locks",
        "materials",
        "memory",
        "outcome",
        "testing",
    },
    "worker": {"config", "errors", "losses", "registry", "runner", "stopping"},
    "supervise": {"config", "console", "errors", "results", "stopping"},
    "judges": {*MODEL, "tasks", "stats"},
    "judging": {*MODEL, "evaluate", "judges", "stats", "tasks"},
    "claims": {*LOW, "stats"},
    "power": {*LOW, "claims", "stats"},
    "stats": set(),
    "report": {*LOW, "stats"},
    "selftest": {*TRAIN, "interface", "registry", "losses", "stats", "judges"},
}
NO_TORCH = ("stats", "results", "report", "errors", "claims", "power", "console", "judges", "judging")


def imports(path: Path) -> set[str]:
    """Top-level names inside prefopt that a file imports, anywhere but under TYPE_CHECKING."""
    found: set[str] = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree := ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(child for item in node.body for child in ast.walk(item))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.update({f"{node.module}.{alias.name}" for alias in node.names})
    return found


def owner(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_module_is_in_the_table() -> None:
    assert {owner(path) for path in FILES} <= set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_arrows_point_down(path: Path) -> None:
    mine = owner(path)
    allowed = ALLOWED[mine]
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "prefopt" or len(parts) < 2:
            continue
        target = parts[1]
        if not (PACKAGE / target).is_dir() and not (PACKAGE / f"{target}.py").is_file():
            continue  # a name of the package itself, such as __version__
        assert target == mine or allowed == ANY or target in allowed, f"{mine} imports {target}"
        assert target != "cli" or mine == "__main__"


@pytest.mark.parametrize("name", NO_TORCH)
def test_reading_results_needs_no_torch(name: str) -> None:
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'peft'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"import prefopt.{name}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_pinned() -> None:
    assert sorted(prefopt.__all__) == [
        "ChosenRejected", "Loss", "OffScaleWarning", "PairLogps", "TokenStats", "__version__", "hyper", "loss_names",
        "losses", "make_loss", "register",
    ]  # fmt: skip
    assert all(hasattr(prefopt, name) for name in prefopt.__all__)


def test_nothing_unpickles_or_evaluates() -> None:
    banned = ("pickle", "dill", "joblib", "shelve", "marshal")
    for path in FILES:
        names = imports(path)
        assert not {name.split(".")[0] for name in names} & set(banned), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "yaml.load"), f"{path}: {called}"
                assert not any(k.arg == "shell" and ast.unparse(k.value) == "True" for k in node.keywords), path
                assert not any(k.arg == "trust_remote_code" and ast.unparse(k.value) != "False" for k in node.keywords)
