"""On-policy pairs: all pairs of a prompt, labelled by the gold reward in the way that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from prefopt.config.schema import Lora
from prefopt.config.sections import Pairs
from prefopt.model import generate
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.prepare.onpolicy import label, sampled_responses
from prefopt.prepare.task import Tasks


def responses(prompts: int, samples: int = 4, spread: float = 1.0) -> pd.DataFrame:
    source = np.random.default_rng(0)
    rows = [
        (p, [1, 2, 3], [10 + s, 20 + p % 50], False, float(spread * source.normal()))
        for p in range(prompts)
        for s in range(samples)
    ]
    return pd.DataFrame(rows, columns=["prompt_id", "prompt_ids", "tokens", "finished", "reward"])


def right(pairs: list) -> float:  # type: ignore[type-arg]
    return float(np.mean([p.chosen_score > p.rejected_score for p in pairs]))


def test_every_pair_of_a_prompt_is_labelled_once() -> None:
    pairs = label(responses(5), Pairs(labels="argmax"), noise=0.0)
    assert len(pairs) == 5 * 6
    assert len({frozenset((p.chosen_ids, p.rejected_ids)) | {p.prompt_id} for p in pairs}) == 30
    assert right(pairs) == 1.0
    assert [p.pair_id for p in pairs] == list(range(30))


def test_bradley_terry_labels_follow_the_reward() -> None:
    sampled = responses(800)
    for scale in (0.5, 1.0, 3.0):
        pairs = label(sampled, Pairs(scale=scale), noise=0.0)
        gaps = np.array([abs(p.chosen_score - p.rejected_score) for p in pairs])  # type: ignore[operator]
        expected = (1 / (1 + np.exp(-scale * gaps))).mean()
        assert right(pairs) == pytest.approx(expected, abs=0.02)


def test_noise_flips_a_share_and_no_other_label() -> None:
    sampled = responses(400)
    clean, noisy = (label(sampled, Pairs(), noise=share) for share in (0.0, 0.2))
    flipped = np.mean([a.chosen_ids != b.chosen_ids for a, b in zip(clean, noisy, strict=True)])
    assert flipped == pytest.approx(0.2, abs=0.03)
    assert right(label(sampled, Pairs(labels="argmax"), noise=0.5)) == pytest.approx(0.5, abs=0.03)


def test_equal_responses_make_no_pair() -> None:
    sampled = responses(1)
    sampled["tokens"] = [[1], [1], [2], [2]]
    assert len(label(sampled, Pairs(), noise=0.0)) == 4


def test_a_prompt_more_moves_no_label() -> None:
    sampled = responses(6)
    few = label(sampled[sampled["prompt_id"] < 4], Pairs(), noise=0.1)
    many = label(sampled, Pairs(), noise=0.1)
    assert many[: len(few)] == few


def test_responses_of_another_sampler_are_not_taken_from_the_cache(
    tiny_base: Callable[..., Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    model = AdaptedModel.wrap(base, Lora(rank=2, alpha=4), size=1)
    toy: Any = SimpleNamespace(fingerprint="toy", reward=lambda texts, responses: np.zeros(len(texts)))
    task = Tasks(toy, toy, toy)
    texts, settings = ("the cat", "a dog"), Pairs(samples=2, max_new_tokens=3)

    def kept() -> int:
        sampled_responses(model, task, texts, settings, tmp_path)
        return len(list((tmp_path / "responses").glob("*.sealed")))

    assert kept() == kept() == 1
    monkeypatch.setattr(generate, "SAMPLER_VERSION", generate.SAMPLER_VERSION + 1)
    assert kept() == 2
