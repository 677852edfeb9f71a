"""Finds where rows come from: a file, a folder of shards, a saved dataset, or the hub."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from prefopt.data.hub import HUB_NAME, read_hub
from prefopt.data.parse import MAX_WHOLE_FILE_BYTES, Rows, read_json, read_jsonl
from prefopt.data.problems import RowError, refuse, show
from prefopt.data.tables import read_arrow, read_csv, read_parquet, read_tsv
from prefopt.errors import UsageError

_STREAMS: dict[str, Callable[[IO[bytes], int], Rows]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
}
_PATHS: dict[str, Callable[[Path], Rows]] = {".parquet": read_parquet, ".arrow": read_arrow}
SUFFIXES = (*_STREAMS, *_PATHS)
_PEEK = 1 << 16
_WIDE = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
         (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_SHARD = re.compile(r"(?P<split>.+?)(-\d+-of-\d+)?")
_SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "eval", "dev")
WANTED = (
    "a local .jsonl, .json, .csv, .tsv (each also as .gz), .parquet or .arrow file, a folder of them, a saved dataset, "
    "or org/name[@revision][:split] on the hub"
)


@dataclass
class Source:
    """A source that has been found and not yet been read.

    Attributes:
        rows: Its rows; those of several files are numbered through.
        files: Its files in order; empty for the hub.
        notes: Sentences for the user on what was chosen.
    """

    rows: Rows
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    _starts: list[tuple[int, Path]] = field(default_factory=list)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file that was being read, also where its reader did not come to its end."""
        close = getattr(self.rows, "close", None)
        if close is not None:
            close()

    def place(self, source: str, number: int) -> tuple[str, int]:
        """The file that a row is in, and its number there."""
        if len(self.files) < 2 or not number:
            return source, number
        start, path = [entry for entry in self._starts if entry[0] < number][-1]
        return f"{source.rstrip('/')}/{path.name}", number - start


def open_source(source: str, max_row_bytes: int) -> Source:
    """Find a source, without reading its rows.

    Raises:
        UsageError: If it is of no kind that is read.
        MachineError: If the hub cannot be reached.
    """
    if "://" in source:
        raise UsageError(f"data {show(source, 120)}: addresses are not read; give {WANTED}")
    path = Path(source)
    if path.is_dir():
        return _open_folder(source, path, max_row_bytes)
    if kind_of(path):
        if path.is_file():
            return Source(_read(path, max_row_bytes), (path,))
        state = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"data {show(source, 200)} {state}; give {WANTED}")
    if not path.exists() and (hub := HUB_NAME.fullmatch(source)):
        return Source(read_hub(hub["name"], revision=hub["revision"], split=hub["split"]))
    raise UsageError(f"data {show(source, 200)} is of no kind that is read; give {WANTED}")


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, or an empty string."""
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    suffix = next((suffix for suffix in SUFFIXES if plain.endswith(suffix)), "")
    return "" if plain != name and suffix in _PATHS else suffix


def local_files(source: str) -> tuple[Path, ...]:
    """The files that a local source is read from; empty for the hub, or where there is none."""
    path = Path(source)
    if not source or not path.exists():
        return ()
    return _chosen_files(source, path)[0] if path.is_dir() else (path,)


def sha256_of(source: str, files: tuple[Path, ...]) -> str:
    """Hex SHA-256 of a source's file, or of those of its files in order.

    Raises:
        DataError: If one can no longer be read.
    """
    sums = []
    for path in files:
        try:
            with path.open("rb") as file:
                sums.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as problem:
            raise refuse(
                source, 0, RowError("DATA029", f"cannot be read ({problem.strerror})", fix="check its path and rights")
            ) from None
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _read(path: Path, max_row_bytes: int) -> Rows:
    kind = kind_of(path)
    if kind in _PATHS:
        yield from _PATHS[kind](path)
        return
    try:
        with open_bytes(path) as file:
            yield from _STREAMS[kind](file, max_row_bytes)
    except RowError as problem:
        yield 0, problem


def open_bytes(path: Path) -> IO[bytes]:
    """A text file's bytes as UTF-8 with lines that end as lines do here: unzipped, and recoded where a mark says so.

    Raises:
        RowError: If it is marked as UTF-16 and is not.
    """
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b" or path.suffix.lower() == ".gz"
    opener: Callable[..., Any] = gzip.open if zipped else open
    file = opener(path, "rb")
    try:
        head = file.peek(_PEEK)[:_PEEK]
    except (EOFError, zlib.error, OSError):
        head = b""  # reading it will say what is wrong
    wide = next((name for mark, name in _WIDE if head.startswith(mark)), None)
    old_mac = b"\r" in head and b"\n" not in head
    if not wide and not old_mac:
        return cast("IO[bytes]", file)
    with file:
        data = file.read(MAX_WHOLE_FILE_BYTES + 1)
    if len(data) > MAX_WHOLE_FILE_BYTES:
        raise RowError("DATA018", "the file is too large to be recoded", fix="save it as UTF-8, with LF")
    if wide:
        try:
            data = data.decode(wide).encode("utf-8")
        except UnicodeError:
            message = f"the file begins as {wide.upper()} does and is not"
            raise RowError("DATA010", message, fix="save the file as UTF-8") from None
    return io.BytesIO(data.replace(b"\r", b"\n") if b"\n" not in data else data)


def _open_folder(source: str, path: Path, max_row_bytes: int) -> Source:
    files, notes = _chosen_files(source, path)
    opened = Source(iter(()), files, notes)

    def rows() -> Rows:
        number = 0
        for file in files:
            opened._starts.append((number, file))
            start = number
            for at, row in _read(file, max_row_bytes):
                number = start + at
                yield max(number, start + 1), row

    opened.rows = rows()
    return opened


def _chosen_files(source: str, path: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The files of a folder that are read, and notes for the user on the choice.

    Raises:
        UsageError: If it is not clear which files are the training data.
    """
    if (path / "dataset_dict.json").is_file():
        return _saved_splits(source, path)
    if (path / "state.json").is_file():
        return _saved_files(source, path), ()
    files = sorted(file for file in path.iterdir() if file.is_file() and kind_of(file) and file.name[0] not in "._")
    if not files and (path / "data").is_dir():
        return _chosen_files(source, path / "data")
    if not files:
        raise UsageError(f"data {show(source, 200)} is not a file and holds none that is read; give {WANTED}")
    kinds = {kind_of(file) for file in files}
    if len(kinds) > 1:
        raise UsageError(
            f"data {show(source, 200)} holds files of {len(kinds)} kinds ({', '.join(sorted(kinds))}); give one of them"
        )
    return _one_split(source, files)


