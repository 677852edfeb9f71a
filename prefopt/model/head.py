"""Log-probabilities of given tokens under a frozen language-model head, without a full matrix of logits.

Shapes: R scored tokens, d hidden size, V vocabulary, C tokens of a chunk, c tokens of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 16 * 2**20  # logits of one chunk: 64 MiB in float32
TILE_ELEMENTS = 2**18  # 1 MiB in float32: what a CPU's core keeps near itself from one pass to the next


def chunks(n_rows: int, vocabulary: int, elements: int = CHUNK_ELEMENTS) -> Iterator[slice]:
    """Consecutive slices of 0 .. n_rows whose logits have at most ``elements`` entries each, or one row."""
    size = max(1, elements // vocabulary)
    return (slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size))


def tiles(logits: Tensor) -> Iterator[slice]:
    """Slices of the rows of (..., C, V) logits to go over several times: few rows on a CPU, all of them elsewhere."""
    elements = TILE_ELEMENTS if logits.device.type == "cpu" else logits.numel()
    return chunks(logits.shape[-2], logits.shape[-1], elements)


class _TokenLogps(torch.autograd.Function):
    """log softmax(h W')[target], and in the same pass its gradient W[target] - softmax(h W') W.

    The head is frozen, so the gradient of one log-probability is one vector of size d, independent of what
    comes after it: it is kept, (R, d), and neither logits nor a second pass over the vocabulary are needed.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        out = torch.empty(hidden.shape[0], device=hidden.device)  # (R,)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # (R, d)
        for part in chunks(hidden.shape[0], weight.shape[0]):
            rounded = hidden[part] @ weight.t()  # (C, V) logits, in the head's type
            total, logps = torch.empty(2, rounded.shape[0], 1, device=hidden.device)  # (C, 1) each
            for tile in tiles(rounded):
                top = rounded[tile].amax(1, keepdim=True).float()  # (c, 1); subtracted, so that exp cannot overflow
                logits = rounded[tile].float()  # (c, V)
                picked = logits.gather(1, targets[part][tile].unsqueeze(1))  # (c, 1)
                exp = logits.sub_(top).exp_()  # in the memory of the logits, which are not needed again
                torch.sum(exp, 1, keepdim=True, out=total[tile])
                logps[tile] = picked - top - total[tile].log()
                if gradient is not None:
                    rounded[tile] = exp  # softmax but for its total, in place of the chunk's logits
            out[part] = logps.squeeze(1)
            if gradient is not None:
                mean = (rounded @ weight).float().div_(total)  # (C, d): the head's rows, averaged under softmax
                gradient[part] = weight[targets[part]] - mean.to(weight.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad.unsqueeze(1).to(gradient.dtype) * gradient, None, None


def token_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """(R,) float32 log-probabilities in nats of ``targets`` (R,) given hidden states (R, d) and head (V, d)."""
    out: Tensor = _TokenLogps.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return out
