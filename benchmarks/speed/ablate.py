"""Turn one of the savings off, with everything else as it is; what is computed stays the same but for rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from benchmarks.speed.side import Side
from prefopt.model import attention
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.model.head import token_logps
from prefopt.model.logps import pair_rows, response_logps
from prefopt.model.packing import PackedRows, use_layout
from prefopt.train import microbatch, step


def without(name: str, side: Side) -> AbstractContextManager[Any]:
    """A context in which the saving ``name`` (a key of SAVINGS) is off; the empty name changes nothing."""
    return SAVINGS[name](side) if name else nullcontext()


def _prefix(side: Side) -> AbstractContextManager[Any]:
    """Two rows a pair, each with the prompt."""
    return patch.object(microbatch, "pair_rows", lambda pairs, *, shared: pair_rows(pairs, shared=False))


def _reference(side: Side) -> AbstractContextManager[Any]:
    """The reference's log-probabilities by a pass of its own at every step, instead of from the cache."""
    prepare = step.prepare

    def live(model: AdaptedModel, *args: Any, **kwargs: Any) -> Any:
        micro = prepare(model, *args, **kwargs)
        single = prepare(model, *args, **{**kwargs, "copies": 1}) if micro.rows.copies > 1 else micro
        with torch.no_grad(), model.off(), use_layout(single.rows):
            values = response_logps(model.base, single.rows)
        return dataclasses.replace(micro, reference=values.view(-1, 2).t().contiguous())

    return patch.object(step, "prepare", live)


def _head(side: Side) -> AbstractContextManager[Any]:
    """The language-model head on every token, prompts included."""

    def scored(base: Base, rows: PackedRows) -> Tensor:
        hidden = base.hidden(rows)
        others = torch.ones(hidden.shape[0], dtype=torch.bool, device=hidden.device)
        others[rows.predictors] = False
        rest = others.nonzero().squeeze(1)
        index, targets = torch.cat([rows.predictors, rest]), torch.cat([rows.targets, torch.zeros_like(rest)])
        return token_logps(hidden.index_select(0, index), base.head, targets)[: len(rows.predictors)]

    return patch.object(microbatch, "scored_logps", scored)


def _packing(side: Side) -> AbstractContextManager[Any]:
    """Rows padded to the longest of the batch, so that linear layers see padding too."""
    pack = microbatch.pack

    def padded(*args: Any, **kwargs: Any) -> PackedRows:
        rows = pack(*args, **kwargs)
        size = rows.rows * rows.width

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(size).index_copy_(0, rows.grid, values)

        return dataclasses.replace(
            rows,
            input_ids=spread(rows.input_ids),
            position_ids=spread(rows.position_ids),
            grid=torch.arange(size, device=rows.grid.device),
            predictors=rows.grid[rows.predictors],
            sequences=None,
        )

    return patch.object(microbatch, "pack", padded)


@contextmanager
def _forward(side: Side) -> Iterator[None]:
    """PEFT's own forward pass of a LoRA layer, on views of the same numbers."""
    layers = {name: m for name, m in side.model.adapters.peft.named_modules() if isinstance(m, LoraLayer)}
    own = {name: layer.forward for name, layer in layers.items()}
    values, gradients = (
        side.model.adapters.views(side.model.adapters.params[:1]),
        side.model.adapters.views(side.model.adapters.grads[:1]),
    )
    for site, (a, b), (da, db) in zip(side.model.adapters.sites, values, gradients, strict=True):
        layer = layers[site.name]
        del layer.forward
        for matrices, value, gradient in ((layer.lora_A, a[0], da[0]), (layer.lora_B, b[0], db[0])):
            weight = nn.Parameter(value)
            weight.grad = gradient
            matrices["default"].weight = weight
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.forward = own[name]


def _flash(side: Side) -> AbstractContextManager[Any]:
    """Attention by a dense mask over padded rows."""
    return patch.object(attention, "varlen", None)


def _by_option(side: Side) -> AbstractContextManager[Any]:
    """Nothing: OPTIONS turns this saving off."""
    return nullcontext()


SAVINGS: dict[str, Callable[[Side], AbstractContextManager[Any]]] = {
    "prefix sharing": _prefix,
    "reference cache": _reference,
    "head on responses only": _head,
    "no checkpointing": _by_option,
    "packing": _packing,
    "own LoRA pass": _forward,
    "flash attention": _flash,
    "stacking": _by_option,
}
# Settings of the training loop that belong to a saving turned off; PEFT's own pass knows one adapter at a time.
OPTIONS: dict[str, dict[str, Any]] = {
    "no checkpointing": {"checkpointing": True},
    "own LoRA pass": {"stack": 1},
    "stacking": {"stack": 1},
}
