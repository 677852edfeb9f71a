"""Sends a comparison's finished runs to experiment trackers, beside the training and never in its way.

Each run is replayed from its ``history.csv`` as a whole once it and its seed's reference are finished: runs that train
in lockstep do not interleave, and one that is resumed is not there twice. What a tracker has is noted in its folder,
and the same command sends what is missing. Names of metrics are TRL's: ``loss``, ``rewards/margins``, ...; those of
held-out pairs begin with ``eval_``.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from prefopt.errors import UsageError
from prefopt.judges.gold import oracle_judgements
from prefopt.launch.trackers import ID, KINDS, TrackedRun, Value
from prefopt.runtime.progress import Progress, Silent
from prefopt.storage.formats import write_json
from prefopt.storage.hashing import digest, seal
from prefopt.storage.records import Manifest, RunRecord
from prefopt.storage.redact import portable, without_secrets
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import HISTORY_COLUMNS, REFERENCE

PATIENCE_S = 180.0  # at the end, without a sign of life of a tracker; mlflow and wandb try for 90 s and more
STOPPED_S = 2.0  # for the run that is under way when the command is stopped; it is sent again as a whole
METRICS = tuple(name for name in HISTORY_COLUMNS if name not in ("step", "split"))
# Of the report's leaderboard, each with an interval; its reward is the gain over the reference.
MEASURES = {
    "win_rate": "win_rate",
    "reward": "reward_gain",
    "kl": "kl",
    "accuracy": "accuracy",
    "length": "length_ratio",
}


@contextlib.contextmanager
def track(names: Sequence[str], folder: ResultsFolder, progress: Progress) -> Iterator[Tracking]:
    """Send what finishes in a results folder to trackers; the listener that hears what is under way.

    What trackers print goes to standard error, where all is that is not a result.

    Args:
        names: Of the trackers.
        folder: Whose lock the caller holds.
        progress: Hears which tracker has failed, and of what.
    """
    if names:
        from accelerate.state import PartialState

        PartialState(cpu=True)  # the trackers ask it whether this is the main process
    tracking = Tracking(names, folder, progress)
    with contextlib.redirect_stdout(sys.stderr) if names else contextlib.nullcontext():
        try:
            yield tracking
        finally:
            tracking.stop()


class Tracking(Silent):
    """A listener that wakes the trackers when other runs come under way, since those before them may have finished."""

    def __init__(self, names: Sequence[str], folder: ResultsFolder, progress: Progress) -> None:
        self._progress = progress
        self._feeds = [Feed(name, folder) for name in names]
        self._under_way: tuple[int, tuple[str, ...]] | None = None
        for feed in self._feeds:
            feed.start()

    def at(self, seed: int, variants: Sequence[str], step: int) -> None:
        """The seed and the variants that are under way."""
        if self._under_way != (seed, tuple(variants)):
            self._under_way = seed, tuple(variants)
            for feed in self._feeds:
                feed.wake.set()
        self._tell()

    def finish(self) -> None:
        """Send the rest and the report's table, and wait for it as long as there are signs of life."""
        if self._feeds:
            self._progress.stage("sending runs to trackers", 0, 1)
        for feed in self._feeds:
            feed.finish()
        for feed in self._feeds:
            while feed.is_alive() and time.monotonic() - feed.alive_at < PATIENCE_S:
                feed.join(0.2)
            if feed.is_alive():
                feed.problem = f"no answer for {PATIENCE_S:g} s"
        self._tell()

    def stop(self) -> None:
        """End without sending more; a run that was under way is sent again by the same command."""
        until = time.monotonic() + STOPPED_S
        for feed in self._feeds:
            feed.stop()
        for feed in self._feeds:
            if not feed.problem:
                feed.join(max(0.0, until - time.monotonic()))

    def _tell(self) -> None:
        """One line for each tracker that has failed, once."""
        for feed in self._feeds:
            if feed.problem and not feed.told:
                feed.told = True
                self._progress.say(
                    f"warning: tracker {feed.tracker} failed ({feed.problem}); the runs are not affected, and the "
                    "same command sends what it lacks"
                )


