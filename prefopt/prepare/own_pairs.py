"""The user's own pairs: read, validated, split, and tokenised; and what follows from them for the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prefopt.config.schema import Config
from prefopt.config.situation import settle, settle_split
from prefopt.data import (
    LoadedPairs,
    LoadedPrompts,
    Pair,
    Text,
    TokenizedPairs,
    check_no_leak,
    check_no_prompt_leak,
    check_unchanged,
    encode_prompts,
    load_pairs,
    load_prompts,
    pair_facts,
    require_enough,
    split_by_prompt,
    tokenize_pairs,
)
from prefopt.data.problems import RowError, refuse
from prefopt.data.prompts import with_form
from prefopt.errors import DataError, UsageError
from prefopt.evaluate.samples import Prompts
from prefopt.model.base import Base
from prefopt.prepare.pairs import PreparedPairs
from prefopt.runtime.progress import Progress

MANY_CUT = 0.5  # share of pairs that lose an end to the length limit, from which on it is said that they do


@dataclass(frozen=True, slots=True)
class OwnPairs:
    """The user's pairs as read, before any model is loaded.

    Attributes:
        config: The comparison, with the share that is held out decided.
        sources: The file of the pairs, and that of the held-out ones where it is a file of its own.
        train: Training rows.
        heldout: Held-out rows, of other prompts.
        prompts: Prompts to evaluate on, where they are a file of their own.
    """

    config: Config
    sources: tuple[LoadedPairs, ...]
    train: tuple[Pair, ...]
    heldout: tuple[Pair, ...]
    prompts: LoadedPrompts | None = None


def read_pairs(config: Config, progress: Progress) -> OwnPairs:
    """Read, validate and split the user's pairs.

    Raises:
        DataError: For rows that cannot be used, or a prompt on both sides.
    """
    progress.stage("reading the pairs", 0, 1)
    data = config.data
    sources = tuple(
        load_pairs(source, on_bad_rows=data.on_bad_rows, column_map=data.column_map, dedup=data.dedup)
        for source in filter(None, (data.source, data.heldout))
    )
    for source in sources:
        _say_dropped(source.source, source.report.rows, source.report.dropped, progress)
        for warning in source.report.warnings:
            progress.say(warning)
    if len(sources) == 1:
        config = settle_split(config, len({pair.prompt_id for pair in sources[0].pairs}))
        train, heldout = split_by_prompt(sources[0].pairs, heldout=config.data.heldout_share, seed=0)
    else:
        check_no_leak(*sources)
        train, heldout = sources[0].pairs, sources[1].pairs
    require_enough(len(train), config.train.pairs_per_step)
    chats = not isinstance(train[0].prompt, str)
    prompts = _read_prompts(config, train, chats=chats) if data.eval_prompts else None
    return OwnPairs(config, sources, train, heldout, prompts)


def _read_prompts(config: Config, train: Sequence[Pair], *, chats: bool) -> LoadedPrompts:
    """Evaluation prompts of a file of their own, in the form of the pairs and none of theirs."""
    source = config.data.eval_prompts
    loaded = load_prompts(source, column_map=config.data.column_map)
    try:
        formed = tuple(with_form(prompt, chats=chats) for prompt in loaded.prompts)
    except RowError as problem:
        raise refuse(source, 0, problem) from None
    prompts = replace(loaded, prompts=formed)
    check_no_prompt_leak(train, prompts, config.data.source)
    return prompts


def _say_dropped(source: str, rows: int, dropped: Mapping[str, int], progress: Progress) -> None:
    """Say how many rows were left out, and why."""
    if dropped:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        progress.say(f"{source}: {sum(dropped.values())} of {rows} rows left out ({reasons})")


def own_pairs(own: OwnPairs, base: Base, progress: Progress) -> tuple[Config, PreparedPairs]:
    """The user's pairs, tokenised, and the comparison with all that follows from them decided.

    The first held-out prompts are those to evaluate on, unless a file of prompts was given.

    Raises:
        DataError: For rows that do not fit the model.
        UsageError: For a setting of chats where there are none.
    """
    data = own.config.data
    _check_chat_settings(own)
    train, heldout = (
        tokenize_pairs(
            part,
            base.tokenizer,
            max_length=data.max_length,
            max_prompt_length=data.max_prompt_length,
            cut_prompts=data.cut_prompts,
            merge_system=data.merge_system,
            on_bad_rows=data.on_bad_rows,
            source=source,
        )
        for part, source in ((own.train, own.sources[0].source), (own.heldout, own.sources[-1].source))
    )
    for name, part, rows in (("training", train, own.train), ("held-out", heldout, own.heldout)):
        _say_dropped(f"{name} pairs", len(rows), part.dropped, progress)
        for warning in part.warnings:
            progress.say(warning)
        _say_many_cut(name, part, data.max_length, progress)
    if base.tokenizer.chat_template and isinstance(own.train[0].prompt, str):
        progress.say(
            "the model has a chat template and the pairs are text, which is trained on as it is; to train on turns of "
            "a chat, give prompt, chosen and rejected as messages"
        )
    sources = _prompts(own, heldout, base)
    ids = _part(list(sources), own.config)
    config = settle(
        own.config,
        pairs=len(train.pairs),
        chosen_tokens=[len(pair.chosen_ids) for pair in train.pairs],
        parameters=base.parameters,
        prompts=len(ids),
    )
    asked = config.evaluation.prompts if config.evaluation.part == "test" else config.evaluation.validation_prompts
    if len(ids) < asked:
        progress.say(f"{len(ids)} evaluation prompts, which is all there are; evaluation.prompts asks for more")
    for source in own.sources:
        check_unchanged(source)
    own_part = set(_part(list(dict.fromkeys(pair.prompt_ids for pair in heldout.pairs)), own.config))
    kept = tuple(pair for pair in heldout.pairs if pair.prompt_ids in own_part)
    facts = pair_facts(own.sources, train, heldout)
    if own.prompts is not None:
        facts |= {"eval_prompts_source": own.prompts.source, "eval_prompts_sha256": own.prompts.sha256}
    prompts = Prompts.shown(ids[:asked], [sources[prompt] for prompt in ids[:asked]])
    ends = tuple(sorted({*train.ends, *heldout.ends}))
    return config, PreparedPairs(train.pairs, kept, prompts, facts, ends=ends)


def _part(prompts: list[tuple[int, ...]], config: Config) -> list[tuple[int, ...]]:
    """The prompts of this part, dealt in turn where some are set apart.

    Raises:
        DataError: If there is no prompt to set apart.
    """
    evaluation = config.evaluation
    if not evaluation.validation_prompts:
        return prompts
    if len(prompts) < 2:
        raise DataError(
            f"{config.data.heldout or config.data.source}: {len(prompts)} held-out prompt cannot be dealt into one "
            "part to choose settings by and one to report on; raise data.heldout_share, or give more pairs"
        )
    return prompts[::2] if evaluation.part == "test" else prompts[1::2]


def _prompts(own: OwnPairs, heldout: TokenizedPairs, base: Base) -> dict[tuple[int, ...], Text]:
    """Different prompts to evaluate on, by their tokens, in order: those of a file, or the held-out ones."""
    if own.prompts is not None:
        ids = [
            tuple(tokens)
            for tokens in encode_prompts(own.prompts.prompts, base.tokenizer, merge_system=own.config.data.merge_system)
        ]
        return dict(zip(ids, own.prompts.prompts, strict=True))
    return {pair.prompt_ids: own.heldout[pair.pair_id].prompt for pair in heldout.pairs}


def _say_many_cut(name: str, pairs: TokenizedPairs, max_length: int, progress: Progress) -> None:
    """Warn where so many pairs lose an end that the data are no longer what was given."""
    cut = sum(pair.chosen_truncated or pair.rejected_truncated for pair in pairs.pairs)
    if cut >= MANY_CUT * len(pairs.pairs):
        progress.say(
            f"warning: {cut} of {len(pairs.pairs)} {name} pairs are cut at data.max_length = {max_length} tokens, and "
            "the end of a response is not learnt from those; raise it, as far as the model allows"
        )


def _check_chat_settings(own: OwnPairs) -> None:
    """Refuse settings that say how chats are rendered where every row is text."""
    if any(not isinstance(pair.prompt, str) for pair in (*own.train, *own.heldout)):
        return
    config = own.config
    settings = {"model.chat_template": config.model.chat_template, "data.merge_system": config.data.merge_system}
    for name in (name for name, value in settings.items() if value):
        raise UsageError(
            f"{name} is for rows that are chats, and the rows of {own.sources[0].source} are text: drop it"
        )
