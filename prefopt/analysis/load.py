"""A results folder as one checked value: what was planned, what finished, and the frames of what finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefopt import stats
from prefopt.analysis.leading import judge_facts, judges_in_order
from prefopt.errors import UsageError
from prefopt.storage import results, schema
from prefopt.storage.records import Manifest, RunRecord, check_conditions

SELFTEST_FIELDS = {"name", "question", "value", "low", "high", "detail", "passed"}


@dataclass(frozen=True)
class Comparison:
    """Everything that the report reads.

    Attributes:
        root: The results folder.
        manifest: As written by the comparison.
        variants: Planned variants in the manifest's order, without the reference.
        seeds: Planned seeds of any variant, ascending.
        planned: The seeds that each variant was planned at, ascending.
        runs: The record of every run by (variant, seed).
        reference: The reference's, by seed.
        history, pairs, scores, samples: Tidy frames of complete runs (history: of diverged ones too).
        proxies: Mean reward of a policy's samples by what it was trained by in place of the gold reward, by run.
        best_of: Further samples of the reference, of which the best of n is taken; empty where there are none.
        sampled: Samples on the way, where there are any.
        judgements: Rows between complete runs, or a complete run and the reference.
        selftest: What the self-test found, or None where it was not run for this folder.
    """

    root: Path
    manifest: Manifest
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    planned: Mapping[str, tuple[int, ...]]
    runs: Mapping[tuple[str, int], RunRecord]
    reference: Mapping[int, RunRecord]
    history: pd.DataFrame
    pairs: pd.DataFrame
    scores: pd.DataFrame
    samples: pd.DataFrame
    proxies: Mapping[tuple[str, int], float]
    best_of: pd.DataFrame
    judgements: pd.DataFrame
    sampled: pd.DataFrame
    selftest: Mapping[str, Any] | None

    def status(self, variant: str, seed: int) -> str:
        """``complete``, ``diverged``, ``failed`` or ``missing``."""
        run = self.runs.get((variant, seed))
        return "missing" if run is None else run.status

    def complete_seeds(self, variant: str) -> list[int]:
        """The planned seeds at which this variant finished."""
        return [seed for seed in self.planned[variant] if self.status(variant, seed) == "complete"]

    def finished_runs(self, variant: str) -> list[RunRecord]:
        """The record of every planned seed that finished, the reference's too."""
        if variant == schema.REFERENCE:
            return [self.reference[seed] for seed in self.seeds if seed in self.reference]
        return [self.runs[variant, seed] for seed in self.complete_seeds(variant)]

    def is_complete(self, variant: str) -> bool:
        """Whether it finished at every planned seed; nothing is claimed about one that did not."""
        return len(self.complete_seeds(variant)) == len(self.planned[variant])

    def judges(self) -> list[str]:
        """Its judges, the one whose verdicts count first."""
        return judges_in_order(results.ResultsFolder(self.root), self.judgements)

    def judge_facts(self) -> dict[str, dict[str, Any]]:
        """What each judge's own run found about it (``judge.json``), by the judge's name."""
        return judge_facts(results.ResultsFolder(self.root))


def load(root: Path) -> Comparison:
    """Read and check a results folder.

    Raises:
        UsageError: If it is not one, or a file is damaged, or no run has finished.
        UnequalConditions: If two variants of one seed were not trained or evaluated alike.
    """
    folder = results.ResultsFolder(root)
    manifest = folder.manifest()
    folder.check("prompts.parquet", may_be_missing=True)  # published without its text
    written = folder.runs()
    runs = {key: run for key, run in written.items() if key[0] != schema.REFERENCE}
    current = _tuned_variants(manifest)
    if current:
        runs = {key: run for key, run in runs.items() if key[0] in current}
    variants = tuple(dict.fromkeys([*(current or manifest.variant_names), *sorted(variant for variant, _ in runs)]))
    planned = {name: _planned(manifest, runs, name) for name in variants}
    seeds = tuple(sorted({*manifest.seeds, *(seed for _, seed in runs), *sum(planned.values(), ())}))
    if not any(run.is_complete for run in runs.values()):
        raise UsageError(f"{root}: no run has finished, so there is nothing to report; run the comparison again")
    check_conditions(runs)

    done = {key for key, run in runs.items() if run.is_complete}
    done |= {(schema.REFERENCE, seed) for seed in seeds}
    history = folder.frames("history.csv", schema.HISTORY_COLUMNS)
    return Comparison(
        root=root,
        manifest=manifest,
        variants=variants,
        seeds=seeds,
        planned=planned,
        runs=runs,
        reference={seed: run for (name, seed), run in written.items() if name == schema.REFERENCE},
        history=_only(history, set(runs)),
        pairs=_only(folder.frames("pairs.parquet", schema.PAIR_COLUMNS), done),
        scores=_only(folder.frames("scores.parquet", schema.SCORE_COLUMNS), done),
        samples=_only(folder.frames("samples.parquet", schema.SAMPLE_COLUMNS), done),
        proxies=_proxies(folder, done),
        best_of=folder.frames(schema.BEST_OF, schema.BEST_OF_COLUMNS),
        judgements=_judgements(folder, done),
        sampled=_only(folder.frames("sampled.parquet", schema.SAMPLED_COLUMNS), done),
        selftest=_selftest(folder),
    )


