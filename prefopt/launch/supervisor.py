"""Runs a comparison in a process of its own, and starts it again from its checkpoints when it dies or hangs.

A death counts for all runs that were under way. After the second one, runs that trained together are trained one
after the other; one that was under way alone is then marked as failed, and the rest goes on without it.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from prefopt.config.schema import Config
from prefopt.errors import MachineError, PrefoptError
from prefopt.launch.process import WorkerProcess
from prefopt.launch.protocol import At, End, Message, Request, Stage, Step, decode, tell
from prefopt.runtime.interrupts import Stopped, ending_signals
from prefopt.runtime.progress import Progress
from prefopt.storage.records import RunRecord
from prefopt.storage.redact import without_secrets
from prefopt.storage.results import ResultsFolder

HANG_AFTER_S = 1800.0
DUMP_S = 1.0  # for a hung process to write its stacks before it is killed
POLL_S = 0.5
STOPPED_S = 5.0  # between two polls: this process was stopped, or its machine slept
LEAVE_S = 60.0  # for a worker to end that has closed its pipe for messages
TOLD = 10  # lines that a worker printed last, where it did not get as far as a run


@dataclass
class Supervisor:
    """One comparison and the processes that it takes.

    Args:
        config: What to compare.
        results: The folder of all comparisons.
        command: The command line, for the manifest.
        plugins: What registers losses, by file or name.
        progress: Hears what the worker says.
        descriptor: Of the folder's lock, which the worker holds as well: it is free only when both have ended.
        hang_after: Seconds without a sign of life after which the worker is taken for hung; 0 for never.
        isolate: Whether losses from outside this package are trained in a group of their own.
    """

    config: Config
    results: Path
    command: Sequence[str]
    plugins: Sequence[str]
    progress: Progress
    descriptor: int
    hang_after: float = HANG_AFTER_S
    isolate: bool = False
    skip: set[tuple[str, int]] = field(default_factory=set)
    alone: set[int] = field(default_factory=set)
    deaths: Counter[tuple[str, int]] = field(default_factory=Counter)
    at: At | None = None
    stage: str = "starting"
    end: End | None = None
    worker: WorkerProcess | None = None
    printed: list[str] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)
    passed_on: int = 0

    def run(self) -> ResultsFolder:
        """Work until nothing is left that can be done.

        Raises:
            Stopped: After a signal.
            PrefoptError: What the worker refused, or that it died twice where no run was under way.
        """
        early = 0
        with self._forwarding():
            while True:
                death = self._one_worker()
                self._raise_if_ended_badly()
                if self.end is not None:
                    return ResultsFolder(self.results / self.config.name)
                early += self.at is None
                if early > 1:
                    last = [line for line in self.printed if line.strip()][-TOLD:]
                    text = f"the working process {death} twice, in the stage: {self.stage}"
                    raise MachineError("\n".join([text, *(["What it printed last:"] if last else []), *last]))
                self._after(death)

    def _raise_if_ended_badly(self) -> None:
        """Raise here what the worker said that it ended of, or that a signal has come."""
        end = self.end
        if end is not None and end.how == "refused":
            raise _refusal(end.code, end.text)
        if end is not None and end.how == "stopped":
            raise Stopped(end.code, said=end.text)
        if self.signals:
            raise Stopped(self.signals[-1])
        if end is not None and end.how == "defect":
            raise RuntimeError(end.text)

    def _after(self, death: str) -> None:
        """Decide what the next worker does otherwise."""
        if self.at is None:
            self.progress.say(f"the working process {death} ({self.stage}); starting it again")
            return
        seed, variants, step = self.at.seed, self.at.variants, self.at.step
        where = f"{death} at step {step}{innermost(self.printed)}"
        runs = [(variant, seed) for variant in variants]
        self.deaths.update(runs)
        if max(self.deaths[run] for run in runs) < 2:
            self.progress.say(f"seed {seed}: the working process {where}; going on from the checkpoints")
        elif len(runs) > 1:
            self.alone.add(seed)
            self.progress.say(f"seed {seed}: the working process {where} again; training one variant after the other")
        else:
            self.skip.update(runs)
            folder = ResultsFolder(self.results / self.config.name)
            reason = f"the working process {where}"
            folder.write_record(RunRecord(variant=variants[0], seed=seed, status="failed", reason=reason))
            self.progress.say(f"seed {seed}: {variants[0]} failed: the working process {where}; going on without it")

    def _one_worker(self) -> str:
        """Start a worker and listen until it ends; how it died, if it did not say how it ended."""
        self.at, self.end = None, None
        try:
            worker = WorkerProcess(lambda messages: self._request(messages).encode(), self.descriptor)
        except OSError as problem:
            raise MachineError(
                f"cannot start the working process: {problem.strerror}; free some, then run again"
            ) from None
        try:
            self.worker = worker
            self._pass_on_signals()  # what came before there was anybody to hand it to
            worker.begin()
            killed = self._listen(worker)
            code = worker.end()
            self._show(*worker.read_rest())
        finally:
            self.worker = None
            worker.close()
        self.printed = list(worker.printed)
        return killed or _death(code)

    def _request(self, messages: int) -> Request:
        import torch

        return Request(
            events=messages,
            lock=self.descriptor,
            config=self.config.model_dump(exclude_unset=True),  # what is not given is chosen by situation there, too
            results=str(self.results),
            command=list(self.command),
            plugins=list(self.plugins),
            threads=torch.get_num_threads(),
            skip=sorted(self.skip),
            alone=sorted(self.alone),
            isolate=self.isolate,
        )

    def _listen(self, worker: WorkerProcess) -> str | None:
        """Show what the worker says until it ends; why it has to be killed, if it has to."""
        heard = asked = time.monotonic()
        closed: float | None = None
        while not worker.has_ended():
            messages, printed = worker.read(POLL_S)
            now = time.monotonic()
            if messages or now - asked > STOPPED_S:  # the latter: this process was stopped itself, and so heard nothing
                heard = now
            asked = now
            self._show(messages, printed)
            if self.hang_after and now - heard > self.hang_after:
                worker.send(signal.SIGUSR1)
                time.sleep(DUMP_S)
                return f"gave no sign of life for {self.hang_after:g} s"
            if worker.is_silent_for_good():
                closed = closed or now
                if now - closed > LEAVE_S:
                    return "closed its pipe and did not end"
        return None

    def _show(self, messages: Sequence[bytes], printed: Sequence[str]) -> None:
        for text in printed:
            if text.strip():
                self.progress.say(f"worker: {without_secrets(text)}")
        for line in messages:
            try:
                message = decode(line)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # foreign code has written there
            self._hear(message)

    def _hear(self, message: Message) -> None:
        match message:
            case At():
                self.at = message
            case End():
                self.end = message
            case Stage() | Step():
                self.stage = message.text
        tell(self.progress, message)

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        """Hand signals that ask for the end on to the worker, which ends its step; a second SIGINT ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def forward(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)
            self._pass_on_signals()

        before = {number: signal.signal(number, forward) for number in ending_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on_signals(self) -> None:
        """Send the worker every signal that it was not sent yet; one that has not begun is simply ended."""
        while self.worker is not None and self.passed_on < len(self.signals):
            number = self.signals[self.passed_on]
            again = number == signal.SIGINT and number in self.signals[: self.passed_on]
            self.passed_on += 1
            self.worker.send(signal.SIGKILL if again or not self.worker.has_spoken else number)


def _death(code: int) -> str:
    """How a process ended, from its exit status."""
    if code >= 0:
        return f"ended with status {code}"
    return f"died of {signal.Signals(-code).name}{' (out of memory?)' if code == -signal.SIGKILL else ''}"


def innermost(printed: Sequence[str]) -> str:
    """`` in <file>:<line>``, where a dump of stacks among the printed lines says so; else nothing.

    The innermost line of the thread that was running, and of a file of the user's own if there is one.
    """
    frames: list[tuple[str, str]] = []
    begun = False
    for line in printed:
        if re.match(r"(Current thread|Thread) 0x", line):
            begun, frames = True, []  # the last one is the main thread, if none is said to be running
        elif begun and (match := re.match(r'  File "(.+)", line (\d+) in ', line)):
            frames.append((match[1], match[2]))
        elif begun and frames and not line.strip():
            begun = False
    own = [
        frame for frame in frames if not re.search(r"site-packages|dist-packages|lib/python3|/prefopt/|^<", frame[0])
    ]
    return "".join(f" in {Path(file).name}:{line}" for file, line in (own or frames)[:1])


def _refusal(code: int, text: str) -> PrefoptError:
    """The worker's error, as if it had been raised here."""
    problem = PrefoptError(text)
    problem.exit_code = code
    return problem
