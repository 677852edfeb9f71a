"""Standard input, output and error as a command finds them: closed, full, or with a reader that has gone.

Standard output carries what a command was asked for, so that not being able to write it is an error. Standard error is
a display: when nobody can see it any more, it goes nowhere, and the work goes on.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from prefopt.errors import MachineError


class ReaderGoneError(Exception):
    """Who read standard output has closed it, as ``head`` does; no error, and nothing is left to say."""


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, standard error never raises, and standard output raises what can be told.

    That is ``MachineError`` where it cannot be written, and ``ReaderGoneError`` where nobody reads it any more. What
    is written to descriptor 1 by other means, such as a plugin's native code, appears on standard error: standard
    output is a command's answer and nothing else.
    """
    before = sys.stdout, sys.stderr
    _open_closed()
    sys.stderr = Display(before[1] or open(2, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    with _private(before[0]) as answer:
        sys.stdout = Answer(answer)
        try:
            yield
        finally:
            with suppress(MachineError, ReaderGoneError):  # a command that succeeds has flushed it
                sys.stdout.flush()
            sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Give the closed ones of descriptors 0, 1 and 2 to the null device, lest files be opened under these numbers.

    Descriptor 1 is opened for reading, so that an answer that cannot be given is noticed.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number, which is this one


@contextmanager
def _private(stream: TextIO | None) -> Iterator[TextIO]:
    """Standard output under a descriptor that nobody else knows; descriptor 1 is the display meanwhile."""
    if stream is not None and not _is_descriptor(stream, 1):
        yield stream  # of somebody who has put another one in its place
        return
    encoding = stream.encoding if stream is not None else "utf-8"
    with os.fdopen(os.dup(1), "w", encoding=encoding, errors="backslashreplace") as own:
        os.dup2(2, 1)
        try:
            yield own
        finally:
            os.dup2(own.fileno(), 1)


def _is_descriptor(stream: Any, number: int) -> bool:
    try:
        return bool(stream.fileno() == number)
    except (AttributeError, OSError, ValueError):
        return False


class _Wrapped:
    """A text stream whose failures are treated in one place."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, and treat a failure."""
        try:
            return self.stream.write(text)
        except OSError as problem:
            self.lose(problem)
        return len(text)

    def flush(self) -> None:
        """Flush, and treat a failure."""
        try:
            self.stream.flush()
        except OSError as problem:
            self.lose(problem)

    def lose(self, problem: OSError) -> None:
        """What a failure means."""
        raise NotImplementedError

    def _to_nowhere(self) -> None:
        """What is still in the buffer, and all that follows, goes to the null device."""
        with suppress(OSError, ValueError, io.UnsupportedOperation):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


class Answer(_Wrapped):
    """Standard output."""

    def lose(self, problem: OSError) -> None:
        """End the command: quietly where the reader has gone, with an error otherwise."""
        self._to_nowhere()
        if problem.errno == errno.EPIPE:
            raise ReaderGoneError from None
        reason = "it is closed" if problem.errno == errno.EBADF else str(problem.strerror)
        raise MachineError(
            f"cannot write standard output: {reason}; send it elsewhere, and run the same command again"
        ) from None


class Display(_Wrapped):
    """Standard error."""

    def lose(self, problem: OSError) -> None:
        """Show nothing more; a reader that is only slow misses one line."""
        if not isinstance(problem, BlockingIOError):
            self._to_nowhere()