def _tuned_variants(manifest: Manifest) -> list[str]:
    """The variants of a tuned comparison's newest command, or of its trials; empty for any other comparison.

    Winners of fewer trials, or trials of other ranges, may lie beside them: they have no part in what is compared.
    """
    if not manifest.config.get("tune", {}).get("trials"):
        return []
    return [str(variant["label"]) for variant in manifest.config.get("variants", ()) if variant.get("label")]


def _planned(manifest: Manifest, runs: Mapping[tuple[str, int], RunRecord], variant: str) -> tuple[int, ...]:
    """The seeds that a variant was planned at, and those it ran at beyond them."""
    ran = {seed for name, seed in runs if name == variant}
    return tuple(sorted({*manifest.planned_seeds(variant), *ran}))


def _proxies(folder: results.ResultsFolder, done: set[tuple[str, int]]) -> dict[tuple[str, int], float]:
    """The mean of the column ``proxy``, for the runs that have it."""
    paths = {key: folder.run(*key) / "scores.parquet" for key in done}
    frames = {key: pd.read_parquet(path) for key, path in sorted(paths.items()) if path.is_file()}
    return {key: float(frame["proxy"].mean()) for key, frame in frames.items() if "proxy" in frame}


def _only(frame: pd.DataFrame, keys: set[tuple[str, int]]) -> pd.DataFrame:
    if not len(frame):
        return frame
    keep = [key in keys for key in zip(frame["variant"], frame["seed"], strict=True)]
    return frame[np.array(keep)].reset_index(drop=True)


def _judgements(folder: results.ResultsFolder, done: set[tuple[str, int]]) -> pd.DataFrame:
    frame = folder.judgements()
    missing = [column for column in schema.JUDGEMENT_COLUMNS if column not in frame]
    if missing:
        raise UsageError(f"{folder.root / 'judgements.parquet'} lacks the column {missing[0]}; judge again")
    if not len(frame):
        return frame
    seeds = frame["seed"]
    keep = [
        (one, seed) in done and (two, seed) in done
        for one, two, seed in zip(frame["variant"], frame["opponent"], seeds, strict=True)
    ]
    return frame[np.array(keep)].reset_index(drop=True)


def _selftest(folder: results.ResultsFolder) -> Mapping[str, Any] | None:
    path = folder.selftest_path
    if not path.is_file():
        return None
    selftest = folder.read_json(path)
    rows = selftest.get("controls")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) >= SELFTEST_FIELDS for row in rows):
        raise UsageError(f"{path} is damaged: no list of controls; run prefopt selftest --out {folder.root} again")
    return selftest


class Scores:
    """One judge's win rates as dense (S, N) tables over ``seeds`` and ``prompts``, for every ordered pair of names.

    A cell is the variant's share of the comparisons at that seed and prompt, ties one half; NaN where there is none.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.seeds: list[int] = sorted(int(seed) for seed in frame["seed"].unique())
        self.prompts: list[str] = sorted(frame["prompt_id"].unique())
        pair, names = pd.factorize(pd.MultiIndex.from_frame(frame[["variant", "opponent"]]))
        self._place = {tuple(name): i for i, name in enumerate(names)}
        self._at = (
            pair,
            pd.Categorical(frame["seed"], categories=self.seeds).codes,
            pd.Categorical(frame["prompt_id"], categories=self.prompts).codes,
        )
        self._shape = (len(names), len(self.seeds), len(self.prompts))
        self._score = self._fill(frame["score"].where(frame["n"] > 0))
        self._ties = self._fill(frame["ties"].where(frame["n"] > 0))
        self._n = self._fill(frame["n"])
        self._invalid = self._fill(frame["invalid"])

    def _fill(self, column: pd.Series[Any]) -> np.ndarray:
        values = np.full(self._shape, np.nan)
        values[self._at] = column.to_numpy(float)
        return values

    def get(self, variant: str, opponent: str) -> np.ndarray | None:
        """(S, N) win rates of ``variant``, or None where the two were not compared."""
        if (variant, opponent) in self._place:
            score = self._score[self._place[variant, opponent]]
        elif (opponent, variant) in self._place:
            score = 1.0 - self._score[self._place[opponent, variant]]
        else:
            return None
        return None if np.isnan(score).all() else score

    def tie_rate(self, variant: str, opponent: str) -> float:
        """Share of ties among the comparisons of two policies."""
        return float(np.nanmean(self._ties[self._at_any(variant, opponent)]))

    def unusable(self, variant: str, opponent: str) -> float:
        """Share of the comparisons of two policies that have no usable verdict."""
        place = self._at_any(variant, opponent)
        usable, invalid = np.nansum(self._n[place]), np.nansum(self._invalid[place])
        return float(invalid / (usable + invalid)) if usable + invalid else 0.0

    def bounds(self, variant: str, opponent: str) -> tuple[np.ndarray, np.ndarray]:
        """(S, N) win rates of ``variant`` if every unusable verdict had gone against it, and if for it."""
        place = self._at_any(variant, opponent)
        lost, won = stats.worst_case(self._score[place], self._n[place], self._invalid[place])
        return (lost, won) if (variant, opponent) in self._place else (1 - won, 1 - lost)

    def _at_any(self, variant: str, opponent: str) -> int:
        """The table of two policies, whichever of them is its variant."""
        return self._place[(variant, opponent) if (variant, opponent) in self._place else (opponent, variant)]
