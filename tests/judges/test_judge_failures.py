"""A judge's server that lies, dies or is not there: what is kept and written, and what the same command does then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import chat_server
import judged
import pytest
from bad_inputs import Command

import prefopt
from prefopt.judges import endpoint
from prefopt.storage.results import ResultsFolder

SHORT_S = 0.01


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", chat_server.KEY)
    monkeypatch.setattr(endpoint, "LONGEST_WAIT_S", SHORT_S)  # between two tries; what is tried stays the same
    (tmp_path / "work").mkdir()
    judged.write(tmp_path / "work" / "x", {"better": 2, "worse": 0}, seeds=1)
    return Command(tmp_path / "work", monkeypatch, capsys)


@pytest.fixture
def server() -> Iterator[chat_server.ChatServer]:
    with chat_server.serve() as state:
        yield state


def words(url: str, *more: str) -> list[str]:
    return ["judge", "x", "--judge", "openai:tiny", "--base-url", url, *more]


def calls_wanted(command: Command, url: str) -> int:
    return int(json.loads(command(*words(url, "--dry-run", "--json")).out)["calls"])


def record(command: Command) -> dict:
    folder = ResultsFolder(command.root / "x")
    (path,) = folder.root.glob("judge/*/judge.json")
    return folder.read_json(path)


def sent(server: chat_server.ChatServer) -> Counter:
    return Counter(body["messages"][0]["content"] for body in server.requests)


@pytest.mark.parametrize(
    "fault", ["huge count", (429, {"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"})]
)
def test_absurd_numbers_of_a_server_do_no_harm(command: Command, server: chat_server.ChatServer, fault) -> None:
    server.faults = [None, fault, None, fault]
    outcome = command(*words(server.url, "--quiet"))
    assert outcome.status == 4, outcome.err
    assert record(command)["invalid_share"] == 0
    assert 0 < record(command)["facts"]["prompt_tokens"] <= 100 * len(server.requests)


def test_half_a_character_is_unusable_and_kept_as_its_escape(command: Command, server: chat_server.ChatServer) -> None:
    server.faults = [None, "half a character", "half a character"]
    outcome = command(*words(server.url, "--quiet"))
    assert outcome.status == 4
    assert "Traceback" not in outcome.err
    (path,) = (command.root / "x").glob("judge/*/unusable.jsonl")
    replies = [json.loads(line)["reply"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert set(replies) == {"A ?"}
    assert "?x" in record(command)["facts"]["served"]


@pytest.mark.parametrize("key", ["sk-\u00e9abcdefgh", "sk-abc\ndefghijk", "sk-abc defghijk"])
def test_key_that_no_header_can_carry(command: Command, server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    outcome = command.refused(words(server.url), status=2, said=("OPENAI_API_KEY holds a character",))
    assert "defgh" not in outcome.err
    assert server.requests == []


@pytest.mark.parametrize("fault", ["key as model", "key as fingerprint", "echo"])
def test_key_that_a_server_sends_back_is_nowhere(command: Command, server, monkeypatch, fault: str) -> None:
    monkeypatch.setenv("LOGIN", "plain-words-and-no-known-shape")  # neither its name nor its form says that it is one
    server.always = fault
    outcome = command(*words(server.url, "--api-key-env", "LOGIN"))
    assert "Traceback" not in outcome.err
    assert server.keys[0] == "Bearer plain-words-and-no-known-shape"
    assert "plain-words" not in outcome.out + outcome.err
    for path in [*(command.root / "x").rglob("*"), *(command.root.parent / "cache").rglob("*")]:
        assert not path.is_file() or b"plain-words" not in path.read_bytes(), path
    assert "[key]" in (outcome.err if fault == "echo" else json.dumps(record(command)))


@pytest.mark.parametrize(
    ("fault", "reason"), [("twice", "no plain verdict"), ("filter", "withheld by the server's content filter")]
)
def test_replies_that_look_like_verdicts_and_are_none(command: Command, server, fault: str, reason: str) -> None:
    server.faults = [None, fault, fault]
    assert command(*words(server.url, "--quiet")).status == 4
    assert set(record(command)["errors"]) == {reason}
    assert 0 < record(command)["invalid_share"] < 0.2
    server.always = fault
    outcome = command.refused(
        words(server.url, "--quiet", "--pairs", "all"), status=6, said=("first 3 questions", reason)
    )
    assert "Traceback" not in outcome.err


def test_server_that_dies_ends_it_early_and_the_same_command_goes_on(command: Command, server) -> None:
    wanted = calls_wanted(command, server.url)
    server.dies_after = 5
    outcome = command.refused(words(server.url, "--quiet"), status=6, said=("does not answer", "are kept"))
    assert "unusable" not in outcome.err
    assert not (command.root / "x" / "judge").exists()
    assert not (command.root / "x" / "judgements.parquet").exists()
    assert len(server.requests) < 5 + 6 * 2 * 4, "it does not try every other question to the end"
    assert calls_wanted(command, server.url) == wanted - 5
    server.requests.clear()
    server.dies_after = None
    assert command(*words(server.url, "--quiet")).status == 4
    assert len(server.requests) == wanted - 5
    assert record(command)["invalid_share"] == 0


def test_closed_port_ends_it_at_once_and_writes_nothing(command: Command) -> None:
    with chat_server.serve() as gone:
        url = gone.url
    began = time.monotonic()
    command.refused(words(url, "--quiet"), status=6, said=("127.0.0.1 does not answer (no connection)", "same command"))
    assert time.monotonic() - began < 5
    assert not (command.root / "x" / "judge").exists()


@pytest.mark.parametrize(("number", "twice"), [(signal.SIGKILL, 4), (signal.SIGTERM, 0), (signal.SIGINT, 0)])
def test_no_more_than_what_was_under_way_is_bought_twice(command: Command, server, number: int, twice: int) -> None:
    """A request that a killed process had sent is lost; after a signal that it hears, it waits for the reply."""
    wanted = calls_wanted(command, server.url)
    server.delay_s = 0.1
    root = str(command.root / "x")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefopt", "judge", root, *words(server.url, "--quiet", "--concurrency", "4")[2:]],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path(prefopt.__file__).parents[1])},
    )  # fmt: skip
    while len(server.requests) < 12:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), said
    assert "Traceback" not in said
    assert command(*words(server.url, "--quiet")).status == 4
    assert set(sent(server).values()) <= {1, 2}
    assert sum(times - 1 for times in sent(server).values()) <= twice
    assert len(sent(server)) == wanted
