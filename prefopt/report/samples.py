"""Chooses the samples that are shown side by side, with who won on each prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from prefopt.analysis.load import Comparison
from prefopt.storage.schema import REFERENCE

Row = dict[str, Any]
MOST_PROMPTS = 48
MOST_CHARACTERS = 500_000
LONGEST = 1_600
BROKEN_SHOWN, BROKEN_LENGTH = 3, 220
OVERHEAD = 300  # characters of markup around one response


def side_by_side(comparison: Comparison, results: Mapping[str, Any]) -> Row | None:
    """The first sample of every variant on some prompts of one seed, or None where there is no text.

    Prompts are taken in the order of the hash of their id, so that nobody picked them, until the page is full.

    Returns:
        ``seed``, ``shown`` and ``total`` prompts, and ``prompts``: each with its text, the reference's response, and a
        card for each variant with its outcome against the reference (won, lost, tied or unknown).
    """
    frame = comparison.samples
    if not len(frame):
        return None
    seed = int(frame.groupby("seed")["variant"].nunique().idxmax())
    frame = frame[frame["seed"] == seed]
    first = frame.loc[frame.groupby(["variant", "prompt_id"])["sample"].idxmin()]
    facts = comparison.scores[comparison.scores["seed"] == seed].set_index(["variant", "prompt_id", "sample"])
    verdicts = _verdicts(comparison, results["setup"]["judge"], seed)
    order = [row["variant"] for row in results["leaderboard"]]
    prompts = sorted(first["prompt_id"].unique(), key=_hash)
    shown: list[Row] = []
    used = 0
    for prompt in prompts[:MOST_PROMPTS]:
        own = first[first["prompt_id"] == prompt].set_index("variant")
        if shown and used > MOST_CHARACTERS:
            break
        entry = _entry(prompt, own, facts, verdicts, order)
        used += sum(len(card["text"]) + OVERHEAD for card in entry["cards"])
        shown.append(entry)
    return {"seed": seed, "shown": len(shown), "total": len(prompts), "prompts": shown, "variants": order}


def of_broken(comparison: Comparison, results: Mapping[str, Any]) -> dict[str, list[str]]:
    """Three samples of each variant that is broken, from a seed at which it is, in the order of their prompts' hash."""
    shown: dict[str, list[str]] = {}
    for row in results["health"]:
        frame = comparison.samples
        if not row["problems"] or not len(frame):
            continue
        own = frame[(frame["variant"] == row["variant"]) & (frame["seed"] == row["seeds"][0])]
        own = own.drop_duplicates("prompt_id").assign(at=lambda rows: rows["prompt_id"].map(_hash)).sort_values("at")
        shown[row["variant"]] = [_shortened(str(text)) for text in own["response"].head(BROKEN_SHOWN)]
    return shown


def _hash(prompt: object) -> str:
    return hashlib.sha256(str(prompt).encode()).hexdigest()


def _shortened(text: str) -> str:
    """A sample in a line or two; an empty one is said to be."""
    line = " ".join(text.split())
    return "(empty)" if not line else line if len(line) <= BROKEN_LENGTH else f"{line[:BROKEN_LENGTH]} …"


def _entry(
    prompt: str, own: pd.DataFrame, facts: pd.DataFrame, verdicts: Mapping[tuple[str, str], float], order: list[str]
) -> Row:
    cards = []
    base = _fact(facts, own, REFERENCE, prompt, "reward")
    for name in [REFERENCE, *order]:
        if name not in own.index:
            continue
        reward = _fact(facts, own, name, prompt, "reward")
        text = str(own.loc[name, "response"])
        cards.append(
            {
                "variant": name,
                "text": text[:LONGEST],
                "cut": max(0, len(text) - LONGEST),
                "reward": reward,
                "kl": _fact(facts, own, name, prompt, "kl"),
                "tokens": _fact(facts, own, name, prompt, "n_tokens"),
                "outcome": "reference" if name == REFERENCE else _outcome(reward, base, verdicts.get((name, prompt))),
            }
        )
    outcomes = {card["outcome"] for card in cards}
    text = str(own.iloc[0]["prompt"])
    return {
        "prompt_id": prompt,
        "prompt": text[-LONGEST:],
        "cut": max(0, len(text) - LONGEST),
        "cards": cards,
        "disputed": {"won", "lost"} <= outcomes,
    }


def _fact(facts: pd.DataFrame, own: pd.DataFrame, name: str, prompt: str, column: str) -> float | None:
    if name not in own.index:
        return None
    key = (name, prompt, own.loc[name, "sample"])
    value = facts.at[key, column] if key in facts.index else None
    return None if value is None or not np.isfinite(value) else float(value)


def _outcome(reward: float | None, base: float | None, score: float | None) -> str:
    """Against the reference: by the gold rewards of the two samples shown, else by the judge's score of the prompt."""
    if reward is not None and base is not None:
        return "won" if reward > base else "lost" if reward < base else "tied"
    if score is None or not np.isfinite(score):
        return "unknown"
    return "won" if score > 0.5 else "lost" if score < 0.5 else "tied"


def _verdicts(comparison: Comparison, judge: str | None, seed: int) -> dict[tuple[str, str], float]:
    """Score of each (variant, prompt) against the reference at one seed."""
    frame = comparison.judgements
    if judge is None:
        return {}
    frame = frame[(frame["judge"] == judge) & (frame["seed"] == seed)]
    forward = frame[frame["opponent"] == REFERENCE]
    backward = frame[frame["variant"] == REFERENCE]
    return {
        **{
            (v, p): float(s) for v, p, s in zip(forward["variant"], forward["prompt_id"], forward["score"], strict=True)
        },
        **{
            (v, p): 1 - float(s)
            for v, p, s in zip(backward["opponent"], backward["prompt_id"], backward["score"], strict=True)
        },
    }
