"""LoRA dropout with masks that depend on nothing but seed, step, pair, token and layer.

So a mask is the same for every variant and stack, however a batch is cut into passes, when activations are computed
again, and after a resumption.

Shapes: K copies, T tokens of one copy, N rows of one copy, S places of a row, B pairs, n features of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prefopt.data import TokenPair
from prefopt.model.noise import squares
from prefopt.model.packing import PackedRows, to_device
from prefopt.runtime.seeding import derive_seed

_PART, _SITE = 1 << 24, 1 << 24  # more than the positions of a text, and than the features of a layer


def with_keys(rows: PackedRows, pairs: Sequence[TokenPair], *, seed: int, step: int) -> PackedRows:
    """Packed rows of B pairs with a key for each token, the same in both layouts of a pair.

    Args:
        rows: One row a pair, or two of one response each.
        pairs: The pairs.
        seed: Of the run.
        step: The optimizer step.
    """
    device = rows.input_ids.device
    of_pair = to_device(torch.tensor([derive_seed(seed, "dropout", step, p.pair_id) | 1 for p in pairs]), device)
    per_pair = rows.rows // rows.copies // len(pairs)
    parts = rows.parts.flatten().repeat(rows.copies)[rows.grid]  # (K*T,)
    row = rows.grid // rows.width % (rows.rows // rows.copies)
    if per_pair == 2:  # each response is part 1 of a row of its own
        parts = torch.where(parts == 0, 0, 1 + row % 2)
    pair = of_pair[row // per_pair]
    place = parts * _PART + rows.position_ids
    return replace(rows, keys=(squares(2 * place, pair) << 31) ^ squares(2 * place + 1, pair) | 1)


def dropped(x: Tensor, rows: PackedRows, site: int, rate: float) -> Tensor:
    """``x`` (..., n), the input of a layer, with a share ``rate`` of its values zero and the others larger.

    Raises:
        RuntimeError: If ``x`` has another number of tokens than the rows.
    """
    keys = rows.keys
    assert keys is not None
    tokens = x.numel() // x.shape[-1]
    if tokens == rows.rows * rows.width:  # the plain path, padding included
        keys = torch.ones(tokens, dtype=keys.dtype, device=keys.device).index_copy_(0, rows.grid, keys)
    elif tokens != len(keys):
        raise RuntimeError("a layer that does not see every token once has no dropout")
    features = torch.arange(x.shape[-1], device=x.device) + site * _SITE
    kept = squares(features, keys[:, None]) >= round(rate * 2**32)
    return x * kept.view(x.shape).to(x.dtype) / (1 - rate)
