"""Rows to response log-probabilities, and the reference's, computed once and kept on disk.

Shapes: B pairs, K stacked adapters, T response tokens of the longest response, R scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from prefopt.data import TokenPair
from prefopt.head import token_logps
from prefopt.kept import kept_frame
from prefopt.model import Base
from prefopt.packing import PackedRows, Row, pack, use_layout
from prefopt.results import digest

RESPONSES_PER_ROW = 4  # a row of many responses wastes attention on what its parts do not see
ROW_TOKENS = 8192  # of one pass without gradients


def pair_rows(pairs: Sequence[TokenPair], *, shared: bool) -> list[Row]:
    """One row ``[prompt | chosen | rejected]`` a pair, or two rows of one response each."""
    if shared:
        return [Row(p.prompt_ids, (p.chosen_ids, p.rejected_ids)) for p in pairs]
    return [Row(p.prompt_ids, (response,)) for p in pairs for response in (p.chosen_ids, p.rejected_ids)]


def scored_logps(base: Base, rows: PackedRows) -> Tensor:
    """(K*R,) float32 log-probability in nats of each scored token; call inside ``use_layout(rows)``."""
    if base.packed:
        return token_logps(base.hidden(rows).index_select(0, rows.predictors), base.head, rows.targets)
    logits = base.padded_logits(rows)[rows.predictors]
    return logits.float().log_softmax(-1).gather(1, rows.targets.unsqueeze(1)).squeeze(1)


def response_logps(base: Base, rows: PackedRows) -> Tensor:
    """(K * responses,) float32 sums in nats over each response; call inside ``use_layout(rows)``."""
    return sum_by_response(scored_logps(base, rows), rows)


def sum_by_response(values: Tensor, rows: PackedRows) -> Tensor:
    """(K * responses,) float32 sums of (K*R,) per-token values."""
    return torch.zeros(rows.n_segments * rows.copies, device=values.device).index_add(0, rows.segments, values)


@dataclass(frozen=True, slots=True)
class UniqueResponses:
    """The distinct responses of some pairs, grouped by prompt, and where each pair's two are."""

    rows: list[Row]
    chosen: np.ndarray
    rejected: np.ndarray


def unique_responses(pairs: Sequence[TokenPair], *, shared: bool) -> UniqueResponses:
    """Group pairs by prompt so that each prompt and each distinct response is computed once."""
    by_prompt: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    for pair in pairs:
        known = by_prompt.setdefault(pair.prompt_ids, {})
        for response in (pair.chosen_ids, pair.rejected_ids):
            known.setdefault(response, 0)
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


def batches_of_rows(rows: Sequence[Row], budget: int = ROW_TOKENS) -> Iterator[list[int]]:
    """Indices of rows of similar length, each batch with at most ``budget`` tokens (or one row)."""
    order = sorted(range(len(rows)), key=lambda i: (_tokens(rows[i]), i))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * _tokens(rows[index]) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _tokens(row: Row) -> int:
    return len(row.prompt) + sum(map(len, row.responses))


@torch.no_grad()
def score_rows(base: Base, rows: Sequence[Row]) -> np.ndarray:
    """(responses,) float32 log-probabilities in nats, in the rows' order, under the active adapter or the base."""
    first = np.cumsum([0] + [len(row.responses) for row in rows])
    out = np.empty(first[-1], dtype=np.float32)
    for batch in batches_of_rows(rows):
        packed = pack([rows[i] for i in batch], device=base.device)
        with use_layout(packed):
            values = response_logps(base, packed).cpu().numpy()
        out[np.concatenate([np.arange(first[i], first[i + 1]) for i in batch])] = values
    return out


@dataclass(frozen=True, slots=True)
class Reference:
    """Reference log-probabilities of some pairs, (n,) float32 each, in nats, and their hash."""

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
        values = score_rows(base, unique.rows)
        return pd.DataFrame({"chosen": values[unique.chosen], "rejected": values[unique.rejected]})

    frame = kept_frame(cache / "reference" / f"{key}.sealed", score)
    chosen, rejected = (np.array(frame[name], dtype=np.float32) for name in ("chosen", "rejected"))
    return Reference(chosen, rejected, digest([key, float(chosen.sum()), float(rejected.sum())]))
