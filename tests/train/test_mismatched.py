"""Which responses enter KTO's estimate of the KL: all of the batch, each under the prompt of the pair before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from rows import pairs
from training import CONFIG, LORA, pair_set

from prefopt import make_loss
from prefopt.model.adapted import AdaptedModel, one
from prefopt.model.base import Base
from prefopt.model.logps import score_rows
from prefopt.model.packing import Row
from prefopt.train.heldout import heldout_logps
from prefopt.train.microbatch import Needs, mismatched_logratios
from prefopt.train.step import Batch

KTO = Needs(mismatched=True)


def disturbed(base: Base) -> AdaptedModel:
    """A model with one adapter that is not zero."""
    model = AdaptedModel.wrap(base, LORA, size=1)
    params = model.adapters.params
    model.adapters.initialise(0, 0)
    params.data += 0.05 * torch.randn(params.shape, generator=torch.Generator().manual_seed(0))
    return model


def by_rows(model: AdaptedModel) -> torch.Tensor:
    """(B, 2) log pi/pi_ref of each prompt with the next pair's responses, one row a response."""
    some = pairs(4)
    rows = [
        Row(p.prompt_ids, (response,))
        for p, o in zip(some, [*some[1:], some[0]], strict=True)
        for response in (o.chosen_ids, o.rejected_ids)
    ]
    with model.off():
        reference = score_rows(model.base, rows)
    with model.use(one(0)):
        return torch.from_numpy(score_rows(model.base, rows) - reference).view(-1, 2)


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
@pytest.mark.parametrize("packed", [True, False])
def test_every_response_of_the_batch_enters_once(
    micro_batch: int, packed: bool, tiny_base: Callable[..., Base]
) -> None:
    base = tiny_base()
    if not packed:
        base = dataclasses.replace(base, packed=False)
        base.model.set_attn_implementation("sdpa")
    model = disturbed(base)
    config = CONFIG.model_copy(update={"micro_batch": micro_batch})
    batch = Batch(model, pairs(4), np.zeros((2, 4), dtype=np.float32), config, seed=0, step=0)
    micros = batch.micro_batches(KTO, 1)
    with torch.no_grad(), model.use(one(0)):
        found = [mismatched_logratios(model.base, micro) for micro in micros]
    values = torch.cat([part[0] for part in found if part is not None])
    assert values.shape == (4, 2)
    assert values.abs().min() > 1e-4
    torch.testing.assert_close(values, by_rows(model), atol=2e-4, rtol=0)


def test_held_out_pairs_likewise(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model = disturbed(base)
    with model.off():
        held = pair_set(base, pairs(4))
    batch = heldout_logps(model, 0, make_loss("kto"), held, seed=0)
    assert batch.mismatched is not None
    torch.testing.assert_close(batch.mismatched, by_rows(model), atol=2e-4, rtol=0)
