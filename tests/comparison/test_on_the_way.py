"""Samples while a run trains: the run is untouched, rows survive a kill, curves and over-optimisation are told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import arguments, run
from synthetic import Planted, World

from prefopt.analysis.analyse import analyse
from prefopt.analysis.load import load
from prefopt.comparison.on_the_way import SampledOnTheWay
from prefopt.storage import formats
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import REFERENCE, SAMPLED_COLUMNS
from prefopt.train.state import Run

Folder = Callable[[str], Path]


def test_samples_on_the_way_change_no_run_and_survive_a_stop(
    tmp_path: Path, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_folder("llama")
    monkeypatch.setattr(
        "prefopt.report.build", lambda folder: folder / "report.html"
    )  # it takes longest, and is not asked

    def words(where: str, *more: str) -> list[str]:
        common = ("--losses", "dpo,ipo", "--seeds", "0", "--quiet", "--results", str(tmp_path / where))
        return arguments(tmp_path, model, *common, *more)

    every = ("--set", "evaluation.every=1", "--set", "train.checkpoint_every=1")
    assert run(monkeypatch, words("plain")) == 0, capsys.readouterr().err
    assert run(monkeypatch, words("every", *every)) == 0, capsys.readouterr().err
    at = {where: ResultsFolder(tmp_path / where / "mine") for where in ("plain", "every", "stopped")}
    for name in ("adapter/adapter_model.safetensors", "scores.parquet", "history.csv"):
        assert len({(at[where].run("dpo", 0) / name).read_bytes() for where in ("plain", "every")}) == 1, name
    sampled = at["every"].frames("sampled.parquet", SAMPLED_COLUMNS)
    assert sampled.groupby(["variant", "step"]).size().to_dict() == {
        (variant, step): 6 for variant in ("dpo", "ipo") for step in (1, 2)
    }
    assert (sampled["kl"] > 0).all()

    def terminated(self: SampledOnTheWay, one: Run) -> None:
        sample(self, one)
        os.kill(os.getpid(), signal.SIGTERM)

    sample = SampledOnTheWay.__call__
    with monkeypatch.context() as patch:
        patch.setattr(SampledOnTheWay, "__call__", terminated)
        assert run(monkeypatch, words("stopped", *every)) == 128 + signal.SIGTERM
    assert not (at["stopped"].run("ipo", 0) / "sampled.parquet").exists()
    assert run(monkeypatch, words("stopped", *every)) == 0, capsys.readouterr().err
    files = [at[where].run("ipo", 0) / "sampled.parquet" for where in ("every", "stopped")]
    assert len({path.read_bytes() for path in files}) == 1
    assert set(analyse(load(at["every"].root))["over_steps"]["curves"]) == {"dpo", "ipo"}


@pytest.mark.parametrize("harmful", [True, False])
def test_over_optimisation_is_named_where_it_is(harmful: bool, tmp_path: Path) -> None:
    """At step 30 of 60 the policy is 1 better than at its end, and nearer; or else as good as it."""
    root = World(variants={"dpo": Planted(gain=0.2, kl=9.0, margin=2.0)}, seeds=3).write(tmp_path / "x")
    folder, rng = ResultsFolder(root), np.random.default_rng(0)
    for seed in range(3):
        scores = pd.read_parquet(folder.run("dpo", seed) / "scores.parquet")
        rows = []
        for step, gain in (
            (15, 0.3 if harmful else -0.1),
            (30, 1.0 if harmful else 0.0),
            (45, 0.5 if harmful else 0.0),
        ):
            reward = scores["reward"] + gain + rng.normal(0, 0.3, len(scores))
            rows.append(scores.assign(step=step, reward=reward, kl=scores["kl"] * step / 60)[list(SAMPLED_COLUMNS)])
        formats.write_frame(folder.run("dpo", seed) / "sampled.parquet", pd.concat(rows, ignore_index=True))
    found = analyse(load(root))["over_steps"]
    curve = found["curves"]["dpo"]
    assert curve["reward"]["step"] == [0, 15, 30, 45, 60]
    assert curve["win_rate"]["mean"][0] == pytest.approx(0.5)
    assert curve["kl"]["mean"] == sorted(curve["kl"]["mean"])
    assert [(row["variant"], row["step"], row["last"]) for row in found["harmed"]] == (
        [("dpo", 30, 60)] if harmful else []
    )
    assert REFERENCE not in found["curves"]
