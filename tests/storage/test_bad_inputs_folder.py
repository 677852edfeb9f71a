"""What else lies in a results folder, and when it says it was made."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save

from prefopt.storage import folders, locks
from prefopt.storage.formats import write_json
from prefopt.storage.schema import LOCK
from prefopt.train.checkpoint import FACTS, STATE, Checkpoints


def test_k09_checkpoints_are_ordered_by_step_whatever_the_clock_says(tmp_path: Path) -> None:
    for number, step in enumerate((9, 10, 11)):
        facts = {"key": {"loss": "dpo"}, "step": step}
        files = {STATE: save({"adapter": torch.zeros(2)}), FACTS: json.dumps(facts).encode()}
        folders.write_folder(tmp_path / f"step-{step:06}", files)
        for path in (tmp_path / f"step-{step:06}").iterdir():
            os.utime(path, (2e9 - number * 1e8, 2e9 - number * 1e8))
        os.utime(tmp_path / f"step-{step:06}", (2e9 - number * 1e8, 2e9 - number * 1e8))
    assert Checkpoints(tmp_path, {"loss": "dpo"}).look() == [11, 10, 9]


def test_k08_leftovers_of_killed_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_json(ours / "manifest.json", {})
    for root in (ours, theirs):
        (root / "runs" / ".dpo.0123456789ab.tmp").mkdir(parents=True)
        (root / "runs" / ".dpo.0123456789ab.tmp" / "half").write_bytes(b"half")
        (root / ".scores.parquet.0123456789ab.tmp").write_bytes(b"half")
        with locks.hold(root):
            pass
    assert {path.name for path in ours.rglob("*")} - {LOCK} == {"manifest.json", "runs"}
    assert len(list(theirs.rglob("*.tmp*"))) == 2
    assert not (theirs / LOCK).exists()
