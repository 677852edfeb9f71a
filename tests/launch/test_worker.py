"""What a worker forks: it holds neither pipe nor lock, and ends with the worker even where nobody is left to end it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import wait_for

import prefopt

START = f"""
import os, sys, time
sys.path.append({str(Path(prefopt.__file__).parents[1])!r})
from prefopt.launch import worker
"""


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even where nobody has collected it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def run(text: str, *descriptors: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", START + text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=descriptors,
        start_new_session=True,
    )  # fmt: skip


@pytest.fixture
def forked() -> str:
    """Fork a process that says who it is and sleeps."""
    return """
if not os.fork():
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
"""


def test_what_a_worker_forked_ends_with_the_parent_of_both(forked: str) -> None:
    worker = run(forked + "worker._end_with_parent()")
    assert worker.stdin is not None
    assert worker.stdout is not None
    pid = int(worker.stdout.readline())
    worker.stdin.close()  # as the end of the parent closes it
    assert worker.wait(20) == -signal.SIGKILL
    wait_for(lambda: is_gone(pid), 5)
    worker.stdout.close()


def test_what_a_worker_forks_holds_neither_pipe_nor_lock(forked: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    letting_go = f"os.register_at_fork(after_in_child=lambda: worker._let_go({write}, {lock}))"
    worker = run(f"{letting_go}{forked}os._exit(7)", write, lock)
    assert worker.stdout is not None
    pid = int(worker.stdout.readline())
    assert worker.wait(20) == 7
    os.close(write)
    os.close(lock)
    assert os.read(read, 1) == b""  # its end, though the forked process sleeps
    again = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(pid, signal.SIGKILL)
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        pipe.close()
    for descriptor in (read, again):
        os.close(descriptor)
