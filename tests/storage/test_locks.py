"""One writer for a results folder: who comes second waits or is told, and nobody trains a run twice."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import arguments, command, run

from prefopt.errors import BusyError, MachineError
from prefopt.storage import locks
from prefopt.storage.results import ResultsFolder


def test_the_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    root = tmp_path / "results" / "mine"
    with locks.hold(root), pytest.raises(BusyError, match=f"in use by process {os.getpid()} since") as problem:  # noqa: SIM117
        with locks.hold(root):
            pass
    assert problem.value.exit_code == 5
    assert not (tmp_path / "results").exists()  # nothing was written, so nothing is left
    with locks.hold(root):
        (root / "manifest.json").touch()
        (root / ".manifest.json.0123456789ab.tmp").touch()
    with locks.hold(root):
        assert sorted(path.name for path in root.iterdir()) == [".lock", "manifest.json"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EROFS])
def test_a_disk_that_cannot_lock_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(MachineError, match=r"cannot lock .*mine.*give --results on a disk that can lock"),
        locks.hold(tmp_path / "mine"),
    ):
        pass


def test_a_disk_without_room_is_refused_before_any_training(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    words = arguments(tmp_path, tiny_folder("llama"), "--losses", "noop", "--seeds", "0", "--quiet")
    assert run(monkeypatch, words) == 6
    shown = capsys.readouterr().err
    assert "needs 0.00 GB for checkpoints and results, and 0.00 GB are free" in shown
    assert not (tmp_path / "results").exists()


def test_four_processes_train_each_run_once(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    words = arguments(tmp_path, tiny_folder("llama"), "--losses", "dpo,noop", "--seeds", "0", "--wait")
    four = [
        subprocess.Popen(command([*words, "--in-process"]), stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for _ in range(4)
    ]
    shown = [process.communicate(timeout=500)[1] for process in four]
    assert [process.returncode for process in four] == [0, 0, 0, 0], shown
    assert sum("nothing to train" in text for text in shown) == 3
    assert sum("training 2 variants" in text for text in shown) == 1
    folder = ResultsFolder(tmp_path / "results" / "mine")
    assert all(folder.complete(name, 0) for name in ("dpo", "noop", "reference"))
