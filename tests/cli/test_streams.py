"""Standard output and error that are closed, full or read by nobody, and what foreign code writes there."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.cli import app, streams
from prefopt.cli.console import Console
from prefopt.errors import MachineError

FULL = Path("/dev/full")


def in_a_child(tmp_path: Path, prepare: Callable[[], None], *words: str) -> tuple[int, str]:
    """The status of a command in a fresh set of descriptors, and what it left on standard error."""
    said = tmp_path / "stderr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if not pid:
        status = 99
        with contextlib.suppress(BaseException):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT, 0o600), 2)
            prepare()
            sys.stdout, sys.stderr = (stream_of(number) for number in (1, 2))  # type: ignore[assignment]
            sys.argv = ["prefopt", *words]
            try:
                app.main()
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, said.read_text(encoding="utf-8") if said.exists() else ""


def stream_of(number: int) -> io.TextIOBase | None:
    """As the interpreter makes them when it starts."""
    try:
        os.fstat(number)
    except OSError:
        return None
    return os.fdopen(number, "w", buffering=1 if number == 2 else -1, closefd=False)


def reader_gone() -> None:
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)
    os.close(write)


@pytest.mark.parametrize(
    ("prepare", "status", "words"),
    [
        (lambda: os.close(1), 6, "it is closed"),
        (lambda: os.closerange(0, 2), 6, "it is closed"),
        (lambda: os.dup2(os.open(FULL, os.O_WRONLY), 1), 6, "No space left on device"),
        (reader_gone, 141, ""),
    ],
    ids=["closed", "stdin too", "full", "no reader"],
)
def test_an_answer_that_cannot_be_given(tmp_path: Path, prepare: Callable[[], None], status: int, words: str) -> None:
    if words.startswith("No space") and not FULL.exists():
        pytest.skip("this system has no /dev/full")
    assert in_a_child(tmp_path, prepare, "--help")[0] == status
    said = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert said.count("\n") == (status == 6)
    assert words in said
    assert "Traceback" not in said


def test_an_error_that_cannot_be_shown_keeps_its_status(tmp_path: Path) -> None:
    assert in_a_child(tmp_path, lambda: os.close(2), "nonsense")[0] == 2
    assert in_a_child(tmp_path, lambda: os.closerange(0, 3), "nonsense")[0] == 2


def test_a_file_is_not_opened_as_standard_error(tmp_path: Path) -> None:
    """A process without descriptor 2 would give its number to the next file, and write its messages into that."""

    def work() -> None:
        with streams.guarded(), (tmp_path / "precious").open("w") as file:
            os.write(2, b"a message")
            assert file.fileno() > 2

    def prepare() -> None:
        os.close(2)
        sys.stderr = None  # type: ignore[assignment]
        work()

    in_a_child(tmp_path, prepare, "nonsense")
    assert (tmp_path / "precious").read_text() == ""


class Gone(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise OSError(errno.EPIPE, "Broken pipe")


def test_a_display_without_a_reader_shows_nothing_and_raises_nothing() -> None:
    display = streams.Display(Gone())
    print("hello", file=display, flush=True)


def test_an_answer_without_a_reader_is_no_error() -> None:
    with pytest.raises(streams.ReaderGoneError):
        print("hello", file=streams.Answer(Gone()))
    assert not issubclass(streams.ReaderGoneError, MachineError)


def test_json_lines_stay_json_whatever_foreign_code_writes(capfd: pytest.CaptureFixture[str]) -> None:
    with Console("json") as console:
        console.stage("one", 0, 1)
        print("printed")
        sys.stderr.write("half a ")
        print("line", file=sys.stderr)
        os.write(1, b"raw\n\xff\n")
        os.system("echo started")
        console.say("two")
        os.write(2, b"the last, without an end")
    print("an answer")
    out, err = capfd.readouterr()
    assert out == "an answer\n"
    lines = [json.loads(line) for line in err.splitlines()]
    told = [line.get("message", line.get("stage")) for line in lines]
    assert told == ["one", "printed", "half a line", "raw", "\ufffd", "started", "two", "the last, without an end"]