def _one_split(source: str, files: list[Path]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """All files, or those of the training split where names say that there are several."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        stem = file.name.lower().split(".")[0]
        match = _SHARD.fullmatch(stem)
        splits.setdefault(match["split"] if match else stem, []).append(file)
    if len(splits) == 1 or not set(splits) & set(_SPLITS):
        return tuple(files), ()
    if "train" not in splits:
        raise UsageError(f"data {show(source, 200)} holds the splits {', '.join(sorted(splits))}; give one file")
    others = ", ".join(sorted(splits.keys() - {"train"}))
    return tuple(splits["train"]), (_only_train(source, others),)


def _saved_splits(source: str, path: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The training split of several that ``save_to_disk`` has written."""
    listed = _json_of(source, path / "dataset_dict.json").get("splits")
    names = [str(name) for name in listed] if isinstance(listed, list) else []
    if "train" not in names:
        raise UsageError(
            f"data {show(source, 200)} holds the splits {', '.join(names) or '(none)'}; give the folder of one"
        )
    others = ", ".join(name for name in names if name != "train")
    return _saved_files(source, path / "train"), (_only_train(source, others),) if others else ()


def _only_train(source: str, others: str) -> str:
    return f"{source}: the split train is read, and not {others}"


def _saved_files(source: str, path: Path) -> tuple[Path, ...]:
    """The files of a dataset that ``save_to_disk`` has written, in order; none outside its folder."""
    listed = _json_of(source, path / "state.json").get("_data_files")
    entries = listed if isinstance(listed, list) else []
    names = [Path(str(entry.get("filename", ""))).name for entry in entries if isinstance(entry, dict)]
    return tuple(path / name for name in names if name.endswith(".arrow"))


def _json_of(source: str, path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UsageError(f"data {show(source, 200)}: {path.name} cannot be read: {show(problem, 80)}") from None
    if not isinstance(value, dict):
        raise UsageError(f"data {show(source, 200)}: {path.name} is not that of a saved dataset")
    return value
