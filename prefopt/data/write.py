"""Pairs as rows of the field's standard columns, and as JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefopt.data.types import Pair, Text
from prefopt.storage.durable import write_bytes


def pairs_to_rows(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """Columns prompt, chosen, rejected, and chosen_score and rejected_score where a pair has them."""
    rows = []
    for pair in pairs:
        row = {"prompt": _plain(pair.prompt), "chosen": _plain(pair.chosen), "rejected": _plain(pair.rejected)}
        scores = {"chosen_score": pair.chosen_score, "rejected_score": pair.rejected_score}
        rows.append(row | {name: score for name, score in scores.items() if score is not None})
    return rows


def _plain(value: Text) -> Any:
    return value if isinstance(value, str) else [message.as_dict() for message in value]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace ``path`` with one JSON object a line, durably.

    Raises:
        ValueError: If a value is NaN or infinite.
        MachineError: If the system refuses the write.
    """
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_bytes(path, "".join(lines).encode("utf-8"))
