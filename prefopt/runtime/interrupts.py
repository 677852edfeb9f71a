"""SIGTERM, SIGINT, SIGHUP: a training step ends and is kept, anything else stops at once, and nothing is lost.

Without ``listen`` signals do what they always do; whoever uses the package as a library decides for themselves.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = "run the same command again to go on"


class Stopped(BaseException):
    """A signal asked for the end; not an ``Exception``, so that nothing takes it for a failure of its own.

    Attributes:
        exit_code: 128 + the signal's number.
    """

    def __init__(self, number: int, where: str = "", *, said: str = "") -> None:
        self.number, self.exit_code = number, 128 + number
        super().__init__(said or f"stopped by {signal.Signals(number).name}{' ' + where if where else ''}; {_AGAIN}")


def ending_signals() -> list[int]:
    """The signals that ask for an end; SIGHUP is not among them where ``nohup`` has it ignored."""
    hangup = getattr(signal, "SIGHUP", None)
    heard = hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([hangup] if hangup is not None and heard else [])]


class Stop:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.depth = 0

    @property
    def requested(self) -> bool:
        """Whether the end of this step is to be the end."""
        return self.number is not None

    def raise_if_requested(self, where: str) -> None:
        """Raise ``Stopped`` if a signal has come."""
        if self.number is not None:
            number, self.number = self.number, None
            raise Stopped(number, where)


_stop = Stop()


@contextmanager
def listen() -> Iterator[None]:
    """Turn SIGTERM, SIGINT and SIGHUP into ``Stopped``; a second SIGINT does not wait for the step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _heard) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop.number = None


@contextmanager
def deferred() -> Iterator[Stop]:
    """Inside, a signal waits until ``raise_if_requested`` is called."""
    _stop.depth += 1
    try:
        yield _stop
    finally:
        _stop.depth -= 1
    _stop.raise_if_requested("")


def _heard(number: int, frame: FrameType | None) -> None:
    if _stop.depth and not (number == signal.SIGINT and _stop.requested):
        _stop.number = number
        return
    _stop.number = None
    raise Stopped(number)
