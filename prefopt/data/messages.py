"""One message of a chat, as rows have it: role and content, and the thoughts and calls that templates render."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.parse import type_name
from prefopt.data.problems import RowError, or_drop, show
from prefopt.data.types import Message

ROLES = ("system", "user", "assistant", "tool")
_SURROGATE = re.compile("[\ud800-\udfff]")
# What a message may have beside role and content, and the keys that hold it in data sets of several makers.
_MORE = (("reasoning_content", "reasoning", "thinking"), ("name",), ("tool_call_id",))


def read_message(item: Any, name: str, number: int) -> Message:
    """A message of a row.

    Args:
        item: What stands in the row.
        name: The row's field.
        number: Which message of it, from 1.

    Raises:
        RowError: If it is none.
    """
    if not isinstance(item, dict):
        raise RowError(
            "DATA006",
            f"message {number} is {type_name(item)}; each is an object with role and content",
            field=name,
        )
    role, content, calls = item.get("role"), item.get("content"), _tool_calls(item, name, number)
    if content is None and calls:
        content = ""
    if role not in ROLES:
        known = ", ".join(ROLES)
        got = "no role" if role is None else f"role {show(role)}"
        mend = {"fix": or_drop("call it system")} if role == "developer" else {}
        raise RowError("DATA023", f"message {number} has {got}; it is one of {known}", field=name, **mend)
    if not isinstance(content, str):
        got = "no content" if content is None else f"content that is {type_name(content)}"
        raise RowError("DATA023", f"message {number} has {got}; text is wanted", field=name)
    place = f"message {number}, "
    thought, tool, call = (_more(item, keys, name, number) for keys in _MORE)
    return Message(role, *(check_characters(text, name, place) for text in (content, thought, calls, tool, call)))


def _more(item: Mapping[str, Any], keys: Sequence[str], name: str, number: int) -> str:
    """A text that a message may bring under one of some keys, or an empty one."""
    for key in keys:
        value = item.get(key)
        if value is not None and not isinstance(value, str):
            raise RowError(
                "DATA023", f"message {number} has {key} that is {type_name(value)}; text is wanted", field=name
            )
        if value:
            return value
    return ""


def _tool_calls(item: Mapping[str, Any], name: str, number: int) -> str:
    """A message's tool calls as JSON; an empty text for none."""
    calls = item.get("tool_calls")
    if not calls:
        return ""
    for position, call in enumerate(calls if isinstance(calls, list) else [None], start=1):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            wanted = "each is an object whose function has a name and arguments"
            message = f"message {number} has tool_calls of which number {position} cannot be read; {wanted}"
            raise RowError("DATA023", message, field=name)
    if item.get("role") != "assistant":
        raise RowError("DATA023", f"message {number} has tool_calls, and only an assistant's message may", field=name)
    return json.dumps(calls, ensure_ascii=False)


def check_characters(text: str, name: str, place: str) -> str:
    """``text``, if every tokenizer can take it.

    Raises:
        RowError: For half of a surrogate pair, or NUL; ``place`` stands before the position.
    """
    if half := _SURROGATE.search(text):
        raise RowError("DATA011", f"{place}character {half.start() + 1} is half of a surrogate pair", field=name)
    if "\x00" in text:
        raise RowError("DATA012", f"{place}character {text.index(chr(0)) + 1} is NUL", field=name)
    return text


def texts_of(message: Message) -> tuple[str, str, str]:
    """What is said in a message: content, thought, calls."""
    return message.content, message.reasoning_content, message.tool_calls
