"""Responses of many adapters, decoded in one batch under common random numbers.

The noise behind a token is a function of (seed, prompt, sample, position) alone: not of batch-mates, not of the
adapter. Two policies that agree give the same text, and two that differ are compared with as little noise as can be.

Shapes: K adapters, n slots (prompt x sample), N = K * n rows, V vocabulary, P tokens of the longest prompt,
C slots of a chunk, c of a tile, H heads, H' key heads, D head size, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.model.head import chunks, tiles
from prefopt.model.packing import PackedRows, Row, pack, to_device, use_layout
from prefopt.runtime.seeding import derive_seed

# Counted up whenever the same question would draw other tokens: responses that are kept on disk name it.
SAMPLER_VERSION = 1
ROWS_PER_BATCH = {"cpu": 768, "other": 4096}
COMPACT_EVERY = 8  # steps between droppings of slots that every adapter has finished


@dataclass(frozen=True, slots=True)
class Sample:
    """One response: its tokens, the end token among them if it was reached.

    Attributes:
        prompt: Index of the prompt.
        number: Which sample of that prompt.
        tokens: Token ids.
        finished: Whether the end token was reached.
    """

    prompt: int
    number: int
    tokens: tuple[int, ...]
    finished: bool


def squares(counters: Tensor, keys: Tensor) -> Tensor:
    """The counter-based random numbers of arXiv:2004.06278 (Squares): 32 random bits for each counter and key.

    Args:
        counters: int64, broadcast against ``keys``.
        keys: int64, odd, with irregular digits.

    Returns:
        int64 in [0, 2**32).
    """
    start = counters * keys
    shifted = start + keys
    x = start
    for added in (start, shifted, start):
        x = x * x
        x += added
        high = (x >> 32) & 0xFFFFFFFF  # int64 shifts copy the sign
        x = (x << 32).bitwise_or_(high)
    x = x * x
    x += shifted
    return (x >> 32) & 0xFFFFFFFF


def exponential(keys: Tensor, counters: Tensor) -> Tensor:
    """(n, V) float32 standard exponential noise, always positive, from n slots' keys (n, 1) and V counters."""
    # Half a step above 0, so never 0; of the smallest values, which decide what is drawn, no digit is lost.
    uniform = (squares(counters, keys).float() + 0.5) * 2.0**-32
    return uniform.neg_().log1p_().neg_()


class _Decoder(Protocol):
    def start(self, prompts: Sequence[Sequence[int]], copies: int, samples: int, room: int) -> None: ...
    def advance(self, tokens: Tensor) -> None: ...
    def keep(self, rows: Tensor) -> None: ...
    def logits(self, rows: Tensor) -> Tensor: ...


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


class _PackedDecoder:
    """Decodes through the packed attention: no padding of prompts, one token a row and step."""

    def __init__(self, base: Base) -> None:
        self.base = base

    def start(self, prompts: Sequence[Sequence[int]], copies: int, samples: int, room: int) -> None:
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
        with use_layout(self.cache):
            self.hidden = self.base.last_hidden(tokens, self.positions)
        self.positions = self.positions + 1
        self.cache.step += 1

    def keep(self, rows: Tensor) -> None:
        self.cache.keep(rows)
        self.hidden, self.positions = self.hidden[rows], self.positions[rows]

    def logits(self, rows: Tensor) -> Tensor:
        out: Tensor = self.hidden[rows] @ self.base.head.t()
        return out


class _PlainDecoder:
    """Decodes through the model's own attention and cache, prompts padded on the left."""

    def __init__(self, base: Base) -> None:
        self.base = base

    def start(self, prompts: Sequence[Sequence[int]], copies: int, samples: int, room: int) -> None:
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
        self.seen = F.pad(self.seen, (0, 1), value=1)
        self._run(tokens.unsqueeze(1))

    def keep(self, rows: Tensor) -> None:
        self.past.batch_select_indices(rows)
        self.seen, self.last = self.seen[rows], self.last[rows]

    def logits(self, rows: Tensor) -> Tensor:
        out: Tensor = self.last[rows]
        return out


def rows_per_batch(device: torch.device) -> int:
    """Most rows that are decoded together on a device."""
    return ROWS_PER_BATCH["cpu" if device.type == "cpu" else "other"]


