"""A results folder made of random numbers with known effects, written through ``prefopt.results``.

Rewards are a prompt effect, a run effect (variant x seed) and sample noise around a variant's planted gain, so that
the truth of every comparison is known; log-probabilities, curves and costs have the shapes of real runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefopt.storage import formats, hashing, results, schema

STEPS = 60
LOG_EVERY = 5


@dataclass(frozen=True)
class Planted:
    """The truth about one variant: how far training moves it and what that buys.

    Attributes:
        gain: Shift of the gold reward of its samples, in standard deviations of the reference's.
        kl: KL to the reference, nats a sequence.
        margin: Final log-ratio margin of held-out pairs, nats.
        drop: How far the chosen log-probability falls by the end, nats.
        length: Response length as a multiple of the reference's.
    """

    gain: float = 0.0
    kl: float = 0.0
    margin: float = 0.0
    drop: float = 0.0
    length: float = 1.0


DEFAULT_VARIANTS = {
    "dpo": Planted(gain=0.9, kl=6.0, margin=5.0, drop=4.0, length=1.05),
    "cdpo": Planted(gain=0.75, kl=4.5, margin=4.0, drop=3.0, length=1.03),
    "simpo": Planted(gain=0.35, kl=8.0, margin=3.5, drop=9.0, length=0.85),
    "ipo": Planted(gain=0.8, kl=4.0, margin=3.0, drop=2.0, length=1.0),
    "noop": Planted(),
}


@dataclass(frozen=True)
class World:
    """What to write; ``write`` does it.

    Attributes:
        variants: Planted truth by name.
        seeds: Number of seeds, from 0.
        prompts: Evaluation prompts.
        samples: Samples for each prompt and run.
        pairs: Held-out pairs.
        seed_sd: Standard deviation of the run effect on the reward.
        gold: Whether the task has a gold reward.
        text: Whether samples.parquet and prompts.parquet are written.
        missing: Runs (variant, seed) left out.
        diverged: Runs (variant, seed) that ended early.
        failed: Reasons of runs (variant, seed) that left nothing.
        responses: Texts to draw responses from; hostile ones in tests.
        broken: How the samples of some variants are broken: ``empty``, ``repeats`` or ``far``.
        judge: The judge of the verdicts, and ``facts`` of its own run, if there are any.
        manifest: Overrides of the manifest's top level.
    """

    variants: dict[str, Planted] = field(default_factory=lambda: dict(DEFAULT_VARIANTS))
    seeds: int = 3
    prompts: int = 64
    samples: int = 2
    pairs: int = 96
    seed_sd: float = 0.08
    gold: bool = True
    text: bool = True
    missing: frozenset[tuple[str, int]] = frozenset()
    diverged: frozenset[tuple[str, int]] = frozenset()
    failed: Mapping[tuple[str, int], str] = field(default_factory=dict)
    responses: Sequence[str] = ()
    broken: Mapping[str, str] = field(default_factory=dict)
    judge: str = "oracle"
    facts: Mapping[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path, *, random_state: int = 0) -> Path:
        """Write the folder and return it."""
        rng = np.random.default_rng(random_state)
        folder = results.ResultsFolder(root)
        prompt_effect = rng.normal(0.0, 0.8, self.prompts)
        rewards: dict[tuple[str, int], np.ndarray] = {}
        for seed in range(self.seeds):
            noise = rng.normal(0.0, 1.0, (self.prompts, self.samples))
            base = prompt_effect[:, None] + noise
            rewards[schema.REFERENCE, seed] = base
            self._scores(folder, schema.REFERENCE, seed, Planted(), base, rng)
            of_reference = {**self._run(schema.REFERENCE, seed, Planted(), False, rng), "cost": {}}
            formats.write_json(folder.run(schema.REFERENCE, seed) / "run.json", of_reference)
            for name, planted in self.variants.items():
                if (name, seed) in self.missing:
                    continue
                if (name, seed) in self.failed:
                    record = {"variant": name, "seed": seed, "status": "failed", "reason": self.failed[name, seed]}
                    formats.write_json(folder.run(name, seed) / "run.json", record)
                    continue
                diverged = (name, seed) in self.diverged
                if planted == Planted():
                    reward = base
                else:
                    fresh = rng.normal(0.0, 1.0, base.shape)
                    shift = planted.gain + rng.normal(0.0, self.seed_sd)
                    reward = prompt_effect[:, None] + shift + 0.5 * noise + np.sqrt(0.75) * fresh
                if not diverged:
                    rewards[name, seed] = reward
                    self._scores(folder, name, seed, planted, reward, rng)
                    self._pairs(folder, name, seed, planted, rng)
                self._history(folder, name, seed, planted, rng, stop=25 if diverged else STEPS)
                formats.write_json(folder.run(name, seed) / "run.json", self._run(name, seed, planted, diverged, rng))
        if self.gold or self.judge != "oracle":
            formats.write_frame(root / "judgements.parquet", self._judgements(rewards))
        if self.facts:
            formats.write_json(root / "judge" / "its" / "judge.json", {"judge": self.judge, **self.facts})
        if self.text:
            texts = [f"Prompt number {i}: I saw this film" for i in range(self.prompts)]
            frame = pd.DataFrame({"prompt_id": prompt_ids(self.prompts), "prompt": texts})
            formats.write_frame(root / "prompts.parquet", frame)
        formats.write_json(folder.manifest_path, self._manifest(root.name))
        return root

    def _scores(
        self,
        folder: results.ResultsFolder,
        name: str,
        seed: int,
        planted: Planted,
        reward: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        rows = reward.size
        tokens = np.maximum(1, rng.poisson(40 * planted.length, rows))
        kl = planted.kl * rng.gamma(8.0, 1 / 8.0, rows) * tokens / (40 * planted.length)
        how = self.broken.get(name, "")
        empty = (rng.random(rows) < 0.75) if how == "empty" else np.zeros(rows, dtype=bool)
        tokens = np.where(empty, 1, tokens)
        kl = 3.0 * tokens if how == "far" else kl
        logp = -2.2 * tokens + rng.normal(0, 6, rows)
        frame = pd.DataFrame(
            {
                "prompt_id": np.repeat(prompt_ids(self.prompts), self.samples),
                "sample": np.tile(np.arange(self.samples), self.prompts),
                "reward": reward.ravel() if self.gold else np.full(rows, np.nan),
                "kl": kl,
                "logp": logp,
                "ref_logp": logp - kl,
                "n_tokens": tokens,
                "finished": empty | (rng.random(rows) < 0.9),
            }
        )
        path = folder.run(name, seed)
        formats.write_frame(path / "scores.parquet", frame)
        if self.text:
            pool = list(self.responses) or [
                "It was a joy from the first scene to the last, and I would see it again.",
                "The plot never came together; two hours that I shall not get back.",
                "A quiet film with one fine performance and a forgettable score.",
            ]
            text = frame[["prompt_id", "sample"]].copy()
            text["prompt"] = [f"Prompt number {int(p[1:])}: I saw this film" for p in frame.prompt_id]
            pool = ["great great great great great great"] if how == "repeats" else pool
            drawn = rng.integers(0, len(pool), rows)
            text["response"] = ["" if nothing else pool[int(k)] for k, nothing in zip(drawn, empty, strict=True)]
            formats.write_frame(path / "samples.parquet", text)

    def _pairs(
        self, folder: results.ResultsFolder, name: str, seed: int, planted: Planted, rng: np.random.Generator
    ) -> None:
        shared = np.random.default_rng(99)  # held-out pairs and the reference are the same for every run
        n = self.pairs
        chosen_len, rejected_len = (np.maximum(2, shared.poisson(40, n)) for _ in range(2))
        ref_chosen, ref_rejected = -2.3 * chosen_len, -2.3 * rejected_len
        gold = shared.normal(0, 1, (n, 2)) + np.array([0.9, 0.0])
        learned = planted.margin * (0.5 + 0.5 * (gold[:, 0] - gold[:, 1])) + rng.normal(0, 0.6 * planted.margin, n)
        chosen = ref_chosen - planted.drop + rng.normal(0, 0.3 * planted.drop, n)
        rejected = ref_rejected + (chosen - ref_chosen) - learned
        frame = pd.DataFrame(
            {
                "pair_id": [f"h{i:05d}" for i in range(n)],
                "prompt_id": [f"q{i // 3:05d}" for i in range(n)],
                "logps_chosen": chosen,
                "logps_rejected": rejected,
                "ref_logps_chosen": ref_chosen,
                "ref_logps_rejected": ref_rejected,
                "chosen_len": chosen_len,
                "rejected_len": rejected_len,
                "reward_chosen": 0.1 * (chosen - ref_chosen),
                "reward_rejected": 0.1 * (rejected - ref_rejected),
                "gold_chosen": gold[:, 0] if self.gold else np.full(n, np.nan),
                "gold_rejected": gold[:, 1] if self.gold else np.full(n, np.nan),
            }
        )
        formats.write_frame(folder.run(name, seed) / "pairs.parquet", frame)

    def _history(
        self,
        folder: results.ResultsFolder,
        name: str,
        seed: int,
        planted: Planted,
        rng: np.random.Generator,
        *,
        stop: int,
    ) -> None:
        rows = []
        for step in range(0, stop + 1, LOG_EVERY):
            done = 1 - np.exp(-3 * step / STEPS)
            for split in ("train", "heldout"):
                noise = rng.normal(0, 0.15) * done if step else 0.0
                margin = planted.margin * done * (1.3 if split == "train" else 1.0) + noise * planted.margin
                chosen = -92 - planted.drop * done + noise
                accuracy = 0.5 + 0.35 * done * np.tanh(planted.margin) + 0.05 * noise
                rows.append(
                    {
                        "step": step,
                        "split": split,
                        "loss": float(np.log1p(np.exp(-0.1 * margin))),
                        "rewards/chosen": -0.1 * planted.drop * done,
                        "rewards/rejected": -0.1 * (planted.drop * done + margin),
                        "rewards/margins": 0.1 * margin,
                        "rewards/accuracies": accuracy,
                        "logps/chosen": chosen,
                        "logps/rejected": chosen - margin - 1.0,
                        "logratio/margins": margin,
                        "logratio/accuracies": accuracy,
                        "learning_rate": 5e-4,
                        "grad_norm": 1.0,
                    }
                )
        frame = pd.DataFrame(rows, columns=list(schema.HISTORY_COLUMNS))
        formats.write_frame(folder.run(name, seed) / "history.csv", frame)

    def _run(self, name: str, seed: int, planted: Planted, diverged: bool, rng: np.random.Generator) -> dict[str, Any]:
        seconds = float(rng.normal(30, 1.0))
        return {
            "variant": name,
            "seed": seed,
            "status": "diverged" if diverged else "complete",
            "diverged_at": 25 if diverged else None,
            "loss": {"loss": name.partition("[")[0], "beta": 0.1},
            "learning_rate": 5e-4,
            "steps": STEPS,
            "conditions": {
                "data": "d" * 16,
                "pair_order": hashing.digest(["order", seed]),
                "initial_adapter": hashing.digest(["adapter", seed]),
                "reference": "r" * 16,
                "evaluation": "e" * 16,
                "code": "c" * 16,
                "packages": "p" * 16,
                "device": "cpu",
            },
            "cost": {
                "train_s": seconds,
                "evaluate_s": 4.0,
                "sample_s": 8.0,
                "pairs": STEPS * 8,
                "tokens": STEPS * 8 * 80,
                "pairs_per_s": STEPS * 8 / seconds,
                "tokens_per_s": STEPS * 8 * 80 / seconds,
                "peak_memory_gib": 1.6,
            },
            "diversity": {
                "distinct1": 0.42 - 0.02 * planted.gain,
                "distinct2": 0.81 - 0.05 * planted.gain,
                "compression": 60.0 if self.broken.get(name) == "repeats" else 2.4 + 0.2 * planted.gain,
            },
            "files": {},
        }

    def _judgements(self, rewards: dict[tuple[str, int], np.ndarray]) -> pd.DataFrame:
        ids = prompt_ids(self.prompts)
        names = [*self.variants, schema.REFERENCE]
        parts = []
        for seed in range(self.seeds):
            for first, one in enumerate(names):
                for two in names[first + 1 :]:
                    if (one, seed) not in rewards or (two, seed) not in rewards:
                        continue
                    gap = rewards[one, seed][:, :, None] - rewards[two, seed][:, None, :]
                    parts.append(
                        pd.DataFrame(
                            {
                                "judge": self.judge,
                                "variant": one,
                                "opponent": two,
                                "seed": seed,
                                "prompt_id": ids,
                                "score": ((gap > 0) + 0.5 * (gap == 0)).mean((1, 2)),
                                "n": self.samples**2,
                                "ties": (gap == 0).mean((1, 2)),
                                "invalid": 0,
                            }
                        )
                    )
        empty = pd.DataFrame(columns=list(schema.JUDGEMENT_COLUMNS))
        return pd.concat(parts, ignore_index=True)[list(schema.JUDGEMENT_COLUMNS)] if parts else empty

    def _manifest(self, name: str) -> dict[str, Any]:
        variants = [
            {
                "variant": variant,
                "loss": variant.partition("[")[0],
                "spec": {"loss": variant.partition("[")[0], "beta": 0.1},
                "source": "arXiv:2305.18290, Eq. 7",
                "summary": "Logistic regression on the difference of implicit rewards.",
                "needs_reference": not variant.startswith("simpo"),
                "length_normalized": variant.startswith("simpo"),
                "batch_coupled": False,
                "learning_rate": 5e-4,
            }
            for variant in self.variants
        ]
        return {
            "schema": 1,  # not sealed: tests change it
            "name": name,
            "prefopt_version": "0.1.0",
            "created": "2026-01-02T03:04:05Z",
            "command": ["prefopt", "compare", "--name", name, "--losses", "dpo,simpo[beta=2.5]"],
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "config": {"name": name, "train": {"learning_rate": 5e-4, "steps": STEPS, "pairs_per_step": 8}},
            "seeds": list(range(self.seeds)),
            "variants": variants,
            "model": {"name": "tiny", "hash": "m" * 16, "dtype": "float32", "parameters": 134515008},
            "reference": {"sft_steps": 40, "hash": "r" * 16},
            "task": {
                "name": "imdb" if self.gold else "own",
                "reward": "sentiment log-odds" if self.gold else None,
                "reward_accuracy": 0.88 if self.gold else None,
                "label_accuracy": 0.81 if self.gold else None,
            },
            "data": {
                "train_pairs": 672,
                "heldout_pairs": self.pairs,
                "evaluation_prompts": self.prompts,
                "samples_per_prompt": self.samples,
                "truncated_chosen": 0,
                "truncated_rejected": 0,
                "dropped_rows": 0,
            },
            "hashes": {"pairs": "d" * 16},
            "packages": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0"},
            "device": {"kind": "cpu", "name": "CPU", "threads": 2},
            **self.manifest,
        }


def prompt_ids(count: int) -> list[str]:
    """``p00000``, ``p00001``, ..."""
    return [f"p{i:05d}" for i in range(count)]


def many(count: int) -> dict[str, Planted]:
    """``count`` variants with gains spread from none to large, named as a sweep would name them."""
    losses = ("dpo", "cdpo", "simpo", "ipo", "hinge", "orpo")
    spread = np.linspace(0.0, 1.0, count)
    return {
        (losses[i % 6] if i < 6 else f"{losses[i % 6]}[beta={0.05 * (i // 6 + 1):.2f}]"): Planted(
            gain=float(spread[i]), kl=0.5 + 8 * float(spread[i]), margin=1 + 4 * float(spread[i]), drop=2 + i % 5
        )
        for i in range(count)
    }


HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><svg onload=alert(1)>",
    "<!--<script>",
    "</style><style>*{display:none}",
    '" onmouseover="alert(1)',
    "<base href=//evil.invalid/><meta http-equiv=refresh content='0;url=//evil.invalid'>",
    "{{ 7 * 7 }} {% raw %} ]]> &lt;b&gt; &#60;b&#62;",
    "![x](http://evil.invalid/x.png) | `code` @someone $x_1$",
)
