"""What code of a plugin may not do to the process that it runs in: end it, double it, or speak for it."""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from prefopt.errors import UsageError


class ProcessEndError(BaseException):
    """A plugin called ``os._exit``; not an ``Exception``, so that its own ``except Exception`` does not hide it."""


@contextmanager
def in_this_process() -> Iterator[None]:
    """Inside, ``os._exit`` raises ``ProcessEndError``, and a copy of the process that is forked ends with the block.

    A copy that comes back from foreign code would otherwise go on with the work of the original, beside it.
    """
    own, leave = os.getpid(), os._exit

    def refuse(status: int = 0) -> NoReturn:
        if os.getpid() != own:
            leave(status)  # as what a fork of Python's own libraries ends with
        raise ProcessEndError(f"it ends the process: os._exit({status!r})")

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = leave
        if os.getpid() != own:
            leave(0)


@contextmanager
def while_loading() -> Iterator[None]:
    """Inside, a plugin is imported: it cannot end or double the process, and what it prints by any means is dropped.

    Standard output and error carry JSON for those who ask for it.

    Raises:
        UsageError: If it ends the process, or interrupts it though nobody did.
    """
    interrupted: list[int] = []

    def note(number: int, frame: FrameType | None) -> NoReturn:
        interrupted.append(number)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    listens = ours and handler is signal.default_int_handler
    deaf = ours and handler is signal.SIG_IGN  # as jobs in the background are: nobody can interrupt them
    before = signal.signal(signal.SIGINT, note) if listens else None
    try:
        with _dropped_output(), in_this_process():
            yield
    except ProcessEndError as problem:
        raise UsageError(str(problem)) from None
    except SystemExit as problem:
        raise UsageError(f"SystemExit: {problem}") from None
    except KeyboardInterrupt:
        if interrupted or not (listens or deaf):
            raise
        raise UsageError("KeyboardInterrupt, which nobody but the plugin itself has raised") from None
    finally:
        if listens:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _dropped_output() -> Iterator[None]:
    """Inside, standard output and error go nowhere, those of native code and of what is started among them.

    Where native code crashes, the stack is shown nevertheless.
    """
    streams = sys.stdout, sys.stderr
    for stream in streams:
        with suppress(OSError, ValueError):
            stream.flush()
    own = [(number, os.dup(number)) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number, _ in own:
        os.dup2(nowhere, number)
    os.close(nowhere)
    sys.stdout = sys.stderr = _Nowhere()
    crashes_are_shown = faulthandler.is_enabled()
    if not crashes_are_shown:
        faulthandler.enable(file=own[1][1])
    try:
        yield
    finally:
        if not crashes_are_shown:
            faulthandler.disable()
        sys.stdout, sys.stderr = streams
        for number, copy in own:
            os.dup2(copy, number)
            os.close(copy)


class _Nowhere(io.TextIOBase):
    """Takes all text; a handler of ``logging`` that was made meanwhile may keep it for ever."""

    def write(self, text: str) -> int:
        return len(text)


def is_its_own(problem: BaseException) -> bool:
    """Whether foreign code itself has raised this, and not somebody who wants the process to end."""
    if isinstance(problem, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # then a signal raises something else
    return isinstance(problem, (Exception, SystemExit, ProcessEndError, GeneratorExit))
