"""Files to rows, strictly: what a parser would guess at or let pass is a problem with a line.

Every reader yields (row, columns or RowError), the row being the 1-based line, or the position in the list
for JSON and Parquet. Problems after which no further row can be trusted end the file.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from prefopt.data.problems import RowError, or_drop, show

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | RowError]]

_MAX_JSON_FILE_BYTES = 512 * 1024**2
_PARTIAL = "the file looks cut off: download or export it again"


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


def _decode_line(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise RowError(
            "DATA010",
            f"invalid UTF-8 at byte {problem.start + 1} of the line (0x{line[problem.start]:02x})",
            fix=or_drop("save the file as UTF-8"),
        ) from None


def _lines(file: IO[bytes], max_row_bytes: int) -> Iterator[tuple[int, bytes | RowError]]:
    """Lines with their numbers, none of them held when it is longer than allowed."""
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
        yield number + 1, RowError("DATA009", f"the compressed file is damaged ({problem})", fix=_PARTIAL)


def _parse_line(line: bytes) -> Row:
    text = _decode_line(line).strip(" \t\r\n")
    value, end = _decode_json(text)
    if end != len(text):
        raise RowError("DATA008", f"invalid JSON: more text after the object, at character {end + 1}")
    return _object(value)


def read_jsonl(path: Path, max_row_bytes: int) -> Rows:
    """One JSON object a line; blank lines, a byte order mark and CRLF are accepted."""
    opener: Callable[..., IO[bytes]] = gzip.open if path.suffix.lower() == ".gz" else open  # type: ignore[assignment]
    with opener(path, "rb") as file:
        for number, line in _lines(file, max_row_bytes):
            if isinstance(line, RowError):
                yield number, line
                continue
            if not line.strip():
                continue
            try:
                yield number, _parse_line(line)
            except RowError as problem:
                cut = problem.code == "DATA008" and not line.endswith(b"\n")
                yield (
                    number,
                    RowError("DATA009", f"the last line is incomplete ({problem})", fix=_PARTIAL) if cut else problem,
                )


def read_json(path: Path, max_row_bytes: int) -> Rows:
    """A JSON list of objects, decoded one by one."""
    size = path.stat().st_size
    if size > _MAX_JSON_FILE_BYTES:
        yield 0, RowError("DATA018", f"{size} bytes in one JSON list", fix="save it as JSONL, one object a line")
        return
    try:
        text = _decode_line(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except RowError as problem:
        yield 0, RowError("DATA010", str(problem).replace("line", "file"), fix="save the file as UTF-8")
        return
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        yield (
            0,
            RowError(
                "DATA008", "the file is not a JSON list of rows", fix="rename it to .jsonl if it has one object a line"
            ),
        )
        return
    position, number = _skip(text, position + 1), 0
    while text[position : position + 1] != "]":
        number += 1
        try:
            value, end = _decode_json(text, position)
        except RowError as problem:
            # Where the next row begins is no longer known, so even dropping this one cannot mend the file.
            fix = _PARTIAL if problem.code == "DATA008" else "mend the row"
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
            yield number, RowError("DATA009", "the list is not closed after this row", fix=_PARTIAL)
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


def read_csv(path: Path, max_row_bytes: int) -> Rows:
    """Comma-separated values with a header; a row is named by the line on which it begins."""
    old_limit = csv.field_size_limit(max_row_bytes)
    line = 1
    try:
        with path.open("rb") as file:
            reader = csv.reader((_decode_line(raw) for raw in _raw_lines(file, max_row_bytes)), strict=True)
            header = next(reader, [])
            if len(set(header)) != len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise RowError("DATA013", f"the column {show(twice)} occurs twice", fix="rename one of them")
            line = reader.line_num + 1
            for values in reader:
                if values and len(values) != len(header):
                    yield line, RowError("DATA022", f"{len(values)} values, and the header names {len(header)} columns")
                elif values:
                    yield line, dict(zip(header, values, strict=True))
                line = reader.line_num + 1
    except RowError as problem:
        yield line, RowError(problem.code, str(problem), fix=problem.fix.split(", or drop")[0])
    except csv.Error as problem:
        fix = _PARTIAL if "unexpected end" in str(problem) else "mend the quotes, or save the rows as JSONL"
        yield line, RowError("DATA009" if "unexpected end" in str(problem) else "DATA022", str(problem), fix=fix)
    finally:
        csv.field_size_limit(old_limit)


def _raw_lines(file: IO[bytes], max_row_bytes: int) -> Iterator[bytes]:
    for _, line in _lines(file, max_row_bytes):
        if isinstance(line, RowError):
            raise line
        yield line


def read_parquet(path: Path, max_row_bytes: int) -> Rows:
    """Rows of a Parquet file, a few at a time; the size of a row is checked with its text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) != len(names):
                raise RowError("DATA013", "a column name occurs twice", fix="rename one of them")
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except RowError as problem:
        yield 0, problem
    except UnicodeDecodeError:
        yield (
            number + 1,
            RowError("DATA010", "invalid UTF-8 in this row or one of the next 63", fix="save the text as UTF-8"),
        )
    except (pa.ArrowException, OSError, ValueError) as problem:
        yield 0, RowError("DATA029", f"not a readable Parquet file ({show(problem, 120)})", fix=_PARTIAL)


READERS: dict[str, Callable[[Path, int], Rows]] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
