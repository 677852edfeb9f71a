"""Trials in forked children: one process imports everything once, and each trial costs a fork.

A trial is a child that may itself fork victims, which are killed or fail, and then looks at what they left.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefopt.errors import MachineError, PrefoptError
from prefopt.storage import durable

SECONDS = 90.0  # of one victim; beyond it, it hangs


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit status, or minus the signal that killed it; what it returned or said."""

    status: int
    value: Any = None
    said: str = ""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_answer: list[int] = []  # where a branch of a process answers, if this process is one


def start(work: Callable[[], Any]) -> tuple[int, int]:
    """Fork a child that does ``work``; its process id and the end of a pipe on which its answer comes."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads; ours are idle
        pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    status, answer = 1, {}
    try:
        gc.freeze()  # what the parent holds is not looked through again, which would copy it
        os.close(read)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        torch.set_num_threads(1)
        answer = {"value": work()}
        status = 0
    except PrefoptError as problem:
        status, answer = problem.exit_code, {"said": str(problem)}
    except SystemExit as problem:
        status = problem.code if isinstance(problem.code, int) else int(problem.code is not None)
    except BaseException:
        answer = {"said": traceback.format_exc()}
    finally:
        with suppress(BaseException):
            data = json.dumps(answer).encode()
            while data:
                data = data[os.write(_answer[-1] if _answer else write, data) :]
        os._exit(status)


def finish(pid: int, read: int, seconds: float = SECONDS) -> Outcome:
    """Wait for a child, and kill it when its time is over."""
    parts, end = [], time.monotonic() + seconds
    while select.select([read], [], [], max(0.0, end - time.monotonic()))[0]:
        part = os.read(read, 1 << 16)
        if not part:
            break
        parts.append(part)
    else:
        os.kill(pid, signal.SIGKILL)
        parts = [json.dumps({"said": f"no end after {seconds:.0f} s"}).encode()]
    os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        answer = json.loads(b"".join(parts) or b"{}")
    except ValueError:
        answer = {}
    return Outcome(code, answer.get("value"), answer.get("said", ""))


def run(work: Callable[[], Any], seconds: float = SECONDS) -> Outcome:
    """Do ``work`` in a child and wait for it."""
    return finish(*start(work), seconds)


def trials(work: Callable[[Any], str | None], cases: Iterable[Any], seconds: float = 3 * SECONDS) -> list[str]:
    """Run a trial for every case, as many at once as there are cores; what went wrong, with the case, each a line.

    ``work`` returns what is wrong, or None.
    """
    waiting, going, wrong = list(cases)[::-1], {}, {}
    number = 0
    while waiting or going:
        while waiting and len(going) < cores():
            case = waiting.pop()
            pid, read = start(lambda case=case: work(case))
            going[read] = (pid, number, case)
            number += 1
        ready = select.select(list(going), [], [], seconds)[0]
        for read in ready or list(going):
            pid, place, case = going.pop(read)
            out = finish(pid, read, seconds if ready else 0)
            if out.status or out.value:
                wrong[place] = f"{case}: {out.value or out.said or out.status}"
    return [wrong[place] for place in sorted(wrong)]


class Counter:
    """A hook that records every durable operation."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Path]] = []

    def __call__(self, kind: str, path: Path) -> None:
        self.seen.append((kind, path))


