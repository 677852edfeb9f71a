"""Kill, full disk, power failure: the same command again ends in what it would have ended in without them."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forks
import pytest
from powerloss import Disk, State
from rig import Rig

from prefopt.storage import durable

FULL, PART = pytest.mark.faults, pytest.mark.part
LOCK = Path("results/mine/.lock")
ERRNOS = (errno.ENOSPC, errno.EIO, errno.EACCES)
KILL = "kill -9"


def again(rig: Rig, place: Path, *, cold: bool = False) -> str | None:
    """What is wrong after the same command has been run again."""
    out = forks.run(rig.enter(place, cold=cold))
    if out.status:
        return f"the next invocation ended with {out.status}: {out.said[-1500:]}"
    return rig.wrong(place)


def killed(rig: Rig, place: Path, hook: forks.KillAt, *, cold: bool = False) -> str | None:
    out = forks.victim(rig.enter(place, cold=cold), hook)
    if out.status != -9:
        return f"ended with {out.status}: {out.said[-1500:]}"
    found = again(rig, place, cold=cold)
    shutil.rmtree(place)
    return found


@pytest.mark.parametrize(
    ("cold", "most"),
    [
        pytest.param(False, 8, marks=PART),
        pytest.param(True, 3, marks=PART),
        pytest.param(False, 40, marks=FULL),
        pytest.param(True, 40, marks=FULL),
    ],
)
def test_killed_at_some_operations(rig: Rig, place: Path, cold: bool, most: int) -> None:
    """Each in a process of its own; at every operation, see below."""
    operations = forks.count(rig.enter(place / "count", cold=cold))
    assert operations > 200
    numbers = forks.sampled(range(operations), most)
    wrong = forks.trials(lambda n: killed(rig, place / f"{n}", forks.KillAt(n), cold=cold), numbers)
    assert not wrong, f"{len(wrong)} of {len(numbers)}:\n" + "\n".join(wrong[:10])


@pytest.mark.parametrize("times", [pytest.param(4, marks=PART), pytest.param(200, marks=FULL)])
def test_killed_at_random_instants(rig: Rig, place: Path, seed: int, times: int) -> None:
    seconds = forks.seconds_of(rig.enter(place / "timed"))

    def trial(number: int) -> str | None:
        root = place / str(number)
        after = random.Random(seed + number).uniform(0, seconds)
        forks.kill_after(rig.enter(root), after)
        found = again(rig, root)
        shutil.rmtree(root)
        return found and f"after {after:.3f} s: {found}"

    wrong = forks.trials(trial, range(times))
    assert not wrong, f"{len(wrong)} of {times}:\n" + "\n".join(wrong[:10])


@FULL
def test_killed_again_while_it_recovers(rig: Rig, place: Path, seed: int) -> None:
    operations = forks.count(rig.enter(place / "count"))

    def trial(number: int) -> str | None:
        draw, root = random.Random(seed + number), place / str(number)
        kills = [draw.randrange(operations)]
        forks.victim(rig.enter(root), forks.KillAt(kills[0]))
        for _ in range(draw.choice((1, 1, 2))):
            kills.append(draw.randrange(max(1, min(operations - sum(kills), 120))))
            forks.victim(rig.enter(root), forks.KillAt(kills[-1]))
        found = again(rig, root)
        shutil.rmtree(root)
        return found and f"killed at operations {kills} of successive invocations: {found}"

    wrong = forks.trials(trial, range(60))
    assert not wrong, f"{len(wrong)} of 60:\n" + "\n".join(wrong[:10])


@dataclass
class Finished:
    """What was finished before a fault and must not be lost by it: whole runs, and how far each other one was."""

    steps: dict[str, int] = field(default_factory=dict)
    files: forks.Tree = field(default_factory=dict)

    def see(self, found: forks.Tree) -> None:
        """Note a state in which no write was under way, or what of it can be read."""
        runs = {name.removesuffix("run.json") for name in found if name.endswith("/run.json")}
        self.files = {
            name: data
            for name, data in found.items()
            if "checkpoints" not in name and ".tmp" not in name and any(name.startswith(run) for run in runs)
        }
        for run, step in checkpoints(found).items():
            self.steps[run] = max(step, self.steps.get(run, 0))

    def lost(self, after: forks.Tree) -> str | None:
        """What is missing from a later state."""
        for name, data in self.files.items():
            if after.get(name) != data:
                return f"{name} was finished and is lost"
        there = checkpoints(after)
        for run, step in self.steps.items():
            if f"{run}run.json" not in after and there.get(run, 0) < step:
                return f"{run} was at step {step}, and its newest checkpoint is of step {there.get(run, 0)}"
        return None


def checkpoints(found: forks.Tree) -> dict[str, int]:
    """The newest checkpoint of each run that has any."""
    steps: dict[str, int] = {}
    for name in found:
        run, _, rest = name.partition("checkpoints/step-")
        if rest.endswith("/MANIFEST.json") and ".tmp" not in name:
            steps[run] = max(steps.get(run, 0), int(rest.split("/")[0]))
    return steps


def faults(number: int) -> dict[str, Callable[[str, Path], None]]:
    """A kill, three errors once, and one of them for good at every fifth operation."""
    found: dict[str, Any] = {errno.errorcode[code]: forks.FailAt(0, code) for code in ERRNOS}
    found[KILL] = forks.KillAt(0)
    if number % 5 == 0:
        code = ERRNOS[number // 5 % 3]
        found[f"{errno.errorcode[code]} from then on"] = forks.FailAt(0, code, sticky=True)
    return found


def faulty(rig: Rig, place: Path, mine: Callable[[int], bool]) -> str | None:
    """Meet every fault at some operations, then run again from every state that this has left."""

    def these(number: int) -> dict[str, Callable[[str, Path], None]]:
        return faults(number) if mine(number) and LOCK.exists() else {}

    branches = forks.Branches((Path("results"),), these)
    rig.enter(place, lambda: branches.during(rig.compare))()
    states: dict[str, tuple[str, forks.Tree]] = {}
    finished = Finished()
    for label, out, before, after in branches.met:
        finished.see(before)
        if out.status == 0:
            restore_into(place, after)
            found = rig.wrong(place) and f"exit status 0 with {rig.wrong(place)}"
        elif out.status != (-9 if label.startswith(KILL) else forks.MACHINE):
            found = f"exit status {out.status}: {out.said[-1500:]}"
        else:
            found = finished.lost(after)
        if found:
            return f"{label}: {found}"
        states.setdefault(State("", (after,)).digest(), (label, after))
    for label, state in states.values():
        restore_into(place, state)
        if found := again(rig, place):
            return f"{label}: {found}"
    return None


def test_faults_before_the_lock(rig: Rig, place: Path) -> None:
    """A lock must not be made in one process and taken in another, so these have processes of their own."""

    def before_lock() -> list[str]:
        seen: list[str] = []
        durable.hook = lambda kind, path: None if LOCK.exists() else seen.append(kind)
        rig.compare()
        return seen

    kinds = forks.run(rig.enter(place / "count", before_lock)).value
    assert 1 <= len(kinds) < 20

    def trial(number: int) -> str | None:
        if found := killed(rig, place / f"{number}-killed", forks.KillAt(number)):
            return found
        for code in ERRNOS:
            root = place / f"{number}-{code}"
            out = forks.victim(rig.enter(root), forks.FailAt(number, code))
            if out.status != forks.MACHINE and (out.status or rig.wrong(root)):
                return f"{errno.errorcode[code]}: exit status {out.status}: {out.said or rig.wrong(root)}"
            if found := again(rig, root):
                return f"{errno.errorcode[code]}: {found}"
        return None

    wrong = forks.trials(trial, range(len(kinds)))
    assert not wrong, "\n".join(wrong)


def restore_into(place: Path, state: forks.Tree) -> None:
    forks.restore({str(place / name): data for name, data in state.items()}, place / "results")


@pytest.mark.parametrize("share", [pytest.param(60, marks=PART), pytest.param(1, marks=FULL)])
def test_every_fault_at_every_operation(rig: Rig, place: Path, share: int) -> None:
    parts = 2 if share > 1 else 8

    def trial(part: int) -> str | None:
        block = 7 if share > 1 else 1
        return faulty(rig, place / str(part), lambda number: number // block % (share if share > 1 else parts) == part)

    wrong = forks.trials(trial, range(parts), seconds=600)
    assert not wrong, "\n".join(wrong)


def recorded(rig: Rig, seed: int) -> tuple[list[tuple[State, str | None]], int]:
    """Every state that a power failure can leave, with what has been lost in it, and how many there were."""
    roots = (Path("results").resolve(), Path("cache").resolve())
    for root in roots:
        root.mkdir(exist_ok=True)
    disk = Disk(roots)
    known: dict[str, tuple[State, str | None]] = {}
    finished, total = Finished(), [0]

    def note(kind: str, path: Path) -> None:
        if kind in ("make", "write") and path.name.endswith(".tmp"):
            finished.see(next(disk.states(seed)).trees[0])  # what was there when the last call had returned
        for state in disk.states(seed):
            total[0] += 1
            digest = state.digest(lambda path: ".tmp" not in path)
            if digest not in known:
                known[digest] = (state, finished.lost(state.trees[0]))

    durable.hook = note
    disk.watch()
    rig.compare()
    note("end", roots[0])
    durable.hook = None
    return list(known.values()), total[0]


@pytest.mark.parametrize("most", [pytest.param(6, marks=PART), pytest.param(None, marks=FULL)])
def test_the_power_fails(rig: Rig, place: Path, seed: int, most: int | None) -> None:
    """From an empty folder and an empty cache; every state that is unlike the others is recovered from."""

    def recover(at: tuple[int, State]) -> str | None:
        root = place / f"state-{at[0]}"
        at[1].write(root / "results", root / "cache")
        found = again(rig, root, cold=True)
        shutil.rmtree(root)
        return found

    def work() -> list[Any]:
        states, total = recorded(rig, seed)
        wrong = [f"{state.label}: {missing}" for state, missing in states if missing]
        some = forks.sampled(list(enumerate(state for state, _ in states)), most)
        return [wrong + forks.trials(recover, some), len(states), total]

    out = forks.run(rig.enter(place / "power", work, cold=True), seconds=900)
    assert out.status == 0, out.said
    wrong, distinct, total = out.value
    print(f"{total} states, {distinct} of them different but for temporary files")
    assert distinct > 50
    assert not wrong, f"{len(wrong)} of {distinct}:\n" + "\n".join(wrong[:10])
