"""Attention of a packed batch without a mask: flash attention over causal sequences that share their prompts' keys.

Shapes: T tokens of the batch (and queries), M keys, H heads, H' key heads, D head size, n sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def _find_varlen() -> Callable[..., Tensor] | None:
    """PyTorch's flash attention over sequences of unequal lengths, as 2.11 and later have it, or None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    kernel: Any = varlen_attn
    known = inspect.signature(kernel).parameters
    if not {"scale", "window_size"} <= known.keys():
        return None
    # Earlier versions allow fewer key heads without being told.
    grouped = {"enable_gqa": True} if "enable_gqa" in known else {}

    def attend(*args: Any, scale: float) -> Tensor:
        out: Tensor = kernel(*args, scale=scale, window_size=(-1, 0), **grouped)
        return out

    return attend


# (T, H, D) from queries (T, H, D), keys and values (M, H', D), boundaries of each in int32, and the longest of each.
# Causal in that the last query sees the last key, the one before it the one before, and so on. A test may put its own
# here, or None for a PyTorch that has none.
varlen = _find_varlen()


class _GatherKeys(torch.autograd.Function):
    """Rows of x at ``Sequences.keys``, prompts among them several times; the gradient is summed over the places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sequences: Sequences) -> Tensor:
        ctx.sequences = sequences
        return x.index_select(0, sequences.keys)  # (M, H', D) from (T, H', D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        s: Sequences = ctx.sequences
        # Every token has one first key; only the prompts' repeated keys, which are few, need the slower sum.
        first = grad.index_select(0, s.first)  # (T, H', D)
        return first.index_add_(0, s.repeated, grad.index_select(0, s.repeats)), None


@dataclass(frozen=True, slots=True)
class Sequences:
    """A packed batch as causal sequences: of each response, the prompt and the response are its keys.

    The queries of a row's first response are the prompt's tokens and its own, those of another its own alone, so that
    all queries together are the batch's tokens in their order.

    Attributes:
        keys: (M,) the token behind each key.
        query_ends: (n + 1,) int32, boundaries of the n sequences among the T queries.
        key_ends: (n + 1,) int32, likewise among the M keys.
        longest_query: Queries of the longest sequence.
        longest_key: Keys of the longest.
        first: (T,) the key in which each token comes first.
        repeats: (M - T,) the other keys, and ``repeated`` (M - T,) the tokens behind them.
        repeated: See ``repeats``.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int
    first: Tensor
    repeats: Tensor
    repeated: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """(T, H, D) from (T, H, D) queries and (T, H', D) keys and values; half precision on CUDA."""
        assert varlen is not None
        if len(self.repeats):
            key, value = (_GatherKeys.apply(x, self) for x in (key, value))  # type: ignore[no-untyped-call]
        else:
            key, value = key.contiguous(), value.contiguous()
        ends = self.query_ends, self.key_ends, self.longest_query, self.longest_key
        return varlen(query.contiguous(), key, value, *ends, scale=scaling)


def can_flash(query: Tensor) -> bool:
    """Whether ``Sequences.attend`` takes queries of this device, type and head size."""
    if varlen is None or query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    head = query.shape[-1]
    return head % 8 == 0 and head <= 256 and torch.cuda.get_device_capability(query.device) >= (8, 0)


def causal_sequences(lengths: Sequence[tuple[int, Sequence[int]]], *, copies: int = 1) -> Sequences:
    """The sequences of a packed batch, on the CPU.

    Args:
        lengths: Tokens of each row's prompt, and of its responses.
        copies: How often the batch is repeated.
    """
    keys: list[int] = []
    first: list[int] = []
    repeats: list[int] = []
    query_sizes: list[int] = []
    key_sizes: list[int] = []
    token = 0
    for prompt_size, responses in lengths:
        prompt, start = range(token, token + prompt_size), token
        token = prompt.stop
        for which, size in enumerate(responses or (0,)):  # a prompt without responses is a sequence by itself
            own = range(token, token + size)
            token = own.stop
            at = len(keys)
            keys.extend(prompt)
            keys.extend(own)
            key_sizes.append(len(prompt) + len(own))
            query_sizes.append(len(own) if which else own.stop - start)
            if which:  # the prompt's keys came before, with the row's first response
                repeats.extend(range(at, at + len(prompt)))
            first.extend(range(at + len(prompt) if which else at, len(keys)))
    n_keys = len(keys)

    def tile(values: list[int], stride: int) -> Tensor:
        one = torch.tensor(values, dtype=torch.int64)
        return torch.cat([one + copy * stride for copy in range(copies)])

    def ends(sizes: list[int]) -> Tensor:
        return torch.tensor([0, *sizes * copies]).cumsum(0).to(torch.int32)

    return Sequences(
        keys=tile(keys, token),
        query_ends=ends(query_sizes),
        key_ends=ends(key_sizes),
        longest_query=max(query_sizes),
        longest_key=max(key_sizes),
        first=tile(first, n_keys),
        repeats=tile(repeats, n_keys),
        repeated=tile([keys[at] for at in repeats], token),
    )
