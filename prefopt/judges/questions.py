"""The comparisons of a results folder as questions to a judge."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from prefopt.errors import UsageError
from prefopt.judges import controls
from prefopt.judges.contract import Shown
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import REFERENCE, SAMPLE_COLUMNS

CONTROL_PROMPTS = 16
CELL = ["variant", "opponent", "seed", "prompt_id"]


@dataclass(frozen=True, slots=True)
class Questions:
    """What is to be judged: one row for each comparison, with texts ``prompt``, ``a`` (variant) and ``b``."""

    frame: pd.DataFrame
    samples: pd.DataFrame
    variants: tuple[str, ...]

    def shown(self) -> list[Shown]:
        """The comparisons as questions, the variant first."""
        columns = (self.frame[name] for name in ("prompt", "a", "b"))
        return [Shown(*texts) for texts in zip(*columns, strict=True)]

    def control_texts(self) -> tuple[list[str], list[str]]:
        """Prompts and real answers for the controls: the reference's first samples that say something."""
        frame = self.samples[self.samples["variant"] == REFERENCE]
        frame = frame if len(frame) else self.samples
        frame = frame[frame["response"].str.strip() != ""].drop_duplicates("prompt_id").sort_values("prompt_id")
        frame = frame.iloc[np.linspace(0, len(frame) - 1, min(CONTROL_PROMPTS, len(frame))).astype(int)]
        return frame["prompt"].tolist(), frame["response"].tolist()


def questions(folder: ResultsFolder, *, pairs: str = "reference", prompts: int | None = None) -> Questions:
    """The comparisons of a folder: sample by sample of the same number, prompt and seed.

    Args:
        folder: A comparison with its samples' text.
        pairs: ``reference`` for every variant against the reference, ``all`` for every two of them as well.
        prompts: Only the first so many evaluation prompts.

    Raises:
        UsageError: If there is no text to judge.
    """
    done = {key for key, run in folder.runs().items() if run.is_complete}
    others = sorted({name for name, _ in done} - {REFERENCE})  # of earlier commands, where the manifest forgot them
    planned = dict.fromkeys([*folder.manifest().variant_names, *others])
    samples = folder.frames("samples.parquet", SAMPLE_COLUMNS)
    if len(samples):
        samples = samples[[key in done for key in zip(samples["variant"], samples["seed"], strict=True)]]
    variants = tuple(name for name in planned if name in set(samples["variant"]))
    if not variants:
        raise UsageError(f"{folder.root}: holds no text of samples, which a judge reads; run the comparison there")
    if prompts is not None:
        samples = samples[samples["prompt_id"].isin(sorted(samples["prompt_id"].unique())[:prompts])]
    matches = [(name, REFERENCE) for name in variants]
    if pairs == "all":
        matches = list(combinations((*variants, REFERENCE), 2))
    by_name = dict(list(samples.groupby("variant")))
    parts = []
    for one, two in matches:
        if two not in by_name:
            continue
        keys = ["seed", "prompt_id", "sample"]
        a = by_name[one].rename(columns={"response": "a"})
        part = a.merge(by_name[two][[*keys, "response"]].rename(columns={"response": "b"}), on=keys, validate="1:1")
        part["opponent"] = two
        parts.append(part[[*CELL, "sample", "prompt", "a", "b"]])
    if not parts:
        raise UsageError(f"{folder.root}: holds no samples of the reference; judge with --pairs all, or run it again")
    return Questions(pd.concat(parts, ignore_index=True), samples.reset_index(drop=True), variants)


def to_ask(questions: Questions, *, with_controls: bool = True) -> list[Shown]:
    """Every distinct question in both orders; identical texts are a tie and are asked about only as a control."""
    distinct = dict.fromkeys(question for question in questions.shown() if question.first != question.second)
    both_orders = dict.fromkeys(one for question in distinct for one in (question, question.swapped()))
    if with_controls:
        for group in controls.questions(*questions.control_texts()).values():
            both_orders.update(dict.fromkeys(one for question in group for one in (question, question.swapped())))
    return list(both_orders)


def write_questions(comparisons: Questions, sample: int | None = None) -> str:
    """JSONL for people or other tools to fill in; which text is the variant's alternates and is not said.

    Args:
        comparisons: From ``questions``.
        sample: So many of them, in an order that is even over variants, seeds and prompts; all without.
    """
    every = to_ask(comparisons, with_controls=False)[::2]
    if sample is not None and sample < len(every):
        # Comparisons stand by variant, seed and prompt: equal steps through them leave none of these out.
        every = [every[i] for i in np.linspace(0, len(every) - 1, sample).round().astype(int)]
    lines = []
    for number, question in enumerate(every):
        shown = question if number % 2 else question.swapped()
        lines.append({"prompt": shown.prompt, "a": shown.first, "b": shown.second, "verdict": None})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
