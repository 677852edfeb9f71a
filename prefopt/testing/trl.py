"""TRL's own loss code, run on given log-probabilities instead of a model.

Each function builds the bare trainer object (no constructor, no weights), hands it a stand-in for the model that
answers with the given values, and calls the trainer's loss method on a batch of several pairs; what is not given has
the default of the trainer's config. So what is compared is what TRL's code as it is installed computes, not a copy of
its formulas. KTO's batches come out of TRL's own preparation of a dataset and its collator, since those decide which
responses its z is made of. TRL is imported when a function is called.

Shapes: B pairs, R = 2B responses (chosen first), P prompt tokens, T response tokens (padded), V = 2 words.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

PROMPT = 2


@dataclass(frozen=True)
class Responses:
    """Per-token values of B pairs of responses after a prompt of two tokens.

    Attributes:
        policy: (R, T) log pi, nats, 0 where masked; a leaf that carries gradient.
        reference: (R, T) log pi_ref, nats, 0 where masked.
        collision: (R, T) log sum_v pi(v)^2, nats.
        mask: (R, T) bool, at least two tokens a response.
        crossed: (B, R) log pi / pi_ref of every response after every prompt, nats; where the two belong together it
            is not read.
    """

    policy: Tensor
    reference: Tensor
    collision: Tensor
    mask: Tensor
    crossed: Tensor

    @property
    def pairs(self) -> int:
        """B."""
        return len(self.policy) // 2

    def part(self, pairs: slice) -> Responses:
        """The pairs in ``pairs``; gradients reach the whole."""
        rows = torch.cat([torch.arange(self.pairs)[pairs], torch.arange(self.pairs, 2 * self.pairs)[pairs]])
        crossed = self.crossed[pairs][:, rows]
        return Responses(self.policy[rows], self.reference[rows], self.collision[rows], self.mask[rows], crossed)


class _Model(torch.nn.Module):
    """Answers a forward pass with given outputs."""

    is_gradient_checkpointing = False

    def __init__(self, answer: Callable[..., Any]) -> None:
        super().__init__()
        self._answer = answer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer(*args, **kwargs)


def _accelerator() -> Any:
    def same(value: Any) -> Any:
        return value

    return SimpleNamespace(
        device=torch.device("cpu"), gather=same, gather_for_metrics=same, reduce=same, unwrap_model=same
    )


def _bare(trainer: type, **attributes: Any) -> Any:
    bare: Any = object.__new__(trainer)
    common = {
        "accelerator": _accelerator(),
        "aux_loss_enabled": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in (common | attributes).items():
        setattr(bare, name, value)
    return bare


def _options_of(config: type, options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The options of those names, each with the config's default where it is not given."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: options.get(name, defaults[name]) for name in names}


def _with_prompt(values: Tensor) -> Tensor:
    """(R, P - 1 + T): what a forward pass says about the tokens after the first, prompt included."""
    return torch.cat([values.new_zeros(len(values), PROMPT - 1), values], dim=1)


def _outputs(logps: Tensor, collision: Tensor | None = None) -> Any:
    full = _with_prompt(logps)
    return SimpleNamespace(
        log_probs=full,
        log_sum_sq_probs=None if collision is None else _with_prompt(collision),
        entropy=torch.zeros_like(full),
        mean_logits=torch.zeros_like(full),
        is_top1=torch.zeros_like(full, dtype=torch.bool),
    )


def _ids(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and completion mask, (R, P + T) each; every token is word 0."""
    prompt = torch.ones(len(mask), PROMPT, dtype=torch.int64)
    attention = torch.cat([prompt, mask.to(torch.int64)], dim=1)
    completion = torch.cat([0 * prompt, mask.to(torch.int64)], dim=1)
    return torch.zeros_like(attention), attention, completion


def dpo_trainer(given: Responses, loss_type: str | list[str] = "sigmoid", **options: Any) -> Tensor:
    """() the loss of ``DPOTrainer`` with its options: beta, label_smoothing, f_divergence_type, ..."""
    from trl import DPOConfig, DPOTrainer

    types = [loss_type] if isinstance(loss_type, str) else loss_type
    trainer = _bare(
        DPOTrainer,
        model=_Model(lambda **_: None),
        ref_model=_Model(lambda **_: _outputs(given.reference)),
        precompute_ref_logps=False,
        loss_types=types,
        loss_weights=options.get("loss_weights", [1.0] * len(types)),
        args=SimpleNamespace(**_options_of(DPOConfig, options, "discopop_tau"), gradient_checkpointing_kwargs=None),
        **_options_of(
            DPOConfig,
            options,
            "beta",
            "label_smoothing",
            "ld_alpha",
            "use_weighting",
            "f_divergence_type",
            "f_alpha_divergence_coef",
        ),
    )
    ids, attention, completion = _ids(given.mask)
    batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
    policy = _Model(lambda **_: _outputs(given.policy * given.mask, given.collision))
    loss: Tensor = trainer._compute_loss(policy, batch, False)
    return loss


