"""Reads JSON strictly: whatever a lenient parser would guess at is reported with its line.

Every reader yields (row, columns or RowError), the row being the 1-based line, or the position in the list. Problems
after which no further row can be trusted end the file. A file holds one object a line, or one value: a list of rows,
an object whose only list holds the rows, or columns as pandas and datasets write them.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator
from typing import IO, Any

from prefopt.data.problems import RowError, or_drop, show

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | RowError]]

MAX_WHOLE_FILE_BYTES = 512 * 1024**2  # of a file that cannot be read a row at a time
PARTIAL = "the file looks cut off: download or export it again"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RowError("DATA005", f"the number {show(text)} is not finite")
    return value


def _integer(text: str) -> int:
    if len(text) > 400:  # int() refuses from 4300 digits on, float() overflows from 309 on
        raise RowError("DATA005", f"an integer of {len(text)} digits")
    return int(text)


def _constant(text: str) -> float:
    raise RowError("DATA005", f"{text} is not JSON")


def _unique(items: list[tuple[str, Any]]) -> Row:
    value = dict(items)
    if len(value) != len(items):
        seen: set[str] = set()
        key = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError("DATA013", f"the key {show(key)} occurs twice")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_int=_integer, parse_constant=_constant
)


def _decode_json(text: str, start: int = 0) -> tuple[Any, int]:
    """A JSON value and where it ends.

    Raises:
        RowError: For anything that is not strict, sensibly nested JSON.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise RowError("DATA016", "JSON is nested too deeply to be a row of text") from None
    except json.JSONDecodeError as problem:
        raise RowError("DATA008", f"invalid JSON: {problem.msg} at character {problem.pos - start + 1}") from None


def _object(value: Any) -> Row:
    if not isinstance(value, dict):
        raise RowError("DATA006", f"a row is a JSON object with named fields; this is {type_name(value)}")
    return value


