"""On-policy preference pairs: the reference's own responses, labelled by a gold reward."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from prefopt.config.schema import Config
from prefopt.config.sections import Pairs
from prefopt.data import TokenPair
from prefopt.data.builders import Labelling, preferences
from prefopt.data.types import TokenGroup
from prefopt.errors import DataError
from prefopt.evaluate.samples import Prompts, encode_all
from prefopt.model import generate
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.prepare.pairs import PreparedPairs
from prefopt.prepare.task import Tasks
from prefopt.runtime.progress import Progress
from prefopt.runtime.seeding import numpy_generator
from prefopt.storage.cache import kept_frame
from prefopt.storage.hashing import digest
from prefopt.tasks.base import Prompt, Task, TaskPrompts
from prefopt.tasks.rewards import RewardError


def task_prompts(config: Config, task: Task, base: Base) -> TaskPrompts:
    """The task's prompts for training pairs, held-out pairs and evaluation, as many of each as the settings say."""
    return task.prompts(
        base.tokenizer,
        train=config.pairs.prompts,
        heldout=config.pairs.heldout_prompts,
        evaluation=config.evaluation.prompts,
        seed=config.pairs.seed,
    )


def all_prompts(config: Config, task: Task, base: Base) -> list[Prompt]:
    """All of ``task_prompts`` in one list."""
    prompts = task_prompts(config, task, base)
    return [*prompts.train, *prompts.heldout, *prompts.evaluation]


def _prompts_of_part(config: Config, task: Task, base: Base) -> tuple[TaskPrompts, range]:
    """The task's prompts, and the places among all that pairs are made of whose pairs are held out in this part.

    What is set apart to choose settings by comes behind the others, so that those are the same with it and without.
    Pairs are made for both parts, so that both train on the same ones.
    """
    evaluation, each = config.evaluation, config.pairs.heldout_prompts
    test, apart = evaluation.prompts, evaluation.validation_prompts
    more = config.evaluation.model_copy(update={"prompts": test + apart + (each if apart else 0)})
    prompts = task_prompts(config.model_copy(update={"evaluation": more}), task, base)
    asked = prompts.evaluation[:test] if evaluation.part == "test" else prompts.evaluation[test : test + apart]
    first = len(prompts.train) + (each if evaluation.part == "validation" else 0)
    heldout = (*prompts.heldout, *prompts.evaluation[test + apart :])
    return TaskPrompts(prompts.train, heldout, asked), range(first, first + each)


def sampled_pairs(config: Config, model: AdaptedModel, tasks: Tasks, cache: Path, progress: Progress) -> PreparedPairs:
    """Pairs of the reference's own responses to the task's prompts, labelled by a reward.

    Responses with equal tokens make no pair. Held-out pairs are labelled without added noise.

    Raises:
        DataError: If the reward fails.
    """
    progress.stage("sampling responses for the pairs", 0, 1)
    settings = config.pairs
    prompts, places = _prompts_of_part(config, tasks.prompts, model.base)
    try:
        responses = sampled_responses(model, tasks, [*prompts.train, *prompts.heldout], settings, cache)
    except RewardError as problem:
        raise DataError(f"the pairs cannot be labelled: {problem}. Nothing was trained") from None
    for_training = responses["prompt_id"] < len(prompts.train)
    train = label(responses[for_training], settings, noise=settings.label_noise)
    heldout = [pair for pair in label(responses[~for_training], settings, noise=0.0) if pair.prompt_id in places]
    right = [gold[0] > gold[1] for gold in map(golds, train)]
    facts = {
        "truncated_chosen": sum(p.chosen_truncated for p in train),
        "truncated_rejected": sum(p.rejected_truncated for p in train),
        "dropped_rows": 0,
    }
    return PreparedPairs(
        train=tuple(train),
        heldout=tuple(heldout),
        prompts=Prompts.of(model.base, prompts.evaluation),
        facts=facts,
        label_accuracy=float(np.mean(right)),
        groups=tuple(as_groups(responses[for_training], settings)),
        training_prompts=prompts.train,
    )


