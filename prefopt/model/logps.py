"""From rows to the log-probabilities of their responses.

Shapes: T tokens of a batch of rows, R of them scored, K stacked adapters, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from prefopt.data import TokenPair
from prefopt.model.base import Base
from prefopt.model.head import token_logps
from prefopt.model.packing import PackedRows, Row, pack, use_layout

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
        hidden = base.hidden(rows).index_select(0, rows.predictors)  # (K*R, d): other tokens need no logits
        return token_logps(hidden, base.head, rows.targets)
    logits = base.padded_logits(rows)[rows.predictors]  # (K*R, V)
    return logits.float().log_softmax(-1).gather(1, rows.targets.unsqueeze(1)).squeeze(1)


def response_logps(base: Base, rows: PackedRows) -> Tensor:
    """(K * responses,) float32 sums in nats over each response; call inside ``use_layout(rows)``."""
    return sum_by_response(scored_logps(base, rows), rows)


def sum_by_response(values: Tensor, rows: PackedRows) -> Tensor:
    """(K * responses,) float32 sums of (K*R,) per-token values."""
    return torch.zeros(rows.n_segments * rows.copies, device=values.device).index_add(0, rows.segments, values)


def batches_of_rows(rows: Sequence[Row], budget: int = ROW_TOKENS) -> Iterator[list[int]]:
    """Indices of rows of similar length, each batch with at most ``budget`` tokens (or one row)."""
    order = sorted(range(len(rows)), key=lambda i: (_tokens(rows[i]), i))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * _tokens(rows[index]) > budget:  # by the longest: the grid is padded to it
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
    first = np.cumsum([0] + [len(row.responses) for row in rows])  # where each row's responses begin in the answer
    out = np.empty(first[-1], dtype=np.float32)
    for batch in batches_of_rows(rows):
        packed = pack([rows[i] for i in batch], device=base.device)
        with use_layout(packed):
            values = response_logps(base, packed).cpu().numpy()
        out[np.concatenate([np.arange(first[i], first[i + 1]) for i in batch])] = values
    return out


@torch.no_grad()
def score_tokens(base: Base, rows: Sequence[Row]) -> list[np.ndarray]:
    """For each response, in the rows' order, (T,) float32 log-probabilities of its tokens in nats."""
    first = np.cumsum([0] + [len(row.responses) for row in rows])
    out: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * int(first[-1])
    for batch in batches_of_rows(rows):
        packed = pack([rows[i] for i in batch], device=base.device)
        with use_layout(packed):
            values = scored_logps(base, packed).cpu().numpy()
        places = [index for i in batch for index in range(first[i], first[i + 1])]
        lengths = [len(response) for i in batch for response in rows[i].responses]
        for place, part in zip(places, np.split(values, np.cumsum(lengths)[:-1]), strict=True):
            out[place] = part
    return out