def type_name(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def decode_line(line: bytes) -> str:
    """A line's text.

    Raises:
        RowError: If it is not UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise RowError(
            "DATA010",
            f"invalid UTF-8 at byte {problem.start + 1} of the line (0x{line[problem.start]:02x})",
            fix=or_drop("save the file as UTF-8"),
        ) from None


def numbered_lines(file: IO[bytes], max_row_bytes: int) -> Iterator[tuple[int, bytes | RowError]]:
    """Lines with their numbers; a line that is longer than allowed is never held in memory."""
    number = 0
    try:
        while line := file.readline(max_row_bytes + 2):
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line.rstrip(b"\r\n")) > max_row_bytes:
                while line and not line.endswith(b"\n"):
                    line = file.readline(1 << 20)
                yield number, RowError("DATA018", f"the row is larger than {max_row_bytes} bytes")
            else:
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        yield number + 1, RowError("DATA009", f"the compressed file is damaged ({problem})", fix=PARTIAL)


def _parse_line(line: bytes) -> Row:
    text = decode_line(line).strip(" \t\r\n")
    value, end = _decode_json(text)
    if end != len(text):
        raise RowError("DATA008", f"invalid JSON: more text after the object, at character {end + 1}")
    return _object(value)


def read_jsonl(file: IO[bytes], max_row_bytes: int) -> Rows:
    """One JSON object a line; blank lines, a byte order mark and CRLF are accepted, and so is a JSON list."""
    for number, line in numbered_lines(file, max_row_bytes):
        if isinstance(line, RowError):
            yield number, line
            continue
        if number == 1 and line.lstrip()[:1] == b"[":
            yield from read_json(_again(line, file), max_row_bytes)
            return
        if not line.strip():
            continue
        try:
            yield number, _parse_line(line)
        except RowError as problem:
            cut = problem.code == "DATA008" and not line.endswith(b"\n")
            yield (
                number,
                RowError("DATA009", f"the last line is incomplete ({problem})", fix=PARTIAL) if cut else problem,
            )


def _again(first: bytes, file: IO[bytes]) -> IO[bytes]:
    """A file whose first line was read, from its beginning; it is read whole."""
    return io.BytesIO(first + file.read(MAX_WHOLE_FILE_BYTES + 1))


def read_json(file: IO[bytes], max_row_bytes: int) -> Rows:
    """One JSON value, or one object a line under the other name."""
    try:
        data = file.read(MAX_WHOLE_FILE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        yield 0, RowError("DATA009", f"the compressed file is damaged ({problem})", fix=PARTIAL)
        return
    if len(data) > MAX_WHOLE_FILE_BYTES:
        message = f"more than {MAX_WHOLE_FILE_BYTES} bytes in one JSON value"
        yield 0, RowError("DATA018", message, fix="save it as JSONL, one object a line")
        return
    try:
        text = decode_line(data.removeprefix(b"\xef\xbb\xbf"))
    except RowError as problem:
        yield 0, RowError("DATA010", str(problem).replace("line", "file"), fix="save the file as UTF-8")
        return
    position = _skip(text, 0)
    if text[position : position + 1] == "[":
        yield from _list_rows(text, position, max_row_bytes)
    elif text[position : position + 1] == "{":
        yield from _object_rows(text, position, data, max_row_bytes)
    else:
        fix = "save the rows as a JSON list, or as one object a line"
        yield 0, RowError("DATA008", "the file is not a JSON list of rows", fix=fix)


def _object_rows(text: str, position: int, data: bytes, max_row_bytes: int) -> Rows:
    """The rows of a file that begins with an object: lines, or one object that holds them all."""
    try:
        value, end = _decode_json(text, position)
    except RowError as problem:
        if "\n" not in text.strip():
            yield 0, RowError(problem.code, str(problem), fix=PARTIAL if problem.code == "DATA008" else "mend it")
            return
        value, end = None, 0
    if _skip(text, end) < len(text):
        if "\n" in text[position:end]:
            yield from _objects_in_turn(text, position)
        else:
            yield from read_jsonl(io.BytesIO(data), max_row_bytes)
        return
    try:
        yield from enumerate(rows_of_object(value), start=1)
    except RowError as problem:
        yield 0, problem


def _objects_in_turn(text: str, position: int) -> Rows:
    """Objects one after the other, each over several lines, as jq writes them; a row is named by its first line."""
    while position < len(text):
        line = text.count("\n", 0, position) + 1
        try:
            value, position = _decode_json(text, position)
            yield line, _object(value)
        except RowError as problem:
            yield (
                line,
                RowError(problem.code, str(problem), fix=PARTIAL if problem.code == "DATA008" else "mend the row"),
            )
            return
        position = _skip(text, position)


def rows_of_object(value: Row) -> list[Row | RowError]:
    """The rows of one object: those of its only list, of its columns, or the object itself as the only row.

    Raises:
        RowError: If it is not clear which rows are meant.
    """
    lists = [key for key, item in value.items() if _is_rows(item)]
    if len(lists) == 1 and not {"chosen", "rejected"} & value.keys():
        return [_row_or_error(item) for item in value[lists[0]]]
    if len(lists) > 1 and not {"chosen", "rejected"} & value.keys():
        names = ", ".join(show(key) for key in lists[:8])
        raise RowError("DATA008", f"the file holds several lists: {names}", fix="save the one to train on alone")
    if set(value) >= {"columns", "data"} and isinstance(value["data"], list):  # pandas, orient="split"
        return [dict(zip(value["columns"], items, strict=True)) for items in value["data"]]
    if value and all(key.isdecimal() and isinstance(item, dict) for key, item in value.items()):  # orient="index"
        return [_row_or_error(item) for item in value.values()]
    columns = [_column(item) for item in value.values()]
    if all(column is not None for column in columns):
        sizes = {len(column) for column in columns if column is not None}
        if len(sizes) != 1:
            raise RowError("DATA022", "the columns of the file differ in length", fix="export it again, as JSONL")
        return [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]
    return [value]


def _is_rows(value: Any) -> bool:
    """Whether a value is a list of rows, and not a chat."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) and not _turn(row) for row in value)


def _turn(value: Any) -> bool:
    return isinstance(value, dict) and bool({"role", "from"} & value.keys()) and not {"chosen"} & value.keys()


def _row_or_error(value: Any) -> Row | RowError:
    try:
        return _object(value)
    except RowError as problem:
        return problem


def _column(value: Any) -> list[Any] | None:
    """The values of a column by row number (pandas) or in a list (datasets), or None if it is neither."""
    if isinstance(value, dict) and value and all(key.isdecimal() for key in value):
        return list(value.values())
    if isinstance(value, list) and value and not any(_turn(item) for item in value):
        return value
    return None


def _list_rows(text: str, position: int, max_row_bytes: int) -> Rows:
    """Rows of a JSON list that begins at ``position``, decoded one by one."""
    position, number = _skip(text, position + 1), 0
    while text[position : position + 1] != "]":
        number += 1
        try:
            value, end = _decode_json(text, position)
        except RowError as problem:
            # Where the next row begins is no longer known, so even dropping this one cannot mend the file.
            fix = PARTIAL if problem.code == "DATA008" else "mend the row"
            yield number, RowError(problem.code, str(problem), fix=fix)
            return
        try:
            if end - position > max_row_bytes:
                raise RowError("DATA018", f"the row is larger than {max_row_bytes} bytes")
            yield number, _object(value)
        except RowError as problem:
            yield number, problem
        position = _skip(text, end)
        if text[position : position + 1] not in (",", "]"):
            yield number, RowError("DATA009", "the list is not closed after this row", fix=PARTIAL)
            return
        if text[position] == ",":
            position = _skip(text, position + 1)
            if text[position : position + 1] == "]":
                yield number, RowError("DATA008", "invalid JSON: a comma after the last row", fix="remove the comma")
    rest = _skip(text, position + 1)
    if rest < len(text):
        line = text.count("\n", 0, rest) + 1
        message = f"more text after the end of the list, in line {line}: {show(text[rest : rest + 40])}"
        yield (
            number + 1,
            RowError("DATA008", message, fix="put all rows into one list, or remove what stands behind it"),
        )


def _skip(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position