class Feed(threading.Thread):
    """One tracker, in a thread of its own: one that hangs holds up neither the training nor another tracker.

    Attributes:
        tracker: Its name.
        kind: What it takes to open a run in it.
        folder: Whose runs it is sent.
        place: Where it keeps its files, and we the note of what it has.
        wake: Set when there may be something to send.
        problem: Why it has been given up, in one line; empty otherwise.
        told: Whether the user knows.
        alive_at: When it last came forward, in seconds of the monotonic clock.
    """

    def __init__(self, name: str, folder: ResultsFolder) -> None:
        super().__init__(name=f"tracker {name}", daemon=True)
        self.tracker, self.kind, self.folder = name, KINDS[name], folder
        self.place = folder.trackers / name
        self.wake = threading.Event()
        self.problem, self.told = "", False
        self.alive_at = time.monotonic()
        self._ending = self._stopped = False

    def finish(self) -> None:
        """Send all that is there, then end."""
        self._ending, self.alive_at = True, time.monotonic()
        self.wake.set()

    def stop(self) -> None:
        """End after the values that are being sent."""
        self._stopped = True
        self.wake.set()

    def run(self) -> None:
        """Send what there is each time it is woken; whatever a tracker raises ends it and nothing else."""
        try:
            while not self._stopped:
                self.wake.wait()
                self.wake.clear()
                ending = self._ending  # read once: what finishes while this is sent is sent by the next round
                if not self._stopped:
                    self._send_missing(ending=ending)
                if ending:
                    return
        except BaseException as problem:  # a tracker may call sys.exit
            text = " ".join(f"{type(problem).__name__}: {problem}".split())
            self.problem = without_secrets(text)[:300]

    def _send_missing(self, *, ending: bool) -> None:
        sent = self._sent()
        for run in finished(self.folder, ending=ending):
            content = digest([run.content, self.kind.destination()])
            if sent.get(run.name) != content:
                if not self._send(run.load()):
                    return
                sent[run.name] = content
                write_json(self._note, seal({"runs": sent}))

    def _send(self, run: TrackedRun) -> bool:
        """Store one run; False if it was stopped on the way."""
        tracker = self.kind.open(run, self.place)
        try:
            tracker.store_init_configuration(dict(run.settings))
            for step, values in run.steps.items():
                if self._stopped:
                    return False
                tracker.log(dict(values), step=step)
                self.alive_at = time.monotonic()
        finally:
            tracker.finish()
        return True

    @property
    def _note(self) -> Path:
        return self.place / "sent.json"

    def _sent(self) -> dict[str, str]:
        """What the tracker has, as hashes by run; nothing where the note is damaged, and all is sent again."""
        try:
            return dict(self.folder.read_json(self._note)["runs"])
        except (UsageError, KeyError):
            return {}


@dataclass(frozen=True, slots=True)
class Finished:
    """What a tracker is to have, read only if it has it not.

    Attributes:
        name: Such as ``dpo/seed-0``, or ``dpo/final``.
        content: A hash of all that it is made of.
        load: Reads it.
    """

    name: str
    content: str
    load: Callable[[], TrackedRun]


def finished(folder: ResultsFolder, *, ending: bool) -> Iterator[Finished]:
    """The runs of a folder that have numbers, then, at the end, each variant's line of the report's leaderboard.

    Args:
        folder: The results folder.
        ending: Nothing more will finish, and the report is written.
    """
    if not folder.manifest_path.is_file():
        return
    manifest, records = folder.manifest(), folder.runs()
    for (variant, seed), record in sorted(records.items(), key=lambda item: (item[0][1], item[0][0])):
        reference = records.get((REFERENCE, seed))
        if variant != REFERENCE and record.has_numbers and (ending or reference is not None):
            content = digest([record.as_dict(), reference.as_dict() if reference else None])
            yield Finished(f"{variant}/seed-{seed}", content, partial(_trained, folder, manifest, record))
    if ending and (folder.root / "results.json").is_file():
        for row in folder.read_json(folder.root / "results.json")["leaderboard"]:
            yield Finished(f"{row['variant']}/final", digest(row), partial(_final, folder, manifest, row))


