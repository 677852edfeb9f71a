"""A results folder that is removed, moved or made anew while it is used: said as that, and nothing is written there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.errors import MachineError, UsageError
from prefopt.storage import durable, locks
from prefopt.storage.schema import LOCK

GONE = r"was removed, moved or replaced while this command used it; .* run the same command again"


def remove(root: Path) -> None:
    shutil.rmtree(root)


def move(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))


def replace(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()
    (root / LOCK).touch()


def remove_half(root: Path) -> None:
    """As ``rm -r`` leaves it that was overtaken by a write."""
    (root / LOCK).unlink()


def held(root: Path, work: Callable[[], object]) -> None:
    with locks.hold(root):
        work()


def refuse(problem: Exception) -> None:
    raise problem


@pytest.mark.parametrize("act", [remove, move, replace, remove_half])
def test_nothing_is_written_where_the_folder_was(tmp_path: Path, act: Callable[[Path], None]) -> None:
    root = tmp_path / "x"

    def work() -> None:
        durable.write_bytes(root / "runs" / "a", b"kept")
        act(root)
        before = sorted(root.rglob("*"))
        with pytest.raises(MachineError, match=GONE):
            durable.write_bytes(root / "runs" / "b" / "c", b"lost")
        with pytest.raises(MachineError, match=GONE):
            durable.make_folder(root / "runs" / "d")
        assert sorted(root.rglob("*")) == before

    with pytest.raises(MachineError, match=GONE):
        held(root, work)
    assert (root / "runs").exists() == (act is remove_half)


@pytest.mark.parametrize("problem", [UsageError("manifest.json does not exist"), FileNotFoundError(2, "none"), None])
def test_what_comes_of_it_is_told_as_it(tmp_path: Path, problem: Exception | None) -> None:
    root = tmp_path / "x"

    def work() -> None:
        remove(root)
        if problem is not None:
            raise problem

    with pytest.raises(MachineError, match=GONE):
        held(root, work)


def test_other_errors_and_folders_are_as_they_were(tmp_path: Path) -> None:
    root = tmp_path / "x"
    with pytest.raises(UsageError, match="mine"):
        held(root, lambda: refuse(UsageError("mine")))
    with locks.hold(root), durable.watched(root, LOCK):
        durable.write_bytes(root / "a", b"")
        durable.write_bytes(tmp_path / "other" / "a", b"")
    remove(root)
    durable.write_bytes(root / "a", b"")  # nobody watches it any more
    held(root, lambda: durable.write_bytes(root / "b", b""))


@pytest.mark.parametrize("place", ["judge/someone", "runs/dpo/seed-0/checkpoints/step-000002", "tables/cost.csv"])
def test_a_link_anywhere_below_is_refused(tmp_path: Path, place: str) -> None:
    root, elsewhere = tmp_path / "x", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (root / place).parent.mkdir(parents=True)
    (root / place).symlink_to(elsewhere)
    with pytest.raises(UsageError, match=f"{place} is a link to somewhere else"):
        held(root, lambda: None)
    assert (elsewhere / "precious").exists()
