"""The adapter bank: alone and stacked, saved as PEFT's own folder, merged, switched off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from rows import pairs
from training import shaken

from prefopt.model.adapters import AdapterBank
from prefopt.model.base import Base
from prefopt.model.logps import pair_rows, response_logps, score_rows
from prefopt.model.packing import pack, use_layout


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_stacked_adapters_equal_single_ones(kind: str, tiny_base: Callable[..., Base]) -> None:
    base = tiny_base(kind)
    bank = shaken(base, 3)
    rows = pair_rows(pairs(4), shared=True)
    singles, gradients = [], []
    for index in range(3):
        packed = pack(rows)
        with bank.train(index, index + 1), use_layout(packed):
            out = response_logps(base, packed)
            out.sum().backward()
        singles.append(out.detach())
        gradients.append(bank.grads[index].clone())
    bank.grads.zero_()
    packed = pack(rows, copies=3)
    with bank.train(0, 3), use_layout(packed):
        out = response_logps(base, packed)
        out.sum().backward()
    torch.testing.assert_close(out.detach().view(3, -1), torch.stack(singles), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(bank.grads, torch.stack(gradients), atol=1e-3, rtol=1e-3)


def test_a_fresh_adapter_and_none_are_the_base_to_the_bit(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    bank = AdapterBank(base.model, size=2, rank=4, alpha=8)
    bank.initialise(0, 7)
    rows = pair_rows(pairs(4), shared=True)
    with bank.off():
        plain = score_rows(base, rows)
    with bank.use(0, 1):
        fresh = score_rows(base, rows)
    with bank.use(1, 2):
        zero = score_rows(base, rows)
    assert (plain == fresh).all()
    assert (plain == zero).all()


def test_initialisation_depends_on_the_seed_alone(tiny_base: Callable[..., Base]) -> None:
    bank = AdapterBank(tiny_base().model, size=3, rank=4, alpha=8)
    torch.manual_seed(1)
    bank.initialise(0, 0)
    torch.manual_seed(2)
    bank.initialise(1, 0)
    bank.initialise(2, 1)
    assert bank.hash(0) == bank.hash(1) != bank.hash(2)
    for (a, b), site in zip(bank.views(bank.params), bank.sites, strict=True):
        assert a.abs().max() <= site.n_in**-0.5
        assert a.std() > 0.4 * site.n_in**-0.5
        assert not b.any()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_saved_adapter_loads_with_peft(
    kind: str, tiny_base: Callable[..., Base], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_base(kind)
    bank = shaken(base, 2)
    some = pairs(2)
    with bank.use(1, 2):
        expected = score_rows(base, pair_rows(some, shared=True))
    bank.save(1, tmp_path / "adapter")
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
    bank = shaken(base, 1)
    rows = pair_rows(pairs(3), shared=True)
    with bank.use(0, 1):
        expected = score_rows(base, rows)
    bank.merge(0)
    bank.remove()
    torch.testing.assert_close(
        torch.from_numpy(score_rows(base, rows)), torch.from_numpy(expected), atol=1e-3, rtol=1e-4
    )
