"""What only a CUDA device can show: its attention, stacking, 4- and 8-bit bases and optimizers, against the CPU."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rows import by_hand, pairs
from training import LORA, pair_set, scored

from prefopt import make_loss
from prefopt.config.schema import Train
from prefopt.model import attention
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base, load_base
from prefopt.model.generate import Sampling, sample
from prefopt.model.logps import pair_rows, response_logps, score_rows
from prefopt.model.packing import pack, use_layout
from prefopt.runtime.progress import Silent
from prefopt.train.feed import FixedOrder
from prefopt.train.loop import train_group
from prefopt.train.state import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes")
CONFIG = Train(steps=8, pairs_per_step=4, learning_rate=3e-3, warmup_steps=2, eval_every=4, log_every=2)
LABELS = ("dpo", "simpo", "ipo")
Load = Callable[..., Base]


@pytest.fixture
def cuda_base(tiny_folder: Callable[[str], Path]) -> Load:
    def load(kind: str = "llama", *, dtype: str = "float32", quantization: str = "none", device: str = "cuda") -> Base:
        return load_base(str(tiny_folder(kind)), dtype=dtype, quantization=quantization, device=torch.device(device))

    return load


def shaken(base: Base, size: int) -> AdaptedModel:
    """Adapters that do something: B is drawn too, on the CPU, so that every device has the same."""
    model = AdaptedModel.wrap(base, LORA, size=size)
    source = torch.Generator().manual_seed(5)
    model.adapters.params.copy_(0.1 * torch.randn(model.adapters.params.shape, generator=source))
    return model


def train(base: Base, config: Train, labels: tuple[str, ...] = LABELS) -> tuple[list[Run], AdaptedModel]:
    model = AdaptedModel.wrap(base, LORA, size=len(labels))
    for slot in range(len(labels)):
        model.adapters.initialise(slot, 0)
    runs = [Run(f"{i}", make_loss(label), config.learning_rate, i) for i, label in enumerate(labels)]
    with model.off():
        sets = [pair_set(base, scored(8, 1)), pair_set(base, scored(4, 2))]
    train_group(
        model,
        runs,
        feed=FixedOrder.of(sets[0], config, 0),
        heldout=sets[1],
        config=config,
        seed=0,
        progress=Silent(),
    )
    return runs, model


def losses(run: Run) -> list[float]:
    return [row.loss for row in run.history if row.split == "train"]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma"])
def test_log_probabilities_equal_a_loop_over_tokens(
    kind: str, cuda_base: Load, tiny_folder: Callable[[str], Path]
) -> None:
    base = cuda_base(kind)
    assert base.packed, base.why_plain
    some = pairs(2)
    wanted = [by_hand(tiny_folder(kind), p.prompt_ids, y) for p in some for y in (p.chosen_ids, p.rejected_ids)]
    np.testing.assert_allclose(score_rows(base, pair_rows(some, shared=True)), wanted, atol=2e-3)


def logps_and_gradient(base: Base, copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    model = shaken(base, copies)
    rows = pack(pair_rows(pairs(6), shared=True), device=base.device, copies=copies)
    with model.train(slice(0, copies)), use_layout(rows):
        values = response_logps(base, rows)
        (values * torch.linspace(-1, 1, len(values), device=base.device)).sum().backward()
    gradient = model.adapters.grads.clone()
    model.adapters.remove()
    return values.detach().cpu(), gradient.cpu()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_equal_those_of_the_cpu(kind: str, cuda_base: Load) -> None:
    values, gradient = logps_and_gradient(cuda_base(kind))
    wanted_values, wanted = logps_and_gradient(cuda_base(kind, device="cpu"))
    torch.testing.assert_close(values, wanted_values, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(gradient, wanted, atol=1e-3 * float(wanted.abs().max()), rtol=1e-3)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@pytest.mark.parametrize("copies", [1, 3])
def test_flash_attention_equals_attention_under_the_mask(
    copies: int, cuda_base: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attention.varlen is None:
        pytest.skip("this PyTorch has no varlen_attn")
    calls = []
    real = attention.varlen
    monkeypatch.setattr(attention, "varlen", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    base = cuda_base(dtype="bfloat16")
    calls.clear()
    values, gradient = logps_and_gradient(base, copies)
    assert calls, "flash attention was not used"
    monkeypatch.setattr(attention, "varlen", None)
    masked_values, masked = logps_and_gradient(base, copies)
    exact_values, exact = logps_and_gradient(cuda_base(device="cpu"), copies)
    # Both round to bfloat16: each may be off by as much as the other is.
    error = float((masked_values - exact_values).abs().max())
    assert float((values - exact_values).abs().max()) <= max(0.05, 3 * error)
    assert cosine(gradient, exact) > min(0.999, cosine(masked, exact) - 0.002)
    assert cosine(gradient, masked) > 0.995


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-3), ("bfloat16", 0.05)])
def test_stacked_and_single_training_agree(dtype: str, tolerance: float, cuda_base: Load) -> None:
    single_runs, _ = train(cuda_base(dtype=dtype), CONFIG.model_copy(update={"stack": 1}))
    stacked_runs, _ = train(cuda_base(dtype=dtype), CONFIG.model_copy(update={"stack": 3}))
    for one, other in zip(single_runs, stacked_runs, strict=True):
        assert len(set(losses(one))) > 4
        np.testing.assert_allclose(losses(other), losses(one), atol=tolerance, rtol=tolerance)


def test_the_loss_curve_is_the_cpus(cuda_base: Load) -> None:
    there, _ = train(cuda_base(), CONFIG)
    here, _ = train(cuda_base(device="cpu"), CONFIG)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(losses(other), losses(one), atol=2e-3, rtol=2e-3)
    half, _ = train(cuda_base(dtype="bfloat16"), CONFIG)
    np.testing.assert_allclose(losses(half[0]), losses(here[0]), atol=0.05)
    assert [row.logratio_margins for row in half[0].history if row.step == 0] == [0.0]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_samples_do_not_depend_on_batch_mates(kind: str, cuda_base: Load) -> None:
    base = cuda_base(kind)
    model = shaken(base, 3)
    prompts = [p.prompt_ids for p in pairs(6)]
    options = {"how": Sampling(samples=2, max_new_tokens=10), "seed": 3}
    together = sample(model, prompts, adapters=slice(0, 3), **options)
    for slot in range(3):
        alone = sample(model, prompts, adapters=slice(slot, slot + 1), **options)[0]
        same = np.mean([a.tokens == b.tokens for a, b in zip(alone, together[slot], strict=True)])
        assert same >= 0.9  # a near tie of two tokens may fall either way with another batch's rounding
    assert [s.tokens for s in together[0]] != [s.tokens for s in together[1]]


@needs_bitsandbytes
@pytest.mark.parametrize(("kind", "off"), [("nf4", 0.35), ("int8", 0.1)])
def test_quantized_bases_load_and_train(kind: str, off: float, cuda_base: Load) -> None:
    rows = pair_rows(pairs(6), shared=True)
    wanted = score_rows(cuda_base(dtype="bfloat16"), rows)
    base = cuda_base(dtype="bfloat16", quantization=kind)
    assert base.packed, base.why_plain
    got = score_rows(base, rows)
    assert np.abs(got - wanted).max() <= off * np.abs(wanted).max()
    assert np.abs(got - wanted).max() > 0  # it is quantized
    runs, model = train(base, CONFIG)
    assert all(run.outcome.diverged_at is None for run in runs)
    assert losses(runs[0])[-1] < losses(runs[0])[0]
    assert all(np.isfinite(losses(run)).all() for run in runs)
    assert model.adapters.grads.abs().sum() > 0


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["adamw8bit", "paged_adamw8bit"])
def test_8_bit_optimizers_train_like_adamw(kind: str, cuda_base: Load) -> None:
    plain, _ = train(cuda_base(), CONFIG, ("dpo",))
    eight, model = train(cuda_base(), CONFIG.model_copy(update={"optimizer": kind}), ("dpo",))
    assert model.adapters.params.isfinite().all()
    np.testing.assert_allclose(losses(eight[0]), losses(plain[0]), atol=0.05)
    assert losses(eight[0])[-1] < losses(eight[0])[0]


def test_a_step_does_not_wait_for_the_device(cuda_base: Load) -> None:
    base = cuda_base(dtype="bfloat16")
    config = CONFIG.model_copy(update={"steps": 4, "log_every": 100, "eval_every": 100})
    train(base, config, ("dpo",))  # whatever is set up once
    base = cuda_base(dtype="bfloat16")
    model = AdaptedModel.wrap(base, LORA, size=1)
    model.adapters.initialise(0, 0)
    with model.off():
        sets = [pair_set(base, scored(8, 1)), pair_set(base, scored(4, 2))]
    waits: list[int] = []

    class Watch(Silent):
        def at(self, seed: int, variants: Sequence[str], step: int) -> None:
            torch.cuda.set_sync_debug_mode("warn" if 1 <= step < 3 else "default")
            waits.append(step)

    run = Run("0", make_loss("dpo"), 1e-3, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            train_group(
                model,
                [run],
                feed=FixedOrder.of(sets[0], config, 0),
                heldout=sets[1],
                config=config,
                seed=0,
                progress=Watch(),
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
    messages = [str(w.message) for w in caught if "synchroniz" in str(w.message).lower()]
    assert not messages, messages[:3]
    assert waits == list(range(5))
