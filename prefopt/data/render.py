"""Chats to text by the tokenizer's own template, which sees them as they are.

Where a message holds words that look like control tokens and are letters, the chat is rendered a second time with
another word in the place of each, which is how they are found in what the template wrote.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.data.control import Control, Spelled, template_of
from prefopt.data.problems import RowError, or_drop, show
from prefopt.data.types import Message
from prefopt.errors import MachineError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The child ends itself after so many seconds with one chat; the second limit is for systems where it cannot.
CHAT_S = 5.0
START_S, _PER_CHAT_S = 60.0, 0.02
_CHATS_PER_PROCESS, _CHARS_PER_PROCESS = 3000, 20_000_000
_NO_PLACE = "put it into the first user's turn with --set data.merge_system=true"


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation to render, and whether to end with the beginning of an assistant's turn."""

    messages: tuple[Message, ...]
    generation: bool


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """What a template made of a chat.

    Attributes:
        text: With what in it is letters.
        unseen: (message, key) of what the template leaves out: ``thought``, ``reasoning_content`` or ``tool_calls``.
        end: The control token with which the template ends an assistant's turn, or an empty text.
    """

    text: Spelled
    unseen: tuple[tuple[int, str], ...] = ()
    end: str = ""


def render_chats(
    chats: Sequence[Chat], tokenizer: PreTrainedTokenizerBase, control: Control, *, merge_system: bool = False
) -> list[RenderedChat | RowError]:
    """Each chat as text.

    Args:
        chats: Conversations.
        tokenizer: Has the template.
        control: Its control tokens.
        merge_system: Put a system message that the template has no place for in front of the first user's.

    Returns:
        For each chat what the template makes of it, or why it refuses it.

    Raises:
        UsageError: If the tokenizer has no chat template.
        MachineError: If the template does not end in time, or ends the process; names model and template.
    """
    if not chats:
        return []
    if not tokenizer.chat_template:
        raise UsageError(
            "the rows are chats and the tokenizer has no chat template: choose a model that was trained on chats, "
            "give its template with --chat-template FILE, or give prompt, chosen and rejected as text"
        )
    rendered: list[RenderedChat | RowError] = []
    batch: list[Chat] = []
    chars = 0
    for chat in chats:
        batch.append(chat)
        chars += sum(len(text) for message in chat.messages for text in message)
        if len(batch) == _CHATS_PER_PROCESS or chars > _CHARS_PER_PROCESS:
            rendered += _render_batch(batch, tokenizer, control, merge_system)
            batch, chars = [], 0
    return rendered + (_render_batch(batch, tokenizer, control, merge_system) if batch else [])


def _render_batch(
    chats: Sequence[Chat], tokenizer: PreTrainedTokenizerBase, control: Control, merge_system: bool
) -> list[RenderedChat | RowError]:
    requests = [_request(chat, control) for chat in chats]
    words = [request.pop("words") for request in requests]
    answers = ask_child(
        {
            "template": template_of(tokenizer),
            "chat_s": CHAT_S,
            "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "merge_system": merge_system,
            "chats": requests,
        },
        str(tokenizer.name_or_path),
    )
    end = _end_of_turn(answers["after"], control)
    return [_read(answer, of, end) for answer, of in zip(answers["chats"], words, strict=True)]


def _end_of_turn(after: str, control: Control) -> str:
    """The control token that ends a turn: the first behind it, or of several in a row the last.

    Phi-3's ``<|end|>\\n<|endoftext|>`` ends with the first, Cohere's ``<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`` with the
    second.
    """
    end, at = "", -1
    for match in control.tokens.finditer(after):
        if at not in (-1, match.start()):
            break
        end, at = match[0], match.end()
    return end


@dataclass(frozen=True, slots=True)
class _Words:
    """What stands in a second rendering for words that are letters: ``stem`` and the number of the word."""

    stem: str
    replaced: tuple[str, ...]

    def read(self, text: str) -> Spelled:
        """A second rendering with the words back in their places.

        Raises:
            RowError: If the template changed what stood for them.
        """
        pieces = re.split(f"{self.stem}(\\d+)q", text)
        done, spans = "", []
        for i, piece in enumerate(pieces):
            if i % 2:
                piece = self.replaced[int(piece)]
                spans.append((len(done), len(done) + len(piece)))
            done += piece
        if self.stem in done.casefold():
            raise RowError("DATA026", "the template changes control tokens in the row's text, so they cannot be told")
        return Spelled(done, tuple(spans))


def _request(chat: Chat, control: Control) -> dict[str, Any]:
    """A chat as the child takes it, once as it is and once with other words for what is letters."""
    messages = [message.as_dict() for message in chat.messages]
    request = {"messages": messages, "generation": chat.generation, "spelled": None, "words": None}
    if any(control.in_role(m.role).search(text) for m in chat.messages for text in m):
        whole = json.dumps(messages).casefold()
        number = next(i for i in range(len(whole) + 1) if f"q{i}x" not in whole)
        replaced: list[str] = []

        def stand_in(match: re.Match[str]) -> str:
            replaced.append(match[0])
            return f"q{number}x{len(replaced) - 1}q"

        spelled = [_replace(message, control.in_role(message["role"]), stand_in) for message in messages]
        request |= {"spelled": spelled, "words": _Words(f"q{number}x", tuple(replaced))}
    return request


def _replace(value: Any, letters: re.Pattern[str], stand_in: Any) -> Any:
    """``value`` with other words for what is letters, in every text inside it but a message's role."""
    if isinstance(value, str):
        return letters.sub(stand_in, value)
    if isinstance(value, list):
        return [_replace(item, letters, stand_in) for item in value]
    if isinstance(value, dict):
        return {key: item if key == "role" else _replace(item, letters, stand_in) for key, item in value.items()}
    return value


def _read(answer: dict[str, Any], words: _Words | None, end: str) -> RenderedChat | RowError:
    if "error" in answer:
        fix = {"fix": or_drop(_NO_PLACE)} if answer.get("no_place") else {}
        return RowError("DATA027", f"the template refuses it: {show(answer['error'], 200)}", **fix)
    try:
        text = Spelled(answer["text"]) if words is None else words.read(answer["spelled"])
    except RowError as problem:
        return problem
    return RenderedChat(text, tuple((index, key) for index, key in answer["unseen"]), end)


def ask_child(request: dict[str, Any], name: str) -> dict[str, Any]:
    """The child's answer.

    Raises:
        MachineError: If there is none in time.
    """
    template, chats = request["template"], request["chats"]
    named = f"the chat template of {name} (SHA-256 {sha256(template.encode()).hexdigest()[:12]})"
    mend = "it may be hostile: choose another model, or give the rows as text"
    seconds = START_S + _PER_CHAT_S * len(chats)
    try:
        # -P: a file in the working folder must not pass for an installed package.
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).with_name("render_child.py"))],
            input=json.dumps(request).encode("ascii"),
            capture_output=True,
            timeout=seconds,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    except subprocess.TimeoutExpired:
        raise MachineError(f"{named} did not end within {seconds:.0f} s for {len(chats)} chats; {mend}") from None
    except (subprocess.CalledProcessError, json.JSONDecodeError) as problem:
        if getattr(problem, "returncode", 0) == -signal.SIGALRM:
            raise MachineError(f"{named} did not end within {CHAT_S:g} s on one chat; {mend}") from None
        output = (getattr(problem, "stderr", b"") or b"").decode("utf-8", "replace").strip().split("\n")
        raise MachineError(f"{named} could not be run: {show(output[-1], 200)}; {mend}") from None
