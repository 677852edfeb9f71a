"""How the logits of the next token are had, one token a row and step: packed, with the model's cache, or without any.

Shapes: K adapters, N rows, P tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.model.base import Base
from prefopt.model.packing import PackedRows, Row, pack, to_device, use_layout


class Decoder(Protocol):
    """Holds the rows of one batch while they are decoded."""

    def start(self, prompts: Sequence[Sequence[int]], copies: int, samples: int, room: int) -> None:
        """Read the prompts, ``samples`` times each, ``copies`` times over, with room for so many tokens."""

    def advance(self, tokens: Tensor) -> None:
        """Append one token to each row."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows."""

    def logits(self, rows: Tensor) -> Tensor:
        """(n, V) logits of the next token of some rows."""


class _Cache:
    """Keys and values of N rows: the prompt in slots 0 .. P-1, then one slot a step, the same for every row."""

    def __init__(self, rows: int, prompt_lengths: Tensor, width: int, room: int) -> None:
        self.rows, self.width, self.capacity = rows, width, width + room
        self.longest = self.capacity
        self.step = 0
        # (N, P + room): prompts are padded on the right, new tokens follow the longest of them.
        self.visible = torch.arange(self.capacity, device=prompt_lengths.device) < prompt_lengths[:, None]
        self.visible[:, width:] = True
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.prompts: PackedRows | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Fill the cache from the packed prompts first, then attend from one new token a row."""
        if self.prompts is not None:
            return self._prefill(self.prompts, layer, query, key, value, scaling)
        at = self.width + self.step
        keys, values = self.keys[layer], self.values[layer]  # (N, H', P + room, D) each
        keys[:, :, at] = key
        values[:, :, at] = value
        # (N, H', H / H', D): heads that share a key are the queries of one attention.
        groups = query.view(self.rows, keys.shape[1], -1, query.shape[-1])
        mask = self.visible[:, None, None, : at + 1]  # (N, 1, 1, tokens so far)
        out = F.scaled_dot_product_attention(groups, keys[:, :, : at + 1], values[:, :, : at + 1], mask, scale=scaling)
        return out.reshape(self.rows, -1, query.shape[-1])  # (N, H, D)

    def _prefill(
        self, prompts: PackedRows, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        for store, new in ((self.keys, key), (self.values, value)):
            store[layer] = F.pad(prompts.to_grid(new), (0, 0, 0, self.capacity - self.width))
        return prompts.attend(layer, query, key, value, scaling)

    def repeat(self, times: int) -> None:
        """Repeat every row ``times`` times: the samples of a prompt have had its keys and values in common so far."""
        self.prompts = None
        self.rows *= times
        self.visible = self.visible.repeat_interleave(times, 0)
        for store in (self.keys, self.values):
            for layer in store:
                store[layer] = store[layer].repeat_interleave(times, 0)

    def keep(self, index: Tensor) -> None:
        """Drop all rows but those at ``index``."""
        self.rows = len(index)
        self.visible = self.visible[index]
        for store in (self.keys, self.values):
            for layer in store:
                store[layer] = store[layer][index]


class PackedDecoder:
    """Decodes through the packed attention: no padding of prompts, one token a row and step."""

    def __init__(self, base: Base) -> None:
        self.base = base

    def start(self, prompts: Sequence[Sequence[int]], copies: int, samples: int, room: int) -> None:
        """Read the prompts, ``samples`` times each, ``copies`` times over, with room for so many tokens."""
        device = self.base.device
        rows = pack([Row(prompt, ()) for prompt in prompts], device=device, copies=copies)
        lengths = to_device(torch.tensor([len(p) for p in prompts] * copies), device)
        self.cache = _Cache(rows.rows, lengths, rows.width, room)
        self.cache.prompts = rows
        with use_layout(self.cache):
            hidden = self.base.hidden(rows)[lengths.cumsum(0) - 1]  # (K * prompts, d): of each prompt's last token
        self.cache.repeat(samples)
        self.hidden = hidden.repeat_interleave(samples, 0)  # (N, d)
        self.positions = lengths.repeat_interleave(samples)

    def advance(self, tokens: Tensor) -> None:
        """Append one token to each row."""
        with use_layout(self.cache):
            self.hidden = self.base.last_hidden(tokens, self.positions)
        self.positions = self.positions + 1
        self.cache.step += 1

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows."""
        self.cache.keep(rows)
        self.hidden, self.positions = self.hidden[rows], self.positions[rows]

    def logits(self, rows: Tensor) -> Tensor:
        """(n, V) logits of the next token of some rows."""
        out: Tensor = self.hidden[rows] @ self.base.head.t()
        return out


