"""Text, JSON and tables as files, each written whole or not at all.

Text, JSON and CSV lose their secrets as they are written, so that none of an exception's text is kept; JSON that is
sealed loses them before, so that it is still what its seal says. Parquet holds what was given and sampled, as it is.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

from prefopt.storage.durable import write_bytes
from prefopt.storage.redact import redacted, without_secrets


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of UTF-8 text, without secrets; half a character becomes its escape."""
    write_bytes(path, without_secrets(text).encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """``write_bytes`` of strict, indented JSON with sorted keys, without secrets.

    Raises:
        ValueError: If ``value`` holds NaN or an infinity, which JSON has no word for.
    """
    text = json.dumps(redacted(value), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # JSON's own escape of half a character


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """``write_bytes`` of a frame, as CSV or Parquet by the path's ending."""
    write_bytes(path, frame_bytes(path, frame))


def frame_bytes(path: Path, frame: pd.DataFrame) -> bytes:
    """A frame as the content of a CSV (without secrets) or Parquet file, by the path's ending."""
    buffer = io.BytesIO()
    if path.suffix == ".csv":
        _without_secrets(frame).to_csv(buffer, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    else:
        frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _without_secrets(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with its columns of text redacted; numbers are left alone, since digits of one may be a secret's."""
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    replaced = {}
    for name in texts:
        values = frame[name].unique().tolist()
        clean = dict(zip(values, redacted(values), strict=True))
        if any(clean[value] != value for value in values if isinstance(value, str)):
            replaced[name] = frame[name].map(clean)
    return frame.assign(**replaced) if replaced else frame
