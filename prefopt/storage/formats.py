"""Text, JSON and tables as files, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

from prefopt.storage.durable import write_bytes


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """``write_bytes`` of strict, indented JSON with sorted keys.

    Raises:
        ValueError: If ``value`` holds NaN or an infinity, which JSON has no word for.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """``write_bytes`` of a frame, as CSV or Parquet by the path's ending."""
    write_bytes(path, frame_bytes(path, frame))


def frame_bytes(path: Path, frame: pd.DataFrame) -> bytes:
    """A frame as the content of a CSV or Parquet file, by the path's ending."""
    buffer = io.BytesIO()
    if path.suffix == ".csv":
        frame.to_csv(buffer, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    else:
        frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
