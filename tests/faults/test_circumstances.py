"""What happens meanwhile: folders removed, caches shared or sealed, descriptors spent, clocks moved."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import forks
import pytest
from rig import Rig, contents, difference
from test_comparison import FULL, PART, again

from prefopt.comparison import runner
from prefopt.contract.registry import register
from prefopt.losses import DPO
from prefopt.runtime.progress import Silent
from prefopt.storage import durable

GONE = "was removed, moved or replaced while this command used it"


def at_operation(number: int, act: Callable[[], Any]) -> Callable[[str, Path], None]:
    """A hook that does something once, before an operation on the disk."""
    numbers = itertools.count()

    def hook(kind: str, path: Path) -> None:
        if next(numbers) == number:
            act()

    return hook


@pytest.mark.parametrize("times", [pytest.param(6, marks=PART), pytest.param(30, marks=FULL)])
def test_the_folder_is_removed_meanwhile(rig: Rig, place: Path, seed: int, times: int) -> None:
    """It says so, leaves nothing behind, and the same command begins anew."""
    operations = forks.count(rig.enter(place / "count"))

    def trial(part: int) -> str | None:
        root = place / str(part)
        number = random.Random(seed + part).randrange(8, operations)
        remove = lambda: shutil.rmtree("results/mine", ignore_errors=True)  # noqa: E731
        out = forks.victim(rig.enter(root), at_operation(number, remove))
        if out.status != forks.MACHINE or GONE not in out.said:
            return f"at operation {number} of {operations}: {out.status} {out.said[-1500:]}"
        if (root / "results" / "mine").exists():
            return f"at operation {number}: {sorted(forks.tree(root / 'results'))}"
        return again(rig, root)

    wrong = forks.trials(trial, range(times))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("times", [pytest.param(4, marks=PART), pytest.param(20, marks=FULL)])
def test_beginnings_without_a_manifest_are_gone_on_with(rig: Rig, place: Path, seed: int, times: int) -> None:
    """As ``rm -r`` leaves them that a write has overtaken; finished runs without a manifest are refused by that."""
    operations = forks.count(rig.enter(place / "count"))

    def trial(part: int) -> str | None:
        root = place / str(part)
        forks.victim(
            rig.enter(root), forks.KillAt(random.Random(seed + part).randrange(operations // 8, operations - 9))
        )
        folder = root / "results" / "mine"
        (folder / "manifest.json").unlink(missing_ok=True)
        if not list(folder.glob("runs/*/*/run.json")):
            return again(rig, root)
        out = forks.run(rig.enter(root))
        right = out.status == 2 and "has lost its manifest.json, and holds finished runs such as" in out.said
        return None if right else f"{out.status} {out.said[-1500:]}"

    wrong = forks.trials(trial, range(times))
    assert not wrong, "\n".join(wrong)


def test_a_group_of_their_own_changes_no_byte(rig: Rig, place: Path) -> None:
    """Foreign losses train after all others are written; every run is as it is in one group, and without them."""

    @register("foreign")
    @dataclass(frozen=True)
    class Foreign(DPO):
        """DPO, from elsewhere."""

    names = ["dpo", "foreign", "ipo"]

    def work(isolate: bool, variants: list[str]) -> list[str]:
        order: list[str] = []
        durable.hook = lambda kind, path: order.append(path.parts[-3]) if path.name == "run.json" else None
        config = rig.configured(variants=[{"loss": name} for name in variants], seeds=[0])
        runner.compare(config, results=Path("results"), progress=Silent(), isolate=isolate)
        return list(dict.fromkeys(order))

    cases = {"together": (False, names), "apart": (True, names), "without": (True, ["dpo", "ipo"])}
    orders = {}
    for name, case in cases.items():
        out = forks.run(rig.enter(place / name, lambda case=case: work(*case)))
        assert out.status == 0, out.said
        orders[name] = out.value
    assert orders["together"] == ["dpo", "foreign", "ipo", "reference"]
    assert orders["apart"] == ["dpo", "ipo", "foreign", "reference"]
    runs = {name: contents(place / name / "results" / "mine" / "runs") for name in cases}
    assert runs["apart"] == runs["together"]
    assert runs["without"] == {path: sha for path, sha in runs["apart"].items() if not path.startswith("foreign/")}


def test_two_comparisons_fill_one_cold_cache(rig: Rig, place: Path) -> None:
    """At once, each in a folder of its own; both are as if they had been alone."""

    def shared() -> None:
        Path("cache").symlink_to(place / "cache", target_is_directory=True)
        rig.compare()

    for _ in range(3):
        (place / "cache").mkdir()
        children = [forks.start(rig.enter(place / str(number), shared, cold=True)) for number in range(3)]
        ends = [forks.finish(*child) for child in children]
        assert [end.status for end in ends] == [0, 0, 0], [end.said for end in ends]
        assert (
            forks.run(rig.enter(place / "alone", shared, cold=True)).status == 0
        )  # what they have left there is right
        alone = contents(place / "alone" / "results")
        assert [difference(alone, contents(place / str(number) / "results")) for number in range(3)] == [None] * 3
        for path in list(place.iterdir()):
            shutil.rmtree(path)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written(rig: Rig, place: Path, code: int) -> None:
    """One line that names it, before anything is trained. Root is above rights, so errors are raised."""
    real = os.open

    def sealed(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        inside = "cache" in Path(os.fsdecode(path)).parts or rig.warm in Path(os.fsdecode(path)).parents
        if inside and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, flags, *rest, **more)

    def work() -> None:
        with mock.patch.object(os, "open", sealed):
            rig.compare()

    for name in ("warm", "cold"):
        out = forks.run(rig.enter(place / name, work, cold=name == "cold"))
        assert out.status == forks.MACHINE, out.said
        assert "cache" in out.said
        assert "Traceback" not in out.said
        assert name == "cold" or again(rig, place / name) is None


@pytest.mark.parametrize("spare", [0, 1, 2, 3, 5, 8, 40])
def test_few_descriptors(rig: Rig, place: Path, spare: int) -> None:
    """Enough of them, or one line; never a result that is wrong, and the same command goes on."""

    def work() -> None:
        used = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - also while none is left
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, used + spare))
        rig.compare()

    root = place / str(spare)
    out = forks.run(rig.enter(root, work))
    assert "Traceback" not in out.said, out.said
    assert out.status in (0, forks.MACHINE), out.said
    assert out.status == 0 or spare < 40
    assert again(rig, root) is None


def test_a_clock_that_goes_backwards(rig: Rig, place: Path) -> None:
    """Between two invocations and within one; files from the future are as good as others."""
    now = itertools.count(2_000_000_000, -3600)

    def work() -> None:
        with mock.patch.object(time, "time", side_effect=map(float, now)):
            rig.compare()

    root = place / "clock"
    forks.victim(rig.enter(root, work), forks.KillAt(150))
    for path in (root / "results").rglob("*"):
        os.utime(path, (4_000_000_000 - len(str(path)), 4_000_000_000 - len(str(path))))
    assert forks.run(rig.enter(root, work)).status == 0
    assert rig.wrong(root) is None


def test_a_holder_that_is_stopped_goes_on_where_it_was(rig: Rig, place: Path) -> None:
    """Meanwhile a second process waits, and takes what the first has finished."""
    root = place / "stopped"

    def stops() -> None:
        durable.hook = at_operation(100, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        rig.compare()

    first = forks.start(rig.enter(root, stops))
    os.waitpid(first[0], os.WUNTRACED)
    busy = forks.run(rig.enter(root))
    assert busy.status == 5, busy.said
    os.kill(first[0], signal.SIGCONT)
    assert forks.finish(*first).status == 0
    assert again(rig, root) is None
