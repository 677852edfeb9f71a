"""Prompts, and samples of tiny models."""

from __future__ import annotations

import torch
from rows import draw

from prefopt.model.adapted import AdaptedModel
from prefopt.model.generate import Sample, sample


def prompts(count: int) -> list[tuple[int, ...]]:
    source = torch.Generator().manual_seed(11)
    return [draw(n, source) for n in torch.randint(1, 9, (count,), generator=source).tolist()]


def run(
    model: AdaptedModel, some: list[tuple[int, ...]], adapters: slice | None, **kwargs: object
) -> list[list[Sample]]:
    options: dict[str, object] = {"samples": 2, "max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    return sample(model, some, adapters=adapters, **{**options, **kwargs})  # type: ignore[arg-type]
