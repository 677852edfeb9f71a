"""Settings that follow from the pairs and the model where they are not given: each with its value and its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefopt.config.open_settings import SITUATIONAL
from prefopt.config.schema import Config

LONGEST_RESPONSE = 512  # tokens
SHARE_OF_RESPONSES = 95  # per cent of the chosen responses that fit into the sampled ones' limit
DIFFERENCE = 0.05  # of a win rate, that prompts are enough for
HELDOUT_SHARES = (0.1, 0.25)
EVALUATIONS, MIN_EVAL_EVERY = 8, 16
# Spread over prompts and of one judgement, as ``prefopt power`` assumes them, and (z_0.975 + z_0.8)^2. By hand, since
# whatever decides what a run computes is part of its code's hash, which the statistics of reports are not.
PROMPT_SD, CELL_SD, QUANTILES = 0.15, 0.5, 7.849
# Rates for LoRA preference training. 7 to 8 billion parameters: 5e-6 (alignment-handbook, zephyr-7b-beta dpo qlora;
# LLaMA-Factory, llama3_lora_dpo). 135 million: 1e-4, which moves SmolLM2 by 0.2 to 2.4 nats on pairs of others, where
# 1.5e-3 breaks it (results/LOG.md). Between them, and beyond, a power of the number of parameters.
LARGE, SMALL = (7e9, 5e-6), (135e6, 1e-4)
HIGHEST_RATE = 1e-3


def lora_rate(parameters: int) -> float:
    """A learning rate for preference training of a LoRA adapter on a model of that size, to two digits."""
    slope = math.log(SMALL[1] / LARGE[1]) / math.log(SMALL[0] / LARGE[0])
    rate = LARGE[1] * (max(parameters, 1) / LARGE[0]) ** slope
    return float(f"{min(max(rate, LARGE[1]), HIGHEST_RATE):.1e}")


def enough_prompts(config: Config) -> int:
    """Prompts that let a difference of five points be seen (80 % power), were it not for the spread over seeds."""
    judgements = config.evaluation.samples * len(config.seeds)
    variance = PROMPT_SD**2 + CELL_SD**2 / judgements  # of a prompt's mean
    return math.ceil(QUANTILES * variance / DIFFERENCE**2)


def settle_split(config: Config, prompts: int) -> Config:
    """``config`` with the share of prompts that is held out, of as many different ones as the pairs have."""
    if "data.heldout_share" not in config.open_settings or config.data.heldout:
        return config
    low, high = HELDOUT_SHARES
    wanted = enough_prompts(config) / max(prompts, 1)
    share = round(min(max(wanted, low), high), 4)
    reason = "a tenth of the prompts" if share == low else f"{share:.0%} of the {prompts:,} prompts, to see 5 points"
    return config.settled({"data.heldout_share": share}, {**_undecided(config), "data.heldout_share": reason})


def settle(config: Config, *, pairs: int, chosen_tokens: Sequence[int], parameters: int, prompts: int) -> Config:
    """``config`` with everything that was left open decided.

    Args:
        config: As given, its pairs split.
        pairs: Training pairs.
        chosen_tokens: Lengths of their chosen responses.
        parameters: Of the base model.
        prompts: Different prompts that can be sampled on.
    """
    decided: dict[str, tuple[Any, str]] = {
        **_training(config, pairs, parameters),
        **_sampling(config, chosen_tokens, prompts),
    }
    wanted = {name: value for name, value in decided.items() if name in config.open_settings}
    values = {name: value for name, (value, _) in wanted.items()}
    reasons = {**_undecided(config), **config.reasons, **{name: reason for name, (_, reason) in wanted.items()}}
    return config.settled(values, reasons) if reasons else config


def settle_epochs(config: Config, pairs: int) -> Config:
    """``config`` with the steps that ``train.epochs`` are, where those were given for pairs of a task."""
    if "train.steps" not in config.open_settings:
        return config
    steps, reason = _training(config, pairs, 1)["train.steps"]
    return config.settled({"train.steps": steps}, {"train.steps": reason})


def _undecided(config: Config) -> dict[str, str]:
    """Open settings that keep what the schema has, so that they stay open in a run's key."""
    return dict.fromkeys(config.open_settings, "as for the embedded task")


def _training(config: Config, pairs: int, parameters: int) -> dict[str, tuple[Any, str]]:
    train = config.train
    epochs = train.epochs if train.epochs is not None else 1.0
    whose = "train.epochs" if train.epochs is not None else "the default with your own pairs"
    steps = train.steps if config.is_given("train.steps") else math.ceil(epochs * pairs / train.pairs_per_step)
    unit = "epoch" if epochs == 1 else "epochs"
    rate = lora_rate(parameters)
    source = f"LoRA on {_count(parameters)} parameters: 5e-06 at 7B (alignment-handbook, LLaMA-Factory), 1e-04 at 135M"
    every = max(MIN_EVAL_EVERY, math.ceil(steps / EVALUATIONS))
    tuned = config.sft.on == "chosen"
    decided: dict[str, tuple[Any, str]] = {}
    if config.task.name == "data":
        why = (
            "one epoch on the chosen responses" if tuned else "the model is its own reference; sft.on = chosen tunes it"
        )
        decided["sft.steps"] = (math.ceil(pairs / config.sft.texts_per_step) if tuned else 0, why)
    return decided | {
        "train.steps": (max(steps, 1), f"{epochs:g} {unit} of {pairs:,} pairs, {whose}"),
        "train.learning_rate": (rate, source),
        "train.eval_every": (every, f"about {EVALUATIONS} held-out evaluations"),
        "sft.learning_rate": (rate, "as train.learning_rate"),
    }


def _sampling(config: Config, chosen_tokens: Sequence[int], prompts: int) -> dict[str, tuple[Any, str]]:
    longest = int(np.ceil(np.percentile(chosen_tokens, SHARE_OF_RESPONSES))) if len(chosen_tokens) else 1
    limit = f", at most {LONGEST_RESPONSE}" if longest > LONGEST_RESPONSE else ""
    enough = enough_prompts(config)
    few = f"all there are; to see 5 points {enough} would be needed" if prompts < enough else "enough to see 5 points"
    if config.data.eval_prompts:
        count, few = prompts, "all of data.eval_prompts"
    else:
        count = min(enough, prompts)
    return {
        "evaluation.max_new_tokens": (
            min(longest, LONGEST_RESPONSE), f"{SHARE_OF_RESPONSES} % of chosen responses are no longer{limit}",
        ),
        "evaluation.prompts": (max(count, 1), few),
    }  # fmt: skip


def _count(parameters: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g}{letter}"
    return str(parameters)


def shown(config: Config) -> Mapping[str, str]:
    """Each setting that was chosen by situation, with its value and its reason, for the screen."""
    values = {}
    for dotted in SITUATIONAL:
        section, _, key = dotted.partition(".")
        value = getattr(getattr(config, section), key)
        if (
            dotted in config.reasons
            and value is not None
            and not (dotted == "sft.learning_rate" and not config.sft_steps)
        ):
            values[dotted] = f"{value:g} ({config.reasons[dotted]})"
    return values