def kto_trainer(given: Responses, micro_batches: int = 1, **options: Any) -> Tensor:
    """() the loss of ``KTOTrainer`` on the pairs, which it splits into examples: the mean over its micro-batches."""
    from trl import KTOConfig, KTOTrainer
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    size = 2 * given.pairs // micro_batches
    plain = SimpleNamespace(gradient_checkpointing_kwargs=None, dataset_num_proc=None, max_length=None)
    plain.per_device_train_batch_size = size
    trainer = _bare(
        KTOTrainer,
        model=_Model(lambda *, input_ids, **_: _outputs_of(input_ids, given, given.policy * given.mask, given.crossed)),
        ref_model=_Model(lambda *, input_ids, **_: _outputs_of(input_ids, given, given.reference, 0 * given.crossed)),
        args=plain,
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=False,
        _tokenizer=_Words(given.pairs),
        **_options_of(KTOConfig, options, "beta", "desirable_weight", "undesirable_weight"),
    )
    rows = _prepared_for_kto(trainer, given)
    collate = DataCollatorForUnpairedPreference(pad_token_id=_Words.END)
    losses = [
        trainer._compute_loss(trainer.model, collate(rows[start : start + size]), False)
        for start in range(0, len(rows), size)
    ]
    return torch.stack(losses).mean()


class _Words:
    """A tokenizer of texts such as ``p0 p0 r3 r3 end``: a number for each prompt and each response."""

    END = 0
    eos_token = "end"

    def __init__(self, pairs: int) -> None:
        words = [*(f"p{i}" for i in range(pairs)), *(f"r{i}" for i in range(2 * pairs))]
        self._numbers = {"end": self.END} | {word: number for number, word in enumerate(words, start=1)}

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self._numbers[word] for word in text.split()]}


def _prepared_for_kto(trainer: Any, given: Responses) -> list[dict[str, Any]]:
    """What TRL makes of the pairs: examples in its order, each with the response that it is mismatched with."""
    from datasets import Dataset

    def text(response: int) -> str:
        return f" r{response}" * (int(given.mask[response].sum()) - 1) + " end"

    pairs = [{"prompt": f"p{i} p{i}", "chosen": text(i), "rejected": text(given.pairs + i)} for i in range(given.pairs)]
    with _no_progress_bars():
        prepared = trainer._prepare_dataset(Dataset.from_list(pairs), trainer._tokenizer, trainer.args, "train")
    return list(prepared)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown:
            datasets.enable_progress_bars()


def _outputs_of(ids: Tensor, given: Responses, values: Tensor, crossed: Tensor) -> Any:
    """A forward pass on rows of word numbers: a response's own values after its prompt, ``crossed`` after another."""
    logps = []
    for row in ids:
        prompt = int(row[0]) - 1
        response = int(row[PROMPT]) - 1 - given.pairs
        if response % given.pairs == prompt:
            logps.append(values[response])
        else:
            logps.append(torch.cat([crossed[prompt, response : response + 1], 0 * values[response, 1:]]))
    width = ids.shape[1] - PROMPT
    return _outputs(torch.stack(logps)[:, :width])


def _two_word_logits(given: Responses) -> Tensor:
    """(R, P + T, V) logits of a model that gives word 0 the policy's probability; prompt words have 1/2."""
    half = given.policy.new_full((len(given.policy), PROMPT - 1), -0.6931471805599453)
    # A masked token is worth 0 nats; any probability below 1 does for it, since nothing reads it.
    known = torch.where(given.mask, given.policy, torch.full_like(given.policy, -1.0))
    first = torch.cat([half, known, half], dim=1)
    return torch.stack([first, torch.log(-torch.expm1(first))], dim=-1)


def _concatenated_batch(given: Responses) -> dict[str, Tensor]:
    ids, attention, completion = _ids(given.mask)
    labels = ids.masked_fill(completion == 0, -100)
    sides = {"chosen": slice(None, given.pairs), "rejected": slice(given.pairs, None)}
    values = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    return {f"{side}_{name}": value[rows] for side, rows in sides.items() for name, value in values.items()}


def cpo_trainer(given: Responses, loss_type: str = "sigmoid", **options: Any) -> Tensor:
    """() the loss of ``CPOTrainer`` with its options: beta, simpo_gamma, cpo_alpha, alpha."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    model = _Model(lambda *_, **__: SimpleNamespace(logits=_two_word_logits(given)))
    trainer = _bare(
        CPOTrainer,
        is_encoder_decoder=False,
        pad_token_id=1,
        loss_type=loss_type,
        **_options_of(CPOConfig, options, "beta", "label_smoothing", "simpo_gamma", "cpo_alpha", "alpha"),
    )
    loss: Tensor = trainer.get_batch_loss_metrics(model, _concatenated_batch(given))[0]
    return loss


def orpo_trainer(given: Responses, **options: Any) -> Tensor:
    """() the loss of ``ORPOTrainer``, whose likelihood term here has a prompt word of probability 1/2 as well."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    model = _Model(lambda *_, **__: SimpleNamespace(logits=_two_word_logits(given)))
    beta = _options_of(ORPOConfig, options, "beta")
    trainer = _bare(ORPOTrainer, is_encoder_decoder=False, padding_value=1, pad_token_id=1, **beta)
    loss: Tensor = trainer.get_batch_loss_metrics(model, _concatenated_batch(given))[0]
    return loss
