"""Many token rows in one forward pass, without padding, and the attention over them.

A batch of pairs becomes one long row of tokens. The linear layers see exactly the tokens there are; attention is
computed inside each row only. A pair takes one row ``[prompt | chosen | rejected]`` in which both responses see the
prompt and neither sees the other, so the prompt is computed once.

Shapes: T tokens of the batch, N rows, S tokens of the longest row, R scored tokens, K copies of the batch (one for
each adapter of a stack), H heads, H' key heads, D head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from prefopt.model.attention import Sequences, can_flash, causal_sequences

ATTENTION = "prefopt_packed"
SHORT_ROW = 512  # tokens; above it the probabilities kept by _ShortAttention outweigh what they save


class Layout(Protocol):
    """How queries, keys and values of one packed row attend to each other."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """(T, H, D) outputs from (T, H, D) queries and (T, H', D) keys and values."""


class UnsupportedAttention(Exception):  # noqa: N818 - caught and answered with the plain path, never shown
    """The model's attention does something that packed rows cannot express."""


_layout: Layout | None = None


@contextmanager
def use_layout(layout: Layout) -> Iterator[None]:
    """Let every attention layer run inside this block, and the backward passes in it, follow ``layout``."""
    global _layout
    before, _layout = _layout, layout
    try:
        yield
    finally:
        _layout = before


def layout_in_use() -> Layout | None:
    """The layout of the innermost block of ``use_layout``, or None outside one."""
    return _layout


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: (1, H, T, D) in, (1, T, H, D) out."""
    if _layout is None:
        raise RuntimeError("a packed model can only be run inside prefopt.packing.use_layout")
    if attention_mask is not None or dropout or query.shape[0] != 1:
        raise UnsupportedAttention("attention mask, dropout or batch")
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise UnsupportedAttention("soft-capped scores, sinks or a position bias")
    window = kwargs.get("sliding_window")
    if window is not None and getattr(_layout, "longest", 0) > window:
        raise UnsupportedAttention(f"a sliding window of {window} tokens, shorter than a row")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = int(getattr(module, "layer_idx", 0) or 0)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, D), and H' heads of keys and values
    out = _layout.attend(layer, q, k, v, scaling)
    return out.unsqueeze(0), None


AttentionInterface.register(ATTENTION, _packed_attention)


class _Scatter(torch.autograd.Function):
    """Rows of x to distinct places of a larger zero tensor; the gradient is gathered back from them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, index, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grad.index_select(0, index), None, None


class _Gather(torch.autograd.Function):
    """Distinct rows of x; the gradient is scattered back to them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, index, grad.contiguous()), None


class _ShortAttention(torch.autograd.Function):
    """Attention that keeps its probabilities: for short rows on a CPU far faster than a fused backward pass.

    ``bias`` (N, 1, S, S) is 0 where a query sees a key, else minus infinity. Softmax and its gradient are computed in
    float32 inside their kernels, whatever the type of their operands.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float) -> Tensor:
        p = torch.softmax(torch.matmul(q * scaling, k.mT).add_(bias), -1)  # (N, H, S, S)
        ctx.save_for_backward(q, k, v, p)
        ctx.scaling = scaling
        return torch.matmul(p, v)  # (N, H, S, D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        ds = torch.ops.aten._softmax_backward_data(torch.matmul(grad, v.mT), p, -1, p.dtype)  # (N, H, S, S)
        dq, dk = torch.matmul(ds, k).mul_(ctx.scaling), torch.matmul(ds.mT, q).mul_(ctx.scaling)
        return dq, dk, torch.matmul(p.mT, grad), None, None


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """(R, ...) rows of x at distinct positions ``index`` (R,); cheaper backward than plain indexing."""
    out: Tensor = _Gather.apply(x, index)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True)
