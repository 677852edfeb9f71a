"""The adapter bank: alone and stacked, saved as PEFT's own folder, merged, switched off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from rows import pairs
from training import LORA, shaken

from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.model.logps import pair_rows, response_logps, score_rows
from prefopt.model.packing import pack, use_layout


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_stacked_adapters_equal_single_ones(kind: str, tiny_base: Callable[..., Base]) -> None:
    base = tiny_base(kind)
    model = shaken(base, 3)
    rows = pair_rows(pairs(4), shared=True)
    singles, gradients = [], []
    for index in range(3):
        packed = pack(rows)
        with model.train(slice(index, index + 1)), use_layout(packed):
            out = response_logps(base, packed)
            out.sum().backward()
        singles.append(out.detach())
        gradients.append(model.adapters.grads[index].clone())
    model.adapters.grads.zero_()
    packed = pack(rows, copies=3)
    with model.train(slice(0, 3)), use_layout(packed):
        out = response_logps(base, packed)
        out.sum().backward()
    torch.testing.assert_close(out.detach().view(3, -1), torch.stack(singles), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(model.adapters.grads, torch.stack(gradients), atol=1e-3, rtol=1e-3)


def test_a_fresh_adapter_and_none_are_the_base_to_the_bit(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model = AdaptedModel.wrap(base, LORA, size=2)
    model.adapters.initialise(0, 7)
    rows = pair_rows(pairs(4), shared=True)
    with model.off():
        plain = score_rows(base, rows)
    with model.use(slice(0, 1)):
        fresh = score_rows(base, rows)
    with model.use(slice(1, 2)):
        zero = score_rows(base, rows)
    assert (plain == fresh).all()
    assert (plain == zero).all()


def test_initialisation_depends_on_the_seed_alone(tiny_base: Callable[..., Base]) -> None:
    model = AdaptedModel.wrap(tiny_base(), LORA, size=3)
    torch.manual_seed(1)
    model.adapters.initialise(0, 0)
    torch.manual_seed(2)
    model.adapters.initialise(1, 0)
    model.adapters.initialise(2, 1)
    assert model.adapters.hash(0) == model.adapters.hash(1) != model.adapters.hash(2)
    for (a, b), site in zip(model.adapters.views(model.adapters.params), model.adapters.sites, strict=True):
        assert a.abs().max() <= site.n_in**-0.5
        assert a.std() > 0.4 * site.n_in**-0.5
        assert not b.any()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_saved_adapter_loads_with_peft(
    kind: str, tiny_base: Callable[..., Base], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_base(kind)
    model = shaken(base, 2)
    some = pairs(2)
    with model.use(slice(1, 2)):
        expected = score_rows(base, pair_rows(some, shared=True))
    model.adapters.save(1, tmp_path / "adapter")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder(kind))
    model = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    got = []
    for p in some:
        for y in (p.chosen_ids, p.rejected_ids):
            logits = model(torch.tensor([[*p.prompt_ids, *y]])).logits[0, len(p.prompt_ids) - 1 : -1]
            got.append(logits.log_softmax(-1).gather(1, torch.tensor(y)[:, None]).sum().item())
    torch.testing.assert_close(torch.tensor(got), torch.from_numpy(expected), atol=1e-3, rtol=1e-4)
    assert not list((tmp_path / "adapter").glob("*.bin"))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merging_equals_the_adapter(kind: str, tiny_base: Callable[..., Base]) -> None:
    base = tiny_base(kind)
    model = shaken(base, 1)
    rows = pair_rows(pairs(3), shared=True)
    with model.use(slice(0, 1)):
        expected = score_rows(base, rows)
    model.adapters.merge(0)
    model.adapters.remove()
    torch.testing.assert_close(
        torch.from_numpy(score_rows(base, rows)), torch.from_numpy(expected), atol=1e-3, rtol=1e-4
    )
