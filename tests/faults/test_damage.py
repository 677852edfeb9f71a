"""Flips, cuts, swaps and missing files in everything that a comparison leaves: noticed, and never read as results."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pandas as pd
import pytest
from rig import Rig, contents, difference
from test_comparison import FULL, PART, again

from prefopt.analysis.load import load
from prefopt.comparison import resume
from prefopt.errors import PrefoptError, UsageError
from prefopt.report import build
from prefopt.report.figures import render
from prefopt.runtime.device import pick_device
from prefopt.storage.results import ResultsFolder

DERIVED = ("tables/", "figures/", "report.", "results.json")  # made anew by every report


def is_derived(path: Path | str) -> bool:
    """Whether a file is made anew by every report, as ``test_a_report_is_made_anew`` shows, or holds no result."""
    return str(path).rpartition("/mine/")[2].startswith(DERIVED) or str(path).endswith(
        ("cost.json", "adapter/README.md")
    )


def everything(value: Any) -> Any:
    """A value in a form that can be compared."""
    if isinstance(value, pd.DataFrame):
        return value.to_csv()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return everything(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): everything(item) for key, item in value.items() if key != "cost"}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [everything(item) for item in value] if isinstance(value, list | tuple) else str(value)


def as_read(place: Path) -> Any:
    """All that the report reads."""
    found = load(place / "results" / "mine")
    values = {name: everything(getattr(found, name)) for name in found.__dataclass_fields__ if name != "root"}
    return [values, everything(found.judge_facts())]


def refused_by_compare(rig: Rig, place: Path) -> bool:
    """Whether the comparison sees, before it trains anything, that something is not as it was written."""
    folder, device = ResultsFolder(place / "results" / "mine"), pick_device("cpu")
    try:
        resume.refuse_other(folder, rig.config, device)
        missing = [(n, s) for n in (*map(str, rig.names), "reference") for s in (0, 1) if not folder.finished(n, s)]
        damaged = [(n, s) for n in (*rig.names, "reference") for s in (0, 1) if folder.damage(n, s) is not None]
        folder.judgements()
        return bool(missing or damaged)
    except PrefoptError:
        return True


class Damages:
    """Ways to damage files, drawn from a seed; each is undone before the next."""

    def __init__(self, files: Iterable[Path], seed: int) -> None:
        self.draw = random.Random(seed)
        by_kind: dict[str, list[Path]] = {}
        for path in sorted(files):
            by_kind.setdefault("derived" if is_derived(path) else path.name, []).append(path)
        self.kinds = list(by_kind.values())

    def file(self) -> Path:
        """Small kinds as often as large ones."""
        return self.draw.choice(self.draw.choice(self.kinds))

    def make(self, how: str) -> tuple[str, Callable[[], None]]:
        """Damage a file; what was done, and how to undo it."""
        path = self.file()
        data = path.read_bytes()
        label, also = f"{how} {path}", None
        if how == "flip":
            at, bit = self.draw.randrange(len(data)), 1 << self.draw.randrange(8)
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            label += f" at byte {at}, bit {bit}"
        elif how == "cut":
            at = self.draw.randrange(len(data))
            path.write_bytes(data[:at])
            label += f" at byte {at}"
        elif how == "missing":
            path.unlink()
        else:
            same = [p for kind in self.kinds for p in kind if p.name == path.name and p.read_bytes() != data]
            other = self.draw.choice(same) if same else path
            also = (other, other.read_bytes())
            path.write_bytes(also[1])
            other.write_bytes(data)
            label += f" with {other}"

        def undo() -> None:
            path.write_bytes(data)
            if also is not None:
                also[0].write_bytes(also[1])

        return label, undo


def plan(times: int) -> list[str]:
    """Flips, cuts, swaps and missing files, 100 : 20 : 3 : 2."""
    return (["flip"] * 100 + ["cut"] * 20 + ["swap"] * 3 + ["missing"] * 2) * (times // 125)


def finished(rig: Rig, place: Path) -> Path:
    """A finished comparison with its report."""
    shutil.copytree(rig.first, place, symlinks=True)
    render.render = lambda found: {"none": (b"<svg/>", b"png")}  # type: ignore[assignment]
    build(place / "results" / "mine")
    return place


@pytest.mark.parametrize("times", [pytest.param(125, marks=PART), pytest.param(1250, marks=FULL)])
def test_damage_in_a_finished_folder(rig: Rig, place: Path, seed: int, times: int) -> None:
    """Whatever is not noticed at once must be mended by the same command, to the byte."""

    def work(part: int) -> str | None:
        root = finished(rig, place / f"done-{part}")
        before, wanted = as_read(root), contents(root / "results")
        files = [path for path in (root / "results").rglob("*") if path.is_file()]
        damages, wrong = Damages(files, seed + part), []
        assert not refused_by_compare(rig, root)  # as it is

        def noticed(label: str) -> str | None:
            try:
                same = as_read(root) == before
            except PrefoptError:
                return None
            by_compare = refused_by_compare(rig, root)
            if not same:  # a run that is gone is missing in every table; anything else is not seen
                return None if by_compare and label.startswith("missing") else "read as results"
            unlike = not is_derived(label.split(" ")[1]) and difference(wanted, contents(root / "results"))
            return "nobody noticed" if unlike and not by_compare else None

        for how in plan(times)[part::2]:
            label, undo = damages.make(how)
            unread = label.startswith("missing") and label.endswith("prompts.parquet")  # published without its text
            found = None if unread else noticed(label)
            if found:
                wrong.append(f"{label}: {found}")
            undo()
        return "\n".join(wrong[:10]) or None

    wrong = forks.trials(lambda part: rig.enter(place / str(part), lambda: work(part))(), range(2), seconds=600)
    assert not wrong, "\n".join(wrong)


def test_a_report_is_made_anew(rig: Rig, place: Path) -> None:
    """Whatever became of the last one."""

    def work() -> str | None:
        root = finished(rig, place / "done")
        before = forks.tree(root / "results")
        for path in (root / "results").rglob("*"):
            if path.is_file() and is_derived(path) and path.name != "cost.json":
                path.write_bytes(b"damaged")
        build(root / "results" / "mine")
        after = forks.tree(root / "results")
        return ", ".join(name for name in before if before[name] != after.get(name)) or None

    out = forks.run(rig.enter(place / "work", work))
    assert out.status == 0, out.said
    assert out.value is None


@pytest.mark.parametrize("times", [pytest.param(25, marks=PART), pytest.param(125, marks=FULL)])
def test_damage_in_an_interrupted_folder(rig: Rig, place: Path, seed: int, times: int) -> None:
    """Finished runs and checkpoints beside each other: damaged ones are set aside, and the outcome is the same."""
    operations = forks.count(rig.enter(place / "count"))

    def trial(part: int) -> str | None:
        root = place / str(part)
        draw = random.Random(seed + part)
        forks.victim(rig.enter(root), forks.KillAt(draw.randrange(operations // 4, operations - 5)))
        files = [path for path in (root / "results").rglob("*") if path.is_file() and not is_derived(path)]
        damages = Damages([path for path in files if path.name != ".lock" and ".tmp" not in str(path)], seed + part)
        label = damages.make(plan(125)[part * 7 % 125])[0]
        out = forks.run(rig.enter(root))
        found = None
        if out.status == 0:
            found = rig.wrong(root)
        elif out.status != 2 or "Traceback" in out.said or str(label.split(" ")[1]).rpartition("/")[2] not in out.said:
            found = f"ended with {out.status}: {out.said[-1500:]}"
        shutil.rmtree(root)
        return found and f"{label}: {found}"

    wrong = forks.trials(trial, range(times))
    assert not wrong, f"{len(wrong)} of {times}:\n" + "\n".join(wrong[:10])


@pytest.mark.parametrize("times", [pytest.param(10, marks=PART), pytest.param(75, marks=FULL)])
def test_damage_in_the_cache(rig: Rig, place: Path, seed: int, times: int) -> None:
    """A damaged entry is made again, or refused: the outcome is the same."""

    def trial(part: int) -> str | None:
        root = place / str(part)
        shutil.copytree(rig.warm, root / "cache")
        files = [p for p in (root / "cache").rglob("*") if p.is_file() and p.suffix != ".lock" and p.stat().st_size]
        label = Damages(files, seed + part).make(plan(125)[part * 7 % 125])[0]
        found = again(rig, root, cold=True)
        shutil.rmtree(root)
        return found and f"{label}: {found}"

    wrong = forks.trials(trial, range(times))
    assert not wrong, f"{len(wrong)} of {times}:\n" + "\n".join(wrong[:10])


def test_a_run_under_another_name_is_refused(rig: Rig, place: Path) -> None:
    def work() -> list[str]:
        root = place / "swapped"
        shutil.copytree(rig.first, root, symlinks=True)
        runs, said = root / "results" / "mine" / "runs", []
        for one, two in (("dpo/seed-0", "bco/seed-0"), ("dpo/seed-0", "dpo/seed-1")):
            for first, second in ((one, "x"), (two, one), ("x", two)):
                (runs / first).rename(runs / second)
            with pytest.raises(UsageError) as caught:
                load(root / "results" / "mine")
            said.append(str(caught.value))
            for first, second in ((one, "x"), (two, one), ("x", two)):
                (runs / first).rename(runs / second)
        return said

    out = forks.run(rig.enter(place / "work", work))
    assert out.status == 0, out.said
    assert all("folders of runs keep their names" in said for said in out.value)