@torch.inference_mode()
def sample(
    model: AdaptedModel,
    prompts: Sequence[Sequence[int]],
    *,
    adapters: slice | None,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    prompt_ids: Sequence[int] | None = None,
) -> list[list[Sample]]:
    """Draw responses from the base (``adapters`` None) or from neighbouring adapters, all in one batch.

    Args:
        model: The base and its adapters.
        prompts: Token ids of each prompt.
        adapters: Which adapters, as a slice of slots; None for the base alone.
        samples: Responses for each prompt.
        max_new_tokens: Longest response.
        temperature: Divides the logits; 1 samples from the policy itself.
        seed: Of the noise.
        prompt_ids: What the noise knows each prompt by; its index where None.

    Returns:
        For each adapter its samples, ordered by prompt, then number.
    """
    base = model.base
    ids = list(prompt_ids) if prompt_ids is not None else list(range(len(prompts)))
    copies = 1 if adapters is None else adapters.stop - adapters.start
    per_batch = max(1, rows_per_batch(base.device) // (copies * samples))
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    out: list[list[Sample]] = [[] for _ in range(copies)]
    for start in range(0, len(order), per_batch):
        batch = order[start : start + per_batch]
        with model.off() if adapters is None else model.use(adapters):
            derived = [[derive_seed(seed, "sampling", ids[i], s) | 1] for i in batch for s in range(samples)]
            keys = to_device(torch.tensor(derived), base.device)  # (n, 1), odd
            tokens = _decode(base, [prompts[i] for i in batch], keys, copies, samples, max_new_tokens, temperature)
        for copy in range(copies):
            for slot, row in enumerate(tokens[copy]):
                end = row.index(base.eos) + 1 if base.eos in row else len(row)
                where = batch[slot // samples], slot % samples
                out[copy].append(Sample(*where, tuple(row[:end]), base.eos in row))
    return [sorted(rows, key=lambda s: (s.prompt, s.number)) for rows in out]


def _decode(
    base: Base,
    prompts: Sequence[Sequence[int]],
    keys: Tensor,
    copies: int,
    samples: int,
    room: int,
    temperature: float,
) -> list[list[list[int]]]:
    """Token ids (copies, slots, up to ``room``), the end token and what follows it not yet cut."""
    device = base.device
    decoder: _Decoder = _PackedDecoder(base) if base.packed else _PlainDecoder(base)
    decoder.start(prompts, copies, samples, room)
    slots = torch.arange(len(keys), device=device)  # which slot each column of the batch still is
    out = torch.full((copies, len(slots), room), base.eos, device=device)
    done = torch.zeros(copies, len(slots), dtype=torch.bool, device=device)
    for step in range(room):
        tokens = _draw(decoder, keys, step, copies, temperature, base)
        tokens = torch.where(done[:, slots], base.eos, tokens)  # (K, n)
        out[:, slots, step] = tokens
        done[:, slots] |= tokens == base.eos
        if step + 1 == room:
            break
        if (step + 1) % COMPACT_EVERY == 0:
            open_slots = ~done[:, slots].all(0)
            if not bool(open_slots.any()):
                break
            if not bool(open_slots.all()):
                columns = open_slots.nonzero().squeeze(1)
                # A slot stays or goes for all adapters, so that the batch keeps its shape (K, n).
                rows = (torch.arange(copies, device=device)[:, None] * len(slots) + columns).flatten()
                decoder.keep(rows)
                keys, slots, tokens = keys[columns], slots[columns], tokens[:, columns]
        decoder.advance(tokens.flatten())
    result: list[list[list[int]]] = out.tolist()
    return result


def _draw(decoder: _Decoder, keys: Tensor, position: int, copies: int, temperature: float, base: Base) -> Tensor:
    """(K, n) next tokens: the largest of logits minus temperature times the logarithm of exponential noise.

    Minus the logarithm of exponential noise is Gumbel noise, so this draws from softmax(logits / temperature)
    (arXiv:1411.0030, section 2). All adapters of a slot share the noise.
    """
    n, vocabulary = len(keys), base.head.shape[0]
    counters = torch.arange(position * vocabulary, (position + 1) * vocabulary, device=base.device)
    out = torch.empty(copies, n, dtype=torch.int64, device=base.device)
    offsets = torch.arange(copies, device=base.device)[:, None] * n
    for part in chunks(n, vocabulary * copies):
        columns = torch.arange(part.start, part.stop, device=base.device)
        logits = decoder.logits((offsets + columns).flatten()).view(copies, len(columns), vocabulary)  # (K, C, V)
        for tile in tiles(logits):
            noise = exponential(keys[part][tile], counters).log_()  # (c, V)
            out[:, part][:, tile] = logits[:, tile].float().sub_(noise, alpha=temperature).argmax(-1)
    return out
