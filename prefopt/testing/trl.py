"""TRL's own loss code, run on given log-probabilities instead of a model.

Each function builds the bare trainer object (no constructor, no data, no weights), hands it a stand-in for the model
that answers with the given values, and calls the trainer's loss method. So what is compared is TRL's code as it is
installed, not a copy of its formulas. TRL is imported when a function is called.

Shapes: B pairs, R = 2B responses (chosen first), P prompt tokens, T response tokens (padded), V = 2 words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
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
        mask: (R, T) bool.
        mismatched: (R,) log pi / pi_ref of another prompt's response, nats.
    """

    policy: Tensor
    reference: Tensor
    collision: Tensor
    mask: Tensor
    mismatched: Tensor

    @property
    def pairs(self) -> int:
        """B."""
        return len(self.policy) // 2


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
    made: Any = object.__new__(trainer)
    common = {
        "accelerator": _accelerator(),
        "aux_loss_enabled": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in (common | attributes).items():
        setattr(made, name, value)
    return made


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
    from trl import DPOTrainer

    types = [loss_type] if isinstance(loss_type, str) else loss_type
    trainer = _bare(
        DPOTrainer,
        model=_Model(lambda **_: None),
        ref_model=_Model(lambda **_: _outputs(given.reference)),
        precompute_ref_logps=False,
        loss_types=types,
        loss_weights=options.get("loss_weights", [1.0] * len(types)),
        beta=options.get("beta", 0.1),
        label_smoothing=options.get("label_smoothing", 0.0),
        ld_alpha=options.get("ld_alpha"),
        use_weighting=options.get("use_weighting", False),
        f_divergence_type=options.get("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=options.get("f_alpha_divergence_coef", 0.5),
        args=SimpleNamespace(discopop_tau=options.get("discopop_tau", 0.05), gradient_checkpointing_kwargs=None),
    )
    ids, attention, completion = _ids(given.mask)
    batch = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
    policy = _Model(lambda **_: _outputs(given.policy * given.mask, given.collision))
    loss: Tensor = trainer._compute_loss(policy, batch, False)
    return loss


def kto_trainer(given: Responses, **options: Any) -> Tensor:
    """() the loss of ``KTOTrainer`` on the pairs split into desirable and undesirable examples."""
    from trl import KTOTrainer

    other = torch.ones(2 * given.pairs, 1, dtype=torch.bool)
    ids, attention, completion = _ids(given.mask)
    kl_ids, kl_attention, kl_completion = _ids(other)
    drift = given.mismatched.detach()[:, None]

    def answer(*, input_ids: Tensor, **_: Any) -> Any:
        return _outputs(given.policy * given.mask) if input_ids.shape == ids.shape else _outputs(drift)

    trainer = _bare(
        KTOTrainer,
        model=_Model(answer),
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=True,
        beta=options.get("beta", 0.1),
        desirable_weight=options.get("desirable_weight", 1.0),
        undesirable_weight=options.get("undesirable_weight", 1.0),
    )
    batch = {
        "input_ids": ids,
        "attention_mask": attention,
        "completion_mask": completion,
        "KL_input_ids": kl_ids,
        "KL_attention_mask": kl_attention,
        "KL_completion_mask": kl_completion,
        "label": torch.arange(2 * given.pairs) < given.pairs,
        "ref_logps": given.reference.sum(1),
        "ref_KL_logps": torch.zeros(2 * given.pairs, dtype=given.policy.dtype),
    }
    loss: Tensor = trainer._compute_loss(trainer.model, batch, False)
    return loss


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
    from trl.experimental.cpo import CPOTrainer

    model = _Model(lambda *_, **__: SimpleNamespace(logits=_two_word_logits(given)))
    trainer = _bare(
        CPOTrainer,
        is_encoder_decoder=False,
        pad_token_id=1,
        loss_type=loss_type,
        beta=options.get("beta", 0.1),
        label_smoothing=options.get("label_smoothing", 0.0),
        simpo_gamma=options.get("simpo_gamma", 0.5),
        cpo_alpha=options.get("cpo_alpha", 1.0),
        alpha=options.get("alpha", 0.0),
    )
    loss: Tensor = trainer.get_batch_loss_metrics(model, _concatenated_batch(given))[0]
    return loss


def orpo_trainer(given: Responses, **options: Any) -> Tensor:
    """() the loss of ``ORPOTrainer``, whose likelihood term here has a prompt word of probability 1/2 as well."""
    from trl.experimental.orpo import ORPOTrainer

    model = _Model(lambda *_, **__: SimpleNamespace(logits=_two_word_logits(given)))
    trainer = _bare(
        ORPOTrainer, is_encoder_decoder=False, padding_value=1, pad_token_id=1, beta=options.get("beta", 0.1)
    )
    loss: Tensor = trainer.get_batch_loss_metrics(model, _concatenated_batch(given))[0]
    return loss
