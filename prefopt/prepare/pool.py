"""What builders, losses of groups and rounds work on: the reference's responses, and how new ones are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from prefopt.config.schema import Config
from prefopt.data import TokenPair, check_unchanged, hash_ids, load_pairs, tokenize_pairs
from prefopt.data.builders import Builder, Labelling, OffPolicy, build_pairs
from prefopt.data.types import TokenGroup
from prefopt.errors import DataError
from prefopt.evaluate.samples import Prompts, encode_all
from prefopt.judges import JudgeRequest, Limits, PointwiseJudge, make_judge
from prefopt.judges.labelling import JudgeScorer
from prefopt.model.base import Base
from prefopt.model.logps import score_rows
from prefopt.prepare.pairs import PreparedPairs
from prefopt.prepare.task import Tasks
from prefopt.runtime.progress import Progress
from prefopt.runtime.seeding import numpy_generator
from prefopt.storage.cache import cache_dir, kept_frame
from prefopt.storage.hashing import digest
from prefopt.tasks.base import Task
from prefopt.train.grouped import rows_of
from prefopt.train.pairset import PairSet, Reference, reference_logps

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RewardScorer:
    """Rewards responses to training prompts, which are named by their place."""

    task: Task
    prompts: tuple[object, ...]

    def __call__(self, which: Sequence[int], responses: Sequence[str]) -> npt.NDArray[np.float64]:
        """(N,) rewards."""
        return self.task.reward([self.prompts[i] for i in which], responses)  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Pool:
    """The reference's responses to the training prompts, and what is made of them.

    Attributes:
        groups: One for each training prompt.
        reference: (K,) reference log-probabilities of each, nats.
        built: Pairs by builder.
        prompts: Token ids of the training prompts.
        score: Rewards new responses to them, by the reward that a variant names; an empty name is that of the labels.
        by_judge: Whether a judge labels what no variant's own reward scores.
        labelling: How pairs are labelled.
        stream: What all variants of a comparison share, wherever their data come from: prompts, samples, labeller.
    """

    groups: tuple[TokenGroup, ...]
    reference: tuple[Floats, ...]
    built: Mapping[Builder, PairSet]
    prompts: tuple[tuple[int, ...], ...]
    score: Mapping[str, Callable[[Sequence[int], Sequence[str]], npt.NDArray[np.float64]]]
    by_judge: bool
    labelling: Labelling
    stream: str


def needs_pool(config: Config) -> bool:
    """Whether any variant trains on something else than all pairs of the reference's responses."""
    if config.data.source:
        return False
    return any(v.recipe.builder or config.rounds_of(v) or v.build().takes_groups for v in config.variants)


def make_pool(config: Config, base: Base, tasks: Tasks, pairs: PreparedPairs, cache: Path, progress: Progress) -> Pool:
    """Score the groups under the reference, and build the pairs that the variants ask for.

    Raises:
        DataError: If the file of another policy's pairs cannot be used.
    """
    settings = config.pairs
    labelling = Labelling(settings.labels, settings.scale, settings.label_noise)
    reference = group_references(base, pairs.groups, cache)
    known = {
        (group.prompt_ids, response): value
        for group, values in zip(pairs.groups, reference, strict=True)
        for response, value in zip(group.responses, values, strict=True)
    }
    wanted = {v.recipe.builder for v in config.variants if v.recipe.builder and not config.rounds_of(v)}
    built = {
        builder: (
            _off_policy(config, base, pairs, cache)
            if isinstance(builder, OffPolicy)
            else _with_references(built_pairs(pairs.groups, builder, labelling, settings.seed), known)
        )
        for builder in sorted(wanted, key=repr)
    }
    prompts = tuple(encode_all(base, pairs.training_prompts))
    shape = settings.model_dump(mode="json", exclude={"offpolicy", "reward"})
    train = [config.train.steps, config.train.pairs_per_step]
    return Pool(
        groups=pairs.groups,
        reference=tuple(reference),
        built=built,
        prompts=prompts,
        by_judge=config.rounds.label != "reward",
        score=_scorers(config, base, tasks, pairs, progress),
        labelling=labelling,
        stream=digest([prompts, shape, train, tasks.labels.fingerprint]),
    )


