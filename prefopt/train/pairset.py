"""Tokenised pairs with their reference log-probabilities, computed once and kept on disk.

Shapes: n pairs, u distinct responses among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from prefopt.data import TokenPair
from prefopt.model.base import Base
from prefopt.model.logps import RESPONSES_PER_ROW, score_rows
from prefopt.model.packing import Row
from prefopt.storage.cache import kept_frame
from prefopt.storage.hashing import digest


@dataclass(frozen=True, slots=True)
class PairSet:
    """Tokenised pairs with their reference log-probabilities."""

    pairs: tuple[TokenPair, ...]
    reference: Reference

    def take(self, index: Sequence[int]) -> tuple[list[TokenPair], np.ndarray]:
        """The pairs at ``index``, and their (2, n) reference log-probabilities."""
        rows = list(index)
        return [self.pairs[i] for i in rows], np.stack([self.reference.chosen[rows], self.reference.rejected[rows]])


@dataclass(frozen=True, slots=True)
class UniqueResponses:
    """The u distinct responses of n pairs, grouped by prompt.

    Attributes:
        rows: Prompts with their responses; a prompt of many responses takes several rows.
        chosen: (n,) which of the u responses each pair's chosen one is.
        rejected: (n,) likewise.
    """

    rows: list[Row]
    chosen: np.ndarray
    rejected: np.ndarray


def unique_responses(pairs: Sequence[TokenPair], *, shared: bool) -> UniqueResponses:
    """Group pairs by prompt so that each prompt and each distinct response is computed once."""
    by_prompt: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    for pair in pairs:
        known = by_prompt.setdefault(pair.prompt_ids, {})
        for response in (pair.chosen_ids, pair.rejected_ids):
            known.setdefault(response, 0)  # its number comes below, once all of the prompt's are together
    rows: list[Row] = []
    number = 0
    per_row = RESPONSES_PER_ROW if shared else 1
    for prompt, known in by_prompt.items():
        responses = list(known)
        starts = range(0, len(responses), per_row)
        rows.extend(Row(prompt, tuple(responses[start : start + per_row])) for start in starts)
        for response in responses:
            known[response] = number
            number += 1
    return UniqueResponses(
        rows=rows,
        chosen=np.array([by_prompt[p.prompt_ids][p.chosen_ids] for p in pairs], dtype=np.int64),
        rejected=np.array([by_prompt[p.prompt_ids][p.rejected_ids] for p in pairs], dtype=np.int64),
    )


@dataclass(frozen=True, slots=True)
class Reference:
    """Reference log-probabilities of n pairs, (n,) float32 each, in nats, and their hash."""

    chosen: np.ndarray
    rejected: np.ndarray
    hash: str


def reference_logps(base: Base, pairs: Sequence[TokenPair], *, data_hash: str, cache: Path) -> Reference:
    """The reference's log-probabilities of pairs, from the cache or computed and cached.

    The key is the base's weights, type and quantization, the pairs' tokens, the path and the device's kind.
    """
    key = digest([base.hash, data_hash, base.packed, base.device.type, torch.__version__])

    def score() -> pd.DataFrame:
        unique = unique_responses(pairs, shared=base.packed)
        values = score_rows(base, unique.rows)  # (u,)
        return pd.DataFrame({"chosen": values[unique.chosen], "rejected": values[unique.rejected]})

    frame = kept_frame(cache / "reference" / f"{key}.sealed", score)
    chosen, rejected = (np.array(frame[name], dtype=np.float32) for name in ("chosen", "rejected"))
    return Reference(chosen, rejected, digest([key, float(chosen.sum()), float(rejected.sum())]))
