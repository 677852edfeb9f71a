"""Finished runs in experiment trackers: what was stored is read back, nothing twice, and no run depends on it."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command import arguments, files, run, without_report

from prefopt.analysis.analyse import analyse
from prefopt.analysis.load import load
from prefopt.launch import trackers, tracking
from prefopt.runtime.progress import Silent
from prefopt.storage import locks
from prefopt.storage.formats import write_json
from prefopt.storage.results import ResultsFolder

FIXTURE = Path(__file__).parents[1] / "fixtures" / "results-v2"
HAS_TENSORBOARD = pytest.mark.skipif(
    not trackers.is_installed("tensorboardX"), reason="tensorboardX is not installed: make setup"
)


@dataclass
class Stored:
    """What a tracker has of one run: points by metric as (step, value), and settings."""

    points: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Listener(Silent):
    """Keeps what is said."""

    lines: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two losses at two seeds with the numbers of its report."""
    root = tmp_path_factory.mktemp("analysed") / "mine"
    shutil.copytree(FIXTURE, root)
    write_json(root / "results.json", analyse(load(root)))
    return root


@pytest.fixture
def folder(analysed: Path, tmp_path: Path) -> ResultsFolder:
    return ResultsFolder(shutil.copytree(analysed, tmp_path / "mine"))


def send(folder: ResultsFolder, *names: str) -> list[str]:
    """Send everything, as at the end of a comparison; the lines that were said."""
    listener = Listener()
    with tracking.track(names, folder, listener) as feeds:
        feeds.finish()
    return listener.lines


def events(path: Path) -> list[Any]:
    """The records of an event file: length, checksum, data and checksum each."""
    from tensorboardX.proto.event_pb2 import Event

    data, records = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        records.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return records


def in_tensorboard(folder: ResultsFolder) -> dict[str, Stored]:
    import yaml

    runs: dict[str, Stored] = {}
    for path in (folder.trackers / "tensorboard").glob("*/*/events*"):
        stored = runs.setdefault(str(path.parent.relative_to(folder.trackers / "tensorboard")), Stored())
        for event in events(path):
            for value in event.summary.value:
                stored.points.setdefault(value.tag, []).append((event.step, value.simple_value))
        (settings,) = path.parent.glob("*/hparams.yml")
        stored.settings = yaml.safe_load(settings.read_text(encoding="utf-8"))
    return runs


def records(path: Path) -> Iterator[bytes]:
    """The records of a wandb file: blocks of 32 KiB of pieces, each behind a checksum, its length and its kind."""
    data, at, parts = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts, at = parts + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""


def in_wandb(folder: ResultsFolder) -> dict[str, Stored]:
    from wandb.proto import wandb_internal_pb2

    runs: dict[str, Stored] = {}
    for path in folder.root.parent.glob("wandb/offline-run-*/run-*.wandb"):
        stored, name = Stored(), ""
        for record in map(wandb_internal_pb2.Record.FromString, records(path)):
            name = record.run.display_name or name
            for item in [*record.run.config.update, *record.config.update]:
                stored.settings[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for key in row.keys() - {"_step", "_runtime", "_timestamp"}:
                stored.points.setdefault(key, []).append((row["_step"], row[key]))
        assert name not in runs, f"{name} is there twice"
        runs[name] = stored
    return runs


def in_mlflow(folder: ResultsFolder) -> dict[str, Stored]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.trackers / 'mlflow' / 'mlflow.db'}")
    runs: dict[str, Stored] = {}
    for experiment in client.search_experiments():
        for one in client.search_runs([experiment.experiment_id]):
            assert one.info.run_name not in runs, f"{one.info.run_name} is there twice"
            history = {key: client.get_metric_history(one.info.run_id, key) for key in one.data.metrics}
            points = {key: [(point.step, point.value) for point in values] for key, values in history.items()}
            runs[one.info.run_name] = Stored(points, dict(one.data.params))
    return runs


