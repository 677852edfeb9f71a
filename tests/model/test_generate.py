"""Sampling: common random numbers, independence of batch-mates, and the right distribution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from drawing import prompts, run
from training import shaken

from prefopt.model import generate
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.model.noise import exponential, squares
from prefopt.runtime.seeding import derive_seed


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "gemma2"])
def test_samples_do_not_depend_on_batch_mates_or_place(kind: str, tiny_base: Callable[..., Base]) -> None:
    base = tiny_base(kind)
    model = shaken(base, 3)
    some = prompts(6)
    together = run(model, some, slice(0, 3))
    for slot in range(3):
        assert run(model, some, slice(slot, slot + 1))[0] == together[slot]
    part = run(model, some[2:4], slice(1, 2), prompt_ids=[2, 3])[0]
    assert [s.tokens for s in part] == [s.tokens for s in together[1] if s.prompt in (2, 3)]


def test_equal_policies_give_equal_text_and_different_ones_differ(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model = shaken(base, 3)
    model.adapters.params[2] = 0
    some = prompts(5)
    drawn = run(model, some, slice(0, 3))
    assert drawn[2] == run(model, some, None)[0]
    assert drawn[0] != drawn[2]
    assert run(model, some, None, seed=4)[0] != drawn[2]
    assert {s.number for s in drawn[0]} == {0, 1}
    assert drawn[0][0].tokens != drawn[0][1].tokens


def test_small_batches_and_dropped_slots_change_nothing(
    tiny_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    model = shaken(base, 2)
    some = prompts(7)
    expected = run(model, some, slice(0, 2), max_new_tokens=150)
    monkeypatch.setattr(generate, "ROWS_PER_BATCH", {"cpu": 8})
    monkeypatch.setattr(generate, "COMPACT_EVERY", 1)
    assert run(model, some, slice(0, 2), max_new_tokens=150) == expected
    assert any(s.finished for s in expected[0])


def test_the_end_token_is_counted_once_and_ends_the_response(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model = shaken(base, 1)
    for s in run(model, prompts(20), None, max_new_tokens=60)[0]:
        assert s.tokens.count(base.eos) == int(s.finished)
        assert len(s.tokens) == 60 or s.tokens[-1] == base.eos


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_follow_the_model(temperature: float, tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model = shaken(base, 1)
    prompt = prompts(1)[0]
    with torch.no_grad():
        base.model.set_attn_implementation("eager")
        logits = base.model(torch.tensor([prompt])).logits[0, -1] / temperature
        base.model.set_attn_implementation("prefopt_packed")
    expected = logits.double().softmax(-1).numpy()
    drawn = run(model, [prompt], None, samples=4000, max_new_tokens=1, temperature=temperature)[0]
    counts = np.bincount([s.tokens[0] for s in drawn], minlength=320)
    likely = expected * 4000 >= 5
    chi2 = ((counts - 4000 * expected) ** 2 / (4000 * expected))[likely].sum()
    assert likely.sum() > 20
    assert chi2 < likely.sum() + 5 * np.sqrt(2 * likely.sum())


def test_plain_and_packed_decoding_agree(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model = shaken(base, 2)
    some = prompts(6)
    packed = run(model, some, slice(0, 2))
    base.model.set_attn_implementation("sdpa")
    assert run(AdaptedModel(dataclasses.replace(base, packed=False), model.adapters), some, slice(0, 2)) == packed


def noise_of(slots: int, positions: int, vocabulary: int) -> torch.Tensor:
    keys = torch.tensor([[derive_seed(0, "sampling", slot) | 1] for slot in range(slots)])
    return torch.cat([exponential(keys, c) for c in torch.arange(positions * vocabulary).view(positions, -1)])


def test_noise_is_exponential_and_never_zero() -> None:
    """A zero would be an infinite logarithm, and its token would win whatever its probability."""
    values = noise_of(1, 16, 2**20)
    assert (values > 0).all()
    assert values.mean() == pytest.approx(1.0, abs=0.002)
    for share in (1e-5, 0.01, 0.5, 0.99):
        assert (values < -np.log1p(-share)).double().mean() == pytest.approx(share, abs=5 * np.sqrt(share / 2**24))


def test_counters_give_the_numbers_of_the_paper() -> None:
    """arXiv:2004.06278, algorithm squares32, in whole numbers of any size."""

    def squares32(counter: int, key: int) -> int:
        whole = 2**64 - 1
        x = y = counter * key & whole
        z = y + key & whole
        for added in (y, z, y):
            x = x * x + added & whole
            x = x >> 32 | x << 32 & whole
        return (x * x + z & whole) >> 32

    keys = [0x548C9DECBCE65297, 0x7FFFFFFFFFFFFFFF, 1]
    counters = [0, 1, 49151, 49152 * 511, 2**40 + 3]
    expected = [[squares32(c, k) for c in counters] for k in keys]
    assert squares(torch.tensor(counters), torch.tensor(keys)[:, None]).tolist() == expected


def test_the_noise_of_two_slots_and_of_two_positions_is_unrelated() -> None:
    correlation = torch.corrcoef(noise_of(4, 4, 2**16)) - torch.eye(16)
    assert correlation.abs().max() < 5 / 2**8
