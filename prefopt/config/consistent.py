"""Settings that each can be and do not go together: tasks, rewards, builders and rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prefopt.config.recipe import Recipe
from prefopt.contract.loss import Loss
from prefopt.data.builders import RSO, OffPolicy
from prefopt.storage.hashing import digest
from prefopt.storage.results import check_name
from prefopt.storage.schema import REFERENCE
from prefopt.tasks import find_task
from prefopt.tasks.rewards import parse_reward

if TYPE_CHECKING:
    from prefopt.config.schema import Config, Variant


def check_variants(config: Config) -> None:
    """Refuse names that cannot be folders, what is given twice, and variants that are one experiment.

    Raises:
        ValueError: In one line, with what to change.
    """
    check_name(config.name, "name")
    names = [check_name(variant.name, "variant") for variant in config.variants]
    if not names:
        raise ValueError("variants: at least one is needed")
    if REFERENCE in [name.casefold() for name in names]:
        raise ValueError(f"variant {REFERENCE}: the policy before training has this name; choose another")
    once = {"variant": [n.casefold() for n in names], "seed": [str(s) for s in config.seeds], "tracker": config.track}
    for kind, values in once.items():
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{kind} {', '.join(twice)} is given twice")
    specs = [
        (digest(v.build().spec()), v.recipe.builder, config.rounds_of(v), config.learning_rate(v), v.reward)
        for v in config.variants
    ]
    for name, spec in zip(names, specs, strict=True):
        other = names[specs.index(spec)]
        if other != name:
            raise ValueError(f"variants {other} and {name} are the same experiment; drop one")
    if not config.seeds:
        raise ValueError("seeds: at least one is needed")


def check_tuning(config: Config) -> None:
    """Refuse to report at seeds or on prompts by which settings were chosen.

    Raises:
        ValueError: In one line, with what to change.
    """
    evaluation = config.evaluation
    if evaluation.part == "validation" and not evaluation.validation_prompts:
        raise ValueError("evaluation.part is validation, and evaluation.validation_prompts sets no prompt apart")
    both = sorted({*config.seeds} & {*config.tune.seeds})
    if both and config.tune.trials and evaluation.part == "test":
        raise ValueError(f"seed {both[0]} is one of seeds and of tune.seeds; what is reported needs fresh seeds")


def check_task(config: Config) -> None:
    """Refuse prompts, pairs and rewards that do not go together.

    Raises:
        ValueError: In one line, with what to change.
    """
    for reward in filter(None, (config.task.reward, config.pairs.reward, *(v.reward for v in config.variants))):
        parse_reward(reward)
    if config.task.name not in ("imdb", "data", "prompts"):
        find_task(config.task.name)
    if config.train.epochs is not None and "steps" in config.train.model_fields_set:
        raise ValueError("train.steps and train.epochs are both given; keep one")
    if config.task.name == "data" and not config.data.source:
        raise ValueError("task data needs data.source: give --data FILE")
    if bool(config.task.prompts) != (config.task.name == "prompts"):
        raise ValueError("task prompts and task.prompts go together: give --prompts FILE")
    if config.data.source and config.task.prompts:
        raise ValueError("--data brings its own prompts; leave --prompts out, or --data")
    if config.task.prompts and not config.task.reward:
        raise ValueError("--prompts needs --reward: what responses are labelled and evaluated by")
    if config.data.source and config.pairs.reward:
        raise ValueError("pairs.reward labels responses that are sampled here, and --data brings its own labels")


def check_recipe(config: Config, variant: Variant) -> None:
    """Refuse a builder or rounds that this comparison cannot give.

    Raises:
        ValueError: In one line, with what to change.
    """
    name, recipe, loss, count = variant.name, variant.recipe, variant.build(), config.rounds_of(variant)
    if variant.reward and not count:
        raise ValueError(f"variant {name}: its reward scores what it says in rounds, and it has none")
    if not (recipe.builder or recipe.rounds is not None or count or loss.takes_groups):
        return
    if config.data.source and (recipe.builder or count):
        raise ValueError(f"variant {name}: --data brings its own pairs; builders and rounds sample them here")
    if loss.takes_groups and recipe.builder:
        raise ValueError(f"variant {name}: a loss of groups takes all responses of a prompt; leave the builder out")
    if loss.takes_groups and config.pairs.label_noise:
        raise ValueError(f"variant {name}: a loss of groups reads rewards, which pairs.label_noise cannot flip")
    if isinstance(recipe.builder, OffPolicy) and not config.pairs.offpolicy:
        raise ValueError(f"variant {name}: @offpolicy needs pairs.offpolicy, a file of pairs")
    if isinstance(recipe.builder, RSO):
        recipe.builder.pick([0.0] * config.pairs.samples, np.random.default_rng(0))
    if count:
        _check_rounds(config, name, recipe, loss, count)


def _check_rounds(config: Config, name: str, recipe: Recipe, loss: Loss, count: int) -> None:
    if config.train.steps % count:
        raise ValueError(f"variant {name}: train.steps = {config.train.steps} cannot be parted into {count} rounds")
    label = config.rounds.label
    if label != "reward" and not (label.startswith(("lm:", "openai:")) and label.partition(":")[2]):
        raise ValueError(f"rounds.label = {label!r}: write reward, lm:MODEL or openai:NAME")
    if label.startswith("openai:") and not config.rounds.base_url:
        raise ValueError(
            "rounds.label: a judge behind a server needs rounds.base_url, such as http://localhost:8000/v1"
        )
    if isinstance(recipe.builder, OffPolicy):
        raise ValueError(f"variant {name}: pairs of another policy are not sampled in rounds")
    if config.prompts_of_round(count) > config.pairs.prompts:
        raise ValueError(
            f"rounds.prompts: a round cannot have more prompts than pairs.prompts = {config.pairs.prompts}"
        )
    if config.rounds.reference == "previous" and (loss.token_fields or loss.needs_mismatched):
        raise ValueError(
            f"variant {name}: it reads the reference token by token, which only the first can give; "
            "set rounds.reference = first, or leave it out"
        )
