"""Tries a model with its adapters before anything is trained: that they train, stacked or alone, and that it decodes.

Shapes: k adapters tried, R scored tokens of one copy.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from prefopt.errors import UsageError
from prefopt.model.adapted import AdaptedModel, one
from prefopt.model.base import Base
from prefopt.model.checks import first_line
from prefopt.model.decoders import CachedDecoder, Decoder, WholeDecoder
from prefopt.model.logps import scored_logps
from prefopt.model.packing import PackedRows, Row, pack, use_layout
from prefopt.runtime.seeding import generator

# What libraries raise where a layer is not of the shape, or a cache not of the kind, that was expected.
_UNFIT = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
_STEPS = 3
_NEAR = 0.02  # of the largest value: what half precision and another order of sums may differ by


def probe(model: AdaptedModel) -> AdaptedModel:
    """``model``, tried: its adapters can be trained, and it decodes, if need be without a cache.

    Raises:
        UsageError: If adapters in these layers cannot be trained.
    """
    bank = model.adapters
    k = min(2, bank.params.shape[0])
    try:
        noise = torch.randn(k, bank.params.shape[1], generator=generator(0, "probe"))
        bank.params[:k] = 0.02 * noise.to(bank.params.device)
        differ = _stacked_minus_alone(model, k)
    except _UNFIT as problem:
        raise UsageError(f"{_unfit(model)}: {first_line(problem)}") from None
    finally:
        bank.params[:k] = 0
        bank.grads[:k] = 0
    if not differ <= _NEAR:
        raise UsageError(f"{_unfit(model)}: a layer sees other tokens than its neighbours, such as those of one expert")
    if model.base.packed or _cache_is_right(model):
        return model
    return replace(model, base=replace(model.base, cached=False))


def _unfit(model: AdaptedModel) -> str:
    layers = sorted({site.name.rpartition(".")[2] for site in model.adapters.sites})
    return (
        f"model {model.base.name}: adapters in {', '.join(layers)} cannot be trained; name others with "
        "--set lora.targets=[...]"
    )


def _stacked_minus_alone(model: AdaptedModel, k: int) -> float:
    """The largest difference of log-probabilities with k adapters in one pass and in passes of their own, relative."""
    base = model.base
    rows = [Row((3, 4, 5), ((6, 7),)), Row((8,), ((9, 3, 4),))]
    stacked, alone = (_with_dropout(model, pack(rows, device=base.device, copies=copies)) for copies in (k, 1))
    with model.train(slice(0, k)), use_layout(stacked):
        together = scored_logps(base, stacked)
        together.sum().backward()  # type: ignore[no-untyped-call]
    together = together.detach().view(k, -1)  # (k, R)
    apart = torch.stack([_scored(model, i, alone) for i in range(k)])
    return float((together - apart).abs().max() / apart.abs().max())


def _with_dropout(model: AdaptedModel, rows: PackedRows) -> PackedRows:
    """``rows`` with keys for dropout, where there is some; any keys do."""
    keys = 2 * torch.arange(len(rows.input_ids) // rows.copies, device=model.base.device).repeat(rows.copies) + 1
    return replace(rows, keys=keys) if model.adapters.dropout else rows


@torch.no_grad()
def _scored(model: AdaptedModel, slot: int, rows: PackedRows) -> Tensor:
    with model.train(one(slot)), use_layout(rows):
        return scored_logps(model.base, rows)


@torch.inference_mode()
def _cache_is_right(model: AdaptedModel) -> bool:
    """Whether decoding with the model's cache gives the logits of reading everything again."""
    base = model.base
    try:
        with model.off():
            return _agree(base, CachedDecoder(base), WholeDecoder(base))
    except _UNFIT:
        return False


def _agree(base: Base, first: Decoder, second: Decoder) -> bool:
    decoders = (first, second)
    for decoder in decoders:
        decoder.start([(3, 4, 5, 6), (7,)], 1, 1, _STEPS + 1)
    for step in range(_STEPS):
        if step + 1 == _STEPS:
            for decoder in decoders:
                decoder.keep(torch.tensor([1], device=base.device))
        rows = torch.arange(1 if step + 1 == _STEPS else 2, device=base.device)
        one_way, other = (decoder.logits(rows).float() for decoder in decoders)
        if not float((one_way - other).abs().max()) <= _NEAR * float(other.abs().max()):
            return False
        for decoder in decoders:
            decoder.advance(torch.full((len(rows),), 8 + step, device=base.device))
    return True
