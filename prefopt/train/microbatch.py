"""What a forward pass of a few pairs hands to losses: log-probabilities, and per-token values where asked for.

A micro-batch becomes signals (tensors with a graph behind them). Losses are computed on detached leaves of those
signals, and their gradients are sent back through the graph, so that a loss that couples the pairs of a batch can be
given all of them whatever the size of the micro-batches.

Shapes: B pairs of a micro-batch, K stacked adapters, R scored tokens of one copy, T tokens of the longest response,
C tokens of a chunk, d hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefopt.contract.loss import Loss, PairLogps, TokenField, TokenStats
from prefopt.data import TokenPair
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.model.dropout import with_keys
from prefopt.model.head import chunks
from prefopt.model.logps import pair_rows, response_logps, scored_logps, sum_by_response
from prefopt.model.packing import PackedRows, pack, to_device, use_layout
from prefopt.runtime.seeding import derive_seed
from prefopt.train.places import Places


@dataclass(frozen=True, slots=True)
class Needs:
    """What the losses of a group ask for beyond sums."""

    fields: frozenset[TokenField] = frozenset()
    mismatched: bool = False

    @staticmethod
    def of(losses: Sequence[Loss]) -> Needs:
        """What at least one of the losses asks for."""
        fields = frozenset(field for loss in losses for field in loss.token_fields)
        return Needs(fields, any(loss.needs_mismatched for loss in losses))


@dataclass(frozen=True, slots=True)
class Microbatch:
    """B pairs of one optimizer batch, packed for K adapters, with all that does not depend on the policy.

    Attributes:
        rows: The packed rows.
        lengths: (2, B) response tokens, chosen and rejected.
        reference: (2, B) reference log-probabilities in nats.
        scores: (2, B) preference strengths, or None.
        weights: (B,) what each pair counts, or None where all count 1.
        tokens: Per-token values, chosen and rejected, that do not depend on the policy; None unless asked for.
        places: Where the chosen and the rejected responses' tokens lie in their grids; None where ``tokens`` is.
        ref_hidden: (R, d) the reference's states that predict the scored tokens, for ``ref_kl``, or None.
        mismatched: Rows of each prompt with the next pair's responses, and the reference's (B, 2) of them, or None.
    """

    rows: PackedRows
    lengths: Tensor
    reference: Tensor
    scores: Tensor | None
    tokens: tuple[TokenStats, TokenStats] | None = None
    places: tuple[Places, Places] | None = None
    ref_hidden: Tensor | None = None
    mismatched: tuple[PackedRows, Tensor] | None = None
    weights: Tensor | None = None

    @property
    def n_pairs(self) -> int:
        """B."""
        return self.lengths.shape[1]


@torch.no_grad()
def prepare(
    model: AdaptedModel,
    pairs: Sequence[TokenPair],
    reference: np.ndarray,
    needs: Needs,
    *,
    others: Sequence[TokenPair] = (),
    copies: int = 1,
    seed: int = 0,
    step: int = 0,
) -> Microbatch:
    """Pack B pairs with their (2, B) reference log-probabilities, and what else ``needs`` names.

    ``others`` are the B pairs whose responses are the mismatched ones: each pair's successor in its whole batch, so
    that they do not depend on how the batch is cut.
    """
    plain = _sums_alone(model.base, pairs, reference, copies)
    if model.adapters.dropout:
        plain = dataclasses.replace(plain, rows=with_keys(plain.rows, pairs, seed=seed, step=step))
    if needs == Needs():
        return plain
    rows = pair_rows(pairs, shared=model.base.packed)
    one_copy = plain.rows if copies == 1 else pack(rows, device=model.base.device)
    logps, hidden = _reference_pass(model, dataclasses.replace(plain, rows=one_copy), needs)
    tokens, places = None, None
    if needs.fields:
        places = Places.of(pairs, 0, model.base.device), Places.of(pairs, 1, model.base.device)
        tokens = _fixed_tokens(logps, places, plain.lengths, _noise(pairs, needs, seed, step))
    return dataclasses.replace(
        plain,
        reference=sum_by_response(logps, one_copy).view(-1, 2).t(),  # (2, B)
        tokens=tokens,
        places=places,
        ref_hidden=hidden,
        mismatched=_mismatched(model, pairs, others, copies) if needs.mismatched else None,
    )


def _sums_alone(base: Base, pairs: Sequence[TokenPair], reference: np.ndarray, copies: int) -> Microbatch:
    """B pairs packed, with what losses on sums need: lengths, reference sums, and strengths where all have one."""
    device = base.device
    lengths = [[len(p.chosen_ids) for p in pairs], [len(p.rejected_ids) for p in pairs]]
    weights = [pair.weight for pair in pairs]
    scored = all(p.chosen_score is not None and p.rejected_score is not None for p in pairs)
    scores = [[p.chosen_score for p in pairs], [p.rejected_score for p in pairs]]
    return Microbatch(
        rows=pack(pair_rows(pairs, shared=base.packed), device=device, copies=copies),
        lengths=to_device(torch.tensor(lengths, dtype=torch.float32), device),
        reference=to_device(torch.as_tensor(reference, dtype=torch.float32), device),
        scores=to_device(torch.tensor(scores, dtype=torch.float32), device) if scored else None,
        weights=None if all(w == 1.0 for w in weights) else to_device(torch.tensor(weights), device),
    )


def _reference_pass(model: AdaptedModel, one_copy: Microbatch, needs: Needs) -> tuple[Tensor, Tensor | None]:
    """The reference's (R,) log-probabilities and, for ``ref_kl``, its (R, d) states that predict the scored tokens.

    They are scored in the very pass that the policy takes, so that both are equal to the bit as long as the adapter is
    zero.
    """
    rows = one_copy.rows
    with model.off(), use_layout(rows):
        logps = forward(model.base, one_copy, needs)["logps"]
        if "ref_kl" not in needs.fields:
            return logps, None
        return logps, model.base.hidden(rows).index_select(0, rows.predictors)  # (R,), (R, d)


def _noise(pairs: Sequence[TokenPair], needs: Needs, seed: int, step: int) -> list[Tensor | None]:
    """(B, T) noise of the chosen and of the rejected responses, or None where no loss asks for it."""
    return [_uniform(pairs, seed, step, side) if "uniform" in needs.fields else None for side in (0, 1)]


def _fixed_tokens(
    ref_logps: Tensor, places: tuple[Places, Places], lengths: Tensor, noise: Sequence[Tensor | None]
) -> tuple[TokenStats, TokenStats]:
    """Per-token values of the chosen and of the rejected responses that do not depend on the policy, from (R,) ones."""
    sides = []
    for side in (0, 1):
        grid = places[side].grid(ref_logps)  # (B, T)
        side_noise = noise[side]
        uniform = None if side_noise is None else to_device(side_noise, grid.device)
        sides.append(TokenStats(_mask(lengths[side], grid.shape[1]), ref_logps=grid, uniform=uniform))
    return sides[0], sides[1]


def _mismatched(
    model: AdaptedModel, pairs: Sequence[TokenPair], others: Sequence[TokenPair], copies: int
) -> tuple[PackedRows, Tensor]:
    """Rows of each prompt with another pair's two responses, and the reference's (B, 2) log-probabilities of them."""
    base = model.base
    crossed = [dataclasses.replace(o, prompt_ids=p.prompt_ids) for p, o in zip(pairs, others, strict=True)]
    rows = pair_rows(crossed, shared=base.packed)
    one_copy = pack(rows, device=base.device)
    with model.off(), use_layout(one_copy):
        reference = response_logps(base, one_copy).view(-1, 2)  # (B, 2)
    return pack(rows, device=base.device, copies=copies), reference


def _uniform(pairs: Sequence[TokenPair], seed: int, step: int, side: int) -> Tensor:
    """(B, T) noise in [0, 1) that depends on seed, step, pair, side and position alone."""
    responses = [(p.chosen_ids, p.rejected_ids)[side] for p in pairs]
    out = torch.zeros(len(pairs), max(map(len, responses)))
    for row, pair, response in zip(out, pairs, responses, strict=True):
        source = torch.Generator().manual_seed(derive_seed(seed, "token_noise", step, pair.pair_id, side))
        row[: len(response)] = torch.rand(len(response), generator=source)
    return out


def _mask(lengths: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)  # (B, T)


Signals = dict[str, Tensor]


def forward(base: Base, micro: Microbatch, needs: Needs) -> Signals:
    """Per-token values (K*R,) under the active adapters, with a graph; call inside ``use_layout(micro.rows)``."""
    if not {"log_collision", "ref_kl"} & needs.fields:
        return {"logps": scored_logps(base, micro.rows)}
    hidden = base.hidden(micro.rows).index_select(0, micro.rows.predictors)  # (K*R, d)
    ref = None if micro.ref_hidden is None else micro.ref_hidden.repeat(micro.rows.copies, 1)  # (K*R, d)
    parts: list[tuple[Tensor, ...]] = []
    for part in chunks(hidden.shape[0], base.head.shape[0]):
        ref_part = None if ref is None else ref[part]
        args = (hidden[part], base.head, micro.rows.targets[part], ref_part)
        # Recomputed in the backward pass: only one chunk's (C, V) distributions are in memory at a time.
        parts.append(checkpoint(_distribution, *args, use_reentrant=False, preserve_rng_state=False))
    names = ("logps", "log_collision", "ref_kl")[: len(parts[0])]
    return {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(names)}


def _distribution(hidden: Tensor, head: Tensor, targets: Tensor, ref_hidden: Tensor | None) -> tuple[Tensor, ...]:
    """(C,) log-probability, log collision probability and, given the reference's states, KL(pi_ref || pi)."""
    logp = (hidden @ head.t()).float().log_softmax(-1)  # (C, V)
    picked = logp.gather(1, targets.unsqueeze(1)).squeeze(1)  # (C,)
    collision = (2 * logp.detach()).logsumexp(-1)  # (C,) log sum_v pi(v)^2, which weights and is not trained on
    if ref_hidden is None:
        return picked, collision
    ref = (ref_hidden @ head.t()).float().log_softmax(-1)  # (C, V)
    return picked, collision, (ref.exp() * (ref - logp)).sum(-1)


