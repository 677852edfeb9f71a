"""The command with its supervisor and worker: a reader that goes, a terminal that closes, a folder that is removed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command import arguments, command, tree, wait_for
from misbehaving import plugin

pytestmark = [pytest.mark.faults, pytest.mark.slow]

ACTS = {"slow": "time.sleep(0.5)", "chatty": "print('to nobody'); os.write(1, b'raw\\n'); os.write(2, b'half')"}
FAST = ("--seeds", "0", "--set", "train.checkpoint_every=1", "--set", "train.steps=8", "--set", "train.eval_every=8")
Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Words:
    root = tmp_path_factory.mktemp("processes")
    losses = root / "go_wrong.py"
    losses.write_text(plugin(ACTS), encoding="utf-8")
    common = ("--plugin", str(losses), *FAST)
    return lambda names, name, *more: command(
        arguments(root, tiny_folder("llama"), "--losses", names, *common, "--name", name, *more)
    )


@pytest.fixture(scope="module")
def undisturbed(words: Words, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a comparison leaves that nothing disturbs."""
    done = subprocess.run(words("dpo,slow", "good", "--quiet"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return runs(results(words, "good"))


def results(words: Words, name: str) -> Path:
    line = words("dpo", name)
    return Path(line[line.index("--results") + 1]) / name


def runs(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(root).items() if name.startswith("runs/")}


def test_a_reader_that_goes_ends_the_display_alone(words: Words, undisturbed: dict[str, bytes]) -> None:
    going = subprocess.Popen(words("dpo,slow", "unread", "--json"), stderr=subprocess.PIPE, text=True)
    assert going.stderr is not None
    assert json.loads(going.stderr.readline())["stage"] == "starting"
    going.stderr.close()
    assert going.wait(120) == 0
    assert runs(results(words, "unread")) == undisturbed


def test_a_terminal_that_closes_leaves_a_checkpoint(words: Words, undisturbed: dict[str, bytes]) -> None:
    root = results(words, "hangup")
    going = subprocess.Popen(words("dpo,slow", "hangup", "--quiet"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: bool(list(root.glob("runs/slow/seed-0/checkpoints/step-000003"))))
    going.send_signal(signal.SIGHUP)
    _, said = going.communicate(timeout=60)
    assert going.returncode == 129, said
    assert "stopped by SIGHUP after step" in said
    assert list(root.glob("runs/slow/seed-0/checkpoints/step-*"))
    assert subprocess.run(words("dpo,slow", "hangup", "--quiet"), check=False).returncode == 0
    assert runs(root) == undisturbed


def test_a_folder_that_is_removed_ends_it_with_that_reason(words: Words, undisturbed: dict[str, bytes]) -> None:
    root = results(words, "removed")
    going = subprocess.Popen(words("dpo,slow", "removed", "--quiet"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: bool(list(root.glob("runs/slow/seed-0/checkpoints/step-000003"))))
    root.rename(root.with_name("elsewhere"))
    _, said = going.communicate(timeout=60)
    assert going.returncode == 6, said
    assert f"{root} was removed, moved or replaced while this command used it" in said
    assert said.count("\n") == 1
    assert not root.exists()
    shutil.rmtree(root.with_name("elsewhere"))


def test_what_a_loss_prints_leaves_every_line_json(words: Words) -> None:
    done = subprocess.run(words("chatty", "chatty", "--json"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    told = [line["message"] for line in lines if "message" in line]
    assert {"worker: to nobody", "worker: raw"} <= set(told)
    assert any("half" in line for line in told)
