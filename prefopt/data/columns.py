"""Finds the standard columns of a source: by name, by alias or by the user's map; names that mislead are refused."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.data.formats import other_format, readable
from prefopt.data.parse import Row
from prefopt.data.problems import RowError, refuse, show

COLUMNS = ("prompt", "system", "input", "chosen", "rejected", "chosen_score", "rejected_score")
NONE = "-"  # in a column map: the source has no such column, or one that is to be left out
PROMPT_COLUMNS = ("prompt", "system", "input")
_STANDARD = {
    **{name: name for name in COLUMNS if name != "input"},  # input belongs to instruction, or has to be named
    "system_prompt": "system",
    **{f"score_{side}": f"{side}_score" for side in ("chosen", "rejected")},
    **{f"{side}{between}rating": f"{side}_score" for side in ("chosen", "rejected") for between in "-_"},  # Argilla's
}
# Names that other data sets give the three columns; only ever suggested, never assumed.
_KNOWN_NAMES = {
    "prompt": ("question", "instruction", "input", "query", "messages", "context", "conversations", "conversation",
               "dialogue", "history", "problem", "human", "post", "article"),
    "chosen": ("response_j", "accepted", "preferred", "winner", "answer_chosen", "chosen_response", "response_chosen"),
    "rejected": ("response_k", "dispreferred", "loser", "answer_rejected", "rejected_response", "response_rejected"),
}  # fmt: skip
# Words of names that may be the prompt's, and words that make them something else, such as prompt_id.
_PROMPT_WORDS = {"prompt", "prompts", "question", "questions", "instruction", "instructions", "query", "input",
                 "inputs", "message", "messages", "conversation", "conversations", "dialogue", "dialog", "chat",
                 "context", "problem"}  # fmt: skip
_OTHER_WORDS = {"id", "ids", "idx", "index", "len", "length", "tokens", "type", "kind", "source", "category", "topic",
                "lang", "language", "model", "hash", "score", "rating", "count", "num", "n", "difficulty"}  # fmt: skip
_CHATS = ("messages", "conversations", "conversation")
# Columns that change what a row means, and that pairs of text have no place for.
_MEANING = ("input", "history", "tools", "images", "image", "videos", "audios")
_MAX_EXTRA_COLUMNS = 100
_MAX_NAME_CHARS = 80
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass
class Columns:
    """Which column of the source is which.

    Attributes:
        names: The standard name by the source's.
        has_prompt: Whether one of them is the prompt.
        left_out: Columns that the user has said are of no use here.
        notes: Sentences for the user on what was taken for what.
        has_system: Whether rows have a system message in a column of its own.
        extra: Columns that are ignored.
    """

    names: dict[str, str]
    has_prompt: bool
    left_out: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    has_system: bool = False
    extra: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, source: str, head: Sequence[tuple[int, Row]], column_map: Mapping[str, str]) -> Columns:
        """The columns that the first rows have.

        Raises:
            DataError: If chosen or rejected is missing, or two columns could be the same one.
        """
        names = {name: standard for name, standard in _STANDARD.items() if standard not in column_map}
        names |= {name: standard for standard, name in column_map.items() if name != NONE}
        left_out = frozenset({name for name, mapped in column_map.items() if mapped == NONE})
        names = {name: standard for name, standard in names.items() if name not in left_out}
        seen = list(dict.fromkeys(key for _, row in head for key in row))
        present = {names[key] for key in seen if key in names}
        columns = cls(names=names, has_prompt="prompt" in present, left_out=left_out)
        for number, row in head:
            try:
                columns.check(row)
            except RowError as problem:
                raise refuse(source, number, problem) from None
        missing = [name for name in ("chosen", "rejected") if name not in present]
        missing += [name for name in names.values() if name in column_map and name not in present | set(missing)]
        if head and missing:
            raise refuse(source, 0, _missing(seen, present, missing))
        others = [key for key in seen if key not in names and key not in left_out]
        _refuse_lookalikes(source, others, present)
        if head and not columns.has_prompt and "prompt" not in column_map:
            columns._find_prompt(source, others, [row for _, row in head])
        columns.has_system = any(names.get(key) == "system" and value for _, row in head for key, value in row.items())
        return columns

    def _find_prompt(self, source: str, others: Sequence[str], rows: Sequence[Row]) -> None:
        """Take the prompt from a column of a known format; never leave it to the responses beside one that may be it.

        Raises:
            DataError: If a column may be the prompt and need not.
        """
        like = [key for key in others if _may_be_prompt(key, [row.get(key) for row in rows])]
        if set(like) <= {"instruction", "input", "history"} and "instruction" in like:
            self.names |= {
                key: standard for key, standard in (("instruction", "prompt"), ("input", "input")) if key in like
            }
            written = "instruction, and input on the next line" if "input" in like else "instruction"
            self.notes = (f"Alpaca's columns: the prompt is {written} (--column-map says otherwise)",)
            self.has_prompt = True
        elif len(like) == 1 and like[0] in _CHATS and _is_prompt(rows, like[0]):
            self.names[like[0]] = "prompt"
            self.notes = (f"the prompt is the chat in {show(like[0])} (--column-map prompt={like[0]})",)
            self.has_prompt = True
        elif like:
            key = like[0]
            names = " or ".join(show(name) for name in like)
            named = f"pass --column-map prompt={key}" if key.isprintable() else "rename it"
            fix = f"{named}, or prompt={NONE} where chosen and rejected begin with the prompt"
            what = f"the column {names} may be the prompt, and none is called so"
            raise refuse(source, 0, RowError("DATA003", what, field="prompt", fix=fix))

    def check(self, row: Row) -> None:
        """Refuse names that cannot be written down, and two names of one standard column.

        Raises:
            RowError: Naming the column; leaving out the row would leave the doubt.
        """
        for key in row:
            if broken := _UNWRITABLE.search(key):
                nul = broken[0] == "\x00"
                what = "NUL" if nul else "half of a surrogate pair"
                message = f"character {broken.start() + 1} of the column name {show(key)} is {what}"
                raise RowError("DATA012" if nul else "DATA011", message, fix="rename the column, or remove it")
        doubles = Counter(self.names[key] for key in row if key in self.names)
        for standard in (name for name, count in doubles.items() if count > 1):
            rivals = " and ".join(show(key) for key in row if self.names.get(key) == standard)
            fix = f"remove one of them, or say which counts: --column-map {standard}=..."
            raise RowError("DATA013", f"both {rivals} give it", field=standard, fix=fix)

    def standard(self, row: Row) -> Row:
        """The standard columns of a row; the others are noted.

        Raises:
            RowError: For names that cannot be trusted, or a prompt where the rows before had none.
        """
        self.check(row)
        columns = {}
        for key, value in row.items():
            if self.names.get(key) == "system" and not self.has_system:
                if value:
                    what = "a system message is first seen here, and the rows before have none"
                    raise RowError("DATA002", what, field=key, fix="give the first rows one, or split the file")
            elif key in self.names:
                columns[self.names[key]] = value
            elif key in _MEANING and value and key not in self.left_out:
                what = f"the column {show(key)} belongs to what is asked, and would be left out"
                also = ", or input=input to put it on the line below the prompt" if key == "input" else ""
                raise RowError(
                    "DATA034", what, field=key, fix=f"write it into the prompt, or pass --column-map {key}={NONE}{also}"
                )
            elif len(self.extra) < _MAX_EXTRA_COLUMNS:
                self.extra.add(key[:_MAX_NAME_CHARS])
        if "prompt" in columns and not self.has_prompt:
            message = "the column is first seen here, and the rows before have none"
            raise RowError(
                "DATA002", message, field="prompt", fix="give every row a prompt, or none, or split the file"
            )
        return columns


def _plain(name: str) -> str:
    """A column name as it looks: without what cannot be seen, in lower case, with ``_`` between words."""
    shown = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) not in ("Cc", "Cf"))
    return re.sub(r"[\s-]+", "_", shown.strip()).casefold()


def _refuse_lookalikes(source: str, others: Sequence[str], present: set[str]) -> None:
    """Refuse a column that looks like a standard one which the source lacks: it would be ignored."""
    for key in others:
        standard = _STANDARD.get(_plain(key))
        if standard and standard not in present:
            message = f"the column {show(key)} looks like {standard} and is not spelled so"
            fix = f"rename it, or pass --column-map {standard}={key}" if key.isprintable() else "rename it"
            raise refuse(source, 0, RowError("DATA003", message, field=standard, fix=fix))


def _may_be_prompt(name: str, values: Sequence[Any]) -> bool:
    """Whether a column could hold what is asked, by its name and by what the first rows have there."""
    plain = _plain(name)
    texts = [value for value in values if isinstance(value, str | list | dict) and value]
    if plain in _KNOWN_NAMES["prompt"]:
        return bool(texts)
    words = set(plain.split("_"))
    differ = len(texts) < 3 or any(value != texts[0] for value in texts)
    return bool(texts) and differ and bool(words & _PROMPT_WORDS) and not words & _OTHER_WORDS


def prompt_columns(names: Sequence[str]) -> dict[str, str]:
    """The names of prompt, system and input in a source that has no responses, as far as they are clear."""
    found = {standard: key for key in names if (standard := _STANDARD.get(key)) in ("prompt", "system")}
    like = [key for key in names if _plain(key) in _KNOWN_NAMES["prompt"]]
    if "prompt" not in found and "instruction" in like:
        found |= {"prompt": "instruction"} | ({"input": "input"} if "input" in like else {})
    elif "prompt" not in found and len(like) == 1:
        found["prompt"] = like[0]
    return found


def _is_prompt(rows: Sequence[Row], name: str) -> bool:
    """Whether a chat ends with a user's turn in every row and the responses are single turns: it is the prompt."""
    try:
        chats = [readable(row.get(name), name) for row in rows]
        responses = [readable(row.get(side), side) for row in rows for side in ("chosen", "rejected")]
    except RowError:
        return True  # the row says what is wrong with it
    asks = all(isinstance(chat, list) and chat and _role_of(chat[-1]) in ("user", "tool") for chat in chats)
    return asks and all(not isinstance(value, list) or len(value) == 1 for value in responses)


def _role_of(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _missing(seen: Sequence[str], present: set[str], missing: Sequence[str]) -> RowError:
    """What to say where chosen or rejected is missing: the format, if it is a known one, with its conversion."""
    columns = ", ".join(show(key) for key in seen[:20])
    known = other_format(seen) if {"chosen", "rejected"} <= set(missing) else None
    if known:
        name, conversion = known
        message = f"no column chosen or rejected: found {columns}; this looks like {name}"
        return RowError("DATA003", message, fix=f"convert it to prompt, chosen and rejected: {conversion}")
    wanted = "needs chosen and rejected, and prompt unless they share it"
    message = f"no column {' or '.join(missing)}: found {columns}; {wanted}"
    return RowError("DATA003", message, fix=_suggest(seen, present))


def _suggest(seen: Sequence[str], present: set[str]) -> str:
    near = {
        standard: next((key for key in seen if key.lower() in names), None)
        for standard, names in _KNOWN_NAMES.items()
        if standard not in present
    }
    guess = ",".join(f"{standard}={name or '...'}" for standard, name in near.items())
    return f"rename the columns, or pass --column-map {guess or 'prompt=...,chosen=...,rejected=...'}"
