"""A command line that must be refused: its exit status, what it says, and that it left everything as it was."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import app
from prefopt.storage.schema import LOCK

ROWS = [
    {"prompt": f"the {animal} {i} sat", "chosen": f" on the mat {i}", "rejected": f" off the hat {i}"}
    for i, animal in enumerate(("cat", "dog", "rat", "hen", "cow", "owl") * 4)
]
SHORT = (
    "train.steps=2", "train.pairs_per_step=4", "train.eval_every=2", "lora.rank=2", "evaluation.prompts=3",
    "evaluation.samples=2", "evaluation.max_new_tokens=4", "model.dtype=float32",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str


class Command:
    """The command line in this process, run in a folder of its own."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._patch, self._capsys = root, monkeypatch, capsys
        monkeypatch.chdir(root)

    def __call__(self, *words: str) -> Outcome:
        self._patch.setattr(sys, "argv", ["prefopt", *words])
        self._capsys.readouterr()
        status = 0
        try:
            app.main()
        except SystemExit as end:
            status = int(end.code or 0)
        shown = self._capsys.readouterr()
        return Outcome(status, shown.out, shown.err)

    def refused(self, words: Sequence[str], *, status: int, said: Iterable[str], lines: int = 1) -> Outcome:
        """Run ``words``, which must end so, say all of ``said`` on stderr, and change nothing below the folder."""
        before = snapshot(self.root)
        outcome = self(*words)
        for part in said:
            assert part in outcome.err, outcome.err
        assert outcome.status == status, outcome.err
        assert "Traceback" not in outcome.err
        assert all(line.startswith("prefopt: ") for line in outcome.err.splitlines())
        assert len(outcome.err.splitlines()) <= lines, outcome.err
        assert all(len(line) < 700 for line in outcome.err.splitlines())
        assert outcome.err.replace("\n", "").isprintable()
        assert snapshot(self.root) == before
        return outcome


def snapshot(root: Path) -> dict[str, str]:
    """Every file, folder and link below ``root`` with the hash of its content; a lock says when it was held last."""
    files = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            files[name] = f"link to {path.readlink()}"
        elif path.name == LOCK:
            files[name] = "lock"
        else:
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return files


def jsonl(rows: Iterable[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def compare(model: Path | str, *more: str, data: str | None = "pairs.jsonl") -> list[str]:
    """A short comparison of one loss."""
    settings = [word for setting in SHORT for word in ("--set", setting)]
    source = ["--data", data] if data else []
    return [
        "compare", *source, "--model", str(model), "--losses", "noop", "--seeds", "0", "--device", "cpu", "--quiet",
        "--in-process", *settings, *more,
    ]  # fmt: skip
