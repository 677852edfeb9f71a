"""Going on where a run stopped: every loss, every step, both kinds of optimizer, damaged checkpoints, refusals."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import arguments, files, tree
from command import run as prefopt_run
from training import CONFIG, LORA, pair_set, scored

from prefopt import loss_names, make_loss
from prefopt.config.schema import Train
from prefopt.model.adapted import AdaptedModel
from prefopt.model.adapters import AdapterBank
from prefopt.model.base import Base
from prefopt.runtime.progress import Silent
from prefopt.storage.results import ResultsFolder
from prefopt.train.checkpoint import Checkpoints, common_step, optimizer_state
from prefopt.train.feed import FixedOrder
from prefopt.train.loop import train_group
from prefopt.train.pairset import PairSet
from prefopt.train.state import Run

EVERY = CONFIG.model_copy(update={"steps": 3, "checkpoint_every": 1, "eval_every": 2})


class Recorded(Checkpoints):
    """Keeps every checkpoint, each in a folder of its own, and the optimizer's state of the last."""

    last: Any = None

    def write(self, run: Run, bank: AdapterBank) -> None:
        super().write(run, bank)
        name = f"step-{run.counters.step:06}"
        shutil.copytree(self.path / name, self.path.parent / f"only-{run.counters.step}" / self.path.name / name)
        self.last = optimizer_state(run.state.optimizer)

    def restore(self, step: int, run: Run, bank: AdapterBank, config: Train) -> None:
        super().restore(step, run, bank, config)
        self.last = optimizer_state(run.state.optimizer)


class Bench:
    """One tiny base and its pairs, for many short trainings."""

    def __init__(self, base: Base) -> None:
        self.model = AdaptedModel.wrap(base, LORA, size=4)
        with self.model.off():
            self.train_pairs: PairSet = pair_set(base, scored(8, 1))
            self.heldout: PairSet = pair_set(base, scored(2, 2))

    def train(
        self, labels: list[str], config: Train, folder: Path | None = None, start: dict[int, int] | None = None
    ) -> tuple[list[Run], list[Recorded]]:
        """Train from the start, or each slot from a step of its checkpoints in ``folder``."""
        runs = [Run(label, make_loss(label), 1e-2, slot) for slot, label in enumerate(labels)]
        keepers = [Recorded((folder or Path()) / str(run.slot), {"loss": run.variant}) for run in runs]
        for run in runs:
            self.model.adapters.initialise(run.slot, 0)
            if start and start.get(run.slot):
                keepers[run.slot].look()
                keepers[run.slot].restore(start[run.slot], run, self.model.adapters, config)
        train_group(
            self.model, runs, feed=FixedOrder.of(self.train_pairs, config, 0), heldout=self.heldout,
            config=config, seed=0,
            progress=Silent(), keepers=dict(enumerate(keepers)) if folder else None,
        )  # fmt: skip
        return runs, keepers


@pytest.fixture(scope="module")
def bench(tiny_folder: Callable[[str], Path]) -> Bench:
    from prefopt.model.base import load_base

    return Bench(load_base(str(tiny_folder("llama")), dtype="float32", device=torch.device("cpu")))


def outcome(bench: Bench, runs: list[Run], keepers: list[Recorded]) -> list[Any]:
    """Everything that a run is, exactly."""
    states = [(tensors, plain) for tensors, plain in (keeper.last for keeper in keepers)]
    flat = [{name: value.tolist() for name, value in tensors.items()} | plain for tensors, plain in states]
    running = [None if run.state.running is None else run.state.running.tolist() for run in runs]
    return [
        [
            bench.model.adapters.params[run.slot].tolist(),
            repr(run.history),
            run.counters.tokens,
            run.counters.pairs,
            run.counters.step,
            average,
            state,
        ]
        for run, average, state in zip(runs, running, flat, strict=True)
    ]


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
def test_every_loss_goes_on_from_every_step_to_the_same_bytes(kind: str, bench: Bench, tmp_path: Path) -> None:
    config = EVERY.model_copy(update={"optimizer": kind})
    differing = []
    for label in loss_names() if kind == "adamw" else ["dpo", "bco"]:
        folder = tmp_path / label
        whole = outcome(bench, *bench.train([label], config, folder))
        again = {
            step: outcome(bench, *bench.train([label], config, folder / f"only-{step}", {0: step}))
            for step in range(1, config.steps + 1)
        }
        differing += [(label, step) for step, result in again.items() if result != whole]
    assert differing == []
    assert len(list((tmp_path / "dpo" / "0").iterdir())) == 2  # only the newest two are kept


def test_companions_at_other_steps_change_nothing(bench: Bench, tmp_path: Path) -> None:
    labels = ["dpo", "bco", "simpo", "kto"]
    whole = outcome(bench, *bench.train(labels, EVERY, tmp_path))
    for slot, step in ((0, 2), (1, 1), (2, 3)):  # the fourth begins anew
        for path in (tmp_path / f"only-{step}" / str(slot)).iterdir():
            shutil.copytree(path, tmp_path / "mixed" / str(slot) / path.name)
    assert outcome(bench, *bench.train(labels, EVERY, tmp_path / "mixed", {0: 2, 1: 1, 2: 3})) == whole
    for slot, label in enumerate(labels):
        runs, keepers = bench.train([label], EVERY, tmp_path / "alone" / label)
        assert outcome(bench, runs, keepers)[0] == whole[slot]


