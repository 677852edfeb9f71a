"""What is installed: exact versions, hashes, and the look-up of known vulnerabilities."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "requirements"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, str]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return {canonical(line.split("==")[0]): line.split("==")[1].split()[0] for line in lines if "==" in line}


def test_every_package_is_locked_by_hash() -> None:
    for name in ("lock.txt", "embedded.txt"):
        text = "\n".join(line for line in (FOLDER / name).read_text(encoding="utf-8").splitlines() if line[:1] != "#")
        entries = [entry for entry in re.split(r"\n(?=\S)", text) if entry.strip()]
        assert entries
        for entry in entries:
            assert re.fullmatch(r"[\w.-]+==[\w.+!-]+( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry[:80]
    assert pins("torch.txt").keys() == {"torch"}
    assert not pins("lock.txt").keys() & {"torch", "kernels", "pip"}


def test_what_the_project_declares_is_locked_and_what_is_tested_is_what_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    declared = [*project["dependencies"], *optional["dev"], *optional["track"]]
    locked = pins("lock.txt") | pins("torch.txt")
    assert {canonical(re.split(r"[\[><=]", one)[0]) for one in declared} <= locked.keys()
    for name in ("torch", "transformers", "peft", "safetensors", "pydantic", "numpy", "tensorboardx"):
        assert importlib.metadata.version(name).split("+")[0] == locked[name], f"{name}: run make setup"


def module() -> Any:
    spec = importlib.util.spec_from_file_location("requirements_audit", FOLDER / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (json.dumps({"dependencies": [GOOD]}), 0, "audited: 2 locked packages"),
        (json.dumps({"dependencies": [GOOD, BAD]}), 1, "b 2: CVE-1, fixed in 3"),
        (json.dumps({"dependencies": [GOOD, UNKNOWN]}), 0, "NOT AUDITED: 2 of 4 (c, c): not found"),
        (json.dumps({"dependencies": [UNKNOWN, BAD]}), 1, "CVE-1"),
        ("", 0, "NOT AUDITED: 3 of 3 (lock.txt, embedded.txt, torch.txt): no such host"),
    ],
)
def test_known_vulnerabilities_fail_and_what_is_unknown_is_said(
    answer: str, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = module()
    asked = []

    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        return subprocess.CompletedProcess(words, 1, answer, "ERROR\nno such host")

    monkeypatch.setattr(loaded.subprocess, "run", run)
    assert loaded.main() == status
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
    assert len(asked) == 2
    assert all("--disable-pip" in words for words in asked)