class CachedDecoder:
    """Decodes through the model's own attention and cache, prompts padded on the left."""

    def __init__(self, base: Base) -> None:
        self.base = base

    def start(self, prompts: Sequence[Sequence[int]], copies: int, samples: int, room: int) -> None:
        """Read the prompts, ``samples`` times each, ``copies`` times over, with room for so many tokens."""
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        seen = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            seen[i, width - len(prompt) :] = 1
        ids, self.seen = (x.repeat_interleave(samples, 0).repeat(copies, 1).to(self.base.device) for x in (ids, seen))
        self.past: Any = None
        self._run(ids)

    def _run(self, ids: Tensor) -> None:
        positions = (self.seen.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.base.model(
            input_ids=ids, attention_mask=self.seen, position_ids=positions, past_key_values=self.past, use_cache=True
        )
        self.past, self.last = out.past_key_values, out.logits[:, -1]

    def advance(self, tokens: Tensor) -> None:
        """Append one token to each row."""
        self.seen = F.pad(self.seen, (0, 1), value=1)
        self._run(tokens.unsqueeze(1))

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows."""
        self.past.batch_select_indices(rows)
        self.seen, self.last = self.seen[rows], self.last[rows]

    def logits(self, rows: Tensor) -> Tensor:
        """(n, V) logits of the next token of some rows."""
        out: Tensor = self.last[rows]
        return out


class WholeDecoder:
    """Decodes by reading each row from its beginning for every token, for models whose cache cannot be used.

    Those are state-space models and others whose cache is of their own kind; right and slow.
    """

    def __init__(self, base: Base) -> None:
        self.base = base

    def start(self, prompts: Sequence[Sequence[int]], copies: int, samples: int, room: int) -> None:
        """Read the prompts, ``samples`` times each, ``copies`` times over."""
        self.texts = [list(prompt) for _ in range(copies) for prompt in prompts for _ in range(samples)]
        self._run()

    def _run(self) -> None:
        device, width = self.base.device, max(map(len, self.texts))
        ids = to_device(torch.tensor([row + [0] * (width - len(row)) for row in self.texts]), device)
        lengths = to_device(torch.tensor([len(row) for row in self.texts]), device)
        seen = (torch.arange(width, device=device) < lengths[:, None]).long()
        out = self.base.model(input_ids=ids, attention_mask=seen, use_cache=False).logits  # (N, width, V)
        self.last: Tensor = out[torch.arange(len(self.texts), device=device), lengths - 1]

    def advance(self, tokens: Tensor) -> None:
        """Append one token to each row."""
        for row, token in zip(self.texts, tokens.tolist(), strict=True):
            row.append(token)
        self._run()

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows."""
        self.texts, self.last = [self.texts[i] for i in rows.tolist()], self.last[rows]

    def logits(self, rows: Tensor) -> Tensor:
        """(n, V) logits of the next token of some rows."""
        return self.last[rows]


def make_decoder(base: Base) -> Decoder:
    """The decoder that a model can be decoded with."""
    return PackedDecoder(base) if base.packed else CachedDecoder(base) if base.cached else WholeDecoder(base)
