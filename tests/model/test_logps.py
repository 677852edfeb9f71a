"""Packed rows against a loop over tokens of plain transformers, for every architecture that the project meets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from rows import by_hand, draw, pairs

from prefopt.config.schema import Lora
from prefopt.data import TokenPair
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.model.logps import pair_rows, response_logps, score_rows
from prefopt.model.packing import Row, pack, use_layout
from prefopt.storage.hashing import digest
from prefopt.train.pairset import reference_logps, unique_responses


@pytest.mark.parametrize("kind", [*tiny.PACKED, *tiny.PLAIN])
def test_log_probabilities_equal_a_loop_over_tokens(
    kind: str, tiny_base: Callable[..., Base], tiny_folder: Callable[[str], Path]
) -> None:
    base = tiny_base(kind)
    assert base.packed == (kind in tiny.PACKED), base.why_plain
    rows = pair_rows(some := pairs(3), shared=base.packed)
    got = score_rows(base, rows)
    expected = [by_hand(tiny_folder(kind), p.prompt_ids, y) for p in some for y in (p.chosen_ids, p.rejected_ids)]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_plain_path_says_why(tiny_base: Callable[..., Base]) -> None:
    assert "final_logit_softcapping" in tiny_base("gemma2").why_plain
    assert "sliding window" in tiny_base("mistral_window").why_plain
    assert tiny_base("mamba").why_plain


def test_a_window_longer_than_the_probe_is_still_respected(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base("gemma3")  # window 128
    with pytest.raises(Exception, match="sliding window of 128"):
        score_rows(base, [Row(tuple(range(3, 160)), ((5, 6),))])


def test_batch_order_and_companions_change_nothing(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    rows = pair_rows(pairs(7), shared=True)
    whole = score_rows(base, rows)
    alone = np.concatenate([score_rows(base, [row]) for row in rows])
    backwards = score_rows(base, rows[::-1]).reshape(-1, 2)[::-1].ravel()
    np.testing.assert_allclose(whole, alone, atol=1e-5)
    np.testing.assert_allclose(whole, backwards, atol=1e-5)


def test_unique_responses_point_back_to_every_pair(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    source = torch.Generator().manual_seed(1)
    prompt, ys = draw(4, source), [draw(n, source) for n in (3, 5, 2, 6, 4, 7)]
    some = [
        TokenPair(prompt, ys[i], ys[j], 0, k, None, None, False, False)
        for k, (i, j) in enumerate([(0, 1), (2, 0), (3, 4), (5, 1), (1, 2)])
    ]
    unique = unique_responses(some, shared=True)
    assert sum(len(row.responses) for row in unique.rows) == 6
    values = score_rows(base, unique.rows)
    expected = score_rows(base, pair_rows(some, shared=True)).reshape(-1, 2)
    np.testing.assert_allclose(np.stack([values[unique.chosen], values[unique.rejected]], 1), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "mamba"])
def test_gradients_equal_those_of_peft_on_padded_rows(
    kind: str, tiny_base: Callable[..., Base], tiny_folder: Callable[[str], Path]
) -> None:
    """The bank's gradients against autograd through PEFT's own layers and an unshared, padded batch."""
    from peft import LoraConfig, get_peft_model

    base = tiny_base(kind)
    targets = ["in_proj", "x_proj"] if kind == "mamba" else "all-linear"
    model = AdaptedModel.wrap(base, Lora(rank=4, alpha=8, targets=targets), size=1)
    model.adapters.initialise(0, 0)
    model.adapters.params += 0.02 * torch.randn(model.adapters.params.shape, generator=torch.Generator().manual_seed(3))
    some = pairs(4)
    weights = torch.linspace(-1, 1, 8)
    rows = pack(pair_rows(some, shared=base.packed))
    with model.train(slice(0, 1)), use_layout(rows):
        (response_logps(base, rows) * weights).sum().backward()

    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder(kind))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=kind == "gpt2")
    peft_model = get_peft_model(plain, config)
    peft_model.eval()
    layers = dict(peft_model.named_modules())
    with torch.no_grad():
        for (a, b), site in zip(model.adapters.views(model.adapters.params), model.adapters.sites, strict=True):
            layers[site.name].lora_A["default"].weight.copy_(a[0])
            layers[site.name].lora_B["default"].weight.copy_(b[0])
    total = torch.zeros(())
    flat = [(p.prompt_ids, y) for p in some for y in (p.chosen_ids, p.rejected_ids)]
    for weight, (prompt, response) in zip(weights, flat, strict=True):
        logits = peft_model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        total = total + weight * logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()
    total.backward()
    for (da, db), site in zip(model.adapters.views(model.adapters.grads), model.adapters.sites, strict=True):
        for got, layer in ((da[0], layers[site.name].lora_A), (db[0], layers[site.name].lora_B)):
            torch.testing.assert_close(got, layer["default"].weight.grad, atol=2e-4, rtol=2e-3)


def test_reference_is_computed_once_and_keyed_by_its_data(tiny_base: Callable[..., Base], tmp_path: Path) -> None:
    base = tiny_base()
    some = pairs(4)
    first = reference_logps(base, some, data_hash="a", cache=tmp_path)
    files = list((tmp_path / "reference").iterdir())
    stamp = files[0].stat().st_mtime_ns
    again = reference_logps(base, some, data_hash="a", cache=tmp_path)
    assert [f.stat().st_mtime_ns for f in (tmp_path / "reference").iterdir()] == [stamp]
    np.testing.assert_array_equal(first.chosen, again.chosen)
    reference_logps(base, some[:2], data_hash=digest("other"), cache=tmp_path)
    assert len(list((tmp_path / "reference").iterdir())) == 2
