"""``prefopt tune`` through the command line, on a tiny model: trials, winners, more trials later, refusals."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import arguments, run, tree

from prefopt.analysis.load import load
from prefopt.analysis.trials import read
from prefopt.storage.results import ResultsFolder
from prefopt.train import autosize
from prefopt.train.feed import FixedOrder
from prefopt.train.state import Run

Folder = Callable[[str], Path]


def words(tmp_path: Path, model: Path, trials: int, *more: str) -> list[str]:
    common = arguments(tmp_path, model, "--losses", "dpo,simpo,noop", "--seeds", "0-1", "--quiet", *more)
    return ["tune", *common[1:], "--trials", str(trials), "--in-process"]


def test_trials_then_winners_and_more_trials_later(
    tmp_path: Path, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_folder("llama")
    monkeypatch.setattr(
        "prefopt.report.build", lambda folder: folder / "report.html"
    )  # it takes longest, and is not asked
    assert run(monkeypatch, words(tmp_path, model, 2)) == 0, capsys.readouterr().err
    root = tmp_path / "results" / "mine"
    tuning = read(root)
    assert tuning is not None
    assert {family: len(tried) for family, tried in tuning.families.items()} == {"dpo": 2, "simpo": 2}
    assert tuning.criterion == "accuracy"  # your own pairs bring no reward
    assert all(trial.score is not None for tried in tuning.families.values() for trial in tried)

    folder = ResultsFolder(root)
    winners = {best.variant for family in tuning.families if (best := tuning.best(family)) is not None}
    assert set(folder.manifest().variant_names) == {"dpo", "simpo", "noop"} | winners
    # The trials saw other prompts, other held-out pairs and other seeds than what is reported.
    parts = [set(ResultsFolder(at).frames("pairs.parquet", ["pair_id"])["pair_id"]) for at in (root, root / "tuning")]
    assert parts[0]
    assert parts[1]
    assert not parts[0] & parts[1]
    assert {seed for _, seed in folder.runs()} == {0, 1}
    assert {seed for _, seed in ResultsFolder(root / "tuning").runs()} == {1000}

    first = tuning.families["dpo"][1].variant
    before = tree(root / "tuning" / "runs")
    assert run(monkeypatch, words(tmp_path, model, 4)) == 0, capsys.readouterr().err
    after = tree(root / "tuning" / "runs")
    assert {name: after[name] for name in before} == before

    # All four at once, two adapters in memory at a time, stopped on the way: the same bytes.
    monkeypatch.setattr(autosize, "MOST_ON_CPU", 2)
    at_once = words(tmp_path, model, 4, "--results", str(tmp_path / "once"))
    with monkeypatch.context() as patch:
        patch.setattr(FixedOrder, "batch", _stopping_at(FixedOrder.batch, variant="simpo", step=1))
        assert run(monkeypatch, at_once) == 128 + signal.SIGTERM
    assert run(monkeypatch, at_once) == 0, capsys.readouterr().err
    once = tmp_path / "once" / "mine"
    assert tree(once / "tuning" / "runs") == after

    # Trials of other ranges, and fewer of them: those before have no part in the choice.
    ranges = ("--set", "tune.ranges.dpo.beta=[0.2, 0.4]")
    assert run(monkeypatch, words(tmp_path, model, 2, *ranges)) == 0, capsys.readouterr().err
    tuning = read(root)
    assert tuning is not None
    assert [trial.index for trial in tuning.families["dpo"]] == [0, 1]
    assert 0.2 <= tuning.families["dpo"][1].settings["beta"] <= 0.4
    assert run(monkeypatch, words(tmp_path, model, 2)) == 0, capsys.readouterr().err  # all of it is there already
    tuning = read(root)
    assert tuning is not None
    assert [trial.variant for trial in tuning.families["dpo"]] == ["dpo", first]
    winners = {best.variant for family in tuning.families if (best := tuning.best(family)) is not None}
    assert set(load(root).variants) == {"dpo", "simpo", "noop"} | winners


def _stopping_at(batch: Callable[..., Any], *, variant: str, step: int) -> Callable[..., Any]:
    """``batch`` that has a signal sent when it is asked for one variant's pairs at one step."""

    def asked(self: FixedOrder, one: Run, at: int) -> Any:
        if (one.variant, at) == (variant, step):
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, one, at)

    return asked


BAD = {
    "a criterion without a reward": (["--set", "tune.criterion=reward"], "take accuracy"),
    "nothing to tune": (["--losses", "noop"], "no loss has anything to tune"),
    "a seed in both": (["--set", "tune.seeds=[0]"], "fresh seeds"),
    "an unknown range": (["--set", "tune.ranges.dpo.bta=[1, 2]"], "did you mean beta?"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(
    case: str,
    tmp_path: Path,
    tiny_folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more, said = BAD[case]
    assert run(monkeypatch, words(tmp_path, tiny_folder("llama"), 2, *more)) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "results" / "mine" / "manifest.json").exists()