def _scorers(
    config: Config, base: Base, tasks: Tasks, pairs: PreparedPairs, progress: Progress
) -> dict[str, Callable[[Sequence[int], Sequence[str]], npt.NDArray[np.float64]]]:
    """What labels in rounds, by the reward that a variant names; an empty name stands for none."""
    prompts = pairs.training_prompts
    scorers: dict[str, Callable[[Sequence[int], Sequence[str]], npt.NDArray[np.float64]]] = {
        name: RewardScorer(task, prompts) for name, task in {"": tasks.labels, **tasks.others}.items()
    }
    if config.rounds.label != "reward" and any(config.rounds_of(variant) for variant in config.variants):
        scorers[""] = _judge_scorer(config, base, tasks, pairs, progress)
    return scorers


def _judge_scorer(config: Config, base: Base, tasks: Tasks, pairs: PreparedPairs, progress: Progress) -> JudgeScorer:
    """The judge that labels in rounds."""
    rounds = config.rounds
    request = JudgeRequest(
        Path(), rounds.label, base_url=rounds.base_url, key_variable=rounds.key_variable,
        limits=Limits(max_calls=rounds.max_calls), device=config.device,
    )  # fmt: skip
    judge = make_judge(request, task=lambda: tasks.gold)
    assert not isinstance(judge, PointwiseJudge)

    def alive(done: int, total: int) -> None:
        progress.stage(f"judging by {judge.name}", done, total)

    texts = Prompts.of(base, pairs.training_prompts).texts
    return JudgeScorer(judge, texts, cache_dir() / "judgements.sqlite", alive)


def built_pairs(groups: Sequence[TokenGroup], builder: Builder, labelling: Labelling, seed: int) -> list[TokenPair]:
    """The pairs of every group, in order."""
    pairs: list[TokenPair] = []
    for group in groups:
        random = numpy_generator(seed, "builders", group.prompt_id)
        pairs += build_pairs(group, builder, labelling, random, first_id=len(pairs))
    return pairs


def group_references(base: Base, groups: Sequence[TokenGroup], cache: Path) -> list[Floats]:
    """(K,) reference log-probabilities of the responses of each group, from the cache or computed and cached."""
    content = digest([[group.prompt_ids, group.responses] for group in groups])
    key = digest([base.hash, content, base.packed, base.device.type, torch.__version__, "groups"])

    def score() -> pd.DataFrame:
        return pd.DataFrame({"logps": score_rows(base, rows_of(groups, shared=base.packed))})

    flat = kept_frame(cache / "reference" / f"{key}.sealed", score)["logps"].to_numpy(dtype=np.float32)
    ends = np.cumsum([len(group.responses) for group in groups])
    return np.split(flat, ends[:-1])


def _with_references(
    pairs: Sequence[TokenPair], known: Mapping[tuple[tuple[int, ...], tuple[int, ...]], np.float32]
) -> PairSet:
    chosen, rejected = (
        np.array([known[pair.prompt_ids, getattr(pair, side)] for pair in pairs], dtype=np.float32)
        for side in ("chosen_ids", "rejected_ids")
    )
    return PairSet(tuple(pairs), Reference(chosen, rejected, hash_ids(pairs)))


def _off_policy(config: Config, base: Base, pairs: PreparedPairs, cache: Path) -> PairSet:
    """The pairs of another policy, none of whose prompts is one that policies are evaluated on."""
    source = config.pairs.offpolicy
    loaded = load_pairs(source, on_bad_rows=config.data.on_bad_rows, column_map=config.data.column_map)
    tokenized = tokenize_pairs(
        loaded.pairs, base.tokenizer, max_length=config.data.max_length, on_bad_rows=config.data.on_bad_rows,
        source=source,
    )  # fmt: skip
    check_unchanged(loaded)
    kept_out = {*pairs.prompts.ids, *(pair.prompt_ids for pair in pairs.heldout)}
    leaks = sum(pair.prompt_ids in kept_out for pair in tokenized.pairs)
    if leaks:
        raise DataError(
            f"{source}: {leaks} rows have a prompt that policies are evaluated on; remove them from the file"
        )
    reference = reference_logps(base, tokenized.pairs, data_hash=hash_ids(tokenized.pairs), cache=cache)
    return PairSet(tokenized.pairs, reference)