def pair_logps(micro: Microbatch, signals: Signals, needs: Needs) -> list[PairLogps]:
    """One ``PairLogps`` of B pairs for each of K adapters."""
    rows = micro.rows
    k, per_copy = rows.copies, rows.targets.shape[0] // rows.copies
    flat = torch.zeros(rows.n_segments * k, device=rows.targets.device)  # (K * 2 B,)
    sums = flat.index_add(0, rows.segments, signals["logps"]).view(k, -1, 2)  # (K, B, chosen and rejected)
    out = []
    for copy in range(k):
        mine = {name: value.view(k, per_copy)[copy] for name, value in signals.items()}  # (R,) each
        chosen, rejected = (_token_stats(micro, mine, side, needs) for side in (0, 1))
        out.append(
            PairLogps(
                chosen=sums[copy, :, 0],
                rejected=sums[copy, :, 1],
                chosen_len=micro.lengths[0],
                rejected_len=micro.lengths[1],
                ref_chosen=micro.reference[0],
                ref_rejected=micro.reference[1],
                chosen_score=None if micro.scores is None else micro.scores[0],
                rejected_score=None if micro.scores is None else micro.scores[1],
                chosen_tokens=chosen,
                rejected_tokens=rejected,
            )
        )
    return out


def _token_stats(micro: Microbatch, signals: Signals, side: int, needs: Needs) -> TokenStats | None:
    if micro.tokens is None or micro.places is None:
        return None
    grids = {name: micro.places[side].grid(value) for name, value in signals.items() if name in needs.fields}
    return dataclasses.replace(micro.tokens[side], **grids)


