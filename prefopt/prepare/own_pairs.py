"""The user's own pairs: read, validated, split, and tokenised."""

from __future__ import annotations

from dataclasses import dataclass

from prefopt.config.schema import Config
from prefopt.data import (
    LoadedPairs,
    Pair,
    check_no_leak,
    check_unchanged,
    load_pairs,
    pair_facts,
    require_enough,
    split_by_prompt,
    tokenize_pairs,
)
from prefopt.errors import DataError
from prefopt.evaluate.samples import Prompts
from prefopt.model.base import Base
from prefopt.prepare.pairs import PreparedPairs
from prefopt.runtime.progress import Progress


@dataclass(frozen=True, slots=True)
class OwnPairs:
    """The user's pairs as read, before any model is loaded.

    Attributes:
        sources: The file of the pairs, and that of the held-out ones where it is a file of its own.
        train: Training rows.
        heldout: Held-out rows, of other prompts.
    """

    sources: tuple[LoadedPairs, ...]
    train: tuple[Pair, ...]
    heldout: tuple[Pair, ...]


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
    for warning in (warning for source in sources for warning in source.report.warnings):
        progress.say(warning)
    if len(sources) == 1:
        train, heldout = split_by_prompt(sources[0].pairs, heldout=data.heldout_share, seed=0)
    else:
        check_no_leak(*sources)
        train, heldout = sources[0].pairs, sources[1].pairs
    require_enough(len(train), config.train.pairs_per_step)
    return OwnPairs(sources, train, heldout)


def own_pairs(config: Config, own: OwnPairs, base: Base, progress: Progress) -> PreparedPairs:
    """The user's pairs, tokenised; the first held-out prompts are those to evaluate on.

    Raises:
        DataError: For rows that do not fit the model.
    """
    data = config.data
    train, heldout = (
        tokenize_pairs(part, base.tokenizer, max_length=data.max_length, on_bad_rows=data.on_bad_rows, source=source)
        for part, source in ((own.train, own.sources[0].source), (own.heldout, own.sources[-1].source))
    )
    for warning in (*train.warnings, *heldout.warnings):
        progress.say(warning)
    by_ids = {pair.prompt_ids: own.heldout[pair.pair_id].prompt for pair in reversed(heldout.pairs)}
    ids, asked = _part(list(dict.fromkeys(p.prompt_ids for p in heldout.pairs)), config)
    prompts = Prompts.shown(ids[:asked], [by_ids[prompt] for prompt in ids[:asked]])
    for source in own.sources:
        check_unchanged(source)
    own_part = set(ids)
    kept = tuple(pair for pair in heldout.pairs if pair.prompt_ids in own_part)
    facts = pair_facts(own.sources, train, heldout)
    return PreparedPairs(train.pairs, kept, prompts, facts)


def _part(prompts: list[tuple[int, ...]], config: Config) -> tuple[list[tuple[int, ...]], int]:
    """The held-out prompts of this part, dealt in turn where some are set apart, and how many are sampled from.

    Raises:
        DataError: If there is no prompt to set apart.
    """
    evaluation = config.evaluation
    if not evaluation.validation_prompts:
        return prompts, evaluation.prompts
    if len(prompts) < 2:
        raise DataError(
            f"{config.data.heldout or config.data.source}: {len(prompts)} held-out prompt cannot be dealt into one "
            "part to choose settings by and one to report on; raise data.heldout_share, or give more pairs"
        )
    test, validation = prompts[::2], prompts[1::2]
    if evaluation.part == "test":
        return test, evaluation.prompts
    return validation, evaluation.validation_prompts
