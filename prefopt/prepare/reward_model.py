"""``prefopt reward``: rankings from the user's file or from sampled responses, a reward model of them, its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from prefopt.config.schema import Config
from prefopt.data import Message, load_pairs
from prefopt.data.order import split_groups
from prefopt.data.ranked import Ranking, is_ranked, load_rankings, rankings_of_pairs
from prefopt.errors import DataError, UsageError
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.model.scalar import save_classifier
from prefopt.prepare.onpolicy import label, sampled_responses, task_prompts
from prefopt.prepare.reference import Lessons, load_model, make_reference
from prefopt.prepare.task import Tasks, load_tasks
from prefopt.runtime.progress import Progress
from prefopt.storage.cache import cache_dir
from prefopt.storage.folders import fill_folder
from prefopt.storage.formats import write_json
from prefopt.storage.redact import portable
from prefopt.tasks.base import Prompt
from prefopt.tasks.rewards import RewardError
from prefopt.train.reward_model import Encoded, reward_report, rewards_of, train_reward

REPORT = "reward.json"


def make_reward_model(config: Config, out: Path, device: torch.device, progress: Progress) -> dict[str, Any]:
    """Train a reward model and write its folder; what is known of it.

    Args:
        config: The model, the data or the task, and the training settings; the first seed counts.
        out: The folder to make.
        device: Where it is trained.
        progress: Hears what is going on.

    Raises:
        PrefoptError: For anything that the user can mend; nothing is written then.
    """
    if out.exists():
        raise UsageError(f"--out {out} is there already; name another folder, or move it away")
    if config.model.quantization != "none":
        raise UsageError("prefopt reward merges what it trains into the weights, which must not be quantized")
    own = _own_rankings(config) if config.data.source else None
    tasks = load_tasks(config, device, progress, of_variants=False)
    lessons = Lessons.of_texts(config, tasks.prompts)
    base = make_reference(config, load_model(config, device, progress.stage), lessons, cache_dir(), progress.stage)
    model = AdaptedModel.wrap(base, config.lora, size=1)
    train, heldout = own if own is not None else _sampled_rankings(config, model, tasks, progress)
    parts = [Encoded.of(model, part, max_length=config.data.max_length) for part in (train, heldout)]
    steps = config.train.steps

    def show(step: int, loss: float) -> None:
        progress.step("training a reward model", step, steps, {"reward": {"loss": loss}})

    head = train_reward(model, parts[0], config.train, seed=config.seeds[0], progress=show)
    facts = {
        "model": portable(config.model.name),
        "base": base.hash,
        "trained_on": {"prompts": len(train), "pairs": sum(len(r.pairs) for r in train)},
        "steps": steps,
        "heldout": reward_report(heldout, rewards_of(model, parts[1], head)),
    }

    def fill(folder: Path) -> None:
        save_classifier(folder, model, head)
        write_json(folder / REPORT, facts)

    fill_folder(out, fill)
    return facts


def _own_rankings(config: Config) -> tuple[list[Ranking], list[Ranking]]:
    """The user's rankings or pairs, parted by prompt or by file."""
    data = config.data

    def read(source: str) -> list[Ranking]:
        if is_ranked(source):
            return load_rankings(source)
        loaded = load_pairs(source, on_bad_rows=data.on_bad_rows, column_map=data.column_map, dedup=data.dedup)
        return rankings_of_pairs(loaded.pairs)

    rankings = read(data.source)
    if data.heldout:
        return rankings, read(data.heldout)
    train, heldout = split_groups([r.prompt for r in rankings], heldout=data.heldout_share, seed=0)
    return [rankings[i] for i in train], [rankings[i] for i in heldout]


def _sampled_rankings(
    config: Config, model: AdaptedModel, tasks: Tasks, progress: Progress
) -> tuple[list[Ranking], list[Ranking]]:
    """Rankings of the reference's responses: all their pairs, labelled as those that policies train on."""
    progress.stage("sampling responses to rank", 0, 1)
    prompts = task_prompts(config, tasks.prompts, model.base)
    texts: list[Prompt] = [*prompts.train, *prompts.heldout]
    try:
        responses = sampled_responses(model, tasks, texts, config.pairs, cache_dir())
    except RewardError as problem:
        raise DataError(f"the responses cannot be labelled: {problem}. Nothing was trained") from None
    for_training = responses["prompt_id"] < len(prompts.train)
    noise = (config.pairs.label_noise, 0.0)
    parts = (responses[for_training], responses[~for_training])
    train, heldout = (
        _rankings(config, model.base, part, texts, share) for part, share in zip(parts, noise, strict=True)
    )
    return train, heldout


def _rankings(
    config: Config, base: Base, responses: pd.DataFrame, prompts: Sequence[Prompt], noise: float
) -> list[Ranking]:
    """A ranking of each prompt whose responses are not all of one text."""
    gold = "gold" if "gold" in responses else "reward"
    rankings = []
    better: dict[int, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for pair in label(responses, config.pairs, noise=noise):
        better.setdefault(pair.prompt_id, []).append((pair.chosen_ids, pair.rejected_ids))
    for prompt_id, rows in responses.groupby("prompt_id", sort=True):
        texts = {tuple(map(int, tokens)): base.decode(list(map(int, tokens))) for tokens in rows["tokens"]}
        place = {text: i for i, text in enumerate(dict.fromkeys(texts.values()))}
        golds = dict(zip((texts[tuple(map(int, t))] for t in rows["tokens"]), rows[gold], strict=True))
        pairs = [(place[texts[a]], place[texts[b]]) for a, b in better.get(int(prompt_id), [])]
        pairs = [(a, b) for a, b in pairs if a != b]
        if pairs:
            prompt = prompts[int(prompt_id)]
            text = prompt if isinstance(prompt, str) else tuple(Message(*turn) for turn in prompt)
            rankings.append(Ranking(text, tuple(place), tuple(pairs), tuple(float(golds[t]) for t in place)))
    return rankings