def in_trackio(folder: ResultsFolder) -> dict[str, Stored]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs: dict[str, Stored] = {}
    for one in trackio.Api().runs(folder.manifest().name):
        assert one.name not in runs, f"{one.name} is there twice"
        stored = runs.setdefault(one.name, Stored(settings=dict(one.config or {})))
        for row in SQLiteStorage.get_logs(folder.manifest().name, one.name, run_id=one.id):
            for key in row.keys() - {"step", "timestamp"}:
                stored.points.setdefault(key, []).append((row["step"], row[key]))
    return runs


READERS: Mapping[str, Callable[[ResultsFolder], dict[str, Stored]]] = {
    "tensorboard": in_tensorboard, "wandb": in_wandb, "mlflow": in_mlflow, "trackio": in_trackio
}  # fmt: skip
THEIR_WARNINGS = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    "name", ["tensorboard", *(pytest.param(name, marks=THEIR_WARNINGS) for name in ("wandb", "mlflow", "trackio"))]
)
def test_what_is_sent_is_stored_once(
    name: str, folder: ResultsFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = {"tensorboard": "tensorboardX", "mlflow": "mlflow-skinny"}.get(name, name)
    if not trackers.is_installed(package):
        pytest.skip(f"{package} is not installed: pip install {trackers.KINDS[name].install}")
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))  # wandb goes offline of itself
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackers.require((name,))
    assert send(folder, name) == []
    check(folder, READERS[name](folder))
    locks.require_no_links(folder.root)
    (folder.trackers / name / "sent.json").unlink()  # as if killed before it was noted
    assert send(folder, name) == []
    check(folder, READERS[name](folder))


def check(folder: ResultsFolder, runs: Mapping[str, Stored]) -> None:
    """Every number of the histories and of the report's table, at its step, once."""
    assert runs.keys() == {f"{v}/{which}" for v in ("bco", "dpo") for which in ("seed-0", "seed-1", "final")}
    facts = json.loads((folder.root / "results.json").read_text(encoding="utf-8"))
    for variant in ("bco", "dpo"):
        for seed in (0, 1):
            stored = runs[f"{variant}/seed-{seed}"]
            history = pd.read_csv(folder.run(variant, seed) / "history.csv")
            for metric in history.columns.drop(["step", "split"]):
                for split, prefix in (("train", ""), ("heldout", "eval_")):
                    own = history[(history["split"] == split) & history[metric].notna()]
                    expected = list(zip(own["step"], own[metric], strict=True))
                    assert stored.points.get(f"{prefix}{metric}", []) == [
                        (step, pytest.approx(value, rel=1e-6)) for step, value in expected
                    ], metric
            (point,) = [p for p in facts["frontier"]["points"] if (p["variant"], p["seed"]) == (variant, seed)]
            for measure in ("reward", "kl", "win_rate"):
                value = pytest.approx(point[measure], rel=1e-6)
                assert stored.points[f"final/{measure}"] == [(history["step"].max(), value)]
            assert float(stored.settings["train.learning_rate"]) == pytest.approx(0.05)
            assert stored.settings["loss"] == variant
            assert stored.settings["report"].endswith("mine/report.html")
        (row,) = [row for row in facts["leaderboard"] if row["variant"] == variant]
        final = runs[f"{variant}/final"]
        for measure, key in (("win_rate", "win_rate"), ("reward_gain", "reward"), ("kl", "kl")):
            (only,) = final.points[f"final/{measure}"]
            assert only[1] == pytest.approx(row[key]["value"], rel=1e-6)
        assert final.settings["verdict"] == row["verdict"]


def failing(after: int, problem: BaseException) -> trackers.Kind:
    """TensorBoard that stores some steps and then raises."""
    whole = trackers.KINDS["tensorboard"]

    def opened(tracked: trackers.TrackedRun, place: Path) -> Any:
        tracker, left = whole.open(tracked, place), iter(range(after))
        store = tracker.log

        def log(values: dict[str, float], step: int | None = None) -> None:
            if next(left, None) is None:
                raise problem
            store(values, step=step)

        tracker.log = log
        return tracker

    return replace(whole, open=opened)


