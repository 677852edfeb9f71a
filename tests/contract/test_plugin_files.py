"""What changed against what must be trained again: the key of a foreign loss covers what it computes with, no more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.contract import plugin_files, registry
from prefopt.errors import UsageError

LOSS = """
import dataclasses
from prefopt import Loss, register
{imports}

@register("{name}")
@dataclasses.dataclass(frozen=True)
class Mine(Loss):
    '''A loss.'''
    source, needs_reference, length_normalized = "test", True, False

    def rewards(self, logps):
        return logps.logratios()

    def __call__(self, logps):
        return {value}
"""
SCRIPT = """
import json, sys
from prefopt.contract import plugin_files, registry
for plugin in sys.argv[1:]:
    registry.load_plugin(plugin)
losses = {name: registry.loss_class(name) for name in registry.loss_names() if name in ("mine", "other")}
print(json.dumps({name: [plugin_files.code_of(cls), str(cls()(None))] for name, cls in losses.items()}))
"""
# As setuptools writes it for a package in editable form: a finder of its own, and no entry of the path.
FINDER = """
import sys
from importlib.util import spec_from_file_location

class Editable:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "editable":
            file = {folder!r} + "/editable/__init__.py"
            return spec_from_file_location(name, file, submodule_search_locations=[{folder!r} + "/editable"])

sys.meta_path.append(Editable)
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def loss(name: str = "mine", imports: str = "", value: str = "0") -> str:
    return LOSS.format(name=name, imports=imports, value=value)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A plugin with every kind of import, and files that it does not read."""
    root, user = tmp_path / "project", tmp_path / "user"
    packages = user / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    imports = "import coeff\nfrom pack.sub import LOW\nimport editable.core\nimport importlib\nimport inst"
    late = "(coeff.C, LOW, editable.core.E, inst.I, importlib.import_module('named').N, __import__('late').L)"
    write(root / "pl.py", loss(imports=imports, value=late))
    write(root / "other.py", loss("other", imports="import alone"))
    for name, text in (
        ("coeff", "from second import C"), ("second", "C = 0.1"), ("named", "N = 1"), ("late", "L = 1"),
        ("alone", ""), ("unread", ""), ("pack/__init__", "X = 1"), ("pack/sub", "from .deep import LOW"),
        ("pack/deep", "from . import side\nLOW = side.S"), ("pack/side", "S = 1"), ("pack/unread", ""),
    ):  # fmt: skip
        write(root / "h" / f"{name}.py", text)
    write(root / "notes.txt", "nothing")
    write(tmp_path / "src" / "editable" / "__init__.py", "")
    write(tmp_path / "src" / "editable" / "core.py", "E = 1")
    write(root / "h" / "sitecustomize.py", FINDER.format(folder=str(tmp_path / "src")))
    write(packages / "inst.py", "I = 1")
    write(packages / "inst-1.0.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: inst\nVersion: 1.0\n")
    write(packages / "inst-1.0.dist-info" / "top_level.txt", "inst\n")
    return root


def keys(root: Path, *plugins: str) -> dict[str, list[object]]:
    """Key parts and value of every foreign loss, as a fresh process has them."""
    user = root.parent / "user"
    package = next(user.rglob("site-packages"))
    here = str(plugin_files.PACKAGE.parent)
    path = os.pathsep.join([str(root / "h"), str(package), here])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *plugins], capture_output=True, text=True, check=False, cwd=root,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUSERBASE": str(user)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[object]] = json.loads(done.stdout)
    return found


def edit(path: str, text: str = "\n# changed\n") -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / path).open("a", encoding="utf-8") as file:
            file.write(text)

    return change


def newer(root: Path) -> None:
    folder = next((root.parent / "user").rglob("inst-1.0.dist-info"))
    write(folder / "METADATA", "Metadata-Version: 2.1\nName: inst\nVersion: 1.1\n")


CHANGES: dict[str, tuple[Callable[[Path], None], bool]] = {
    "the plugin": (edit("pl.py"), True),
    "a helper": (edit("h/coeff.py"), True),
    "a helper of a helper": (edit("h/second.py"), True),
    "a package's own file": (edit("h/pack/__init__.py"), True),
    "a module of a package": (edit("h/pack/sub.py"), True),
    "a relative import": (edit("h/pack/deep.py"), True),
    "a relative import of a module": (edit("h/pack/side.py"), True),
    "an import when the loss is called": (edit("h/late.py"), True),
    "an import by a function": (edit("h/named.py"), True),
    "a package in editable form": (edit("../src/editable/core.py"), True),
    "an installed package's version": (newer, True),
    "a module that nobody imports": (edit("h/unread.py"), False),
    "a module of a package that nobody imports": (edit("h/pack/unread.py"), False),
    "another plugin": (edit("other.py"), False),
    "another plugin's helper": (edit("h/alone.py"), False),
    "a text": (edit("notes.txt"), False),
    "a time": (lambda root: os.utime(root / "pl.py", (1, 1)), False),
}


def test_what_changed_against_what_must_be_trained_again(project: Path) -> None:
    plugins = ("pl.py", "other.py")
    before = keys(project, *plugins)
    wrong = []
    for what, (change, counts) in CHANGES.items():
        change(project)
        after = keys(project, *plugins)
        if (after["mine"][0] != before["mine"][0]) != counts:
            wrong.append(what)
        if what.startswith("another plugin"):
            assert after["other"][0] != before["other"][0], what
        before = after
    assert not wrong
    assert keys(project, *reversed(plugins)) == before
    assert keys(project, "pl.py")["mine"] == before["mine"]
    shutil.move(project / "pl.py", project / "deeper.py")
    moved = project.with_name("elsewhere")
    shutil.move(project, moved)
    shutil.move(moved / "deeper.py", moved / "pl.py")
    assert keys(moved, *plugins) == before


def test_an_edit_of_equal_length_in_the_same_instant_is_run_and_counts(project: Path) -> None:
    """Python's cache of byte code goes by time and length, and would run the old text."""
    file = project / "h" / "second.py"
    seen = []
    for value in (0.1, 0.9):
        file.write_text(f"C = {value}", encoding="utf-8")
        os.utime(file, (1_000_000, 1_000_000))
        seen.append(keys(project, "pl.py")["mine"])
    assert [str(value)[:4] for _, value in seen] == ["(0.1", "(0.9"]
    assert seen[0][0] != seen[1][0]


