"""Exact KL divergence of a policy from the reference along its own samples.

Shapes: R scored tokens, C of a chunk, c of a tile, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prefopt.model.adapted import AdaptedModel, one
from prefopt.model.base import Base
from prefopt.model.generate import Sample
from prefopt.model.head import chunks, tiles
from prefopt.model.logps import RESPONSES_PER_ROW, batches_of_rows, sum_by_response
from prefopt.model.packing import PackedRows, Row, pack, use_layout


@torch.inference_mode()
def policy_and_reference(
    model: AdaptedModel, slot: int, prompts: Sequence[Sequence[int]], samples: Sequence[Sample]
) -> tuple[npt.NDArray[np.float64], ...]:
    """For each sample, summed over its tokens, in nats: exact KL(pi || pi_ref), log pi, log pi_ref.

    The KL is the sum over positions of the divergence of the two next-token distributions (Rao-Blackwellised,
    arXiv:2504.10637), at temperature 1.
    """
    base = model.base
    by_prompt: dict[int, list[int]] = {}
    for index, response in enumerate(samples):
        by_prompt.setdefault(response.prompt, []).append(index)
    per_row = RESPONSES_PER_ROW if base.packed else 1
    groups = [same[i : i + per_row] for same in by_prompt.values() for i in range(0, len(same), per_row)]
    rows = [Row(prompts[samples[g[0]].prompt], tuple(samples[i].tokens for i in g)) for g in groups]
    out = np.empty((3, len(samples)))
    for batch in batches_of_rows(rows):
        packed = pack([rows[i] for i in batch], device=base.device)
        with use_layout(packed):
            with model.use(one(slot)):
                policy = _states(base, packed)
            with model.off():
                reference = _states(base, packed)
        per_token = _divergence(base, policy, reference, packed.targets)  # (R,) each
        where = [index for i in batch for index in groups[i]]
        for row, values in zip(out, per_token, strict=True):
            row[where] = sum_by_response(values, packed).cpu().numpy()
    return tuple(out)


def _states(base: Base, rows: PackedRows) -> Tensor:
    """(R, d) hidden states, or (R, V) logits on the plain path, that predict the scored tokens."""
    states = base.hidden(rows) if base.packed else base.padded_logits(rows)
    return states.index_select(0, rows.predictors)


def _divergence(base: Base, policy: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(R,) each: KL of the next-token distributions, and the targets' log-probabilities under both."""
    out = torch.empty(3, len(targets), device=targets.device)
    for part in chunks(len(targets), 2 * base.head.shape[0]):
        logits = [x[part] @ base.head.t() if base.packed else x[part] for x in (policy, reference)]  # (C, V) each
        kl_and_logps = out[:, part]  # (3, C)
        for tile in tiles(logits[0]):
            p, r = (x[tile].float().log_softmax(-1) for x in logits)  # (c, V) each
            at = targets[part][tile].unsqueeze(1)  # (c, 1)
            kl_and_logps[1, tile], kl_and_logps[2, tile] = p.gather(1, at).squeeze(1), r.gather(1, at).squeeze(1)
            # sum_v pi(v) (log pi(v) - log pi_ref(v)), in the memory of what is not needed again.
            kl_and_logps[0, tile] = r.neg_().add_(p).mul_(p.exp_()).sum(-1)
    return out[0], out[1], out[2]
