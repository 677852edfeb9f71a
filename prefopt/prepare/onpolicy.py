"""On-policy preference pairs: the reference's own responses, labelled by a gold reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from prefopt.config.schema import Config, Pairs
from prefopt.data import TokenPair
from prefopt.model import generate
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.runtime.seeding import numpy_generator
from prefopt.storage.cache import kept_frame
from prefopt.storage.hashing import digest
from prefopt.tasks.base import Task, TaskPrompts

COLUMNS = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")


@dataclasses.dataclass(frozen=True, slots=True)
class MadePairs:
    """Pairs for training and held-out ones, with the share of labels that agree with the gold reward.

    Attributes:
        train: Tokenised training pairs.
        heldout: Tokenised held-out pairs, of other prompts; their labels are never flipped by ``label_noise``.
        label_accuracy: Share of training pairs whose chosen response has the larger reward.
        hash: Of the tokens and labels.
    """

    train: tuple[TokenPair, ...]
    heldout: tuple[TokenPair, ...]
    label_accuracy: float
    hash: str


def make_pairs(model: AdaptedModel, task: Task, prompts: TaskPrompts, config: Config, cache: Path) -> MadePairs:
    """Sample, score and label pairs, or take them from the cache.

    Responses with equal tokens make no pair. Held-out pairs are labelled without added noise.
    """
    settings = config.pairs
    drawn = _responses(model, task, prompts, settings, cache)
    n_train = len(prompts.train)
    train = label(drawn[drawn["prompt_id"] < n_train], settings, noise=settings.label_noise)
    heldout = label(drawn[drawn["prompt_id"] >= n_train], settings, noise=0.0)
    right = [(p.chosen_score or 0.0) > (p.rejected_score or 0.0) for p in train]
    content = [[p.prompt_ids, p.chosen_ids, p.rejected_ids] for p in (*train, *heldout)]
    return MadePairs(tuple(train), tuple(heldout), float(np.mean(right)), digest(content))


def _responses(model: AdaptedModel, task: Task, prompts: TaskPrompts, settings: Pairs, cache: Path) -> pd.DataFrame:
    """Columns prompt_id, prompt_ids, tokens, finished, reward: the reference's samples, cached."""
    texts = [*prompts.train, *prompts.heldout]
    base = model.base
    shape = settings.model_dump(include={"samples", "max_new_tokens", "temperature", "seed"})

    def draw() -> pd.DataFrame:
        ids = [encode(base, text) for text in texts]
        drawn = generate.sample(
            model,
            ids,
            adapters=None,
            samples=settings.samples,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=settings.seed,
        )[0]
        responses = [base.text(s.tokens) for s in drawn]
        return pd.DataFrame(
            {
                "prompt_id": [s.prompt for s in drawn],
                "prompt_ids": [list(ids[s.prompt]) for s in drawn],
                "tokens": [list(s.tokens) for s in drawn],
                "finished": [s.finished for s in drawn],
                "reward": task.reward([texts[s.prompt] for s in drawn], responses),
            }
        )

    key = digest([base.hash, task.fingerprint, texts, shape, base.device.type, generate.SAMPLER_VERSION])
    return kept_frame(cache / "responses" / f"{key}.sealed", draw)


def encode(base: Base, text: str) -> tuple[int, ...]:
    """A plain-text prompt as tokens, with the tokenizer's own beginning."""
    return tuple(base.tokenizer(text)["input_ids"])


def label(drawn: pd.DataFrame, settings: Pairs, *, noise: float) -> list[TokenPair]:
    """All pairs of different responses of each prompt, labelled.

    Args:
        drawn: As from ``_responses``.
        settings: Kind and scale of the labels, and their seed.
        noise: Share of labels flipped afterwards, each independently.
    """
    pairs: list[TokenPair] = []
    for prompt_id, group in drawn.groupby("prompt_id", sort=True):
        random = numpy_generator(settings.seed, "labels", int(prompt_id))
        rows = list(group.itertuples(index=False))
        for first, second in combinations(rows, 2):
            draw, flip = random.random(2)  # drawn for every pair, so that one pair more or less moves no other label
            if tuple(first.tokens) == tuple(second.tokens):
                continue
            gap = settings.scale * (first.reward - second.reward)
            wins = gap > 0 if settings.labels == "argmax" else draw < 1 / (1 + np.exp(-np.clip(gap, -500, 500)))
            chosen, rejected = (first, second) if wins != (flip < noise) else (second, first)
            pairs.append(
                TokenPair(
                    prompt_ids=tuple(int(t) for t in chosen.prompt_ids),
                    chosen_ids=tuple(int(t) for t in chosen.tokens),
                    rejected_ids=tuple(int(t) for t in rejected.tokens),
                    prompt_id=int(prompt_id),
                    pair_id=len(pairs),
                    chosen_score=float(chosen.reward),
                    rejected_score=float(rejected.reward),
                    chosen_truncated=not chosen.finished,
                    rejected_truncated=not rejected.finished,
                )
            )
    return pairs


def as_rows(base: Base, pairs: Sequence[TokenPair]) -> list[dict[str, str | float | None]]:
    """Pairs as text in the field's standard columns, with the gold rewards as scores."""
    return [
        dict(
            zip(
                COLUMNS,
                (
                    base.text(p.prompt_ids),
                    base.text(p.chosen_ids),
                    base.text(p.rejected_ids),
                    p.chosen_score,
                    p.rejected_score,
                ),
                strict=True,
            )
        )
        for p in pairs
    ]