def _trained(folder: ResultsFolder, manifest: Manifest, record: RunRecord) -> TrackedRun:
    """One run with its whole history; what its policy came to stands at the last step."""
    history = dict(by_step(pd.read_csv(folder.run(record.variant, record.seed) / "history.csv")))
    last = max(history, default=0)
    steps = {**history, last: {**history.get(last, {}), **_outcome(folder, manifest, record)}}
    own = {
        "seed": record.seed,
        "status": record.status,
        "diverged_at": record.diverged_at,
        "reason": record.reason or None,
        "steps": record.steps,
        "learning_rate": record.learning_rate,
        "loss": record.loss.get("loss"),
        "hyperparameters": {name: value for name, value in record.loss.items() if name != "loss"},
    }
    return _tracked(folder, manifest, f"{record.variant}/seed-{record.seed}", own, steps)


def _final(folder: ResultsFolder, manifest: Manifest, row: Mapping[str, Any]) -> TrackedRun:
    """A variant's line of the report's final table, so that a tracker's own table of runs shows it."""
    values = {}
    for measure, name in MEASURES.items():
        interval = row.get(measure) or {}
        ends = {name: interval.get("value"), f"{name}_low": interval.get("low"), f"{name}_high": interval.get("high")}
        values.update({f"final/{key}": float(value) for key, value in ends.items() if value is not None})
    own = {key: row.get(key) for key in ("verdict", "rank", "seeds", "learning_rate", "hyperparameters")}
    return _tracked(folder, manifest, f"{row['variant']}/final", own, {None: values})


def _tracked(
    folder: ResultsFolder,
    manifest: Manifest,
    name: str,
    own: Mapping[str, Any],
    steps: Mapping[int, Mapping[str, float]] | Mapping[None, Mapping[str, float]],
) -> TrackedRun:
    """A run under its name, with what is its own and what all runs of the comparison have in common."""
    variant = name.partition("/")[0]
    run_id = digest([manifest.name, manifest.created, name])
    shared = {key: value for key, value in manifest.config.items() if key not in ("seeds", "variants", "track")}
    about = {
        ID: run_id,
        "variant": variant,
        "report": portable(str((folder.root / "report.html").resolve())),
        "prefopt_version": manifest.prefopt_version,
        "commit": manifest.commit or None,
        "model_hash": manifest.model.get("hash"),
    }
    settings = {**flat(shared), **flat(own), **flat(about)}
    return TrackedRun(project=manifest.name, name=name, group=variant, id=run_id, settings=settings, steps=steps)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested settings under dotted names; a list as JSON, and what is not set left out."""
    plain: dict[str, Value] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            plain |= flat(item, f"{name}.")
        elif isinstance(item, list | tuple):
            plain[name] = json.dumps(item)
        elif item is not None:
            plain[name] = item
    return plain


def by_step(history: pd.DataFrame) -> Iterator[tuple[int, dict[str, float]]]:
    """The metrics of each step in order, those of held-out pairs as ``eval_...``; empty cells are left out."""
    for step, rows in history.groupby("step", sort=True):
        values = {}
        for row in rows.to_dict("records"):
            prefix = "eval_" if row["split"] == "heldout" else ""
            values.update({f"{prefix}{name}": float(row[name]) for name in METRICS if pd.notna(row[name])})
        yield int(step), values


def _outcome(folder: ResultsFolder, manifest: Manifest, record: RunRecord) -> dict[str, float]:
    """What a complete run's policy came to: gold reward, KL (nats), tokens, and win rate over the seed's reference."""
    if not record.is_complete:
        return {}
    keys = ((record.variant, record.seed), (REFERENCE, record.seed))
    places = {key: folder.run(*key) / "scores.parquet" for key in keys}
    scores = {key: pd.read_parquet(path) for key, path in places.items() if path.is_file()}
    own = scores[keys[0]]
    values = {"reward": own["reward"].mean(), "kl": own["kl"].mean(), "tokens": own["n_tokens"].mean()}
    if manifest.task.get("reward"):
        values["win_rate"] = oracle_judgements(scores, [record.variant])["score"].mean()
    return {f"final/{name}": float(value) for name, value in values.items() if pd.notna(value)}
