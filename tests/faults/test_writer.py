"""The one writer alone, under every fault at every operation; and every way to break it is found by these tests."""

from __future__ import annotations

import errno
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import writer
from powerloss import Disk, State

from prefopt.errors import MachineError
from prefopt.storage import durable, folders

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EACCES)


def steps_done(root: Path) -> int:
    """How many steps had returned, which the victim notes outside of the disk under test."""
    note = root.with_name(f"{root.name}.done")
    return len(note.read_bytes()) if note.exists() else 0


def watched(root: Path) -> None:
    note = root.with_name(f"{root.name}.done")
    with note.open("ab", buffering=0) as file:
        writer.work(root, lambda done: file.write(b"."))


def ended(root: Path) -> type[BaseException] | None:
    """The kind of error that the script ended with."""
    try:
        watched(root)
    except Exception as problem:
        return type(problem)
    return None


def wrong_after(root: Path, want: list[dict[str, Any]]) -> str | None:
    """What is wrong after a fault, or after doing all of it again."""
    found = writer.problem(root, want, steps_done(root))
    if found is None:
        writer.work(root)
        found = None if writer.seen(root) == want[-1] else f"again: {writer.seen(root)}"
    return found


def kills(place: Path, want: list[dict[str, Any]]) -> Iterator[str]:
    for number in range(forks.count(lambda: writer.work(place / "count"))):
        root = place / f"kill-{number}"
        out = forks.victim(lambda root=root: watched(root), forks.KillAt(number))
        if out.status != -9:
            yield f"operation {number}: ended with {out.status}: {out.said}"
        elif found := wrong_after(root, want):
            yield f"kill at operation {number}: {found}"


def errors(place: Path, want: list[dict[str, Any]]) -> Iterator[str]:
    for number in range(forks.count(lambda: writer.work(place / "count"))):
        for code in ERRNOS:
            for sticky in (False, True):
                root = place / f"error-{number}-{code}-{sticky}"
                label = f"{errno.errorcode[code]}{' from' if sticky else ' at'} operation {number}"
                durable.hook = forks.FailAt(number, code, sticky=sticky)
                said = ended(root)
                durable.hook = None
                if said is None and code == errno.EACCES and writer.seen(root) == want[-1]:
                    continue  # a folder above that may not be read, and so not be synced, is not ours
                if said is not MachineError:
                    yield f"{label}: ended with {said}"
                elif not sticky and any(durable.is_temporary(path) for path in root.rglob("*")):
                    yield f"{label}: left a temporary file"
                elif found := wrong_after(root, want):
                    yield f"{label}: {found}"


def power(place: Path, want: list[dict[str, Any]], seed: int) -> Iterator[str]:
    root = place / "power"
    root.mkdir()
    disk = Disk((root,))
    disk.watch()
    done = [0]
    states: list[tuple[int, State]] = []
    known: set[tuple[int, str]] = set()

    def note(kind: str, path: Path) -> None:
        for state in disk.states(seed):
            key = (done[0], state.digest())
            if key not in known:
                known.add(key)
                states.append((done[0], state))

    durable.hook = note
    writer.work(root, lambda number: done.__setitem__(0, number))
    note("end", root)
    durable.hook = None
    for number, (steps, state) in enumerate(states):
        copy = place / f"state-{number}"
        state.write(copy)
        if found := writer.problem(copy, want, steps):
            yield f"power loss, {state.label}: {found}"
            continue
        writer.work(copy)
        if writer.seen(copy) != want[-1]:
            yield f"power loss, {state.label}: again: {writer.seen(copy)}"
        shutil.rmtree(copy)
    assert len(states) > 100


def damage(place: Path, want: list[dict[str, Any]], seed: int) -> Iterator[str]:
    """Flips, cuts, missing and added files in what carries a checksum: never read as if it were whole."""
    root = place / "damage"
    writer.work(root)
    draw = random.Random(seed)
    readers = {
        root / "x" / "step-1": folders.read_folder,
        root / "x" / "sealed": durable.read_sealed,
        root / "model": folders.check_folder,
    }
    for number in range(400):
        top, read = list(readers.items())[number % 3]
        files = sorted(path for path in top.rglob("*") if path.is_file()) or [top]
        path = draw.choice(files)
        how = "missing" if number % 50 == 49 else "cut" if number % 4 == 1 else "flip"
        data = path.read_bytes()
        at, bit = draw.randrange(len(data)), 1 << draw.randrange(8)
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(data[:at] + (bytes([data[at] ^ bit]) + data[at + 1 :] if how == "flip" else b""))
        try:
            read(top)
            yield f"{path.name}: {how} at {at} not noticed"
        except durable.DamagedError:
            pass
        path.write_bytes(data)
        read(top)


STAGES = {
    "damage": damage,
    "error": lambda place, want, seed: errors(place, want),
    "power": power,
    "kill": lambda place, want, seed: kills(place, want),
}


@pytest.mark.parametrize("stage", STAGES)
def test_no_fault_breaks_the_writer(stage: str, place: Path, seed: int) -> None:
    want = writer.expected(place / "want")
    out = forks.run(lambda: list(STAGES[stage](place, want, seed)))
    assert out.status == 0, out.said
    assert out.value == [], "\n".join(out.value)


def test_a_full_disk_inside_a_library_is_a_refusal(place: Path) -> None:
    """safetensors says it in words: here the system itself refuses files over 20 kB."""
    from safetensors.numpy import save_file

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        folders.fill_folder(
            place / "adapter", lambda folder: save_file({"a": np.zeros(9999)}, folder / "a.safetensors")
        )

    out = forks.run(full)
    assert out.status == forks.MACHINE, out.said
    assert "File too large" in out.said
    assert not list(place.iterdir())


def test_a_folder_with_a_manifest_refuses_additions(place: Path) -> None:
    folders.fill_folder(place / "model", lambda folder: folder.joinpath("a").write_bytes(b"1") and None, manifest=True)
    folders.check_folder(place / "model")
    (place / "model" / "pytorch_model.bin").write_bytes(b"2")
    with pytest.raises(durable.DamagedError, match=r"pytorch_model\.bin is not in the manifest"):
        folders.check_folder(place / "model")


@pytest.mark.faults
def test_every_broken_writer_is_found(place: Path, seed: int) -> None:
    want = writer.expected(place / "want")

    def unseen(name: str) -> str | None:
        with writer.MUTANTS[name]():
            for title, stage in STAGES.items():
                folder = place / name / title
                folder.mkdir(parents=True)
                try:
                    if any(True for _ in stage(folder, want, seed)):
                        return None
                except MachineError:
                    return None  # it cannot go on
        return "no fault shows it"

    wrong = forks.trials(unseen, writer.MUTANTS)
    assert not wrong, "\n".join(wrong)
