"""How others write preference data: values that are read as messages, and formats that are named with their conversion.

ShareGPT's from/value is LLaMA-Factory's (``src/llamafactory/data/converter.py``), parts of content are OpenAI's, KTO's
columns are TRL's (``dataset_formats``).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from prefopt.data.problems import RowError, or_drop, show

# ShareGPT's names of the roles; those of OpenAI stand for themselves.
ROLE_OF = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bot": "assistant", "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip
_MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})
_REPR = ("[{'", "{'", '[{"role": \'', "[Message(", "array([{'", "[OrderedDict(", "(Message(")
_ONE_ROW_EACH = "give each of them a row of its own; pandas: frame.explode({name!r})"

# Columns that only another format has, its name, and how it becomes chosen and rejected.
_OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("completion", "label"), "unpaired feedback (KTO's format)",
     "for each prompt, one completion whose label is true becomes chosen and one whose label is false rejected"),
    (("response_0", "response_1"), "two numbered responses and the number of the better one",
     "chosen = row[f\"response_{n}\"] and rejected = row[f\"response_{1 - n}\"], where n is the better one's number"),
    (("response_a", "response_b"), "two responses and a verdict",
     "chosen is the response that the verdict names, rejected the other; leave ties out"),
    (("conversation_a", "conversation_b"), "an arena's two conversations and the winner",
     "chosen is the winner's conversation, rejected the other; leave ties out"),
    (("output_1", "output_2"), "two outputs and a preference",
     "chosen is the output that the preference names, rejected the other; leave ties out"),
    (("answer_0", "answer_1"), "two answers and their scores", "chosen is the answer with the higher score"),
    (("responses",), "a list of responses for each prompt",
     "chosen is the best one, rejected a worse one; a row for each two that you want to compare"),
    (("completions",), "a list of completions for each prompt",
     "chosen is the best one, rejected a worse one; a row for each two that you want to compare"),
    (("generations",), "a list of generations for each prompt",
     "chosen is the best one, rejected a worse one; a row for each two that you want to compare"),
    (("a", "b", "verdict"), "verdicts on samples, as prefopt judge writes them",
     "that file is for prefopt judge --judge file:PATH; as pairs, chosen is the text that the verdict names"),
    (("completion",), "one completion for each prompt (a fine-tuning set)", "a second, worse response is missing"),
    (("output",), "one output for each instruction (a fine-tuning set)",
     "a second, worse response is missing; where output is a list of two, chosen = row['output'][0] and rejected = "
     "row['output'][1]"),
    (("text",), "plain text (a pre-training or fine-tuning set)", "two responses to one prompt are wanted"),
)  # fmt: skip


def other_format(columns: Collection[str]) -> tuple[str, str] | None:
    """The known format, one without chosen and rejected, that has these columns, and how to convert it."""
    present = {name.lower() for name in columns}
    return next(((name, conversion) for wanted, name, conversion in _OTHERS if present.issuperset(wanted)), None)


def readable(value: Any, name: str) -> Any:
    """A column's value as text or a list of role/content messages, where it can be read as such; else as it is.

    Args:
        value: As the file has it.
        name: The standard column, for messages.

    Raises:
        RowError: If it is written in a way that is known and not read.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise RowError("DATA010", "bytes that are not UTF-8", field=name, fix=or_drop("save text")) from None
    if isinstance(value, str):
        value = _chat_in_text(value, name)
    if isinstance(value, dict):
        if not is_message(value):
            raise RowError("DATA006", _wanted(value, name), field=name, fix=or_drop(_field_of(value, name)))
        value = [value]
    if isinstance(value, list):
        if len(value) > 0 and all(isinstance(item, str) for item in value):
            what = (
                f"message 1 is text; each is an object with role and content, and this is a list of {len(value)} texts"
            )
            raise RowError("DATA006", what, field=name, fix=or_drop(_ONE_ROW_EACH.format(name=name)))
        return [_message(item, name, number) for number, item in enumerate(value, start=1)]
    return value


def is_message(value: Any) -> bool:
    """Whether a value is one message in either form."""
    return isinstance(value, dict) and any(keys <= value.keys() for keys in _MESSAGE_KEYS)


def _wanted(value: Mapping[str, Any], name: str) -> str:
    keys = ", ".join(show(key) for key in list(value)[:6])
    return f"text or a list of messages is wanted; this is an object with the fields {keys}"


def _field_of(value: Mapping[str, Any], name: str) -> str:
    texts = [key for key, item in value.items() if isinstance(item, str)]
    key = texts[0] if len(texts) == 1 and texts[0].isidentifier() else "..."
    return f"keep the text alone, {name} = row[{name!r}][{key!r}]"


def _chat_in_text(text: str, name: str) -> Any:
    """The messages that a text holds as JSON, else the text itself.

    Raises:
        RowError: For messages as Python shows them, which no other program reads.
    """
    start = text[:400].lstrip()
    if start.startswith(_REPR) and any(key in start for keys in _MESSAGE_KEYS for key in keys):
        fix = f"write the column as JSON (json.dumps(row[{name!r}])), or save the rows as JSONL or Parquet"
        raise RowError("DATA006", "the messages are written as Python shows a list, not as JSON", field=name, fix=fix)
    if not start.startswith(("[", "{")):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    chat = value if isinstance(value, list) else [value]
    return value if chat and all(is_message(item) for item in chat) else text


def _message(item: Any, name: str, number: int) -> Any:
    """A message with role and text content, whatever else it has."""
    if not isinstance(item, dict):
        return item
    if "role" not in item and {"from", "value"} <= item.keys():
        rest = {key: value for key, value in item.items() if key not in ("from", "value")}
        item = {"role": _role(item["from"], name, number), "content": item["value"], **rest}
    content = item.get("content")
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        item = {**item, "content": "".join(_part(part, name, number) for part in content)}
    return item


def _role(value: Any, name: str, number: int) -> str:
    role = ROLE_OF.get(str(value).lower())
    if role is None:
        known = ", ".join(ROLE_OF)
        raise RowError("DATA023", f"message {number} is from {show(value)}; known are {known}", field=name)
    return role


def _part(part: Mapping[str, Any], name: str, number: int) -> str:
    text = part.get("text")
    if part.get("type", "text") != "text" or not isinstance(text, str):
        kind = show(part.get("type", "?"))
        raise RowError("DATA023", f"message {number} has a part of type {kind}; only text is compared", field=name)
    return text
