"""A report is killed at every operation and made again; tables of a comparison that was killed are those of one that
was not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from unittest import mock

import forks
import pytest
from powerloss import State
from rig import Rig, contents, difference
from test_comparison import FULL, PART, again

from prefopt import report


def tables(root: Path) -> None:
    """The report without its drawings, which take a second each time."""
    with mock.patch.object(report.figures, "render", return_value={"none": (b"<svg/>", b"png")}):
        report.build(root / "results" / "mine")


@pytest.mark.parametrize("every", [pytest.param(40, marks=PART), pytest.param(1, marks=FULL)])
def test_a_report_that_is_killed_is_made_again(rig: Rig, place: Path, every: int) -> None:
    def work() -> list[str]:
        root = place / "done"
        shutil.copytree(rig.first, root, symlinks=True)
        found = report.analyse(report.load(root / "results" / "mine"))
        with mock.patch.object(report, "analyse", return_value=found):
            tables(root)
            want = contents(root / "results")
            shutil.rmtree(root / "results")
            shutil.copytree(rig.first / "results", root / "results")
            branches = forks.Branches(
                (root / "results",), lambda number: {} if number % every else {"kill": forks.KillAt(0)}
            )
            branches.during(lambda: tables(root))
            states = {State("", (after,)).digest(lambda path: ".tmp" not in path): after for *_, after in branches.met}
            wrong = [label for label, out, *_ in branches.met if out.status != -9]
            assert len(states) > 40 / every
            for state in states.values():
                forks.restore(state, root / "results")
                tables(root)
                wrong += [other] if (other := difference(want, contents(root / "results"))) else []
        return wrong

    out = forks.run(rig.enter(place / "work", work), seconds=300)
    assert out.status == 0, out.said
    assert not out.value, "\n".join(out.value[:10])


@FULL
def test_tables_of_a_killed_comparison(rig: Rig, place: Path, seed: int) -> None:
    def made(root: Path) -> dict[str, str]:
        out = forks.run(rig.enter(root, lambda: tables(root)))
        assert out.status == 0, out.said
        return {name: value for name, value in contents(root / "results").items() if "/tables/" in name}

    shutil.copytree(rig.first, place / "whole", symlinks=True)
    want = {name: value for name, value in made(place / "whole").items() if not name.endswith(".md")}
    assert len(want) > 10
    operations = forks.count(rig.enter(place / "count"))

    def trial(number: int) -> str | None:
        root = place / str(number)
        forks.victim(rig.enter(root), forks.KillAt(random.Random(seed + number).randrange(operations)))
        return again(rig, root) or difference(want, {n: v for n, v in made(root).items() if n in want})

    wrong = forks.trials(trial, range(12))
    assert not wrong, "\n".join(wrong)
