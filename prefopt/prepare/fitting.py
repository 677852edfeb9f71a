"""A model made ready for a comparison: its adapters, tried, and its path, decided from the lengths of the texts."""

from __future__ import annotations

from dataclasses import replace

from prefopt.config.schema import Config
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import Base
from prefopt.model.lengths import Lengths, fit_lengths
from prefopt.model.probe import probe
from prefopt.prepare.pairs import PreparedPairs
from prefopt.runtime.progress import Progress
from prefopt.train.autosize import together


def adapted(base: Base, config: Config, progress: Progress) -> AdaptedModel:
    """A base with one adapter for each variant and one that stays zero, tried.

    Raises:
        UsageError: If adapters in these layers cannot be trained.
    """
    model = probe(AdaptedModel.wrap(base, config.lora, size=together(len(config.variants), base.device) + 1))
    if not model.base.packed:
        _say_plain(model.base, progress)
    if not model.base.packed and not model.base.cached:
        progress.say("its cache cannot be used: each sampled token reads its whole text again, which is slow")
    return model


def fitted(model: AdaptedModel, config: Config, pairs: PreparedPairs, progress: Progress) -> AdaptedModel:
    """``model`` as it can take a comparison's texts, which end as the pairs do.

    Raises:
        UsageError: If a text is longer than the model can read.
    """
    model = model.ending(pairs.ends)
    crossed = any(variant.build().needs_mismatched for variant in config.variants)
    new = config.evaluation.max_new_tokens
    if not config.data.source:
        new = max(new, config.pairs.max_new_tokens)
    lengths = Lengths.of((*pairs.train, *pairs.heldout), pairs.prompts.ids, new, crossed=crossed)
    base = fit_lengths(model.base, lengths, progress.say)
    if base.packed == model.base.packed:
        return replace(model, base=base)
    _say_plain(base, progress)
    return probe(replace(model, base=base))


def _say_plain(base: Base, progress: Progress) -> None:
    progress.say(f"plain path, each response in a padded row of its own: {base.why_plain}")
