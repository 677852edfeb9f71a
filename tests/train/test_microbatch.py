"""SIGTERM and SIGINT: the step ends, what it did is kept, and the next call goes on from it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import arguments, command, run, tree, wait_for

from prefopt.runtime import interrupts
from prefopt.runtime.interrupts import Stopped
from prefopt.train.checkpoint import Checkpoints

SEVERAL = ("--losses", "dpo,bco", "--seeds", "0", "--quiet", "--set", "train.steps=6")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_is_kept(
    number: signal.Signals,
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments(tmp_path, tiny_folder("llama"), *SEVERAL)
    assert run(monkeypatch, [*words, "--name", "whole"]) == 0, capsys.readouterr().err

    from prefopt.train import failures

    original = failures.train_step

    def step(model: object, chunk: list[object], batch: object, config: object) -> None:
        original(model, chunk, batch, config)  # type: ignore[arg-type]
        if batch.step == 2 and chunk[0].slot == 0:  # type: ignore[attr-defined]
            os.kill(os.getpid(), number)  # in the middle of the group's third step

    with monkeypatch.context() as patch:
        patch.setattr(failures, "train_step", step)
        assert run(patch, words) == 128 + number
    shown = capsys.readouterr().err
    assert f"stopped by {number.name} after step 3 of 6; run the same command again to go on" in shown
    assert shown.count("\n") == 1
    root = tmp_path / "results" / "mine"
    assert len(list(root.glob("runs/*/seed-0/checkpoints/step-000003"))) == 2
    begun: list[int] = []
    restore = Checkpoints.restore
    monkeypatch.setattr(Checkpoints, "restore", lambda self, at, *rest: (begun.append(at), restore(self, at, *rest))[1])
    assert run(monkeypatch, words) == 0, capsys.readouterr().err
    assert begun == [3, 3]
    whole, again = tree(tmp_path / "results" / "whole"), tree(root)
    assert {k: v for k, v in again.items() if k != "manifest.json"} == {
        k: v for k, v in whole.items() if k != "manifest.json"
    }


def test_outside_a_step_a_signal_is_heard_at_once_and_a_second_interrupt_always() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts.listen():
        with pytest.raises(Stopped) as end:
            os.kill(os.getpid(), signal.SIGTERM)
        assert end.value.exit_code == 143
        with interrupts.deferred() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped), interrupts.deferred():
            os.kill(os.getpid(), signal.SIGTERM)  # nobody asked: heard on the way out
    assert signal.getsignal(signal.SIGINT) == before


def test_the_whole_command_stops_and_leaves_no_process(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    words = arguments(tmp_path, tiny_folder("llama"), *SEVERAL[:-1], "train.steps=5000")
    words += ["--set", "train.eval_every=5000", "--set", "train.checkpoint_every=1"]
    parent = subprocess.Popen(command(words), stderr=subprocess.PIPE, text=True)
    root = tmp_path / "results" / "mine"
    wait_for(lambda: bool(list(root.glob("runs/bco/seed-0/checkpoints/step-0*"))))
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    began = time.monotonic()
    parent.send_signal(signal.SIGTERM)
    _, shown = parent.communicate(timeout=60)
    assert parent.returncode == 143
    assert time.monotonic() - began < 10
    assert "stopped by SIGTERM after step" in shown
    assert "run the same command again" in shown
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    newest = [max(p.name for p in (root / f"runs/{v}/seed-0/checkpoints").iterdir()) for v in ("dpo", "bco")]
    assert newest[0] == newest[1]
