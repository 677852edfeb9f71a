"""What a plugin does to its process while it is loaded or called ends in one clear error, or in nothing at all."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefopt.contract import registry
from prefopt.contract.plugin_process import ProcessEndError, in_this_process
from prefopt.errors import UsageError

LOSS = """
from dataclasses import dataclass
from prefopt import Loss, register

@register("from_a_plugin")
@dataclass(frozen=True)
class Mine(Loss):
    source, needs_reference, length_normalized = "none", True, False

    def rewards(self, logps):
        return logps.logratios()

    def __call__(self, logps):
        return -self.rewards(logps).margin
"""
ENDS = {
    "import os; os._exit(3)": r"it ends the process: os\._exit\(3\)",
    "import os\ntry:\n    os._exit(3)\nexcept Exception:\n    pass": r"it ends the process: os\._exit\(3\)",
    "raise SystemExit(4)": "SystemExit: 4",
    "import sys; sys.exit('enough')": "SystemExit: enough",
    "raise KeyboardInterrupt": "KeyboardInterrupt, which nobody but the plugin itself has raised",
    "raise MemoryError('no more')": "MemoryError: no more",
    "bytearray(1 << 62)": "MemoryError",
}
PRINTS = """
import os, subprocess, sys
print("one"); sys.stdout.write("two"); sys.__stdout__.write("three"); os.write(1, b"four"); os.write(2, b"five")
print("six", file=sys.stderr); subprocess.run(["echo", "seven"])
import logging; logging.getLogger("a plugin").addHandler(logging.StreamHandler())
"""


def load(folder: Path, text: str) -> None:
    path = folder / "plugin.py"
    path.write_text(text + LOSS, encoding="utf-8")
    registry.load_plugin(str(path))


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["heard", "ignored"])
def _interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    """With SIGINT as in a terminal, and as in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts")
@pytest.mark.parametrize("text", ENDS)
def test_a_plugin_that_ends_the_process_is_refused(tmp_path: Path, text: str) -> None:
    before = signal.getsignal(signal.SIGINT), os._exit
    with pytest.raises(UsageError, match=rf"--plugin .*plugin\.py: .*{ENDS[text]}"):
        load(tmp_path, text)
    assert (signal.getsignal(signal.SIGINT), os._exit) == before


@pytest.mark.parametrize("_interrupts", [signal.default_int_handler], indirect=True, ids=["heard"])
@pytest.mark.usefixtures("_interrupts")
def test_an_interrupt_by_the_user_is_none_of_the_plugin(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)")


def test_what_a_plugin_prints_when_it_is_loaded_is_dropped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(tmp_path, PRINTS)
    import logging

    logging.getLogger("a plugin").warning("to nobody")
    print("behind")
    assert capfd.readouterr() == ("behind\n", "")


def test_a_plugin_that_crashes_when_it_is_loaded_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if not pid:
        faulthandler.disable()
        with contextlib.suppress(BaseException):
            load(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGSEGV
    assert f'File "{tmp_path / "plugin.py"}", line 2 in <module>' in capfd.readouterr().err


def test_a_copy_of_the_process_ends_where_foreign_code_ends(tmp_path: Path) -> None:
    """Both of a forked pair come back from the plugin; only the original may go on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(tmp_path, f"import os\nos.fork()\nopen({str(tmp_path / 'loaded')!r}, 'a').write('x')")
    with (tmp_path / "went-on").open("a") as file:
        file.write("x")
    os.waitpid(-1, 0)
    assert (tmp_path / "loaded").read_text() == "xx"
    assert (tmp_path / "went-on").read_text() == "x"


def test_a_process_that_foreign_code_forks_may_end_itself() -> None:
    with warnings.catch_warnings(), in_this_process():
        warnings.simplefilter("ignore")
        pid = os.fork()
        if not pid:
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    with pytest.raises(ProcessEndError), in_this_process():
        os._exit(5)


@pytest.mark.parametrize("act", ["raise SystemExit(2)", "import os; os._exit(2)", "raise TypeError('odd')"])
def test_a_constructor_that_goes_wrong_is_named(tmp_path: Path, act: str) -> None:
    body = textwrap.indent(f"def __post_init__(self):\n    {act}\n", "    ")
    path = tmp_path / "plugin.py"
    path.write_text(LOSS + body, encoding="utf-8")
    registry.load_plugin(str(path))
    with pytest.raises(UsageError, match="from_a_plugin cannot be made: "):
        registry.make_loss("from_a_plugin")
