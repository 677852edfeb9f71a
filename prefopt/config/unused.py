"""Settings that this comparison would not use: refused, since a setting that does nothing is a mistake."""

from __future__ import annotations

from collections.abc import Iterator

from prefopt.config.schema import Config
from prefopt.config.tune import Tune
from prefopt.data.builders import OffPolicy
from prefopt.errors import UsageError


def refuse_unused(config: Config, where: str) -> None:
    """Refuse settings that were given and that nothing would read.

    Raises:
        UsageError: A line for each, with why it has no effect and what to do.
    """
    lines = [f"{where}: {name} has no effect {why}" for name, why in _unused(config)]
    if lines:
        raise UsageError("\n".join(lines))


def _unused(config: Config) -> Iterator[tuple[str, str]]:
    """Names of settings that were given and are not read, with the reason."""
    own = bool(config.data.source)
    if own:
        yield from _given(config, "pairs", "with your own pairs, which are labelled already; leave it out")
    else:
        yield from _given(config, "data", "without pairs of your own; give --data FILE, or leave it out")
    if config.model.chat_template and not (own or config.task.prompts):
        yield "model.chat_template", "without chats of your own; give --data or --prompts FILE, or leave it out"
    if config.model.adapter and _tunes(config):
        yield "model.adapter", "where the reference is fine-tuned instead; leave out one of them"
    rewarded = bool(config.task.reward) or (config.task.name not in ("data", "prompts"))
    named = config.task.reward or config.pairs.reward or any(variant.reward for variant in config.variants)
    if not named:
        yield from _given(config, "task", "where no reward is named; leave it out", only=("reward_s",))
    if not rewarded:
        yield from _given(config, "evaluation", "without a reward; give --reward, or leave it out", only=("best_of",))
    if not any(isinstance(variant.recipe.builder, OffPolicy) for variant in config.variants) and not own:
        yield from _given(config, "pairs", "where no variant asks for @offpolicy; leave it out", only=("offpolicy",))
    yield from _rounds(config)
    if not config.tune.trials:
        names = tuple(Tune.model_fields.keys() - {"trials"})
        yield from _given(config, "tune", "without trials; give --tune N, or leave it out", only=names)
    if config.data.heldout:
        yield from _given(config, "data", "beside data.heldout; leave it out", only=("heldout_share",))
    if not _tunes(config):
        why = (
            "where the reference is not fine-tuned; set sft.on = chosen" if own else "where sft.steps = 0; leave it out"
        )
        yield from _given(config, "sft", why, only=("texts_per_step", "text_tokens", "learning_rate"))
    elif config.sft.on == "chosen":
        why = "on chosen responses, which are cut to data.max_length; leave it out"
        yield from _given(config, "sft", why, only=("text_tokens",))
    if config.sft.on == "chosen" and not own:
        yield "sft.on = chosen", "without pairs of your own; give --data FILE"
    if config.sft.on == "chosen" and config.sft.steps == 0:
        yield "sft.on = chosen", "with sft.steps = 0; give more steps, or none"
    if config.sft.on == "texts" and config.task.name == "data" and (config.sft.steps or config.is_given("sft.on")):
        yield "sft.on = texts", "with task data, which has none; set sft.on = chosen"


def _rounds(config: Config) -> Iterator[tuple[str, str]]:
    """Settings of rounds that no variant has, or of a server that does not label them."""
    if not any(config.rounds_of(variant) for variant in config.variants):
        yield from _given(config, "rounds", "where no variant has rounds; leave it out")
    elif not config.rounds.label.startswith("openai:"):
        why = "where no judge behind a server labels; leave it out"
        yield from _given(config, "rounds", why, only=("base_url", "key_variable", "max_calls"))


def _tunes(config: Config) -> bool:
    return config.sft.on == "chosen" or config.sft_steps > 0


def _given(config: Config, section: str, why: str, only: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    names = getattr(config, section).model_fields_set
    for key in sorted(names & set(only) if only else names):
        if config.is_given(f"{section}.{key}") and not (section == "data" and key == "source"):
            yield f"{section}.{key}", why
