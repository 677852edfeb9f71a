"""Where an assistant's turn begins and what of it a template has left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefopt.data.control import Spelled
from prefopt.data.problems import RowError
from prefopt.data.render import RenderedChat
from prefopt.data.types import Message

# A generation prompt that begins the thought for the model, as DeepSeek-R1's and Qwen3.5's do.
_OPENED = re.compile(r"<(\w+)>\s*\Z")
# One that closes an empty thought, as Qwen3.5's does where it is told not to think.
_CLOSED = re.compile(r"<(\w+)>\s*</\1>\s*\Z")
_OTHER_MODEL = "choose a model whose template does not, give another with --chat-template, or give the rows as text"
_NAMES = {"thought": "a thought", "reasoning_content": "reasoning_content", "tool_calls": "tool_calls"}


@dataclass(frozen=True, slots=True)
class Rendered:
    """One pair as text.

    Attributes:
        prompt: Up to where the model goes on.
        chosen: What follows it.
        rejected: Likewise.
        chat: Whether a template wrote them.
        end: The control token with which the template ends a turn, or an empty text.
        left_out: Thoughts of earlier turns that the template leaves out, as it does when the model is used.
        closed: Responses without a thought, to a prompt that begins one.
        reopened: Whether the prompt ends before the empty thought that the template closes, for a response brings one.
    """

    prompt: Spelled
    chosen: Spelled
    rejected: Spelled
    chat: bool
    end: str = ""
    left_out: int = 0
    closed: int = 0
    reopened: bool = False


def responses_of(
    prompt: RenderedChat | RowError,
    wholes: Sequence[RenderedChat | RowError],
    said: Sequence[Message],
    letters: re.Pattern[str],
) -> Rendered | RowError:
    """What two rendered conversations add to their rendered prompt.

    Args:
        prompt: Rendered up to the beginning of an assistant's turn.
        wholes: The prompt and each response.
        said: The two responses.
        letters: What is letters in them.

    Returns:
        The pair as text, or why the template cannot be used for it.
    """
    if isinstance(prompt, RowError):
        return prompt
    try:
        if any(key == "tool_calls" for _, key in prompt.unseen):
            raise _leaves_out("tool_calls", "prompt")
        begins, prompt = len(prompt.text.text), _before_closed(prompt, wholes)
        fields = zip(("chosen", "rejected"), wholes, said, strict=True)
        (chosen, closed), (rejected, closed_too) = (_behind(prompt, *of, letters) for of in fields)
    except RowError as problem:
        return problem
    return Rendered(
        prompt.text, chosen, rejected, chat=True, end=prompt.end,
        left_out=len(prompt.unseen), closed=closed + closed_too, reopened=len(prompt.text.text) < begins,
    )  # fmt: skip


def _before_closed(prompt: RenderedChat, wholes: Sequence[RenderedChat | RowError]) -> RenderedChat:
    """The prompt without an empty thought that the template closes, where a response brings a thought instead."""
    closed = _CLOSED.search(prompt.text.text)
    texts = [whole.text.text for whole in wholes if isinstance(whole, RenderedChat)]
    if closed is None or all(text.startswith(prompt.text.text) for text in texts):
        return prompt
    return replace(prompt, text=prompt.text.part(0, closed.start()))


def _behind(
    prompt: RenderedChat, field: str, whole: RenderedChat | RowError, said: Message, letters: re.Pattern[str]
) -> tuple[Spelled, bool]:
    """The response as it follows the prompt, and whether an empty thought was closed in front of it."""
    if isinstance(whole, RowError):
        raise whole
    start, unseen = len(prompt.text.text), {key for _, key in whole.unseen}
    if whole.text.text.startswith(prompt.text.text) and len(whole.text.text) > start:
        for key in sorted(unseen):
            raise _leaves_out(key, field)
        return whole.text.part(start), False
    opened = _OPENED.search(prompt.text.text)
    if opened is None or not whole.text.text.startswith(prompt.text.text[: opened.start()]):
        raise RowError(
            "DATA027",
            "the template renders the prompt differently once a response follows, so the two cannot be told apart",
            fix=_OTHER_MODEL,
        )
    if "tool_calls" in unseen:
        raise _leaves_out("tool_calls", field)
    answer, tag = whole.text.part(opened.start()), opened[1]
    if answer.text.startswith(f"<{tag}>"):
        head = len(f"<{tag}>")
        return answer.part(head + len(answer.text[head:]) - len(answer.text[head:].lstrip("\n"))), False
    thought = _thought(said, tag)
    if thought is None:
        return Spelled(f"\n</{tag}>\n\n") + answer, True
    return Spelled.of(thought, letters) + answer, False


def _thought(said: Message, tag: str) -> str | None:
    """The thought of a response with its end, as it goes on from a prompt that begins it, or None without one."""
    head, end, _ = said.content.rpartition(f"</{tag}>")
    if end:
        return head.removeprefix(f"<{tag}>").lstrip("\n") + end
    return f"{said.reasoning_content.strip()}\n</{tag}>\n\n" if said.reasoning_content else None


def _leaves_out(key: str, field: str) -> RowError:
    return RowError("DATA027", f"the template leaves out {_NAMES[key]}", field=field, fix=_OTHER_MODEL)
