"""A policy's samples on the evaluation prompts, and what is measured of them.

Shapes: n prompts, s samples of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from prefopt.config.schema import Evaluation
from prefopt.data import Message
from prefopt.data.plain import conversation_text
from prefopt.data.types import Text
from prefopt.evaluate.divergence import policy_and_reference
from prefopt.evaluate.diversity import diversity
from prefopt.model.adapted import AdaptedModel
from prefopt.model.adapters import AdapterBank
from prefopt.model.base import Base
from prefopt.model.generate import Sample, Sampling, sample
from prefopt.model.logps import RESPONSES_PER_ROW, score_rows
from prefopt.model.packing import Row
from prefopt.runtime.seeding import derive_seed
from prefopt.storage.schema import BEST_OF_COLUMNS, SCORE_COLUMNS
from prefopt.tasks.base import Prompt, Task


@dataclass(frozen=True, slots=True)
class Prompts:
    """Evaluation prompts: tokens for the policy, text for the reward and for readers."""

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    sources: tuple[Prompt, ...] = ()

    @classmethod
    def of(cls, base: Base, prompts: Sequence[Prompt]) -> Prompts:
        """Texts or chats, and their tokens as the model's template renders them.

        Raises:
            DataError: If the template refuses a chat.
        """
        return cls.shown(encode_all(base, prompts), prompts)

    @classmethod
    def shown(cls, ids: Sequence[tuple[int, ...]], prompts: Sequence[Prompt | Text]) -> Prompts:
        """Tokens, and the conversations that they are of: readers see those, not what a template makes of them."""
        plain = [p if isinstance(p, str) else tuple((turn[0], turn[1]) for turn in p) for p in prompts]
        return cls(tuple(ids), tuple(map(conversation_text, prompts)), tuple(plain))


@dataclass(frozen=True, slots=True)
class PolicySamples:
    """One policy's samples at one seed: SCORE_COLUMNS, SAMPLE_COLUMNS, and how varied they are."""

    scores: pd.DataFrame
    texts: pd.DataFrame
    diversity: dict[str, float]


def encode_all(base: Base, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """Prompts as tokens: texts with the tokenizer's own beginning, chats through its template.

    Raises:
        DataError: If the template refuses a chat.
    """
    return base.encode([p if isinstance(p, str) else tuple(Message(*turn) for turn in p) for p in prompts])


def sampled_together(adapters: AdapterBank, slot: int) -> slice:
    """The adapters of the batch in which adapter ``slot`` is sampled.

    On a GPU it is all adapters, whose launches are shared; always the whole, so that the shape of the batch, which
    decides which kernels run, does not depend on which runs are missing. On a CPU, where nothing is gained by more
    rows, each adapter is alone, and its samples do not depend on the others at all.
    """
    return slice(slot, slot + 1) if adapters.params.device.type == "cpu" else slice(0, adapters.params.shape[0])


def sampling(settings: Evaluation) -> Sampling:
    """How policies are sampled for their evaluation."""
    return Sampling(
        settings.samples, settings.max_new_tokens, settings.temperature, settings.top_p, tuple(settings.stop)
    )


def draw_samples(
    model: AdaptedModel, slots: slice, prompts: Prompts, settings: Evaluation, *, seed: int
) -> dict[int, list[Sample]]:
    """Samples of neighbouring adapters in one batch, by slot; the zero adapter stands for the reference."""
    by_adapter = sample(
        model,
        prompts.ids,
        adapters=slots,
        how=sampling(settings),
        seed=seed,
    )
    return dict(zip(range(slots.start, slots.stop), by_adapter, strict=True))


def score_samples(
    model: AdaptedModel,
    slot: int,
    prompts: Prompts,
    samples: Sequence[Sample],
    task: Task,
    *,
    proxy: Task | None = None,
) -> PolicySamples:
    """Reward, exact KL per token and log-probabilities of one policy's samples.

    Args:
        model: The base and its adapters.
        slot: The policy's.
        prompts: What was answered.
        samples: The answers.
        task: The gold reward.
        proxy: What the policy was trained by in its place; its rewards are the column ``proxy``.
    """
    responses = [s.text(model.base) for s in samples]
    texts = [prompts.texts[s.prompt] for s in samples]
    sources = [(prompts.sources or prompts.texts)[s.prompt] for s in samples]
    kl, logp, ref_logp = policy_and_reference(model, slot, prompts.ids, samples)
    scores = pd.DataFrame(
        {
            "prompt_id": [s.prompt for s in samples],
            "sample": [s.number for s in samples],
            "reward": task.reward(sources, responses) if task.has_reward else np.full(len(samples), np.nan),
            "kl": kl,
            "logp": logp,
            "ref_logp": ref_logp,
            "n_tokens": [len(s.tokens) for s in samples],
            "finished": [s.finished for s in samples],
        }
    )[list(SCORE_COLUMNS)]
    if proxy is not None:
        scores["proxy"] = proxy.reward(sources, responses)
    frame = pd.DataFrame(
        {"prompt_id": scores["prompt_id"], "sample": scores["sample"], "prompt": texts, "response": responses}
    )
    return PolicySamples(scores, frame, diversity([s.tokens for s in samples], responses))


def best_of_samples(
    model: AdaptedModel, prompts: Prompts, settings: Evaluation, task: Task, *, seed: int
) -> pd.DataFrame:
    """BEST_OF_COLUMNS: many samples of the reference with their rewards, under noise of their own."""
    samples = sample(
        model,
        prompts.ids,
        adapters=None,
        how=sampling(settings),
        seed=derive_seed(seed, "best_of"),
    )[0]
    per_row = RESPONSES_PER_ROW if model.base.packed else 1
    by_prompt = [samples[i : i + settings.samples] for i in range(0, len(samples), settings.samples)]
    rows = [
        Row(prompts.ids[group[0].prompt], tuple(s.tokens for s in group[i : i + per_row]))
        for group in by_prompt
        for i in range(0, len(group), per_row)
    ]
    with model.off():
        logps = score_rows(model.base, rows)
    sources = [(prompts.sources or prompts.texts)[s.prompt] for s in samples]
    rewards = task.reward(sources, [s.text(model.base) for s in samples])
    values = ([s.prompt for s in samples], [s.number for s in samples], rewards, logps)
    return pd.DataFrame(dict(zip(BEST_OF_COLUMNS, values, strict=True)))
