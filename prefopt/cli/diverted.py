"""What foreign code writes to standard output and error, kept apart from what a command itself says there."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from typing import TextIO

from prefopt.cli.streams import Display

MOST_AT_ONCE = 1 << 20  # bytes of one reading; the rest is read next time


class Diverted:
    """Sends everything that is written to descriptors 1 and 2 to a file, until ``stop``, and tells it as lines.

    Attributes:
        display: Standard error as it was, for those who know of it.
    """

    def __init__(self) -> None:
        self._before = sys.stdout, sys.stderr
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop; a pipe would need somebody to empty it
        self._flush()
        self._descriptors = os.dup(1), os.dup(2)
        for number in (1, 2):
            os.dup2(self._file.fileno(), number)
        self._read, self._rest = 0, b""
        self.display: TextIO | Display = sys.stderr
        if _descriptor_of(sys.stderr) == 2:
            self.display = Display(_writer(self._descriptors[1]))
        sys.stdout = sys.stderr = _writer(self._file.fileno())

    def lines(self) -> list[str]:
        """Whole lines that were written since they were last asked for."""
        self._flush()
        data = os.pread(self._file.fileno(), MOST_AT_ONCE, self._read)
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def stop(self) -> list[str]:
        """Put everything back; the lines that were not told yet."""
        lines, before = self.lines(), -1
        while before != self._read:
            before = self._read
            lines += self.lines()
        lines += [self._rest.decode("utf-8", "replace")] if self._rest else []
        sys.stdout, sys.stderr = self._before
        for number, own in zip((1, 2), self._descriptors, strict=True):
            os.dup2(own, number)
            os.close(own)
        self._file.close()
        return lines

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()


def _writer(descriptor: int) -> TextIO:
    """A stream of whole lines that leaves the descriptor open."""
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _descriptor_of(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
