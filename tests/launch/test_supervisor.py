"""What a supervisor makes of workers that fork, print, close their pipe, end oddly, or are asked to end too early.

The workers are a few lines each that speak the protocol, without torch, so that a trial takes a tenth of a second.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from command import wait_for

from prefopt.config.schema import Config, Variant
from prefopt.errors import MachineError
from prefopt.launch import process, supervisor
from prefopt.launch.protocol import At
from prefopt.launch.supervisor import Supervisor, innermost
from prefopt.runtime.interrupts import Stopped
from prefopt.runtime.progress import Silent

BEGIN = """
import json, os, signal, sys, time
request = json.loads(sys.stdin.readline())
def send(kind, **values):
    os.write(request["events"], (json.dumps({"kind": kind, **values}) + "\\n").encode())
send("at", seed=1, variants=["dpo"], step=3)
"""
DONE = 'send("end", how="done", code=0, text="")\n'


class Heard(Silent):
    """Remembers lines that stay."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


Make = Callable[..., Supervisor]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A supervisor of workers that do what a text says."""

    def one(text: str, **settings: float) -> Supervisor:
        monkeypatch.setattr(process, "_START", BEGIN + text)
        config = Config(name="mine", variants=(Variant(loss="dpo"),))
        descriptor = os.open(tmp_path, os.O_RDONLY)
        return Supervisor(config, tmp_path, [], [], Heard(), descriptor, **settings)

    return one


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even where nobody has collected it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("end", ["os._exit(7)", DONE])
def test_what_a_worker_forks_ends_with_it(make: Make, tmp_path: Path, end: str) -> None:
    """The forked process holds pipe, output and lock, and writes without an end."""
    forked = tmp_path / "forked"
    text = f"""
if not os.fork():
    open({str(forked)!r}, "w").write(str(os.getpid()))
    for number in range(10**6):
        print(number, flush=True)
        time.sleep(0.001)
while not os.path.exists({str(forked)!r}):
    time.sleep(0.01)
{end}
"""
    one, began = make(text), time.monotonic()
    death = one._one_worker()
    assert time.monotonic() - began < 5
    assert death == ("ended with status 7" if "7" in end else "ended with status 0")
    wait_for(lambda: is_gone(int(forked.read_text())), 5)


def test_a_worker_that_closes_its_pipe_is_not_waited_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LEAVE_S", 0.2)
    began = time.monotonic()
    assert make("os.close(request['events']); time.sleep(60)")._one_worker() == "closed its pipe and did not end"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_while_the_worker_is_made_is_handed_on(make: Make, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    number = signal.Signals[name]

    class Interrupted(process.WorkerProcess):
        def __init__(self, *rest: object) -> None:
            super().__init__(*rest)  # type: ignore[arg-type]
            os.kill(os.getpid(), number)
            time.sleep(0.05)  # in which Python calls the handler

    monkeypatch.setattr(supervisor, "WorkerProcess", Interrupted)
    began = time.monotonic()
    with pytest.raises(Stopped) as caught:
        make("time.sleep(60)").run()
    assert caught.value.exit_code == 128 + number
    assert time.monotonic() - began < 10


def test_a_signal_is_handed_on_and_the_worker_says_how_it_ended(make: Make) -> None:
    text = """
def stop(number, frame):
    send("end", how="stopped", code=int(number), text="stopped after step 4")
    sys.exit(0)
signal.signal(signal.SIGHUP, stop)
send("at", seed=1, variants=["dpo"], step=4)
time.sleep(60)
"""

    class Hangup(Heard):
        def at(self, seed: int, variants: object, step: int) -> None:
            if step == 4:
                os.kill(os.getpid(), signal.SIGHUP)

    one = make(text)
    one.progress = Hangup()
    with pytest.raises(Stopped, match="stopped after step 4") as caught:
        one.run()
    assert caught.value.exit_code == 129


def test_what_a_worker_prints_is_told_line_by_line(make: Make) -> None:
    text = """
print("one")
sys.stderr.write("two\\n")
os.write(1, b"\\xff three\\nfour without an end")
os.write(request["events"], b"not a message\\n{}\\n[1]\\n")
os.write(2, b"x" * 200_000 + b"\\n")
sys.stdout.flush()
"""
    one = make(text + DONE)
    one.run()
    assert isinstance(one.progress, Heard)
    told = [line.removeprefix("worker: ") for line in one.progress.lines]
    assert {"one", "two", "\ufffd three"} <= set(told)
    assert max(map(len, told)) <= process.LONGEST_LINE
    assert sum(line.count("x") for line in told) >= 100_000


def test_an_early_death_is_told_with_what_was_printed_last(make: Make) -> None:
    one = make("")
    one.progress = Silent()  # as with --quiet
    process._START = "import sys; print('no room', file=sys.stderr); sys.exit(3)"
    with pytest.raises(MachineError, match=r"ended with status 3 twice(.|\n)*no room"):
        one.run()


def test_a_supervisor_that_was_stopped_itself_does_not_take_its_worker_for_hung(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-Z, SIGSTOP or a closed lid leave it: the clock has gone on, and nobody has looked."""

    class Clock:
        sleep = staticmethod(time.sleep)
        calls = count()

        def monotonic(self) -> float:
            return time.monotonic() + (1000 if next(self.calls) > 3 else 0)

    monkeypatch.setattr(supervisor, "time", Clock())
    monkeypatch.setattr(supervisor, "POLL_S", 0.05)
    assert make("time.sleep(0.5)\n", hang_after=100.0)._one_worker() == "ended with status 0"


DUMP = """Fatal Python error: Segmentation fault

Thread 0x00007f0000000000 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait

Current thread 0x00007f1111111111 (most recent call first):
  File "/venv/lib/python3.11/site-packages/torch/nn/functional.py", line 9 in relu
  File "/home/me/mine.py", line 31 in act
  File "/home/me/mine.py", line 12 in __call__

Extension modules: numpy, torch
  File "/home/me/other.py", line 1 in nothing
""".splitlines()


def test_the_innermost_line_of_a_users_file_is_named() -> None:
    assert innermost(DUMP) == " in mine.py:31"
    assert innermost(DUMP[:7]) == " in functional.py:9"
    assert innermost(["a line", '  File "x.py", line 3 in f']) == ""


def test_a_death_says_where_it_was(make: Make) -> None:
    one = make("")
    one.at, one.printed = At(1, ["dpo"], 3), DUMP
    one._after("died of SIGSEGV")
    assert isinstance(one.progress, Heard)
    assert one.progress.lines == [
        "seed 1: the working process died of SIGSEGV at step 3 in mine.py:31; going on from the checkpoints"
    ]
