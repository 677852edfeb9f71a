"""README: its generated blocks are what their sources say, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import readme

ROOT = Path(readme.__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_generated_blocks_are_current() -> None:
    assert readme.fill(TEXT) == TEXT, "run: python -m benchmarks.readme"


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_named_files_exist() -> None:
    for name in re.findall(r"`((?:prefopt|benchmarks|results|tests|requirements)/[\w./-]+)`", TEXT):
        assert (ROOT / name).exists(), name


def test_named_commands_exist() -> None:
    import typer

    from prefopt.cli.app import app

    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"(?:\$|`)\s*prefopt ([\w-]+)", TEXT)) <= known