def sampled_responses(
    model: AdaptedModel, tasks: Tasks, texts: Sequence[Prompt], settings: Pairs, cache: Path
) -> pd.DataFrame:
    """The reference's responses to prompts with their rewards, sampled or taken from the cache.

    Columns prompt_id (position in ``texts``), prompt_ids, tokens, finished, reward, which is what labels, and gold
    where another reward evaluates. The key of the cache is all that decides them: weights, task, rewards, prompts,
    settings, kind of device and version of the sampler.
    """
    base = model.base
    shape = settings.model_dump(include={"samples", "max_new_tokens", "temperature", "top_p", "seed"})
    rewards = [tasks.labels.fingerprint] + ([tasks.gold.fingerprint] if tasks.has_proxy else [])
    key = digest([base.hash, base.ends, *rewards, list(texts), shape, base.device.type, generate.SAMPLER_VERSION])

    def draw() -> pd.DataFrame:
        ids = encode_all(base, texts)
        samples = generate.sample(
            model,
            ids,
            adapters=None,
            how=generate.Sampling(settings.samples, settings.max_new_tokens, settings.temperature, settings.top_p),
            seed=settings.seed,
        )[0]
        responses = [s.text(base) for s in samples]
        sources = [texts[s.prompt] for s in samples]
        frame = pd.DataFrame(
            {
                "prompt_id": [s.prompt for s in samples],
                "prompt_ids": [list(ids[s.prompt]) for s in samples],
                "tokens": [list(s.tokens) for s in samples],
                "finished": [s.finished for s in samples],
                "reward": tasks.labels.reward(sources, responses),
            }
        )
        if tasks.has_proxy:
            frame["gold"] = tasks.gold.reward(sources, responses)
        return frame

    return kept_frame(cache / "responses" / f"{key}.sealed", draw)


def label(responses: pd.DataFrame, settings: Pairs, *, noise: float) -> list[TokenPair]:
    """All pairs of different responses of each prompt, labelled.

    Args:
        responses: As from ``sampled_responses``.
        settings: Kind and scale of the labels, and their seed.
        noise: Share of labels flipped afterwards, each independently.
    """
    pairs: list[TokenPair] = []
    for prompt_id, group in responses.groupby("prompt_id", sort=True):
        random = numpy_generator(settings.seed, "labels", int(prompt_id))
        rows = list(group.itertuples(index=False))
        for first, second in combinations(rows, 2):
            draw, flip = random.random(2)  # drawn for every pair, so that one pair more or less moves no other label
            if tuple(first.tokens) == tuple(second.tokens):
                continue
            gap = settings.scale * (first.reward - second.reward)
            wins = gap > 0 if settings.labels == "argmax" else draw < 1 / (1 + np.exp(-np.clip(gap, -500, 500)))
            chosen, rejected = (first, second) if wins != (flip < noise) else (second, first)
            pairs.append(
                TokenPair(
                    prompt_ids=tuple(int(t) for t in chosen.prompt_ids),
                    chosen_ids=tuple(int(t) for t in chosen.tokens),
                    rejected_ids=tuple(int(t) for t in rejected.tokens),
                    prompt_id=int(prompt_id),
                    pair_id=len(pairs),
                    chosen_score=float(chosen.reward),
                    rejected_score=float(rejected.reward),
                    chosen_truncated=not chosen.finished,
                    rejected_truncated=not rejected.finished,
                    chosen_gold=float(chosen.gold) if "gold" in responses else None,
                    rejected_gold=float(rejected.gold) if "gold" in responses else None,
                )
            )
    return pairs


def as_groups(responses: pd.DataFrame, settings: Pairs) -> list[TokenGroup]:
    """The responses of each prompt as a group, ranked with the noise of the labels.

    Args:
        responses: As from ``sampled_responses``.
        settings: Kind and scale of the labels, and their seed.
    """
    groups = []
    for prompt_id, rows in responses.groupby("prompt_id", sort=True):
        rewards = [float(reward) for reward in rows["reward"]]
        random = numpy_generator(settings.seed, "rankings", int(prompt_id))
        groups.append(
            TokenGroup(
                prompt_ids=tuple(int(t) for t in rows["prompt_ids"].iloc[0]),
                responses=tuple(tuple(int(t) for t in tokens) for tokens in rows["tokens"]),
                finished=tuple(bool(finished) for finished in rows["finished"]),
                rewards=tuple(rewards),
                preference=preferences(rewards, Labelling(settings.labels, settings.scale), random),
                prompt_id=int(prompt_id),
                golds=tuple(float(gold) for gold in rows["gold"]) if "gold" in rows else None,
            )
        )
    return groups


def golds(pair: TokenPair) -> tuple[float, float]:
    """The gold rewards of a pair's two responses: those that labelled it, unless there are others."""
    if pair.chosen_gold is not None and pair.rejected_gold is not None:
        return pair.chosen_gold, pair.rejected_gold
    return pair.chosen_score or 0.0, pair.rejected_score or 0.0


def as_rows(base: Base, pairs: Sequence[TokenPair]) -> list[dict[str, str | float | None]]:
    """Pairs as text in the field's standard columns, with the gold rewards as scores."""
    return [
        {
            "prompt": base.decode(pair.prompt_ids),
            "chosen": base.decode(pair.chosen_ids),
            "rejected": base.decode(pair.rejected_ids),
            "chosen_score": pair.chosen_score,
            "rejected_score": pair.rejected_score,
        }
        for pair in pairs
    ]
