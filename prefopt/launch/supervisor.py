"""Runs a comparison in a process of its own, and starts it again from its checkpoints when it dies or hangs.

A death counts for all runs that were under way. After the second one, runs that trained together are trained one
after the other; one that was under way alone is then marked as failed, and the rest goes on without it.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import prefopt
from prefopt.config.schema import Config
from prefopt.errors import MachineError, PrefoptError
from prefopt.launch.protocol import At, End, Message, Request, Stage, Step, decode, tell
from prefopt.runtime.interrupts import Stopped
from prefopt.runtime.progress import Progress
from prefopt.storage.records import RunRecord
from prefopt.storage.results import ResultsFolder

HANG_AFTER_S = 1800.0
DUMP_S = 1.0  # for a hung process to write its stacks before it is killed
# Not the current folder, from which nothing is to be imported: the one this package lies in, last.
_START = "import sys; sys.path.append(sys.argv[1]); from prefopt.launch.worker import main; main()"


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
    """

    config: Config
    results: Path
    command: Sequence[str]
    plugins: Sequence[str]
    progress: Progress
    descriptor: int
    hang_after: float = HANG_AFTER_S
    skip: set[tuple[str, int]] = field(default_factory=set)
    alone: set[int] = field(default_factory=set)
    deaths: Counter[tuple[str, int]] = field(default_factory=Counter)
    at: At | None = None
    stage: str = "starting"
    end: End | None = None
    worker: subprocess.Popen[bytes] | None = None
    signals: list[int] = field(default_factory=list)

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
                    raise MachineError(f"the working process {death} twice, in the stage: {self.stage}")
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
        where = f"{death} at step {step}"
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
        import torch

        self.at, self.end = None, None
        read, write = os.pipe()
        root = str(Path(prefopt.__file__).parent.parent)
        worker = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, root],
            stdin=subprocess.PIPE, stdout=sys.stderr.fileno(), pass_fds=(write, self.descriptor),
            start_new_session=True,
        )  # fmt: skip
        self.worker = worker
        os.close(write)
        request = Request(
            events=write,
            config=self.config.model_dump(),
            results=str(self.results),
            command=list(self.command),
            plugins=list(self.plugins),
            threads=torch.get_num_threads(),
            skip=sorted(self.skip),
            alone=sorted(self.alone),
        )
        try:
            assert worker.stdin is not None
            worker.stdin.write(request.encode())
            worker.stdin.flush()
            hung = self._listen(read, worker)
            code = worker.wait()
        except BrokenPipeError:
            hung, code = False, worker.wait()
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            os.close(read)
            self.worker = None
        if hung:
            return f"gave no sign of life for {self.hang_after:g} s"
        killed = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"died of {signal.Signals(-code).name}{killed}" if code < 0 else f"ended with status {code}"

    def _listen(self, pipe: int, worker: subprocess.Popen[bytes]) -> bool:
        """Show what the worker says until it ends; True if it had to be killed because it said nothing more."""
        heard, rest = time.monotonic(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                if selector.select(timeout=0.5):
                    data = os.read(pipe, 1 << 16)
                    if not data:
                        return False
                    heard = time.monotonic()
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._hear(decode(line))
                elif self.hang_after and time.monotonic() - heard > self.hang_after:
                    worker.send_signal(signal.SIGUSR1)
                    time.sleep(DUMP_S)
                    worker.kill()
                    return True

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
        """Hand SIGTERM and SIGINT on to the worker, which ends its step; a second SIGINT ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def forward(number: int, frame: FrameType | None) -> None:
            again = number == signal.SIGINT and number in self.signals
            self.signals.append(number)
            if self.worker is not None and self.worker.poll() is None:
                self.worker.send_signal(signal.SIGKILL if again else number)

        before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _refusal(code: int, text: str) -> PrefoptError:
    """The worker's error, as if it had been raised here."""
    problem = PrefoptError(text)
    problem.exit_code = code
    return problem