def test_runs_go_on_from_a_step_that_all_have() -> None:
    assert common_step([[20, 10], [30, 20], []]) == 20
    assert common_step([[20], [30]]) is None
    assert common_step([[], []]) is None


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut short": lambda folder: os.truncate(folder / "state.safetensors", 100),
    "a flipped bit": lambda folder: _flip(folder / "state.safetensors", 2000),
    "a flipped bit of the facts": lambda folder: _flip(folder / "state.json", 40),
    "a flipped bit of the manifest": lambda folder: _flip(folder / "MANIFEST.json", 60),
    "no optimizer": lambda folder: (folder / "state.json").unlink(),
    "no manifest": lambda folder: (folder / "MANIFEST.json").unlink(),
    "another step's": lambda folder: (
        shutil.rmtree(folder),
        shutil.copytree(folder.with_name("step-000002"), folder),
    ),
}


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(kind: str, bench: Bench, tmp_path: Path) -> None:
    bench.train(["dpo"], EVERY, tmp_path)
    said: list[str] = []
    newest = tmp_path / "0" / "step-000003"
    DAMAGE[kind](newest)
    checkpoints = Checkpoints(tmp_path / "0", {"loss": "dpo"}, said.append)
    assert checkpoints.look() == [2]
    assert not newest.exists()
    assert (tmp_path / "0" / "step-000003.corrupt-1").is_dir()
    assert "step-000003.corrupt-1" in said[0]
    assert Checkpoints(tmp_path / "0", {"loss": "ipo"}, said.append).look() == []
    assert "belongs to another run" in said[1]


def test_a_planted_pickle_is_never_opened(bench: Bench, tmp_path: Path) -> None:
    bench.train(["dpo"], EVERY, tmp_path)
    (tmp_path / "0" / "step-000003" / "optimizer.pt").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    (tmp_path / "0" / "step-000009").mkdir()
    assert Checkpoints(tmp_path / "0", {"loss": "dpo"}).look() == [3, 2]


# Whole comparisons through the command line.

KEEP = ("--set", "train.checkpoint_every=1", "--quiet")


def test_a_comparison_that_is_interrupted_anywhere_ends_in_the_same_files(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments(tmp_path, tiny_folder("llama"), "--losses", "dpo,bco", "--seeds", "0-1", *KEEP)
    assert prefopt_run(monkeypatch, words) == 0, capsys.readouterr().err
    root = tmp_path / "results" / "mine"
    whole = tree(root)
    assert not list(root.rglob("checkpoints"))

    class Killed(BaseException):
        pass

    writes = {"count": 0}
    original = Checkpoints.write

    def write(self: Checkpoints, one: Run, bank: AdapterBank) -> None:
        original(self, one, bank)
        writes["count"] += 1
        if writes["count"] == writes["stop"]:
            raise Killed

    monkeypatch.setattr(Checkpoints, "write", write)
    for stop in (1, 6, 9):
        shutil.rmtree(root)
        writes.update(count=0, stop=stop)
        with pytest.raises(Killed):
            prefopt_run(monkeypatch, words)
        assert list(root.rglob("step-*"))
        writes["stop"] = 0
        assert prefopt_run(monkeypatch, words) == 0, capsys.readouterr().err
        assert tree(root) == whole, stop
        assert writes["count"] < 12 + 2  # of 2 variants x 2 seeds x 3 steps; a pair may be half a step apart

    # A file of a finished run that is damaged is noticed; that run alone is made again, to the same bytes.
    folder = ResultsFolder(root)
    _flip(folder.run("dpo", 1) / "scores.parquet", 200)
    assert prefopt_run(monkeypatch, words) == 0, capsys.readouterr().err
    aside = folder.run("dpo", 1).with_name("seed-1.corrupt-1")
    assert aside.is_dir()
    shutil.rmtree(aside)
    assert tree(root) == whole


REFUSED = {
    "code": ("prefopt.comparison.provenance.code_files", {"harness.py": "0" * 16}, "code."),
    "packages": ("prefopt.comparison.provenance.packages", {"torch": "0.1"}, "packages."),
    "device": (
        "prefopt.comparison.resume.device_facts",
        {"kind": "cpu", "name": "another", "threads": 1},
        "device.name",
    ),
}


def test_anything_else_that_differs_is_refused_by_name(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments(tmp_path, tiny_folder("llama"), "--losses", "noop", "--seeds", "0", "--quiet")
    assert prefopt_run(monkeypatch, words) == 0, capsys.readouterr().err
    root = tmp_path / "results" / "mine"
    before = files(root)
    for where, value, said in REFUSED.values():
        with monkeypatch.context() as patch:
            patch.setattr(where, lambda *_, value=value: value)
            assert prefopt_run(patch, words) == 2
        shown = capsys.readouterr().err
        assert said in shown
        assert "another --name" in shown
    data = tmp_path / "pairs.jsonl"
    data.write_text(data.read_text().replace("cat", "bat"), encoding="utf-8")
    assert prefopt_run(monkeypatch, words) == 2
    assert "was made with data.source" in capsys.readouterr().err
    assert files(root) == before
    assert prefopt_run(monkeypatch, [*words, "--name", "other"]) == 0
