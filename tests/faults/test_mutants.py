"""A harness that forgets something on the way, in fourteen ways: the faults of this folder find every one of them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import forks
import pytest
import writer
from rig import Rig
from test_comparison import FULL, PART, faulty, killed
from test_damage import Damages

from prefopt.comparison import record, runner
from prefopt.errors import MachineError
from prefopt.storage import durable, folders, results
from prefopt.storage.results import ResultsFolder
from prefopt.train import checkpoint
from prefopt.train.checkpoint import Checkpoints


def after_restore(change: Callable[[Any, Any], None]) -> Any:
    """Resumption that gets one thing wrong."""
    real = Checkpoints.restore

    def restore(self: Checkpoints, step: int, run: Any, bank: Any, config: Any) -> None:
        before = bank.params[run.slot].clone()
        real(self, step, run, bank, config)
        change(run, lambda: bank.params[run.slot].copy_(before))

    return mock.patch.object(Checkpoints, "restore", restore)


def _moved(run: Any, steps: int) -> None:
    run.counters.step += steps


def _keyless(self: Checkpoints, files: Any, step: int) -> Any:
    facts = checkpoint.json.loads(files[checkpoint.FACTS])
    return checkpoint.load(files[checkpoint.STATE]), facts


def _drops_first(self: Checkpoints, run: Any, bank: Any) -> None:
    for step in self._steps():
        durable.remove(self._at(step))
    _write(self, run, bank)


_write = Checkpoints.write


def _judges_only_after_training() -> Any:
    trained: list[bool] = []
    prepare, judge = runner.prepare, record.judge

    def prepared(*values: Any) -> Any:
        trained.append(True)
        return prepare(*values)

    stack = mock.patch.multiple(runner, prepare=prepared)
    stack.start()
    return mock.patch.object(record, "judge", lambda folder: judge(folder) if trained else None)


def _full_disk_ignored(path: Path, data: bytes) -> None:
    with suppress(MachineError):
        durable.write_bytes(path, data)


def _unsealed(path: Path) -> bytes:
    try:
        return path.read_bytes().partition(b"\n")[2]
    except OSError as problem:
        raise durable.DamagedError(str(problem)) from None


def kills(rig: Rig, place: Path, seed: int) -> Iterator[str | None]:
    """Kills anywhere, some in the last moments."""
    operations = forks.count(rig.enter(place / "count"))
    draw = random.Random(seed)
    for number in [*range(operations - 12, operations, 2), *draw.sample(range(operations), 30)]:
        yield killed(rig, place / f"kill-{number}", forks.KillAt(number))


def errors(rig: Rig, place: Path, seed: int) -> Iterator[str | None]:
    for part in range(12):
        yield faulty(rig, place / f"error-{part}", lambda number, part=part: number % 24 == 2 * part)


def damaged(rig: Rig, place: Path, seed: int, names: str = "*.parquet") -> Iterator[str | None]:
    """Flips in finished runs, checkpoints and the cache: the outcome must be the same, or a refusal."""
    operations = forks.count(rig.enter(place / "count"))
    for number in range(30):
        root = place / f"damage-{number}"
        shutil.copytree(rig.warm, root / "cache")
        draw = random.Random(seed + number)
        forks.victim(rig.enter(root, cold=True), forks.KillAt(draw.randrange(operations // 4, operations - 5)))
        files = [path for path in root.rglob(names) if path.is_file() and ".tmp" not in str(path)]
        if not files:
            continue
        label = Damages(files, seed + number).make("flip")[0]
        out = forks.run(rig.enter(root, cold=True))
        yield f"{label}: {out.said or rig.wrong(root)}" if out.status != 2 and (out.status or rig.wrong(root)) else None


def damaged_checkpoints(rig: Rig, place: Path, seed: int) -> Iterator[str | None]:
    return damaged(rig, place, seed, "state.safetensors")


def damaged_cache(rig: Rig, place: Path, seed: int) -> Iterator[str | None]:
    return damaged(rig, place, seed, "*.sealed")


def exchanged(rig: Rig, place: Path, seed: int) -> Iterator[str | None]:
    """Checkpoints of one run in the place of another's."""
    operations = forks.count(rig.enter(place / "count"))
    for number in range(operations // 8, operations // 3, 6):
        root = place / f"exchanged-{number}"
        forks.victim(rig.enter(root), forks.KillAt(number))
        one, two = (root / "results" / "mine" / "runs" / name / "seed-0" / "checkpoints" for name in rig.names)
        if one.is_dir() and two.is_dir():
            for first, second in ((one, root / "x"), (two, one), (root / "x", two)):
                first.rename(second)
            out = forks.run(rig.enter(root))
            yield out.said or rig.wrong(root) if out.status or rig.wrong(root) else None


def again_at_rest(rig: Rig, place: Path, seed: int) -> Iterator[str | None]:
    """A finished comparison is run again."""
    root = place / "rest"
    shutil.copytree(rig.first, root, symlinks=True)
    before = {path: path.stat().st_mtime_ns for path in (root / "results").glob("mine/runs/**/*")}
    out = forks.run(rig.enter(root))
    after = {path: path.stat().st_mtime_ns for path in (root / "results").glob("mine/runs/**/*")}
    yield out.said or ("finished runs were touched" if before != after else None)


MUTANTS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "the optimizer's state is forgotten": (
        kills, lambda: mock.patch.object(checkpoint, "restore_optimizer")
    ),
    "the moving average is forgotten": (
        kills, lambda: after_restore(lambda run, old: setattr(run.state, "running", None))
    ),
    "resumed a step too late": (kills, lambda: after_restore(lambda run, old: _moved(run, 1))),
    "resumed a step too early": (kills, lambda: after_restore(lambda run, old: _moved(run, -1))),
    "the adapter is forgotten": (kills, lambda: after_restore(lambda run, old: old())),
    "the history is forgotten": (kills, lambda: after_restore(lambda run, old: run.history.clear())),
    "judged only where something was trained": (kills, _judges_only_after_training),
    "the last checkpoint goes before the next is there": (
        errors, lambda: mock.patch.object(Checkpoints, "write", _drops_first)
    ),
    "a full disk is ignored": (errors, lambda: mock.patch.object(results, "write_bytes", _full_disk_ignored)),
    "finished runs are not checked": (
        damaged, lambda: mock.patch.object(ResultsFolder, "damage", return_value=None)
    ),
    "checkpoints are not checked": (
        damaged_checkpoints, lambda: mock.patch.object(folders, "read_folder", writer.unchecked)
    ),
    "the cache is not checked": (damaged_cache, lambda: mock.patch.object(durable, "read_sealed", _unsealed)),
    "whose checkpoint it is is not asked": (exchanged, lambda: mock.patch.object(Checkpoints, "_checked", _keyless)),
    "finished runs are trained again": (
        again_at_rest, lambda: mock.patch.object(ResultsFolder, "finished", return_value=None)
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [pytest.param(["the optimizer's state is forgotten"], marks=PART), pytest.param(list(MUTANTS), marks=FULL)],
    ids=["one", "all"],
)
def test_every_forgetful_harness_is_found(names: list[str], rig: Rig, place: Path, seed: int) -> None:
    def unseen(name: str) -> str | None:
        stage, broken = MUTANTS[name]
        with broken():
            found = next((found for found in stage(rig, place / name, seed) if found), None)
        return None if found else f"{stage.__name__} do not show it"

    wrong = forks.trials(unseen, names, seconds=600)
    assert not wrong, "\n".join(wrong)


@FULL
def test_the_harness_itself_passes(rig: Rig, place: Path, seed: int) -> None:
    def trial(number: int) -> str | None:
        stage = stages[number]
        return "\n".join(found for found in stage(rig, place / stage.__name__, seed) if found) or None

    stages = (exchanged, damaged, damaged_checkpoints, damaged_cache, again_at_rest)
    wrong = forks.trials(trial, range(len(stages)), seconds=600)
    assert not wrong, "\n".join(wrong)