class PackedRows:
    """A batch of rows end to end, K times over, with the positions whose next token is scored.

    Attributes:
        input_ids: (K*T,) token ids.
        position_ids: (K*T,) position of each token in its own sequence; both responses go on from the prompt.
        grid: (K*T,) place of each token in a padded (K*N, S) grid, flattened.
        parts: (N, S) which part of its row each place of the grid is: 0 the prompt, 1 .. the responses, -1 padding.
        rows: K*N.
        width: S.
        predictors: (K*R,) the token whose hidden state predicts each scored token.
        targets: (K*R,) the scored tokens.
        segments: (K*R,) the response that each scored token belongs to, in 0 .. n_segments * K - 1.
        n_segments: responses of one copy.
        copies: K.
        longest: tokens of the longest sequence as the model sees it.
        sequences: The batch for attention without a mask, where it is not on a CPU, else None.
        keys: (K*T,) int64 what dropout knows each token by, or None for no dropout.
    """

    input_ids: Tensor
    position_ids: Tensor
    grid: Tensor
    parts: Tensor
    rows: int
    width: int
    predictors: Tensor
    targets: Tensor
    segments: Tensor
    n_segments: int
    copies: int
    longest: int
    sequences: Sequences | None = None
    keys: Tensor | None = None

    @cached_property
    def mask(self) -> Tensor:
        """(K*N, 1, S, S) bool, who sees whom; padding sees what is before it and is seen by none."""
        return _mask(self.parts).repeat(self.copies, 1, 1, 1)

    @cached_property
    def bias(self) -> Tensor:
        """(K*N, 1, S, S) bfloat16, 0 where ``mask`` is True, else minus infinity; adds to scores of any type."""
        zeros = torch.zeros(self.mask.shape, device=self.mask.device, dtype=torch.bfloat16)
        return zeros.masked_fill_(~self.mask, -torch.inf)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention inside each row, by flash attention where that can be, else over the padded grid."""
        if self.sequences is not None and can_flash(query):
            return self.sequences.attend(query, key, value, scaling)
        q, k, v = (self.to_grid(x) for x in (query, key, value))  # (K*N, H, S, D)
        if k.shape[1] != q.shape[1]:  # neighbouring heads share a key head
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        if q.device.type == "cpu" and self.width <= SHORT_ROW:
            out: Tensor = _ShortAttention.apply(q, k, v, self.bias, scaling)  # type: ignore[no-untyped-call]
        else:
            out = F.scaled_dot_product_attention(q, k, v, self.mask, scale=scaling)
        flat = out.transpose(1, 2).reshape(self.rows * self.width, *query.shape[1:])  # (K*N*S, H, D)
        return flat if flat.shape[0] == query.shape[0] else gather_rows(flat, self.grid)

    def to_grid(self, x: Tensor) -> Tensor:
        """(K*N, H, S, D) from (K*T, H, D), zeros where a row is shorter than S."""
        size = self.rows * self.width
        if x.shape[0] != size:
            x = _Scatter.apply(x, self.grid, size)  # type: ignore[no-untyped-call]
        return x.view(self.rows, self.width, *x.shape[1:]).transpose(1, 2)


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """``values`` on ``device``, without waiting for the work that is queued there."""
    if torch.device(device).type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a prompt and the responses that go on from it, each a tuple of token ids."""

    prompt: Sequence[int]
    responses: tuple[Sequence[int], ...]


def pack(rows: Sequence[Row], *, device: torch.device | str = "cpu", copies: int = 1) -> PackedRows:
    """Lay rows end to end.

    Args:
        rows: Prompts of at least one token, with non-empty responses; all of their response tokens are scored.
        device: Where the tensors go.
        copies: How often the batch is repeated, once for each adapter of a stack.
    """
    ids: list[int] = []
    positions: list[int] = []
    grid: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    segments: list[int] = []
    width = max(len(row.prompt) + sum(map(len, row.responses)) for row in rows)
    n_segments = 0
    for number, row in enumerate(rows):
        start, p = len(ids), len(row.prompt)
        ids.extend(row.prompt)
        positions.extend(range(p))
        for response in row.responses:
            first = len(ids)
            predictors.append(start + p - 1)  # the prompt's last token predicts the first of every response
            predictors.extend(range(first, first + len(response) - 1))
            targets.extend(response)
            segments.extend([n_segments] * len(response))
            ids.extend(response)
            positions.extend(range(p, p + len(response)))  # as if it alone followed the prompt
            n_segments += 1
        grid.extend(range(number * width, number * width + len(ids) - start))

    def tile(values: list[int], stride: int) -> Tensor:
        one = torch.tensor(values, dtype=torch.int64)
        return to_device(torch.cat([one + copy * stride for copy in range(copies)]), device)

    return PackedRows(
        input_ids=tile(ids, 0),
        position_ids=tile(positions, 0),
        grid=tile(grid, len(rows) * width),
        parts=to_device(_parts(rows, width), device),
        rows=len(rows) * copies,
        width=width,
        predictors=tile(predictors, len(ids)),
        targets=tile(targets, 0),
        segments=tile(segments, n_segments),
        n_segments=n_segments,
        copies=copies,
        longest=max(positions) + 1,
        sequences=None if torch.device(device).type == "cpu" else _sequences(rows, device, copies),
    )


def _sequences(rows: Sequence[Row], device: torch.device | str, copies: int) -> Sequences:
    lengths = [(len(row.prompt), [len(response) for response in row.responses]) for row in rows]
    sequences = causal_sequences(lengths, copies=copies)
    values = {field.name: getattr(sequences, field.name) for field in dataclasses.fields(sequences)}
    moved: dict[str, Any] = {k: to_device(v, device) for k, v in values.items() if isinstance(v, Tensor)}
    return dataclasses.replace(sequences, **moved)


def _parts(rows: Sequence[Row], width: int) -> Tensor:
    """(N, S) the part of its row that each place of the grid is; see ``PackedRows.parts``."""
    parts = torch.full((len(rows), width), -1)
    for number, row in enumerate(rows):
        end = len(row.prompt)
        parts[number, :end] = 0
        for which, response in enumerate(row.responses, start=1):
            parts[number, end : end + len(response)] = which
            end += len(response)
    return parts


def _mask(parts: Tensor) -> Tensor:
    """(N, 1, S, S) bool: causal, and between two responses of one row nothing."""
    width = parts.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=parts.device).tril()  # (S, S): query, key
    same = parts[:, :, None] == parts[:, None, :]  # (N, S, S)
    to_prompt = (parts == 0)[:, None, :]  # (N, 1, S)
    # Padding sees at least itself: softmax over no key is NaN, which the backward pass would spread.
    return (causal & (same | to_prompt)).unsqueeze(1)