class KillAt:
    """A hook that ends the process without a word before its operation ``number`` (from 0)."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, kind: str, path: Path) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


class FailAt:
    """A hook whose operation ``number`` fails as the system would let it fail: once, or from then on."""

    def __init__(self, number: int, errno: int, *, sticky: bool = False) -> None:
        self.left, self.errno, self.sticky = number, errno, sticky

    def __call__(self, kind: str, path: Path) -> None:
        self.left -= 1
        if self.left == -1 or (self.sticky and self.left < 0):
            raise OSError(self.errno, os.strerror(self.errno), str(path))


Tree = dict[str, bytes | None]


def tree(*roots: Path) -> Tree:
    """Every file (its bytes) and folder (None) below some folders."""
    found: Tree = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            found[str(path)] = None if path.is_dir() else path.read_bytes()
    return found


def restore(before: Tree, *roots: Path) -> None:
    """Make folders what they were; what did not change is not touched."""
    now = tree(*roots)
    for name in sorted(now.keys() - before.keys(), reverse=True):
        Path(name).rmdir() if now[name] is None else Path(name).unlink()
    for name, data in before.items():
        if name not in now and data is None:
            Path(name).mkdir(parents=True)
        elif data is not None and now.get(name) != data:
            Path(name).write_bytes(data)


def keep_locks(roots: Sequence[Path]) -> list[tuple[Path, Path]]:
    """A second name for every lock file: a copy that ends may remove the lock, which this process still holds."""
    held = []
    for number, lock in enumerate(path for root in roots for path in root.rglob(".lock")):
        spare = Path(f".lock-held-{number}")
        spare.unlink(missing_ok=True)
        spare.hardlink_to(lock)
        held.append((spare, lock))
    return held


def put_back(held: Sequence[tuple[Path, Path]]) -> None:
    """Give the lock files their names again."""
    for spare, lock in held:
        spare.replace(lock)
        spare.unlink(missing_ok=True)  # replacing a file by itself leaves both names


class Branches:
    """A hook that, before an operation, lets copies of the process run into faults and then undoes what they did.

    One run of the work thus meets every fault at every operation. The folders must be given by paths that stay.
    """

    def __init__(self, roots: Sequence[Path], faults: Callable[[int], dict[str, Callable[[str, Path], None]]]) -> None:
        self.roots, self.faults, self.number = roots, faults, 0
        self.met: list[tuple[str, Outcome, Tree, Tree]] = []  # fault, end, folders before and after

    def __call__(self, kind: str, path: Path) -> None:
        number, self.number = self.number, self.number + 1
        for label, fault in self.faults(number).items():
            before = tree(*self.roots)
            held = keep_locks(self.roots)
            read, write = os.pipe()
            pid = os.fork()
            if not pid:
                os.close(read)
                _answer.append(write)
                durable.hook = fault
                fault(kind, path)
                return
            os.close(write)
            out = finish(pid, read)
            self.met.append((f"{label} at operation {number}, {kind} {path}", out, before, tree(*self.roots)))
            restore(before, *self.roots)
            put_back(held)

    def during(self, work: Callable[[], Any]) -> None:
        """Do the work; a branch ends here, with the status of what it met."""
        durable.hook = self
        work()
        durable.hook = None
        if _answer:
            raise SystemExit(0)


def count(work: Callable[[], Any]) -> int:
    """How many durable operations ``work`` makes, counted in a child."""

    def counted() -> int:
        durable.hook = counter = Counter()
        work()
        return len(counter.seen)

    out = run(counted)
    if out.status:
        raise MachineError(out.said)
    return int(out.value)


def victim(work: Callable[[], Any], hook: Callable[[str, Path], None], seconds: float = SECONDS) -> Outcome:
    """Do ``work`` in a child with a fault in it."""

    def faulty() -> Any:
        durable.hook = hook
        return work()

    return run(faulty, seconds)


def kill_after(work: Callable[[], Any], seconds: float) -> None:
    """Start ``work`` in a child and kill it after some time, if it has not ended by then."""
    pid, read = start(work)
    if not select.select([read], [], [], seconds)[0]:
        os.kill(pid, signal.SIGKILL)
    finish(pid, read)


def seconds_of(work: Callable[[], Any]) -> float:
    """How long a child takes for ``work``."""
    began = time.monotonic()
    out = run(work)
    if out.status:
        raise MachineError(out.said)
    return time.monotonic() - began


def sampled(cases: Sequence[Any], most: int | None) -> list[Any]:
    """``most`` cases, evenly spread, the last among them; all of them for None."""
    if most is None or len(cases) <= most:
        return list(cases)
    return [cases[(i + 1) * len(cases) // most - 1] for i in range(most)]


MACHINE = MachineError.exit_code
