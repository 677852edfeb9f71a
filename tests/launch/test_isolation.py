"""One run's crash, hang, exception, or NaN costs no other run a bit."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import arguments, command, run, tree, wait_for
from misbehaving import plugin

from prefopt.cli.console import Console
from prefopt.config.schema import Config, Variant
from prefopt.launch.protocol import At
from prefopt.launch.supervisor import Supervisor
from prefopt.storage.results import ResultsFolder
from prefopt.train.checkpoint import Checkpoints

ACTS = {
    "segfault": "os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "time.sleep(600)",
    "raises": "raise ValueError('this is mine')",
    "memory": "raise MemoryError",
    "cuda_memory": "raise torch.OutOfMemoryError('Tried to allocate 9 GiB')",
    "nan": "return loss * torch.nan",
    "infinite": "return loss * torch.inf",
}
FAST = ("--set", "train.checkpoint_every=1", "--seeds", "0", "--quiet")


@pytest.fixture
def words(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Callable[..., list[str]]:
    losses_file = tmp_path / "go_wrong.py"
    losses_file.write_text(plugin(ACTS), encoding="utf-8")
    return lambda losses, *more: arguments(
        tmp_path, tiny_folder("llama"), "--losses", losses, "--plugin", str(losses_file), *FAST, *more
    )


def of(root: Path, *variants: str) -> dict[str, bytes]:
    """The bytes of some runs."""
    return {name: data for name, data in tree(root).items() if name.split("/")[1:2] and name.split("/")[1] in variants}


def test_what_one_run_raises_or_computes_costs_no_other_a_bit(
    words: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, words("dpo,simpo", "--name", "good")) == 0, capsys.readouterr().err
    bad = "raises,dpo,memory,nan,simpo,cuda_memory,infinite"
    assert run(monkeypatch, words(bad, "--name", "mixed")) == 4
    shown = capsys.readouterr().err
    good, mixed = (tmp_path / "results" / name for name in ("good", "mixed"))
    assert of(mixed, "dpo", "simpo", "reference") == of(good, "dpo", "simpo", "reference")
    assert "Traceback" not in shown
    runs = ResultsFolder(mixed).runs()
    assert runs["raises", 0].status == "failed"
    assert runs["raises", 0].reason.startswith("ValueError: this is mine (go_wrong.py:")
    assert "at step 2" in runs["raises", 0].reason
    assert runs["memory", 0].reason.startswith("MemoryError")
    assert "Tried to allocate 9 GiB" in runs["cuda_memory", 0].reason
    for name in ("nan", "infinite"):
        assert (runs[name, 0].status, runs[name, 0].diverged_at) == ("diverged", 2)
        assert runs[name, 0].reason.startswith("loss")
        assert "pairs " in runs[name, 0].reason
        assert f"{name} seed 0 diverged at step 2" in shown
    page = (mixed / "report.md").read_text(encoding="utf-8")
    assert "diverged at step 2" in page
    assert "INCOMPLETE" in page

    # A failed run is tried again, from its checkpoint; a diverged one is not.
    began: list[tuple[str, int]] = []
    original = Checkpoints.restore

    def restore(self: Checkpoints, step: int, one: object, *rest: object) -> None:
        original(self, step, one, *rest)  # type: ignore[arg-type]
        began.append((one.variant, step))  # type: ignore[attr-defined]

    monkeypatch.setattr(Checkpoints, "restore", restore)
    assert run(monkeypatch, words(bad, "--name", "mixed")) == 4
    assert began == [("raises", 1), ("memory", 1), ("cuda_memory", 1)]


def test_a_dying_process_costs_one_run(
    words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = "segfault"
    done = subprocess.run(command(words(f"dpo,{bad}", "--name", "mixed")), capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "segfault seed 0 failed: the working process died of SIGSEGV at step 1" in done.stderr
    assert run(monkeypatch, words("dpo", "--name", "good")) == 0
    good, mixed = (tmp_path / "results" / name for name in ("good", "mixed"))
    assert of(mixed, "dpo", "reference") == of(good, "dpo", "reference")
    assert ResultsFolder(mixed).runs()[bad, 0].status == "failed"


def test_two_deaths_part_a_group_and_a_third_alone_is_a_failure(tmp_path: Path) -> None:
    config = Config(name="mine", variants=(Variant(loss="dpo"), Variant(loss="ipo")))
    supervisor = Supervisor(config, tmp_path, [], [], Console("quiet"), 0)
    outcomes = []
    for names, step in ((["dpo", "ipo"], 3), (["dpo", "ipo"], 4), (["dpo"], 4), (["ipo"], 9)):
        supervisor.at = At(1, names, step)
        supervisor._after("ended with status 7")
        outcomes.append((set(supervisor.alone), set(supervisor.skip)))
    both = {("dpo", 1), ("ipo", 1)}
    assert outcomes == [(set(), set()), ({1}, set()), ({1}, {("dpo", 1)}), ({1}, both)]
    run = ResultsFolder(tmp_path / "mine").runs()["ipo", 1]
    assert (run.status, run.reason) == ("failed", "the working process ended with status 7 at step 9")
    assert ResultsFolder(tmp_path / "mine").complete("ipo", 1) is None  # the next invocation tries it again


def test_a_hung_process_is_ended_and_shows_where_it_hung(words: Callable[..., list[str]], tmp_path: Path) -> None:
    done = subprocess.run(
        command(words("hangs", "--hang-after", "15")), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 4, done.stderr
    assert "hangs seed 0 failed: the working process gave no sign of life for 15 s" in done.stderr
    assert "go_wrong.py" in done.stderr  # the stack of where it hung
    assert ResultsFolder(tmp_path / "results" / "mine").runs()["hangs", 0].status == "failed"


def test_the_worker_ends_with_its_parent_and_the_folder_is_free_at_once(
    words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = subprocess.Popen(command(words("dpo,hangs")), stderr=subprocess.PIPE)
    root = tmp_path / "results" / "mine"
    wait_for(lambda: bool(list(root.glob("runs/dpo/seed-0/checkpoints/step-000001"))))
    assert run(monkeypatch, words("dpo")) == 5
    shown = capsys.readouterr().err
    assert f"in use by process {parent.pid} since" in shown
    assert "--wait" in shown
    parent.kill()
    parent.wait()
    began = time.monotonic()
    assert run(monkeypatch, [*words("dpo"), "--wait"]) == 0, capsys.readouterr().err
    assert time.monotonic() - began < 30
    assert json.loads((root / "runs/dpo/seed-0/run.json").read_text())["status"] == "complete"
    assert -parent.returncode == signal.Signals.SIGKILL
    if parent.stderr is not None:
        parent.stderr.close()