def test_what_was_loaded_is_what_is_hashed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project / "h"))
    helper = write(project / "h" / "edited_later.py", "C = 0.1")
    plugin = write(project / "edit_me.py", loss("edit_me", "import edited_later", "edited_later.C"))
    registry.load_plugin(str(plugin))
    held = {file: plugin_files.source_of(file) for file in (helper, plugin)}
    helper.write_text("C = 0.9", encoding="utf-8")
    plugin.write_text("", encoding="utf-8")
    cls = registry.loss_class("edit_me")
    key = plugin_files.code_of(cls)
    assert cls()(None) == 0.1  # type: ignore[arg-type,comparison-overlap]
    assert [name for name, _ in key] == ["edit_me.py", "edited_later"]
    assert {file: plugin_files.source_of(file) for file in (helper, plugin)} == held
    assert plugin_files.code_of(registry.loss_class("dpo")) == ()


def test_files_of_one_name_are_two_plugins_with_keys_of_their_own(project: Path) -> None:
    write(project / "a" / "my.py", loss("mine"))
    write(project / "b" / "my.py", loss("other"))
    both = keys(project, "a/my.py", "b/my.py")
    assert both["mine"] != both["other"]
    write(project / "a" / "my.py", loss("mine", value="7"))
    after = keys(project, "b/my.py", "a/my.py")
    assert after["other"] == both["other"]
    assert after["mine"] != both["mine"]
    assert after["mine"][1] == "7"


def test_a_clash_of_plugins_is_refused_and_both_files_are_named(project: Path) -> None:
    one, two = (write(project / folder / "my.py", loss("mine")) for folder in "ab")
    registry.load_plugin(str(one))
    registry.load_plugin(str(one))  # the same file again is the same plugin
    with pytest.raises(UsageError, match=r"loss name 'mine' is taken by .*; register it under another name") as caught:
        registry.load_plugin(str(two))
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)


def test_a_helper_of_another_plugin_is_not_lent(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = "import sys\nfrom pathlib import Path\nsys.path.insert(0, str(Path(__file__).parent))\nimport of_one_name"
    for folder, name in (("a", "mine"), ("b", "other")):
        write(project / folder / "of_one_name.py", f"C = {folder!r}")
        write(project / folder / "my.py", loss(name, own, "of_one_name.C"))
    registry.load_plugin(str(project / "a" / "my.py"))
    with pytest.raises(UsageError, match=r"its helper .*b/of_one_name\.py has the name of .*a/of_one_name\.py"):
        registry.load_plugin(str(project / "b" / "my.py"))


def test_what_a_plugin_prints_when_it_is_loaded_is_not_mixed_with_output(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loud = "import sys\nprint('out')\nprint('err', file=sys.stderr)"
    registry.load_plugin(str(write(project / "loud.py", loss("loud", loud))))
    assert capfd.readouterr() == ("", "")
