"""Chats to text by the tokenizer's own template, with the control tokens of the messages told from the template's."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.data.problems import RowError, show
from prefopt.data.types import Message
from prefopt.errors import MachineError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Noncharacters, which no text should hold, mark the control tokens that stand in the messages themselves.
MARK_START, MARK_END = "\ufdd0", "\ufdd1"
# The child ends itself after so many seconds with one chat; the second limit is for systems where it cannot.
CHAT_S = 5.0
START_S, _PER_CHAT_S = 60.0, 0.02
_CHATS_PER_PROCESS, _CHARS_PER_PROCESS = 3000, 20_000_000


def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches what the tokenizer would read as a control token: special tokens, and added ones of its template."""
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    tokens = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content.strip() and token.content in template)
    }
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")


def mark(text: str, control: re.Pattern[str]) -> str:
    """The text with every control token between marks; marks that it brings along are taken out."""
    text = text.replace(MARK_START, "").replace(MARK_END, "")
    return control.sub(f"{MARK_START}\\g<0>{MARK_END}", text)


def render_chats(
    chats: Sequence[tuple[tuple[Message, ...], bool]],
    tokenizer: PreTrainedTokenizerBase,
    control: re.Pattern[str],
) -> list[str | RowError]:
    """Each chat as marked text.

    Args:
        chats: (messages, whether to end with the beginning of an assistant's turn).
        tokenizer: Has the template.
        control: As ``control_pattern`` gives it.

    Returns:
        For each chat its text, or why the template refuses it.

    Raises:
        UsageError: If the tokenizer has no chat template.
        MachineError: If the template does not end in time, or ends the process; names model and template.
    """
    if not chats:
        return []
    if not tokenizer.chat_template:
        raise UsageError(
            "the rows are chats and the tokenizer has no chat template: choose a model that was trained on chats, "
            "or give prompt, chosen and rejected as text"
        )
    rendered: list[str | RowError] = []
    batch: list[tuple[tuple[Message, ...], bool]] = []
    chars = 0
    for chat in chats:
        batch.append(chat)
        chars += sum(len(message.content) for message in chat[0])
        if len(batch) == _CHATS_PER_PROCESS or chars > _CHARS_PER_PROCESS:
            rendered += _render_batch(batch, tokenizer, control)
            batch, chars = [], 0
    return rendered + (_render_batch(batch, tokenizer, control) if batch else [])


def _render_batch(
    chats: Sequence[tuple[tuple[Message, ...], bool]], tokenizer: PreTrainedTokenizerBase, control: re.Pattern[str]
) -> list[str | RowError]:
    template = tokenizer.get_chat_template()
    request = {
        "template": template,
        "chat_s": CHAT_S,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chats": [
            {
                "messages": [{"role": m.role, "content": mark(m.content, control)} for m in messages],
                "generation": generation,
            }
            for messages, generation in chats
        ],
    }
    named = f"the chat template of {tokenizer.name_or_path} (SHA-256 {sha256(template.encode()).hexdigest()[:12]})"
    return [
        answer["text"]
        if "text" in answer
        else RowError("DATA027", f"the template refuses it: {show(answer['error'], 200)}")
        for answer in _answers(request, named, len(chats))
    ]


def _answers(request: dict[str, Any], named: str, count: int) -> list[dict[str, str]]:
    """What the process that renders ``count`` chats answers; errors as for ``render_chats``."""
    mend = "it may be hostile: choose another model, or give the rows as text"
    seconds = START_S + _PER_CHAT_S * count
    try:
        # -P: a file in the working folder must not pass for an installed package.
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).with_name("render_child.py"))],
            input=json.dumps(request).encode("ascii"),
            capture_output=True,
            timeout=seconds,
            check=True,
        )
        answers: list[dict[str, str]] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise MachineError(f"{named} did not end within {seconds:.0f} s for {count} chats; {mend}") from None
    except (subprocess.CalledProcessError, json.JSONDecodeError) as problem:
        if getattr(problem, "returncode", 0) == -signal.SIGALRM:
            raise MachineError(f"{named} did not end within {CHAT_S:g} s on one chat; {mend}") from None
        output = (getattr(problem, "stderr", b"") or b"").decode("utf-8", "replace").strip().split("\n")
        raise MachineError(f"{named} could not be run: {show(output[-1], 200)}; {mend}") from None
    return answers
