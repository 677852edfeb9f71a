"""A language small enough to enumerate, with a tiny model that speaks it and a reward that judges it.

Prompts are two words, responses at most three, each of the six words or the end. All 259 responses to a prompt can be
listed, so that rewards, divergences and the best that any policy could do are known to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

os.environ.setdefault("USE_HUB_KERNELS", "0")  # native code is never fetched from a hub

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from prefopt.config.schema import Lora
from prefopt.config.sections import Pairs
from prefopt.data import hash_ids
from prefopt.model.adapted import AdaptedModel, one
from prefopt.model.base import Base, choose_path
from prefopt.model.generate import Sample, Sampling, sample
from prefopt.model.logps import score_rows
from prefopt.model.packing import Row
from prefopt.prepare.onpolicy import label
from prefopt.tasks.base import DataTask, Prompt
from prefopt.train.pairset import PairSet, reference_logps

Floats = npt.NDArray[np.float64]
WORDS = 6
EOS = WORDS
LONGEST = 3
VALUES = np.array([-1.0, -0.6, -0.2, 0.2, 0.6, 1.0, 0.0])  # of each word, and of the end
PROMPTS = tuple(product(range(WORDS), repeat=2))
RESPONSES = tuple(
    words + ((EOS,) if len(words) < LONGEST else ())
    for length in range(LONGEST + 1)
    for words in product(range(WORDS), repeat=length)
)


def reward(response: Sequence[int]) -> float:
    """Sum of the words' values: the same whatever the prompt, so that it can be learnt from few."""
    return float(VALUES[list(response)].sum())


REWARDS: Floats = np.array([reward(response) for response in RESPONSES])


class Task(DataTask):
    """The reward as a task: responses arrive as text."""

    name = "selftest"
    has_reward = True
    fingerprint = "selftest"

    def reward(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Floats:
        """(N,) rewards."""
        return np.array([reward([int(word[1:]) for word in response.split()]) for response in responses])


def make_base() -> Base:
    """A two-layer model with weights drawn once, and a tokenizer of one token a word."""
    words = {**{f"w{i}": i for i in range(WORDS)}, "</s>": EOS}
    inner = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    noise = np.random.default_rng(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.from_numpy(noise.normal(0, 0.2, tuple(parameter.shape))))
    model.eval().requires_grad_(False)
    own = model.config._attn_implementation
    return choose_path(
        Base(
            model,
            tokenizer,
            "selftest",
            "selftest",
            torch.float32,
            torch.device("cpu"),
            ends=(EOS,),
            own_attention=own,
        )
    )


@dataclass(frozen=True, slots=True)
class World:
    """The model, its adapters, and pairs of its own responses."""

    model: AdaptedModel
    responses: pd.DataFrame
    heldout_responses: pd.DataFrame
    cache: Path

    def train(self, noise: float) -> PairSet:
        """Training pairs, a share ``noise`` of them mislabelled."""
        return self._pairs(self.responses, noise)

    def heldout(self, noise: float = 0.0) -> PairSet:
        """Held-out pairs: other prompts, other responses."""
        return self._pairs(self.heldout_responses, noise)

    def _pairs(self, responses: pd.DataFrame, noise: float) -> PairSet:
        pairs = label(responses, Pairs(labels="argmax", seed=1), noise=noise)
        key = hash_ids(pairs)
        with self.model.off():
            return PairSet(tuple(pairs), reference_logps(self.model.base, pairs, data_hash=key, cache=self.cache))

    def logps(self, slot: int | None) -> Floats:
        """(prompts, responses) log-probability of every response to every prompt; None for the reference."""
        per_row = 8 if self.model.base.packed else 1
        starts = range(0, len(RESPONSES), per_row)
        rows = [Row(prompt, RESPONSES[i : i + per_row]) for prompt in PROMPTS for i in starts]
        with self.model.off() if slot is None else self.model.use(one(slot)):
            return score_rows(self.model.base, rows).reshape(len(PROMPTS), -1).astype(np.float64)


def make_world(cache: Path, *, slots: int) -> World:
    """The world, with pairs of on-policy responses to two thirds of the prompts for training.

    Args:
        cache: Where reference log-probabilities are kept meanwhile.
        slots: Adapters to make room for.
    """
    model = AdaptedModel.wrap(make_base(), Lora(rank=8, alpha=16), size=slots)
    split = 2 * len(PROMPTS) // 3
    order = np.random.default_rng(3).permutation(len(PROMPTS))
    parts = []
    for numbers in (order[:split], order[split:]):
        prompts = [PROMPTS[i] for i in numbers]
        samples = sample(
            model, prompts, adapters=None, how=Sampling(8, LONGEST), seed=11,
            prompt_ids=[int(i) for i in numbers],
        )[0]  # fmt: skip
        parts.append(_frame(samples, numbers))
    return World(model, parts[0], parts[1], cache)


def _frame(samples: Sequence[Sample], prompts: npt.NDArray[np.int64]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_id": [int(prompts[s.prompt]) for s in samples],
            "prompt_ids": [PROMPTS[prompts[s.prompt]] for s in samples],
            "tokens": [s.tokens for s in samples],
            "finished": [s.finished for s in samples],
            "reward": [reward(s.tokens) for s in samples],
        }
    )


def exact_reward(logps: Floats) -> float:
    """Expected reward over all prompts."""
    return float((np.exp(logps) @ REWARDS).mean())


def exact_kl(logps: Floats, reference: Floats) -> float:
    """Mean over prompts of KL(policy || reference), nats."""
    return float((np.exp(logps) * (logps - reference)).sum(1).mean())


def frontier(reference: Floats, kl: float) -> float:
    """The largest expected reward that any policy reaches at a mean KL of ``kl``.

    It is reached by reference * exp(reward / beta), normalised for each prompt, with one beta for all prompts.
    """

    def point(strength: float) -> tuple[float, float]:
        tilted = reference + strength * REWARDS
        tilted -= np.logaddexp.reduce(tilted, axis=1, keepdims=True)
        return exact_kl(tilted, reference), exact_reward(tilted)

    low, high = 0.0, 1.0
    while point(high)[0] < kl and high < 1e4:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if point(middle)[0] < kl else (low, middle)
    return point(high)[1]
