"""Sends a comparison's finished runs to experiment trackers, beside the training and never in its way.

Each run is sent as a whole once it and its seed's reference are finished: runs that train in lockstep do not
interleave, and one that is resumed is not there twice. What a tracker has is noted in its folder, and the same command
sends what is missing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from prefopt.errors import UsageError
from prefopt.launch.replay import finished
from prefopt.launch.trackers import KINDS, TrackedRun
from prefopt.runtime.progress import Progress, Silent
from prefopt.storage.formats import write_json
from prefopt.storage.hashing import digest, seal
from prefopt.storage.redact import without_secrets
from prefopt.storage.results import ResultsFolder

PATIENCE_S = 180.0  # at the end, without a sign of life of a tracker; mlflow and wandb try for 90 s and more
STOPPED_S = 2.0  # for the run that is under way when the command is stopped; it is sent again as a whole


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
