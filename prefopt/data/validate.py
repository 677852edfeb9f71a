"""Turns one row into one pair, text or chat, with or without a prompt of its own, or says what is wrong with it.

The formats are those of TRL's preference datasets (trl/data_utils.py): text or messages, with a prompt column or with
the prompt as what chosen and rejected share. Departures: shared text is cut at the end of a word, and a response is
one assistant message, since whatever stands in it is trained on.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from prefopt.data.formats import readable
from prefopt.data.messages import check_characters, read_message, texts_of
from prefopt.data.parse import type_name
from prefopt.data.problems import RowError, or_drop, show
from prefopt.data.types import Message, Pair, Text

_HH_TURN = "\n\nAssistant:"
_HH_HUMAN = "\n\nHuman:"
# What other programs write as a number; float() reads 1_000 and the digits of every script besides.
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)", re.ASCII | re.IGNORECASE)
_LARGEST_SCORE = 3.4e38  # of float32, in which losses compute


def normalise(text: str) -> str:
    """NFC with every run of white space as one space and none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def prompt_key(prompt: Text) -> str:
    """What two prompts must share to count as the same."""
    if isinstance(prompt, str):
        return normalise(prompt)
    return "\x1e".join(
        "\x1f".join((message.role, *(normalise(text) for text in texts_of(message) if text))) for message in prompt
    )


def make_pair(columns: Mapping[str, Any], *, has_prompt: bool, max_row_bytes: int, row: int) -> Pair:
    """The pair of one row, with ``prompt_id`` still 0.

    Args:
        columns: prompt (where the source has it), chosen, rejected, chosen_score, rejected_score; system, where rows
            have one, is the text of a message before the prompt, and input stands on the line below it.
        has_prompt: Whether the source has a prompt column.
        max_row_bytes: Limit for the text of the row, in UTF-8.
        row: For ``Pair.row``.

    Raises:
        RowError: If the row cannot be used.
    """
    names = ("prompt", "chosen", "rejected") if has_prompt else ("chosen", "rejected")
    fields = {name: _text(columns, name) for name in names}
    size = sum(len(part.encode()) for value in fields.values() for part in _contents(value))
    if size > max_row_bytes:
        raise RowError("DATA018", f"{size} bytes of text; the limit is {max_row_bytes}")
    if columns.get("input"):
        fields["prompt"] = _with_input(fields.get("prompt"), _text(columns, "input"))
    prompt, chosen, rejected = _resolve(fields.get("prompt"), fields["chosen"], fields["rejected"])
    if "system" in columns:
        prompt, chosen, rejected = _with_system(columns, prompt, chosen, rejected)
    for name, value in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        _check_not_empty(value, name)
    _check_different(chosen, rejected)
    return Pair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_score=_score(columns, "chosen_score"),
        rejected_score=_score(columns, "rejected_score"),
        prompt_id=0,
        row=row,
    )


def check_prompt(columns: Mapping[str, Any]) -> Text:
    """The prompt of a row that has no responses; ``columns`` are prompt, system and input, as for ``make_pair``.

    Raises:
        RowError: If the row cannot be used.
    """
    prompt = _text(columns, "prompt")
    if columns.get("input"):
        prompt = _with_input(prompt, _text(columns, "input"))
    _check_not_empty(prompt, "prompt")
    if columns.get("system"):
        prompt, _, _ = _with_system(columns, prompt, "", "")
    if not isinstance(prompt, str):
        _check_roles(prompt)
    return prompt


def _with_input(prompt: Text | None, extra: Text) -> Text:
    """Alpaca's instruction and input, as LLaMA-Factory joins them."""
    if not isinstance(prompt, str) or not isinstance(extra, str):
        raise RowError("DATA006", "text is wanted, to stand on the line below a prompt of text", field="input")
    return f"{prompt}\n{extra}"


def _with_system(columns: Mapping[str, Any], prompt: Text, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """The row as messages, with its system message first where it has one."""
    if isinstance(prompt, str):
        prompt = (Message("user", prompt),)
        chosen, rejected = (
            (Message("assistant", response),) if isinstance(response, str) else response
            for response in (chosen, rejected)
        )
    value = columns["system"]
    if value is None or value == "":
        return prompt, chosen, rejected
    text = _text(columns, "system")
    if not isinstance(text, str):
        raise RowError("DATA006", "text is wanted", field="system")
    if prompt[0].role != "system":
        prompt = (Message("system", text), *prompt)
    elif prompt[0].content != text:
        raise RowError("DATA025", "differs from the system message of the prompt", field="system")
    return prompt, chosen, rejected


def _contents(value: Text) -> list[str]:
    return [value] if isinstance(value, str) else [text for message in value for text in texts_of(message)]


def _text(columns: Mapping[str, Any], name: str) -> Text:
    if name not in columns:
        raise RowError("DATA002", "the field is missing", field=name)
    value = columns[name]
    if value is None:
        raise RowError("DATA004", "the value is null", field=name)
    value = readable(value, name)
    if isinstance(value, str):
        return check_characters(value, name, "")
    if not isinstance(value, list):
        raise RowError("DATA006", f"text or a list of messages is wanted; this is {type_name(value)}", field=name)
    if not value:
        raise RowError("DATA015", "the list of messages is empty", field=name)
    return tuple(read_message(item, name, i) for i, item in enumerate(value, start=1))


def _score(columns: Mapping[str, Any], name: str) -> float | None:
    value = columns.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip(" \t")):  # CSV knows only text
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        got = f"the text {show(value)}" if isinstance(value, str) else type_name(value)
        raise RowError("DATA006", f"a number is wanted; this is {got}", field=name)
    if value != value or abs(value) == math.inf:
        raise RowError("DATA005", "the score is not a finite number", field=name)
    if abs(value) > _LARGEST_SCORE:
        raise RowError("DATA005", f"the score lies beyond {_LARGEST_SCORE:.1e}, which float32 ends with", field=name)
    return float(value)


