"""How a step fits the machine: measured activations, recomputation, width of a stack."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from training import CONFIG, LORA, scored, train

from prefopt import make_loss
from prefopt.errors import MachineError
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.train import autosize as module
from prefopt.train.autosize import activation_bytes, fastest_stack, fit, set_checkpointing
from prefopt.train.state import Run


def ready(base: Base, n: int = 3) -> tuple[AdaptedModel, list[Run]]:
    model = AdaptedModel.wrap(base, LORA, size=n + 1)
    return model, [Run(str(i), make_loss("dpo"), 1e-3, i) for i in range(n)]


def test_recomputing_keeps_less_and_changes_nothing(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model, _ = ready(base)
    pair = scored(1, 0)[0]
    kept = activation_bytes(model, pair)
    set_checkpointing(base, True)
    assert activation_bytes(model, pair) < kept / 3
    set_checkpointing(base, False)
    assert activation_bytes(model, pair) == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_training_with_recomputation_is_equal_to_the_bit(kind: str, tiny_base: Callable[..., Base]) -> None:
    _, plain = train(tiny_base(kind), ["dpo"])
    base = tiny_base(kind)
    set_checkpointing(base, True)
    assert sum(module.training for module in base.model.modules()) > 0
    _, recomputed = train(base, ["dpo"])
    assert torch.equal(plain.adapters.params, recomputed.adapters.params)


def test_memory_decides_micro_batch_and_recomputation(
    tiny_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    model, runs = ready(base)
    pairs = scored(8, 0)
    longest = max(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    rich = fit(model, runs, pairs, CONFIG)
    assert (rich.micro_batch, rich.stack, rich.checkpointing) == (4, 1, False)
    need = rich.bytes_per_token * longest / module.MEMORY_SHARE
    monkeypatch.setattr(module, "free_bytes", lambda device: int(2.5 * need))
    assert fit(model, runs, pairs, CONFIG).micro_batch == 2
    monkeypatch.setattr(module, "free_bytes", lambda device: int(0.9 * need))
    poor = fit(model, runs, pairs, CONFIG)
    assert poor.checkpointing
    monkeypatch.setattr(module, "free_bytes", lambda device: 100)
    with pytest.raises(MachineError, match=r"lower data\.max_length"):
        fit(model, runs, pairs, CONFIG)


def test_what_is_set_is_kept(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    model, runs = ready(base)
    fixed = CONFIG.model_copy(update={"micro_batch": 3, "stack": 2, "checkpointing": True})
    chosen = fit(model, runs, scored(8, 0), fixed)
    assert (chosen.micro_batch, chosen.stack, chosen.checkpointing) == (3, 2, True)
    assert chosen.apply(CONFIG).micro_batch == 3


def test_the_widest_useful_stack_is_found_and_nothing_moves(
    tiny_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    model, runs = ready(base, 8)
    before = model.adapters.params.clone()
    assert 1 <= fastest_stack(model, runs, scored(4, 0), CONFIG, widest=8) <= 8
    assert torch.equal(model.adapters.params, before)
    cost = {1: 1.0, 2: 1.2, 4: 1.6, 8: 3.3}
    monkeypatch.setattr(module, "step_seconds", lambda model, runs, pairs, config: cost[len(runs)])
    assert fastest_stack(model, runs, scored(4, 0), CONFIG, widest=8) == 4
    assert fastest_stack(model, runs, scored(4, 0), CONFIG, widest=2) == 2
