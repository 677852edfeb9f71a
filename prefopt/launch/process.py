"""A worker as the system sees it: a process with a group of its own, a pipe for messages, one for what it prints.

Whatever it forks belongs to its group and ends with it. That it has ended is asked of the system, since a pipe stays
open as long as anything that it forked holds it.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import prefopt

# Not the current folder, from which nothing is to be imported: the one this package lies in, last.
_START = "import sys; sys.path.append(sys.argv[1]); from prefopt.launch.worker import main; main()"
_DRAIN_S = 2.0  # for what an ended worker has left in its pipes; what it forked may write for ever
LONGEST_LINE = 1 << 16  # bytes of what it prints
KEPT_LINES = 200  # of what it printed last


class WorkerProcess:
    """A running worker.

    Args:
        request: Makes the line that it reads first, from the descriptor that it sends messages to.
        lock: Of the results folder's lock, which it holds as well.

    Attributes:
        printed: Lines that it has printed last.
        has_spoken: Whether a message of it was read: from its first one on it knows what to do with signals.
    """

    def __init__(self, request: Callable[[int], bytes], lock: int) -> None:
        self._messages, messages = os.pipe()
        self._output, output = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(Path(prefopt.__file__).parent.parent)],
                stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(messages, lock), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(messages)
            os.close(output)
        self._request = request(messages)
        self._rest = {self._messages: b"", self._output: b""}
        self.printed: deque[str] = deque(maxlen=KEPT_LINES)
        self.has_spoken = False
        self._selector = selectors.DefaultSelector()
        for pipe in self._rest:
            self._selector.register(pipe, selectors.EVENT_READ)

    def begin(self) -> None:
        """Hand it the request; one that has ended already is noticed later."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(self._request)
            self._process.stdin.flush()

    def send(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def has_ended(self) -> bool:
        """Whether it has ended; its group is killed then, and what is left in its pipes can still be read."""
        if self._process.poll() is None:
            return False
        self._kill_group()
        return True

    def read(self, timeout: float) -> tuple[list[bytes], list[str]]:
        """Whole messages, and lines that it printed, after at most so many seconds without any."""
        messages: list[bytes] = []
        printed: list[str] = []
        for key, _ in self._selector.select(timeout):
            pipe = key.fd
            data = os.read(pipe, 1 << 16)
            if not data:
                self._selector.unregister(pipe)
            *lines, rest = (self._rest[pipe] + data).split(b"\n")
            if pipe == self._output and rest and (len(rest) > LONGEST_LINE or not data):
                lines, rest = [*lines, rest], b""
            self._rest[pipe] = rest
            if pipe == self._messages:
                messages += lines
            else:
                printed += [line[:LONGEST_LINE].decode("utf-8", "replace") for line in lines]
        self.printed.extend(printed)
        self.has_spoken = self.has_spoken or bool(messages)
        return messages, printed

    def read_rest(self) -> tuple[list[bytes], list[str]]:
        """What an ended worker has left."""
        messages: list[bytes] = []
        printed: list[str] = []
        end = time.monotonic() + _DRAIN_S
        while time.monotonic() < end and self._selector.get_map() and self._selector.select(0):
            more, lines = self.read(0)
            messages, printed = messages + more, printed + lines
        return messages, printed

    def is_silent_for_good(self) -> bool:
        """Whether nothing can come on the pipe for messages any more."""
        return self._messages not in self._selector.get_map()

    def end(self) -> int:
        """Kill it and its group if they still run; its exit status, or minus the signal that it died of."""
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait()
        self._kill_group()
        return code

    def close(self) -> None:
        """End it, and close the pipes."""
        self.end()
        self._selector.close()
        for pipe in self._rest:
            os.close(pipe)
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
