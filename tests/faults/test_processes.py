"""Four processes on one folder, and one that holds it is killed: each run is trained once, and nothing is corrupt."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import forks
import pytest
from rig import Rig
from test_comparison import FULL, PART

from prefopt.comparison import runner
from prefopt.errors import BusyError
from prefopt.runtime.progress import Silent
from prefopt.storage import durable

POLL = 0.005


def contend(rig: Rig, log: Path, *, wait: bool, stop_at: int = 0) -> Any:
    """The comparison, noting every run that is finished in a file that all processes share; stops itself at one."""

    def note(kind: str, path: Path) -> None:
        if kind == "rename" and path.name == "run.json":
            with log.open("ab", buffering=0) as file:
                file.write(f"{path.parent}\n".encode())
            if len(lines(log)) == stop_at:
                os.kill(os.getpid(), signal.SIGSTOP)

    durable.hook = note
    runner.compare(rig.config, results=Path("results"), command=["prefopt"], progress=Silent(), wait=wait)


def lines(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


@pytest.mark.parametrize("times", [pytest.param(1, marks=PART), pytest.param(4, marks=FULL)])
def test_four_processes_and_a_killed_holder(rig: Rig, place: Path, seed: int, times: int) -> None:
    runs = sorted(f"results/mine/runs/{name}/seed-{n}" for name in (*rig.names, "reference") for n in (0, 1))
    for number in range(times):
        root, log = place / str(number), place / f"log-{number}"
        wanted = random.Random(seed + number).randrange(1, 5)
        first = forks.start(rig.enter(root, lambda log=log, at=wanted: contend(rig, log, wait=True, stop_at=at)))
        end = time.monotonic() + 60
        while len(lines(log)) < wanted and time.monotonic() < end:  # the holder has finished some runs
            time.sleep(POLL)
        others = [forks.start(rig.enter(root, lambda log=log: contend(rig, log, wait=True))) for _ in range(3)]
        os.kill(first[0], signal.SIGKILL)
        assert forks.finish(*first).status == -9
        ends = [forks.finish(*child, 120) for child in others]
        assert [end.status for end in ends] == [0, 0, 0], [end.said for end in ends]
        # A run whose record was about to appear when its process was killed is noted twice, and no other.
        again = [run for run in runs if lines(log).count(run) > 1]
        assert sorted(set(lines(log))) == runs
        assert len(lines(log)) <= len(runs) + len(again), lines(log)
        assert len(again) <= 1, lines(log)
        assert rig.wrong(root) is None


def test_a_folder_in_use_is_left_alone(rig: Rig, place: Path) -> None:
    """Status 5 at once, for one who does not wait; the one who was there first is not disturbed."""
    root, log = place / "busy", place / "log"
    first = forks.start(rig.enter(root, lambda: contend(rig, log, wait=False)))
    end = time.monotonic() + 60
    while not lines(log) and time.monotonic() < end:
        time.sleep(POLL)
    os.kill(first[0], signal.SIGSTOP)
    before = forks.tree(root / "results")
    try:
        second = forks.run(rig.enter(root, lambda: contend(rig, log, wait=False)))
        assert second.status == BusyError.exit_code, second.said
        assert "is in use by process" in second.said
        assert forks.tree(root / "results") == before
    finally:
        os.kill(first[0], signal.SIGCONT)
    assert forks.finish(*first).status == 0
    assert rig.wrong(root) is None
