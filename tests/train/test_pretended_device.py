"""The path of every device but the CPU, without one: no tensor of another device, and no wait inside a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pretended import WAITS, pretended_model
from rows import pairs
from torch import Tensor
from training import CONFIG, scored

from prefopt import PairLogps, make_loss
from prefopt.contract.loss import Loss
from prefopt.data.types import TokenGroup
from prefopt.losses import loss_names
from prefopt.model.adapted import AdaptedModel
from prefopt.model.generate import Sampling, sample
from prefopt.model.logps import pair_rows, response_logps
from prefopt.model.packing import pack, use_layout
from prefopt.train.feed import GroupBatch
from prefopt.train.grouped import GroupedBatch
from prefopt.train.heldout import heldout_logps
from prefopt.train.optimizer import with_optimizer
from prefopt.train.pairset import PairSet, Reference
from prefopt.train.state import Run, collect
from prefopt.train.step import Batch, train_step

Folder = Callable[[str], Path]
NAMES = sorted(loss_names())
PAIRS = scored(4, 1)
ZEROS = np.zeros((2, 4), np.float32)


def step(model: AdaptedModel, losses: list[Loss], *, micro_batch: int | str = "auto") -> list[Run]:
    config = CONFIG.model_copy(update={"micro_batch": micro_batch})
    runs = [Run(str(slot), loss, 1e-3, slot) for slot, loss in enumerate(losses)]
    for run in runs:
        with_optimizer(run, model.adapters, config)
    train_step(model, runs, Batch(model, PAIRS, ZEROS, config, seed=0, step=0), config)
    return runs


SEE_MORE = [n for n in NAMES if make_loss(n).batch_coupled or make_loss(n).token_fields]


@pytest.mark.parametrize(("micro_batch", "names"), [("auto", NAMES), (2, SEE_MORE)])
def test_every_loss_steps_without_a_wait_or_a_tensor_of_another_device(
    micro_batch: int | str, names: list[str], tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended_model(tiny_folder("llama"), monkeypatch, size=3) as model:
        for first in range(0, len(names), 3):
            losses = [make_loss(name) for name in names[first : first + 3]]
            for run in step(model, losses, micro_batch=micro_batch):
                assert run.pending[-1].means.device == model.base.device


@pytest.mark.parametrize("micro_batch", ["auto", 1])
def test_groups_step_without_a_wait_or_a_tensor_of_another_device(
    micro_batch: int | str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [TokenGroup(p.prompt_ids, (p.chosen_ids, p.rejected_ids), (True,) * 2, (1, 0), (1, 0), 0) for p in PAIRS]
    config = CONFIG.model_copy(update={"micro_batch": micro_batch})
    zeros = [[np.zeros(len(r), np.float32) for r in group.responses] for group in both]
    batch = GroupBatch(both, list(ZEROS.T), zeros)
    with pretended_model(tiny_folder("llama"), monkeypatch, size=3) as model:
        runs = [Run(name, make_loss(name), 1e-3, slot) for slot, name in enumerate(("rloo", "grpo", "dpo_pl"))]
        for run in runs:
            with_optimizer(run, model.adapters, config)
        train_step(model, runs, GroupedBatch(model, batch, config, 0, 0), config)
        assert all(run.pending[-1].means.device == model.base.device for run in runs)


@pytest.mark.parametrize(("kind", "dtype"), [("gpt2", "float32"), ("qwen3", "bfloat16"), ("gemma3", "bfloat16")])
def test_every_kind_of_model_and_all_per_token_values(
    kind: str, dtype: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended_model(tiny_folder(kind), monkeypatch, size=3, dtype=dtype) as model:
        for names in (["dpo"], ["dpo"] * 3, ["tdpo", "sampo", "wpo"]):
            step(model, [make_loss(name) for name in names])


def asks_for_a_value(_: Loss, logps: PairLogps) -> Tensor:
    margin = logps.chosen - logps.rejected
    return margin / max(1.0, margin.abs().max().item())


def looks_where(_: Loss, logps: PairLogps) -> Tensor:
    margin = logps.chosen - logps.rejected
    return margin.index_fill(0, (margin > 0).nonzero()[:, 0], 0.0)


def computes_on_the_cpu(_: Loss, logps: PairLogps) -> Tensor:
    return (logps.chosen - logps.rejected) * torch.ones(logps.chosen.shape[0])


@pytest.mark.parametrize(
    ("fault", "error"), [(asks_for_a_value, WAITS), (looks_where, WAITS), (computes_on_the_cpu, RuntimeError)]
)
def test_a_fault_in_a_step_is_caught(
    fault: Callable[[Loss, PairLogps], Tensor], error: type, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(make_loss("dpo")), "__call__", fault)
    with pretended_model(tiny_folder("llama"), monkeypatch, size=1) as model, pytest.raises(error):
        step(model, [make_loss("dpo")])


def test_a_batch_on_the_cpu_is_caught(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_model(tiny_folder("llama"), monkeypatch, size=1) as model:
        rows = pack(pair_rows(PAIRS, shared=True), device="cpu")
        with pytest.raises(RuntimeError, match="npy"), model.use(slice(0, 1)), use_layout(rows):
            response_logps(model.base, rows)


def test_the_history_waits_where_it_is_collected_and_nowhere_before(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended_model(tiny_folder("llama"), monkeypatch, size=1) as model:
        (run,) = step(model, [make_loss("dpo")])
        with pytest.raises(WAITS):
            collect(run)


@pytest.mark.parametrize("name", ["dpo", "tdpo", "kto"])
def test_held_out_pairs_are_scored_on_the_device(
    name: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = make_loss(name)
    with pretended_model(tiny_folder("llama"), monkeypatch, size=1) as model:
        some = PairSet(tuple(PAIRS), Reference(ZEROS[0], ZEROS[1], ""))
        if name == "dpo":  # sums are kept by numpy, so they are fetched
            with pytest.raises((*WAITS, RuntimeError, TypeError)):
                heldout_logps(model, 0, loss, some, seed=0)
            return
        batch = heldout_logps(model, 0, loss, some, seed=0)
        assert loss(batch).device == model.base.device


@pytest.mark.parametrize(("kind", "adapters"), [("llama", slice(0, 3)), ("gpt2", slice(0, 1)), ("llama", None)])
def test_sampling_waits_only_where_tokens_are_fetched(
    kind: str, adapters: slice | None, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[tuple[int, ...]] = [pair.prompt_ids for pair in pairs(3)]
    with pretended_model(tiny_folder(kind), monkeypatch, size=3) as model, pytest.raises(WAITS) as caught:
        sample(model, prompts, adapters=adapters, how=Sampling(samples=2, max_new_tokens=5), seed=0)
    lines = [str(entry.statement) for entry in caught.traceback if entry.path.name == "generate.py"]
    assert "tolist" in lines[-1]
