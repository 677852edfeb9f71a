"""What supervisor and worker send arrives as it was sent, one line each."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest

from prefopt.launch.protocol import At, End, Message, Request, Say, Sender, Stage, Step, decode, encode, tell
from prefopt.runtime.progress import Silent

MESSAGES: list[Message] = [
    Stage("loading\nthe model", 0, 1),
    Step("training", 2, 9, {"dpo[beta=0.2]": {"loss": 0.5, "grad_norm": math.inf}}),
    Say("ein Gruß"),
    At(3, ["dpo", "ipo"], 7),
    End("refused", 2, "cannot do that"),
    End("done"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    line = encode(message)
    assert line.count("\n") == 1
    assert decode(line.encode()) == message


def test_a_request_arrives_as_it_was_sent() -> None:
    request = Request(5, 6, {"name": "mine"}, "results", ["prefopt"], ["mine.py"], 2, [("dpo", 1)], [0], True)
    assert Request.decode(request.encode()) == request


def test_a_listener_hears_through_a_pipe_what_was_said() -> None:
    heard: list[Any] = []

    class Noted(Silent):
        def say(self, text: str) -> None:
            heard.append(text)

        def at(self, seed: int, variants: Any, step: int) -> None:
            heard.append((seed, variants, step))

    pipe = io.StringIO()
    sender = Sender(pipe)
    sender.say("hello")
    sender.at(0, ("dpo",), 4)
    for line in pipe.getvalue().splitlines():
        tell(Noted(), decode(line))
    assert heard == ["hello", (0, ["dpo"], 4)]
