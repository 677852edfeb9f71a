"""Renders chat templates in a process of its own, so that a hostile or endless one harms nothing.

Run as a file by ``prefopt.data.render``: reads one JSON request from standard input, writes one JSON answer to
standard output. transformers' sandbox keeps a template from reaching code and files; this process bounds its memory
and, by an alarm that ends it whatever it is doing, its time; the caller bounds the time of all.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, tzinfo
from functools import cached_property, partial
from typing import Any

_EXTRA_MEMORY_BYTES = 512 * 1024**2
_MAX_GROWTH_CHARS = 100_000  # a template's own text, per message
_THOUGHT = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_PROBE = "Kqzv"  # a word that no template writes

Messages = list[dict[str, Any]]


class FixedDate(datetime):
    """A template may write today's date into its prompts; this one keeps ids the same from day to day."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> FixedDate:
        """The same moment always."""
        return cls(2024, 7, 26, tzinfo=tz)


class _Refused(Exception):  # noqa: N818 - an answer, not a fault
    """Why a template renders no chat.

    Attributes:
        no_place: Whether it is for a system message alone.
    """

    def __init__(self, why: str, *, no_place: bool = False) -> None:
        super().__init__(why)
        self.no_place = no_place


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):  # no such limit on this system: time is still bounded
        import resource
        from pathlib import Path

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + _EXTRA_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _set_alarm(seconds: float) -> None:
    """Let the system end this process in ``seconds``, unless it is set again; 0 calls it off."""
    with suppress(AttributeError):  # Windows has none
        signal.setitimer(signal.ITIMER_REAL, seconds)


