"""What a reader must know about a judge before they believe it: unusable verdicts, failed controls, changed models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from prefopt.storage.schema import REFERENCE

MOST_UNUSABLE = 0.05
MOST_UNUSABLE_APART = 0.03  # between variants: beyond it, what is missing is not missing at random
LEAST_CONSISTENT = 0.6  # a coin names the same winner in both orders half the time


def unusable_shares(judgements: pd.DataFrame) -> dict[str, Any]:
    """The share of comparisons without a usable verdict, in all and by variant against the reference."""

    def share(frame: pd.DataFrame) -> float | None:
        total = int(frame["n"].sum() + frame["invalid"].sum())
        return int(frame["invalid"].sum()) / total if total else None

    versus = judgements[judgements["opponent"] == REFERENCE]
    by_variant = {str(name): share(part) for name, part in versus.groupby("variant", sort=False)}
    return {"invalid_share": share(judgements), "invalid_by_variant": by_variant}


def problems(quality: dict[str, Any]) -> list[str]:
    """What a reader must know before they believe this judge; empty where there is nothing."""
    said = [
        f"the judge fails the control with {_SAYS[row['control']]}" for row in quality["controls"] if not row["passed"]
    ]
    same = quality["position_consistency"]
    if same is not None and same < LEAST_CONSISTENT:
        said.append(
            f"it names the same winner in both orders in only {100 * same:.0f} % of comparisons; on average "
            f"{100 * quality['first_position']:.0f} % of its preference is for the response shown first"
        )
    share, parts = quality["invalid_share"], [v for v in quality["invalid_by_variant"].values() if v is not None]
    if share is not None and share > MOST_UNUSABLE:
        said.append(f"{100 * share:.1f} % of its comparisons are unusable")
    if parts and max(parts) - min(parts) > MOST_UNUSABLE_APART:
        said.append(f"unusable shares differ between variants, from {100 * min(parts):.1f} to {100 * max(parts):.1f} %")
    if len(quality["facts"].get("served", ())) > 1:
        said.append(f"the server changed its model under way: {', '.join(quality['facts']['served'])}")
    return said


_SAYS = {
    "identical": "two identical texts",
    "constant": "a constant answer",
    "empty": "an empty answer",
    "injection": "an answer that orders it to win",
}


def folder_name(judge: str) -> str:
    """A judge's name as one folder name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", judge).strip("-.")[:80] or "judge"


def estimate_tokens(wanted: Sequence[str]) -> int:
    """Tokens of messages, at four bytes each: an estimate, since only the server knows its tokenizer."""
    return sum(len(text.encode("utf-8", "replace")) for text in wanted) // 4
