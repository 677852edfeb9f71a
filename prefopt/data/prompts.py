"""Prompts of the user's own, without responses: a file of texts or chats, one a row or a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.data.columns import NONE, PROMPT_COLUMNS, prompt_columns
from prefopt.data.problems import Problems, RowError, show
from prefopt.data.sources import SUFFIXES, local_files, open_bytes, open_source, sha256_of
from prefopt.data.types import Message, Pair, Text
from prefopt.data.validate import check_prompt, prompt_key
from prefopt.errors import DataError, UsageError

_MAX_ROW_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class LoadedPrompts:
    """Prompts of one file, no two alike after NFC and collapsing white space.

    Attributes:
        prompts: Texts throughout, or messages throughout.
        responses: What the row gives as a response to fine-tune on, as text, or None; of equal length.
        source: The path as given.
        sha256: Of the file; 64 hex digits.
        duplicates: Rows left out because an earlier one has the same prompt.
        rows: The row of each, from 1.
    """

    prompts: tuple[Text, ...]
    responses: tuple[str | None, ...]
    source: str
    sha256: str
    duplicates: int
    rows: tuple[int, ...] = ()


def load_prompts(source: str, *, column_map: Mapping[str, str] | None = None) -> LoadedPrompts:
    """Read prompts: rows with ``prompt`` (text, or messages) and, where there is one, ``response``; or lines of text.

    A prompt under another name is read where one column alone can be it; system and input are read as for pairs.

    Args:
        source: A file, or a folder of them.
        column_map: That of pairs beside them; names that the source does not have are passed over.

    Raises:
        UsageError: If the file is not there, or of a kind that is not read.
        DataError: If rows cannot be used, naming file, line, field and fix.
    """
    path = Path(source)
    if not path.exists():
        kinds = ", ".join((*SUFFIXES, ".txt"))
        raise UsageError(f"prompts {show(source, 200)} does not exist; give a {kinds} file, or a folder of them")
    text = path.is_file() and path.suffix.lower() == ".txt"
    problems = Problems(source, "refuse")
    prompts: dict[str, tuple[Text, str | None, int]] = {}
    forms: dict[type, int] = {}
    rows = 0
    for number, row in _lines(path) if text else open_source(source, _MAX_ROW_BYTES).rows:
        try:
            if isinstance(row, RowError):
                raise row
            prompt, response = check_prompt(_standard(row, column_map or {})), _response(row)
            forms.setdefault(type(prompt), number)
            if len(forms) > 1:
                first = " and ".join(f"row {row}" for row in forms.values())
                raise RowError(
                    "DATA007", f"rows of text and rows of messages in one file, {first}", fix="split the file"
                )
            rows += 1
            prompts.setdefault(prompt_key(prompt), (prompt, response, number))
        except RowError as problem:
            problems.add(number, problem)
    if not prompts:
        problems.add(0, RowError("DATA001", "there are no prompts", fix="give at least three"))
    problems.raise_if_any()
    texts, responses, numbers = zip(*prompts.values(), strict=True)
    sha256, duplicates = sha256_of(source, local_files(source)), rows - len(prompts)
    return LoadedPrompts(tuple(texts), tuple(responses), source, sha256, duplicates, tuple(numbers))


def _standard(row: dict[str, Any], column_map: Mapping[str, str]) -> dict[str, Any]:
    """The columns prompt, system and input of a row, whatever the source calls them."""
    mapped = {ours: theirs for ours, theirs in column_map.items() if theirs in row and theirs != NONE}
    names = prompt_columns(list(row)) | {ours: theirs for ours, theirs in mapped.items() if ours in PROMPT_COLUMNS}
    return {name: row[theirs] for name, theirs in names.items() if theirs in row}


def with_form(prompt: Text, *, chats: bool) -> Text:
    """A prompt in the form that pairs have: a text beside chats is a user's message.

    Raises:
        RowError: For messages beside pairs of text.
    """
    if chats and isinstance(prompt, str):
        return (Message("user", prompt),)
    if not chats and not isinstance(prompt, str):
        fix = "give text, or pairs of messages"
        raise RowError("DATA007", "the prompts are messages, and the pairs are text", field="prompt", fix=fix)
    return prompt


def check_no_prompt_leak(train: Sequence[Pair], prompts: LoadedPrompts, source: str) -> None:
    """Refuse evaluation prompts that are trained on.

    Raises:
        DataError: Naming the first one's line in both.
    """
    first: dict[str, int] = {}
    for pair in train:
        first.setdefault(prompt_key(pair.prompt), pair.row)
    keys = [(prompt_key(prompt), row) for prompt, row in zip(prompts.prompts, prompts.rows, strict=True)]
    shared = [(row, first[key]) for key, row in keys if key in first]
    if shared:
        row, train_row = shared[0]
        raise DataError(
            f'error[DATA019] {prompts.source}:{row} field "prompt": also in the training data, {source}:{train_row}; '
            f"{len(shared)} evaluation prompts leak. Fix: remove them from one of the two. Nothing was written."
        )


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Lines of a text file as rows; blank ones are skipped."""
    try:
        with open_bytes(path) as file:
            text = file.read().decode("utf-8").removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as problem:
        yield 0, RowError("DATA010", f"cannot be read as UTF-8 ({problem})", fix="save the file as UTF-8")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, {"prompt": line.rstrip("\r")}


def _response(row: dict[str, Any]) -> str | None:
    value = row.get("response")
    if value is None or isinstance(value, str):
        return value or None
    raise RowError("DATA006", "a response is a text", field="response")


def pick(prompts: Sequence[Text], order: Sequence[int], counts: Sequence[int]) -> list[tuple[Text, ...]]:
    """The first prompts of an order in consecutive sets of so many."""
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [tuple(prompts[i] for i in order[end - count : end]) for end, count in zip(ends, counts, strict=True)]
