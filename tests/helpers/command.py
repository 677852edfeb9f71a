"""Whole comparisons through the command line, on a tiny model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from prefopt.cli import app

SHORT = (
    "train.steps=3", "train.pairs_per_step=4", "train.eval_every=2", "train.learning_rate=1e-2", "lora.rank=4",
    "evaluation.prompts=3", "evaluation.samples=2", "evaluation.max_new_tokens=6",
    "model.dtype=float32",
)  # fmt: skip


def write_pairs(path: Path, count: int = 24) -> Path:
    animals = ("cat", "dog", "rat", "hen", "cow", "owl")
    rows = [
        {
            "prompt": f"the {animals[i % 6]} {i} sat",
            "chosen": f" on the mat {i}",
            "rejected": f" off the {animals[-1 - i % 6]} hat",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def arguments(tmp_path: Path, model: Path, *more: str) -> list[str]:
    data = tmp_path / "pairs.jsonl"
    if not data.exists():
        write_pairs(data)
    settings = [word for setting in SHORT for word in ("--set", setting)]
    return [
        "compare", "--data", str(data), "--model", str(model), "--results", str(tmp_path / "results"), "--name", "mine",
        "--device", "cpu", *settings, *more,
    ]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    """The command line in this process, the training too; its exit status."""
    words = [*words, "--in-process"] if words[0] == "compare" else words
    monkeypatch.setattr(sys, "argv", ["prefopt", *words])
    try:
        app.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report out, which takes longer than a tiny comparison."""
    monkeypatch.setattr("prefopt.report.build", lambda folder: folder)


def files(root: Path) -> dict[str, int]:
    return {
        str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.name != ".lock"
    }


def tree(root: Path) -> dict[str, bytes]:
    """What one command must write twice alike: everything but times."""
    contents = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = path.relative_to(root).as_posix()
        data = path.read_bytes()
        if path.suffix == ".csv" and name.startswith("tables/"):
            frame = pd.read_csv(path)
            data = frame[[c for c in frame if not c.endswith(("_s", "_gib"))]].to_csv().encode()
        elif name == "manifest.json":
            facts = json.loads(data)
            data = json.dumps({k: v for k, v in facts.items() if k not in ("created", "command", "sha256")}).encode()
        elif path.suffix not in (".parquet", ".safetensors", ".json", ".csv") or name == "results.json":
            continue  # pages and pictures are made of the tables
        if path.name not in ("cost.json", "cost.csv", "checksums.json"):
            contents[name] = data
    return contents


def command(words: list[str]) -> list[str]:
    threads = torch.get_num_threads()
    start = f"import torch; torch.set_num_threads({threads}); from prefopt.cli import main; main()"
    return [sys.executable, "-c", start, *words]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)
