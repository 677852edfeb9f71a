"""One optimizer batch of groups: packed rows of a prompt with its K responses, and the losses' gradients on them.

Shapes: G groups of a micro-batch, K responses of the largest group, T tokens of the longest response, A stacked
adapters, N responses of one copy, R scored tokens of one copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from prefopt.config.schema import Train
from prefopt.contract.groups import GroupLogps, GroupLoss, GroupTokens, best_and_worst
from prefopt.data.types import TokenGroup
from prefopt.model.adapted import AdaptedModel
from prefopt.model.logps import RESPONSES_PER_ROW, scored_logps, sum_by_response
from prefopt.model.packing import PackedRows, Row, pack, to_device, use_layout
from prefopt.train.feed import Floats, GroupBatch
from prefopt.train.state import Run, means_of

MICROBATCH_TOKENS = 16384  # of one pass with gradients, where micro_batch is "auto"


@dataclass(frozen=True, slots=True)
class GroupMicrobatch:
    """Some groups of one optimizer batch, packed for A adapters.

    Attributes:
        rows: The packed rows.
        place: (N,) where each response stands in a flat (G, K).
        cells: (R,) where each scored token stands in a flat (G, K, T); worked out from lengths alone, so that no step
            waits for a device.
        shape: G, K and T.
        fixed: What does not depend on the policy, with zeros as ``logps``.
        ref_tokens: (G, K, T) the reference's log-probability of each token, or None unless a loss reads tokens.
    """

    rows: PackedRows
    place: Tensor
    cells: Tensor
    shape: tuple[int, int, int]
    fixed: GroupLogps
    behaviour: Tensor | None
    ref_tokens: Tensor | None


def rows_of(groups: Sequence[TokenGroup], *, shared: bool) -> list[Row]:
    """Rows of a prompt with some of its responses each, in the order of the responses."""
    per_row = RESPONSES_PER_ROW if shared else 1
    return [
        Row(group.prompt_ids, group.responses[start : start + per_row])
        for group in groups
        for start in range(0, len(group.responses), per_row)
    ]


@torch.no_grad()
def prepare_groups(model: AdaptedModel, batch: GroupBatch, *, tokens: bool, copies: int) -> GroupMicrobatch:
    """Pack some groups with what does not depend on the policy."""
    base, groups = model.base, batch.groups
    rows = rows_of(groups, shared=base.packed)
    packed = pack(rows, device=base.device, copies=copies)
    width = max(len(group.responses) for group in groups)
    longest = max(len(response) for group in groups for response in group.responses)
    place = [g * width + k for g, group in enumerate(groups) for k in range(len(group.responses))]
    shape = (len(groups), width, longest)

    def table(values: Sequence[Sequence[float]], missing: float = 0.0) -> Tensor:
        padded = [[*map(float, row), *[missing] * (width - len(row))] for row in values]
        return to_device(torch.tensor(padded, dtype=torch.float32), base.device)

    fixed = GroupLogps(
        logps=table([[0.0] * len(group.responses) for group in groups]),
        lengths=table([[len(response) for response in group.responses] for group in groups], 1.0),
        mask=table([[1.0] * len(group.responses) for group in groups]) > 0,
        preference=table([group.preference for group in groups]),
        rewards=table([group.rewards for group in groups]),
        ref_logps=table([values.tolist() for values in batch.reference]),
    )
    responses = [response for group in groups for response in group.responses]
    cells = [at * longest + t for at, response in zip(place, responses, strict=True) for t in range(len(response))]
    where, cells_at = (to_device(torch.tensor(numbers), base.device) for numbers in (place, cells))
    ref_tokens = None
    if tokens:
        one_copy = packed if copies == 1 else pack(rows, device=base.device)
        with model.off(), use_layout(one_copy):
            values = scored_logps(base, one_copy)
        ref_tokens = _grid(values, cells_at, shape)
    behaviour = _behaviour(batch.behaviour, shape, base.device)
    return GroupMicrobatch(packed, where, cells_at, shape, fixed, behaviour, ref_tokens)


def _behaviour(values: list[list[Floats]] | None, shape: tuple[int, int, int], device: torch.device) -> Tensor | None:
    """(G, K, T) log-probability of each token under the policy that drew the responses."""
    if values is None:
        return None
    out = np.zeros(shape, dtype=np.float32)
    for g, group in enumerate(values):
        for k, response in enumerate(group):
            out[g, k, : len(response)] = response
    return to_device(torch.from_numpy(out), device)


def _grid(values: Tensor, cells: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(G, K, T) from (R,) values of one copy, zeros behind each response's end; differentiable."""
    flat = values.new_zeros(shape[0] * shape[1] * shape[2])
    return flat.index_copy(0, cells, values).view(shape)


