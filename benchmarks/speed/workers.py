"""One process for each side, trained in turns: the parent says how many steps, the worker says how long they took.

A process of its own gives each side its own peak memory, its own global state and its own allocator.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from prefopt.runtime import memory


class Stopped(Exception):  # noqa: N818 - raised to leave a training loop, not because something went wrong
    """The parent wants no more steps."""


class Gate:
    """Where a training loop waits between blocks of steps.

    Call ``open`` once before the first step and ``step_done`` after each.
    """

    def __init__(self, connection: Connection, device: str) -> None:
        self.connection, self.device = connection, torch.device(device)
        self.left = 0
        self.began = 0.0

    def open(self, facts: dict[str, Any]) -> None:
        """Report that everything is prepared; wait for the first block."""
        memory.forget_peak(self.device)
        self._report(facts)

    def step_done(self, facts: dict[str, Any] | None = None) -> None:
        """Count a step; at the end of a block report its seconds and wait for the next."""
        self.left -= 1
        if self.left == 0:
            self._synchronise()
            seconds = time.perf_counter() - self.began
            peak = memory.peak_gib(self.device)
            self._release()
            self._report({"seconds": seconds, "peak_gib": peak, **(facts or {})})

    def _report(self, facts: dict[str, Any]) -> None:
        self.connection.send(facts)
        self.left = self.connection.recv()
        if not self.left:
            raise Stopped
        memory.forget_peak(self.device)
        self._synchronise()
        self.began = time.perf_counter()

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _release(self) -> None:
        """Hand cached memory back, for the other side's block; the next one's first step allocates it again."""
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            if free < total // 2:
                torch.cuda.empty_cache()


def _serve(connection: Connection, work: Callable[..., None], arguments: dict[str, Any]) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        work(connection, **arguments)
    except Stopped:
        pass
    except BaseException as problem:
        connection.send({"failed": f"{type(problem).__name__}: {problem}"[:600], "trace": traceback.format_exc()})
        return
    connection.send({"finished": True})


class WorkerFailed(Exception):  # noqa: N818 - a row of a table, not a defect
    """A worker could not do its work; the message is its own."""


class Worker:
    """A side in its own process.

    Args:
        work: A function of a module of this package, called as ``work(connection, **arguments)``.
        arguments: Picklable.

    Attributes:
        facts: What the worker reported when it was ready.
        startup_s: From the start of the process until then.
    """

    def __init__(self, work: Callable[..., None], **arguments: Any) -> None:
        began = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.facts = self._receive()
        self.startup_s = time.perf_counter() - began

    def block(self, steps: int) -> dict[str, Any]:
        """Run some steps; their seconds, and what else the worker tells of them."""
        self.connection.send(steps)
        return self._receive()

    def close(self) -> None:
        """Ask for no more steps and wait for the process to end."""
        if self.process.is_alive():
            try:
                self.connection.send(0)
                self._receive()
            except (BrokenPipeError, OSError, WorkerFailed):
                pass
        self.process.join(timeout=60)
        if self.process.is_alive():
            self.process.terminate()

    def _receive(self) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = self.connection.recv()
        except EOFError:
            raise WorkerFailed(f"the process ended with status {self.process.exitcode}") from None
        if "failed" in facts:
            self.process.join(timeout=60)
            raise WorkerFailed(facts["failed"] + "\n" + facts["trace"])
        return facts