class _Template:
    """A chat template with the tokens that it may name."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.source = request["template"]
        self.special_tokens = request["special_tokens"]
        self.merge_system = request["merge_system"]

    def render(self, messages: Messages, *, generation: bool) -> str:
        """The text of a chat.

        Raises:
            _Refused: With the template's own words.
        """
        return self._write(_in_parts(messages) if self.takes_parts else messages, generation)

    def _write(self, messages: Messages, generation: bool) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, _ = render_jinja_template(
                conversations=[messages],
                chat_template=self.source,
                add_generation_prompt=generation,
                **self.special_tokens,
            )
        except MemoryError:
            raise _Refused("it takes too much memory") from None
        except Exception as problem:  # whatever a template raises, by design or by mistake, is the row's to report
            raise _Refused(str(problem)[:200] or type(problem).__name__) from None
        text: str = rendered[0]
        given = len(json.dumps(messages))
        if len(text) > 2 * given + _MAX_GROWTH_CHARS * len(messages):
            raise _Refused(f"it makes {len(text)} characters of {given}")
        return text

    @cached_property
    def takes_parts(self) -> bool:
        """Whether it writes a message's words only where they are a list of parts, as some of models that see do."""
        messages = [{"role": "user", "content": _PROBE}]
        with suppress(_Refused):
            if _PROBE in self._write(messages, generation=True):
                return False
        with suppress(_Refused):
            return _PROBE in self._write(_in_parts(messages), generation=True)
        return False

    @cached_property
    def after(self) -> str:
        """What it writes behind an assistant's words; empty where it cannot be told."""
        with suppress(_Refused):
            messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _PROBE}]
            return self.render(messages, generation=False).rpartition(_PROBE)[2]
        return ""

    @cached_property
    def seats_system(self) -> bool:
        """Whether it writes what a system message says."""
        with suppress(_Refused):
            messages = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "Hi"}]
            return _PROBE in self.render(messages, generation=True)
        return False

    def seated(self, messages: Messages) -> Messages:
        """The messages without a system message that the template has no place for.

        Raises:
            _Refused: If it says something, and is not to be merged into the first user's turn.
        """
        first, *rest = messages
        if first["role"] != "system" or self.seats_system:
            return messages
        if not first["content"].strip():
            return rest or messages
        if self.merge_system and rest and rest[0]["role"] == "user":
            return [{**rest[0], "content": f"{first['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
        why = "it leaves the system message out"
        try:
            self.render(messages, generation=True)
        except _Refused as problem:
            why = str(problem)
        raise _Refused(why, no_place=True)

    def unseen(self, messages: Messages, text: str, *, generation: bool) -> list[tuple[int, str]]:
        """Calls, and thoughts (of the last turn without a generation prompt), that change nothing when taken away."""
        missing = []
        for i, message in enumerate(messages):
            for key, without in _without_each(message):
                if key != "tool_calls" and not generation and i + 1 < len(messages):
                    continue
                with suppress(_Refused):
                    other = self.render([*messages[:i], without, *messages[i + 1 :]], generation=generation)
                    if "".join(other.split()) == "".join(text.split()):
                        missing.append((i, key))
        return missing


def _without_each(message: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A message without each of the things that templates leave out, by name."""
    shorter: list[tuple[str, dict[str, Any]]] = [
        (key, {name: value for name, value in message.items() if name != key})
        for key in ("reasoning_content", "tool_calls")
        if key in message
    ]
    content = message["content"] or ""
    if message["role"] == "assistant" and _THOUGHT.search(content):
        shorter.append(("thought", {**message, "content": _THOUGHT.sub("", content)}))
    return shorter


def _in_parts(messages: Messages) -> Messages:
    return [{**message, "content": [{"type": "text", "text": message["content"] or ""}]} for message in messages]


def _forms(messages: Messages) -> list[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Ways to give calls: beside an empty text or null, with arguments as they are or the other way."""
    if not any(message.get("tool_calls") for message in messages):
        return [lambda message: message]
    kinds = [(other, empty) for other in (False, True) for empty in ("", None)]
    return [partial(_form, other=other, empty=empty) for other, empty in kinds]


def _form(message: dict[str, Any], *, other: bool, empty: str | None) -> dict[str, Any]:
    """A message with ``empty`` for no words beside calls, and the calls' arguments as JSON text or objects."""
    if not message.get("tool_calls"):
        return message
    calls = [_other_arguments(call) for call in message["tool_calls"]] if other else message["tool_calls"]
    return {**message, "content": message["content"] or empty, "tool_calls": calls}


def _other_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """A call whose arguments are JSON text where they were an object, and an object where they were text."""
    function = call.get("function", call)
    given = function.get("arguments", {})
    try:
        other = json.loads(given) if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    except ValueError:
        raise _Refused("a call's arguments are text that is no JSON") from None
    function = {**function, "arguments": other}
    return {**call, "function": function} if "function" in call else function


def _answer(chat: dict[str, Any], template: _Template) -> dict[str, Any]:
    """The text of a chat, of its second form, and what is left out; or why there is none."""
    answer: dict[str, Any] = {}
    for form in _forms(chat["messages"]):
        tried = _try_form(chat, template, form)
        answer = answer or tried
        if "text" in tried and not any(key == "tool_calls" for _, key in tried["unseen"]):
            return tried
    return answer


def _try_form(
    chat: dict[str, Any], template: _Template, form: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    generation = chat["generation"]
    try:
        messages = template.seated([form(message) for message in chat["messages"]])
        text = template.render(messages, generation=generation)
        unseen = template.unseen(messages, text, generation=generation)
        moved = len(chat["messages"]) - len(messages)
        spelled = None
        if chat["spelled"] is not None:
            second = template.seated([form(message) for message in chat["spelled"]])
            spelled = template.render(second, generation=generation)
        return {"text": text, "spelled": spelled, "unseen": [(i + moved, key) for i, key in unseen]}
    except _Refused as problem:
        return {"error": str(problem), "no_place": problem.no_place}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Every chat of a request, and what the template writes behind an assistant's words."""
    template = _Template(request)
    answers = []
    for chat in request["chats"]:
        _set_alarm(request["chat_s"])
        answers.append(_answer(chat, template))
    _set_alarm(request["chat_s"])
    after = template.after
    _set_alarm(0)
    return {"chats": answers, "after": after}


def main() -> None:
    """Answer one request."""
    sys.modules["torch"] = None  # type: ignore[assignment] # templates need none of it, and it takes seconds to import
    from transformers.utils import chat_template_utils  # here, so that the memory limit counts from after it

    chat_template_utils.datetime = FixedDate
    request = json.loads(sys.stdin.buffer.read())
    _limit_memory()
    sys.stdout.write(json.dumps(answer(request)))


if __name__ == "__main__":
    main()
