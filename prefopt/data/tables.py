"""CSV, Parquet and Arrow to rows, as strictly as JSON: every reader yields (row, columns or RowError)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from prefopt.data.parse import PARTIAL, Rows, decode_line, numbered_lines
from prefopt.data.problems import RowError, show

_DELIMITERS = (",", ";", "\t", "|")
_TO_UTF8 = "save the file as UTF-8; one of Excel or of Windows: iconv -f WINDOWS-1252 -t UTF-8 old.csv > new.csv"


def read_csv(file: IO[bytes], max_row_bytes: int) -> Rows:
    """Values under a header, separated as the header is; a row is named by the line on which it begins."""
    return _read_separated(file, max_row_bytes, _DELIMITERS)


def read_tsv(file: IO[bytes], max_row_bytes: int) -> Rows:
    """The same with tabs, unless the header has none."""
    return _read_separated(file, max_row_bytes, ("\t", ",", ";", "|"))


def _read_separated(file: IO[bytes], max_row_bytes: int, delimiters: tuple[str, ...]) -> Rows:
    old_limit = csv.field_size_limit(max_row_bytes)
    line = 1
    try:
        lines = (decode_line(raw) for raw in _raw_lines(file, max_row_bytes))
        first = next(lines, "")
        named, separator = first.strip().lower(), None
        if named.startswith("sep=") and len(named) == 5:  # a line that Excel writes and reads
            separator, first, line = named[-1], next(lines, ""), 2
        reader = csv.reader(_chain(first, lines), strict=True, delimiter=separator or _delimiter(first, delimiters))
        skipped = line - 1
        header = next(reader, [])
        if len(set(header)) != len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise RowError("DATA013", f"the column {show(twice)} occurs twice", fix="rename one of them")
        line = reader.line_num + 1 + skipped
        for values in reader:
            if values and len(values) != len(header):
                yield line, RowError("DATA022", f"{len(values)} values, and the header names {len(header)} columns")
            elif values:
                yield line, dict(zip(header, values, strict=True))
            line = reader.line_num + 1 + skipped
    except RowError as problem:
        fix = _TO_UTF8 if problem.code == "DATA010" else problem.fix.split(", or drop")[0]
        yield line, RowError(problem.code, str(problem), fix=fix)
    except csv.Error as problem:
        fix = PARTIAL if "unexpected end" in str(problem) else "mend the quotes, or save the rows as JSONL"
        yield line, RowError("DATA009" if "unexpected end" in str(problem) else "DATA022", str(problem), fix=fix)
    finally:
        csv.field_size_limit(old_limit)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(header: str, delimiters: tuple[str, ...]) -> str:
    """The first delimiter that gives the header more than one column; Excel writes semicolons in half of Europe."""
    for delimiter in delimiters:
        try:
            if len(next(csv.reader([header], delimiter=delimiter, strict=True), [])) > 1:
                return delimiter
        except csv.Error:  # a name with a line break in it: the reader of the whole file will say what is wrong
            continue
    return delimiters[0]


def _raw_lines(file: IO[bytes], max_row_bytes: int) -> Iterator[bytes]:
    for _, line in numbered_lines(file, max_row_bytes):
        if isinstance(line, RowError):
            raise line
        yield line


def read_parquet(path: Path) -> Rows:
    """Rows of a Parquet file, a few at a time; the size of a row is checked with its text."""
    import pyarrow.parquet as pq

    def batches() -> Iterator[Any]:
        with pq.ParquetFile(path) as file:
            _refuse_doubles(file.schema_arrow.names)
            yield from file.iter_batches(batch_size=64)

    return _rows_of_batches(batches, "Parquet")


def read_arrow(path: Path) -> Rows:
    """Rows of an Arrow file or stream, as ``save_to_disk`` writes it."""
    import pyarrow as pa

    def batches() -> Iterator[Any]:
        with pa.memory_map(str(path)) as source:
            try:
                reader: Any = pa.ipc.open_stream(source)
            except pa.ArrowInvalid:
                source.seek(0)
                file = pa.ipc.open_file(source)
                reader = (file.get_batch(i) for i in range(file.num_record_batches))
            else:
                _refuse_doubles(reader.schema.names)
            yield from reader

    return _rows_of_batches(batches, "Arrow")


def _refuse_doubles(names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise RowError("DATA013", "a column name occurs twice", fix="rename one of them")


def _rows_of_batches(batches: Callable[[], Iterator[Any]], kind: str) -> Rows:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except RowError as problem:
        yield 0, problem
    except UnicodeDecodeError:
        message = "invalid UTF-8 in this row or one of the next 63"
        yield number + 1, RowError("DATA010", message, fix="save the text as UTF-8")
    except (pa.ArrowException, OSError, ValueError) as problem:
        yield 0, RowError("DATA029", f"not a readable {kind} file ({show(problem, 120)})", fix=PARTIAL)
