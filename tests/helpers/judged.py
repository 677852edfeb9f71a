"""A small results folder with texts whose quality is known, and stand-ins for what a judge needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from prefopt.judges.contract import Shown, Verdict
from prefopt.storage import formats, results, schema

PROMPTS, SAMPLES = 6, 2


def write(root: Path, good: Mapping[str, int], *, seeds: int = 2) -> results.ResultsFolder:
    """Variants whose responses hold so many ``good``; the reference's hold one, and as many words in all."""
    folder = results.ResultsFolder(root)
    for seed in range(seeds):
        for name, count in {**good, schema.REFERENCE: 1}.items():
            rows = [
                (i, k, f"prompt {i}", " ".join(["good"] * count + ["plain"] * (3 - count)) + f" {i} {k}")
                for i in range(PROMPTS)
                for k in range(SAMPLES)
            ]
            place = folder.run(name, seed)
            formats.write_frame(place / "samples.parquet", pd.DataFrame(rows, columns=list(schema.SAMPLE_COLUMNS)))
            formats.write_json(place / "run.json", {"variant": name, "seed": seed, "status": "complete"})
    manifest = {
        "schema": 1,
        "name": root.name,
        "seeds": list(range(seeds)),
        "variants": [{"variant": name} for name in good],
        "task": {"name": "data"},
    }
    formats.write_json(folder.manifest_path, manifest)
    return folder


def quality(text: str) -> float:
    return float(text.split().count("good"))


class ScriptedJudge:
    """Answers by a function of the question, and remembers what it was asked."""

    name = "scripted"
    fingerprint = "scripted-1"

    def __init__(self, answer: Callable[[Shown], float | None]) -> None:
        self.answer, self.asked, self.calls = answer, [], 0

    def ask(self, questions: Sequence[Shown]) -> Iterator[tuple[int, Verdict]]:
        for i in reversed(range(len(questions))):  # out of order, as from a pool of threads
            self.asked.append(questions[i])
            self.calls += 1
            first = self.answer(questions[i])
            yield i, Verdict(first, "" if first is not None else "no plain verdict", "perhaps A" * (first is None))

    def facts(self) -> dict[str, object]:
        return {}


class CountingTask:
    """A gold reward that counts the word good."""

    name, has_reward, fingerprint = "counting", True, "counting"

    def reward(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        return np.array([quality(text) for text in responses])

    def reward_report(self) -> dict[str, float]:
        return {"accuracy": 1.0}


def better(question: Shown) -> float:
    """The right verdict."""
    return 0.5 + np.sign(quality(question.first) - quality(question.second)) / 2
