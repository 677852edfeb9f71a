"""Responses of many adapters, decoded in one batch under common random numbers.

The noise behind a token is a function of (seed, prompt, sample, position) alone: not of batch-mates, not of the
adapter. Two policies that agree give the same text, and two that differ are compared with as little noise as can be.

Shapes: K adapters, n slots (prompt x sample), N = K * n rows, V vocabulary, P tokens of the longest prompt,
C slots of a chunk, c of a tile, H heads, H' key heads, D head size, d hidden size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.model.decoders import Decoder, make_decoder
from prefopt.model.head import chunks, tiles
from prefopt.model.noise import exponential
from prefopt.model.packing import to_device
from prefopt.runtime.seeding import derive_seed

# Counted up whenever the same question would draw other tokens: responses that are kept on disk name it.
SAMPLER_VERSION = 1
ROWS_PER_BATCH = {"cpu": 768, "other": 4096}
COMPACT_EVERY = 8  # steps between droppings of slots that every adapter has finished


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        samples: Responses for each prompt.
        max_new_tokens: Longest response.
        temperature: Divides the logits; 1 samples from the policy itself.
        top_p: Only the most probable tokens that together have this probability are drawn (arXiv:1904.09751).
        stop: Texts that end a response; it ends with the token that completes one.
    """

    samples: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One response: its tokens, the end token among them if it was reached.

    Attributes:
        prompt: Index of the prompt.
        number: Which sample of that prompt.
        tokens: Token ids.
        finished: Whether an end token or a text that ends a response was reached.
        stopped_by: That text, which is no part of the response; empty where a token or nothing ended it.
    """

    prompt: int
    number: int
    tokens: tuple[int, ...]
    finished: bool
    stopped_by: str = ""

    def text(self, base: Base) -> str:
        """The response as text, without what ended it."""
        whole = base.decode(self.tokens)
        return whole.partition(self.stopped_by)[0] if self.stopped_by else whole


def rows_per_batch(device: torch.device) -> int:
    """Most rows that are decoded together on a device."""
    return ROWS_PER_BATCH["cpu" if device.type == "cpu" else "other"]


@torch.inference_mode()
def sample(
    model: AdaptedModel,
    prompts: Sequence[Sequence[int]],
    *,
    adapters: slice | None,
    how: Sampling,
    seed: int,
    prompt_ids: Sequence[int] | None = None,
) -> list[list[Sample]]:
    """Draw responses from the base (``adapters`` None) or from neighbouring adapters, all in one batch.

    Args:
        model: The base and its adapters.
        prompts: Token ids of each prompt.
        adapters: Which adapters, as a slice of slots; None for the base alone.
        how: How many, how long, and what ends them.
        seed: Of the noise.
        prompt_ids: What the noise knows each prompt by; its index where None.

    Returns:
        For each adapter its samples, ordered by prompt, then number.
    """
    base, samples = model.base, how.samples
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
            tokens = _decode(base, [prompts[i] for i in batch], keys, copies, how)
        for copy in range(copies):
            for slot, row in enumerate(tokens[copy]):
                out[copy].append(_cut(base, batch[slot // samples], slot % samples, row, how.stop))
    return [sorted(rows, key=lambda s: (s.prompt, s.number)) for rows in out]


def _cut(base: Base, prompt: int, number: int, row: Sequence[int], stop: Sequence[str]) -> Sample:
    """The response up to its end: the first end token, or the token that completes one of the texts of ``stop``."""
    end = next((i + 1 for i, token in enumerate(row) if token in base.ends), None)
    tokens = row[:end]
    if stop:
        # How many tokens it takes until one of the texts is there: more tokens never take it away again.
        size = bisect_left(range(len(tokens) + 1), True, key=lambda n: bool(_stopped_by(base, tokens[:n], stop)))
        if size <= len(tokens):
            return Sample(prompt, number, tuple(tokens[:size]), True, _stopped_by(base, tokens[:size], stop))
    return Sample(prompt, number, tuple(tokens), end is not None)


def _stopped_by(base: Base, tokens: Sequence[int], stop: Sequence[str]) -> str:
    """The text of ``stop`` that comes first in a response, or an empty one."""
    text = base.decode(tokens)
    places = [(text.find(one), one) for one in stop if one in text]
    return min(places)[1] if places else ""


def _decode(
    base: Base, prompts: Sequence[Sequence[int]], keys: Tensor, copies: int, how: Sampling
) -> list[list[list[int]]]:
    """Token ids (copies, slots, up to ``max_new_tokens``), the end and what follows it not yet cut."""
    device, room = base.device, how.max_new_tokens
    decoder = make_decoder(base)
    decoder.start(prompts, copies, how.samples, room)
    ends = to_device(torch.tensor(base.ends), device)
    slots = torch.arange(len(keys), device=device)  # which slot each column of the batch still is
    out = torch.full((copies, len(slots), room), base.eos, device=device)
    done = torch.zeros(copies, len(slots), dtype=torch.bool, device=device)
    for step in range(room):
        tokens = _draw(decoder, keys, step, copies, how, base)
        tokens = torch.where(done[:, slots], base.eos, tokens)  # (K, n)
        out[:, slots, step] = tokens
        done[:, slots] |= torch.isin(tokens, ends)
        if step + 1 == room:
            break
        if (step + 1) % COMPACT_EVERY == 0:
            if how.stop:
                done |= _have_stopped(base, out[:, :, : step + 1], how.stop)
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


def _have_stopped(base: Base, tokens: Tensor, stop: Sequence[str]) -> Tensor:
    """(K, n) bool: whether one of the texts of ``stop`` is in (K, n, T) tokens."""
    rows = [[bool(_stopped_by(base, row, stop)) for row in copy] for copy in tokens.tolist()]
    return torch.tensor(rows, device=tokens.device)


def _within(logits: Tensor, how: Sampling) -> Tensor:
    """(..., V) logits, minus infinity for tokens that ``top_p`` leaves out; the most probable one always stays."""
    if how.top_p == 1:
        return logits
    ordered, order = (logits / how.temperature).softmax(-1).sort(-1, descending=True)
    left_out = ordered.cumsum(-1) - ordered >= how.top_p  # what is more probable already has the probability
    return logits.masked_fill(torch.zeros_like(left_out).scatter(-1, order, left_out), -torch.inf)


def _draw(decoder: Decoder, keys: Tensor, position: int, copies: int, how: Sampling, base: Base) -> Tensor:
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
            kept = _within(logits[:, tile].float(), how)
            out[:, part][:, tile] = kept.sub_(noise, alpha=how.temperature).argmax(-1)
    return out