def _check_not_empty(value: Text, name: str) -> None:
    if isinstance(value, str):
        if _blank(value):
            raise RowError("DATA015", "empty or only white space", field=name)
        return
    for i, message in enumerate(value, start=1):
        # A system message that says nothing is what data sets write for none.
        if message.role != "system" and not message.tool_calls and _blank(message.content):
            raise RowError("DATA015", f"message {i} is empty or only white space", field=name)


def _blank(text: str) -> bool:
    return all(unicodedata.category(character)[0] in "ZC" for character in text)


def _check_different(chosen: Text, rejected: Text) -> None:
    if chosen == rejected:
        raise RowError("DATA014", 'equal to "chosen"', field="rejected")
    if [normalise(text) for text in _contents(chosen)] == [normalise(text) for text in _contents(rejected)]:
        raise RowError(
            "DATA014",
            'equal to "chosen" but for white space or Unicode form',
            field="rejected",
            reason="equal responses but for white space or Unicode form",
        )


def _resolve(prompt: Text | None, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """(prompt, chosen, rejected), all text or all messages, with one assistant message a response."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("DATA007", "one response is text and the other is messages", field="rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _split_text(chosen, rejected)
        if isinstance(prompt, str):
            return prompt, chosen, rejected
        chosen, rejected = (Message("assistant", chosen),), (Message("assistant", rejected),)
    assert not isinstance(chosen, str)
    assert not isinstance(rejected, str)
    if isinstance(prompt, str) and chosen[0].role == rejected[0].role == "assistant":
        prompt = (Message("user", prompt),)
    if prompt is None or isinstance(prompt, str):
        # TRL: a text prompt beside whole conversations only repeats what they share.
        text = prompt
        prompt, chosen, rejected = _split_messages(chosen, rejected)
        if text is not None and not _repeats(text, prompt):
            what = "the text is no message of the conversation that chosen and rejected share, and would be left out"
            fix = or_drop("give it as a system message, or pass --column-map prompt=-")
            raise RowError("DATA025", what, field="prompt", fix=fix)
    else:
        chosen, rejected = (_after(prompt, chosen, "chosen"), _after(prompt, rejected, "rejected"))
    _check_roles(prompt)
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if [message.role for message in response] != ["assistant"]:
            roles = ", ".join(message.role for message in response) or "nothing"
            raise RowError("DATA024", f"a response is one assistant message; this is {roles}", field=name)
    return prompt, chosen, rejected


def _repeats(text: str, prompt: tuple[Message, ...]) -> bool:
    """Whether a text is one of the messages, or all of them one after the other."""
    contents = [normalise(message.content) for message in prompt]
    return normalise(text) in (*contents, " ".join(contents))


def _after(prompt: tuple[Message, ...], response: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    """The response alone, where it is given as the whole conversation."""
    if len(response) == 1:
        return response
    for i, message in enumerate(prompt):
        if i >= len(response) or response[i] != message:
            raise RowError(
                "DATA025", f"message {i + 1} of the conversation differs from message {i + 1} of the prompt", field=name
            )
    return response[len(prompt) :]


def _split_messages(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    if chosen == rejected:
        raise RowError("DATA014", 'equal to "chosen"', field="rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise RowError(
            "DATA025",
            "no prompt: chosen and rejected differ from message 1 on",
            field="rejected",
            fix=or_drop("give a prompt column"),
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The shared beginning as the prompt: up to the last assistant turn of the HH format, else to the end of a word."""
    if chosen == rejected:
        raise RowError("DATA014", 'equal to "chosen"', field="rejected")
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = min(len(chosen), len(rejected)) if shared is None else shared
    turn = chosen.rfind(_HH_TURN, 0, shared)
    if turn >= 0:
        shared = turn + len(_HH_TURN)
        if _HH_HUMAN in chosen[shared:] or _HH_HUMAN in rejected[shared:]:
            what = "the two conversations part before their last answer, so that a response holds a turn of the human"
            raise RowError("DATA024", what, field="rejected")
    else:
        while shared > 0 and not (chosen[shared : shared + 1].isspace() and rejected[shared : shared + 1].isspace()):
            shared -= 1
    if not chosen[:shared].strip():
        raise RowError(
            "DATA025",
            "no prompt: chosen and rejected share no first words",
            field="rejected",
            fix=or_drop("give a prompt column"),
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _check_roles(prompt: tuple[Message, ...]) -> None:
    """A system message first if at all, then user and assistant in turn, where tools may answer an assistant."""
    allowed = {"start": ("system", "user"), "system": ("user",), "user": ("assistant",)}
    allowed |= {"assistant": ("user", "tool"), "tool": ("assistant", "tool")}
    before = "start"
    for i, message in enumerate(prompt, start=1):
        if message.role not in allowed[before]:
            after = "at the start" if before == "start" else f"after {before}"
            raise RowError("DATA024", f"message {i}: {message.role} {after}", field="prompt")
        before = message.role
    if before not in ("user", "tool"):
        raise RowError("DATA024", f"the prompt ends with {before}; a user's message is wanted", field="prompt")
