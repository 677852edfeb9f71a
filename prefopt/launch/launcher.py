"""Where a comparison runs, behind one interface: in this process, or in a supervised one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from prefopt.config.schema import Config
from prefopt.launch.supervisor import HANG_AFTER_S, Supervisor
from prefopt.runtime.progress import Progress
from prefopt.storage.results import ResultsFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A comparison that is to run.

    Attributes:
        config: What to compare.
        results: The folder of all comparisons.
        command: The command line, for the manifest.
        lock: The descriptor of the results folder's lock, which the caller holds.
        isolate: Whether losses from outside this package are trained in a group of their own.
    """

    config: Config
    results: Path
    command: Sequence[str]
    lock: int
    isolate: bool = False


class Launcher(Protocol):
    """Runs a comparison somewhere, until nothing is left that can be done."""

    def run(self, job: Job, progress: Progress) -> ResultsFolder:
        """Run it; the results folder.

        Raises:
            Stopped: After a signal.
            PrefoptError: For anything that the user can mend.
        """


class InProcess:
    """Runs it in this process, which a crash of native code ends."""

    def run(self, job: Job, progress: Progress) -> ResultsFolder:
        """Run it here."""
        from prefopt.comparison.runner import work
        from prefopt.comparison.seed_group import Partition

        partition = Partition(isolate=job.isolate)
        return work(job.config, results=job.results, command=job.command, progress=progress, partition=partition)


@dataclass(frozen=True, slots=True)
class Supervised:
    """Runs it in a process of its own, which is started again when it dies or hangs.

    Attributes:
        plugins: What registers losses, by file or name.
        hang_after: Seconds without a sign of life after which the process is taken for hung; 0 for never.
    """

    plugins: Sequence[str] = field(default=())
    hang_after: float = HANG_AFTER_S

    def run(self, job: Job, progress: Progress) -> ResultsFolder:
        """Run it there."""
        supervisor = Supervisor(
            job.config, job.results, job.command, self.plugins, progress, job.lock, self.hang_after, job.isolate
        )
        return supervisor.run()