@torch.no_grad()
def mismatched_logratios(base: Base, micro: Microbatch) -> Tensor | None:
    """(K, B, 2) log pi / pi_ref in nats of mismatched responses under the active adapters, or None unless needed."""
    if micro.mismatched is None:
        return None
    rows, reference = micro.mismatched
    with use_layout(rows):
        return response_logps(base, rows).view(rows.copies, -1, 2) - reference


def concatenate(parts: Sequence[PairLogps]) -> PairLogps:
    """The pairs of several micro-batches as one batch; per-token values are padded to the longest response."""
    if len(parts) == 1:
        return parts[0]
    values: dict[str, Any] = {}
    for field in dataclasses.fields(PairLogps):
        items = [getattr(part, field.name) for part in parts]
        if items[0] is None:
            continue
        values[field.name] = _concatenate_tokens(items) if isinstance(items[0], TokenStats) else torch.cat(items)
    return PairLogps(**values)


def _concatenate_tokens(parts: Sequence[TokenStats]) -> TokenStats:
    width = max(part.mask.shape[1] for part in parts)

    def join(values: list[Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(value, (0, width - value.shape[1])) for value in values])

    fields = [field.name for field in dataclasses.fields(TokenStats) if getattr(parts[0], field.name) is not None]
    return TokenStats(**{name: join([getattr(part, name) for part in parts]) for name in fields})