@HAS_TENSORBOARD
def test_a_tracker_that_fails_costs_a_line_and_the_same_command_sends_the_rest(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments(tmp_path, tiny_folder("llama"), "--seeds", "0", "--losses")
    folder = ResultsFolder(tmp_path / "results" / "mine")
    with monkeypatch.context() as patch:
        patch.setattr(trackers, "KINDS", {"tensorboard": failing(1, SystemExit("no\nspace"))})
        patch.setattr(tracking, "KINDS", trackers.KINDS)
        assert run(monkeypatch, [*words, "dpo", "--track", "tensorboard"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line and "warning" in line]
    assert "tracker tensorboard failed (SystemExit: no space)" in line
    trained = files(folder.root / "runs")
    assert folder.complete("dpo", 0)
    assert not (folder.trackers / "tensorboard" / "sent.json").exists()

    without_report(monkeypatch)
    assert run(monkeypatch, [*words, "dpo", "--set", 'track=["tensorboard"]', "--quiet"]) == 0
    assert files(folder.root / "runs") == trained  # to be tracked or not makes no run another one
    stored = in_tensorboard(folder)
    assert stored.keys() == {"dpo/seed-0", "dpo/final"}
    assert [step for step, _ in stored["dpo/seed-0"].points["eval_rewards/margins"]] == [0, 2, 3]
    assert [step for step, _ in stored["dpo/seed-0"].points["rewards/margins"]] == [1, 2, 3]


def test_one_that_hangs_holds_nothing_up(folder: ResultsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(tracked: trackers.TrackedRun, place: Path) -> Any:
        release.wait(60)
        raise RuntimeError("never seen")

    monkeypatch.setattr(tracking, "KINDS", {"wandb": replace(trackers.KINDS["wandb"], open=hang)})
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.3)
    lines = send(folder, "wandb")
    release.set()
    assert len(lines) == 1
    assert "tracker wandb failed (no answer for 0.3 s)" in lines[0]


def test_runs_are_sent_once_their_seed_is_done_and_not_when_stopped(
    folder: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    stored = threading.Event()

    class Recorder:
        def store_init_configuration(self, values: dict[str, Any]) -> None:
            assert values["variant"] in opened[-1]

        def log(self, values: dict[str, float], step: int | None = None) -> None:
            assert values

        def finish(self) -> None:
            stored.set()

    def record(tracked: trackers.TrackedRun, place: Path) -> Any:
        opened.append(tracked.name)
        return Recorder()

    monkeypatch.setattr(tracking, "KINDS", {"wandb": replace(trackers.KINDS["wandb"], open=record)})
    shutil.rmtree(folder.run("reference", 0).parent / "seed-0")  # seed 0 is not done
    shutil.rmtree(folder.run("bco", 1))
    with tracking.track(["wandb"], folder, Listener()) as feeds:
        feeds.at(1, ["reference"], 3)
        assert stored.wait(20)
    assert opened == ["dpo/seed-1"]
    note = folder.read_json(folder.trackers / "wandb" / "sent.json")
    assert note["runs"].keys() == {"dpo/seed-1"}
    send(folder, "wandb")
    assert opened[1:3] == ["bco/seed-0", "dpo/seed-0"]
    assert sorted(opened[3:]) == ["bco/final", "dpo/final"]


def test_a_tracker_that_is_not_there_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(tmp_path, tmp_path / "no-model", "--losses", "dpo", "--track")

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", absent)
        assert run(monkeypatch, [*words, "mlflow"]) == 2
    assert "pip install mlflow-skinny sqlalchemy alembic" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "1")
        patch.setitem(sys.modules, "wandb", None)
        assert run(monkeypatch, [*words, "wandb"]) == 2
    assert "wandb cannot be imported" in capsys.readouterr().err
    for given, said in {
        "tensorbord": "'tensorboard', 'wandb', 'mlflow' or 'trackio'; got 'tensorbord'",
        "wandb, wandb": "tracker wandb is given twice",
        "": "got ''",
    }.items():
        assert run(monkeypatch, [*words, given]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
