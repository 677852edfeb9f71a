"""Prompts, and samples of tiny models."""

from __future__ import annotations

import dataclasses

import torch
from rows import draw

from prefopt.model.adapted import AdaptedModel
from prefopt.model.generate import Sample, Sampling, sample


def prompts(count: int) -> list[tuple[int, ...]]:
    source = torch.Generator().manual_seed(11)
    return [draw(n, source) for n in torch.randint(1, 9, (count,), generator=source).tolist()]


def run(
    model: AdaptedModel, some: list[tuple[int, ...]], adapters: slice | None, **kwargs: object
) -> list[list[Sample]]:
    shape = {field.name: kwargs.pop(field.name) for field in dataclasses.fields(Sampling) if field.name in kwargs}
    how = dataclasses.replace(Sampling(samples=2, max_new_tokens=12), **shape)  # type: ignore[arg-type]
    return sample(model, some, adapters=adapters, how=how, **{"seed": 3, **kwargs})  # type: ignore[arg-type]