def group_logps(micro: GroupMicrobatch, values: Tensor, *, tokens: bool) -> list[GroupLogps]:
    """One ``GroupLogps`` for each of A adapters, from (A * R,) log-probabilities of tokens."""
    rows, (n_groups, width, longest) = micro.rows, micro.shape
    sums = sum_by_response(values, rows).view(rows.copies, -1)  # (A, N)
    out = []
    for copy in range(rows.copies):
        flat = sums.new_zeros(n_groups * width)
        logps = flat.index_put((micro.place,), sums[copy]).view(n_groups, width)
        behaviour = micro.fixed.ref_logps if micro.behaviour is None else micro.behaviour.sum(2)
        per_token = None
        if tokens:
            mine = _grid(values.view(rows.copies, -1)[copy], micro.cells, micro.shape)
            mask = torch.arange(longest, device=mine.device) < micro.fixed.lengths[:, :, None]
            behaviour_tokens = micro.ref_tokens if micro.behaviour is None else micro.behaviour
            per_token = GroupTokens(mask & micro.fixed.mask[:, :, None], mine, micro.ref_tokens, behaviour_tokens)
        out.append(dataclasses.replace(micro.fixed, logps=logps, behaviour=behaviour, tokens=per_token))
    return out


@dataclass
class GroupedBatch:
    """One optimizer batch of groups, packed once for all runs that take it.

    It has the face of ``step.Batch``.
    """

    model: AdaptedModel
    batch: GroupBatch
    config: Train
    seed: int
    step: int
    packed: dict[tuple[bool, int], list[GroupMicrobatch]] = field(default_factory=dict)

    @property
    def n_pairs(self) -> int:
        """As many pairs as the batch has responses for."""
        return sum(len(group.responses) for group in self.batch.groups) // 2

    def _micro_batches(self, tokens: bool, copies: int) -> list[GroupMicrobatch]:
        if (tokens, copies) not in self.packed:
            groups, reference, behaviour = self.batch
            largest = max(len(group.prompt_ids) + sum(map(len, group.responses)) for group in groups)
            size = max(1, MICROBATCH_TOKENS // largest)
            if self.config.micro_batch != "auto":
                size = max(1, 2 * self.config.micro_batch // max(len(group.responses) for group in groups))
            parts = [slice(start, start + size) for start in range(0, len(groups), size)]
            self.packed[tokens, copies] = [
                prepare_groups(
                    self.model,
                    GroupBatch(groups[part], reference[part], behaviour[part] if behaviour else None),
                    tokens=tokens,
                    copies=copies,
                )
                for part in parts
            ]
        return self.packed[tokens, copies]

    def backward(self, chunk: Sequence[Run]) -> tuple[list[Tensor], int]:
        """Leave the gradients in the bank; the (9,) means of each run, and the tokens of one copy.

        A loss is given the whole batch: where that takes several passes, the first is without a graph.
        """
        base = self.model.base
        tokens = any(run.loss.token_fields for run in chunk)
        micros = self._micro_batches(tokens, len(chunk))
        single = len(micros) == 1
        signals, leaves = [], []
        for micro in micros:
            with use_layout(micro.rows), torch.set_grad_enabled(single):
                signals.append(scored_logps(base, micro.rows))
            leaves.append(signals[-1].detach().requires_grad_())
        parts = [group_logps(micro, leaf, tokens=tokens) for micro, leaf in zip(micros, leaves, strict=True)]
        batches = [join([part[i] for part in parts]) for i in range(len(chunk))]
        losses = [cast("GroupLoss", run.loss).group(batch) for run, batch in zip(chunk, batches, strict=True)]
        torch.stack([loss.mean() for loss in losses]).sum().backward()  # type: ignore[no-untyped-call]
        for micro, leaf, signal in zip(micros, leaves, signals, strict=True):
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            with use_layout(micro.rows):
                again = signal if single else scored_logps(base, micro.rows)
                again.backward(gradient)  # type: ignore[no-untyped-call]
        means = [
            means_of(run.loss, detached(batch), loss.detach())
            for run, batch, loss in zip(chunk, batches, losses, strict=True)
        ]
        return means, sum(micro.rows.input_ids.shape[0] // micro.rows.copies for micro in micros)


def detached(groups: GroupLogps) -> Any:
    """The best and the worst response of each group as pairs, without gradient."""
    return best_and_worst(dataclasses.replace(groups, logps=groups.logps.detach()))


def join(parts: Sequence[GroupLogps]) -> GroupLogps:
    """The groups of several micro-batches as one batch, padded to the largest group and the longest response."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.logps.shape[1] for part in parts)

    def joined(name: str, missing: float = 0.0) -> Any:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        grown = [torch.nn.functional.pad(v, (0, width - v.shape[1]), value=missing) for v in values]
        return torch.cat(grown)

    names = [f.name for f in dataclasses.fields(GroupLogps) if f.name != "tokens"]
    cells = {name: joined(name, 1.0 if name == "lengths" else 0.0) for name in names}
    inner = [part.tokens for part in parts if part.tokens is not None]
    return GroupLogps(**cells, tokens=_join_tokens(inner, width) if inner else None)


def _join_tokens(parts: Sequence[GroupTokens], width: int) -> GroupTokens:
    longest = max(part.mask.shape[2] for part in parts)

    def joined(values: Sequence[Tensor | None]) -> Any:
        there = [value for value in values if value is not None]
        return torch.cat(
            [torch.nn.functional.pad(v, (0, longest - v.shape[2], 0, width - v.shape[1])) for v in there]
        ) if there else None  # fmt: skip

    return GroupTokens(**{f.name: joined([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(GroupTokens)})
