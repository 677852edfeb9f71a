"""Where the scored tokens of a micro-batch lie in a grid of responses by positions.

Shapes: B pairs, R scored tokens of one copy, n of them on one side, T tokens of the longest response of that side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.data import TokenPair
from prefopt.model.packing import gather_rows, to_device


@dataclass(frozen=True, slots=True)
class Places:
    """One side's tokens in a (B, T) grid, worked out from lengths alone, so that no step waits for a device.

    Attributes:
        tokens: (n,) which of the R scored tokens are of this side.
        cells: (n,) the cell of each in the flattened grid.
        shape: (B, T).
    """

    tokens: Tensor
    cells: Tensor
    shape: tuple[int, int]

    @staticmethod
    def of(pairs: Sequence[TokenPair], side: int, device: torch.device) -> Places:
        """Of the chosen (side 0) or rejected (side 1) responses; scored tokens go chosen, rejected, pair by pair."""
        responses = [(pair.chosen_ids, pair.rejected_ids) for pair in pairs]
        width = max(len(both[side]) for both in responses)
        tokens: list[int] = []
        cells: list[int] = []
        start = 0
        for row, both in enumerate(responses):
            first, size = start + side * len(both[0]), len(both[side])
            tokens.extend(range(first, first + size))
            cells.extend(range(row * width, row * width + size))
            start += len(both[0]) + len(both[1])
        at, cells_at = (to_device(torch.tensor(values), device) for values in (tokens, cells))
        return Places(at, cells_at, (len(pairs), width))

    def grid(self, values: Tensor) -> Tensor:
        """(B, T) of one side from (R,) per-token values, zeros behind each response's end; differentiable."""
        flat = values.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_copy(0, self.cells, gather_rows(values, self.tokens)).view(self.shape)
