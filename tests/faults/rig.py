"""A whole comparison, 2 variants x 2 seeds with everything that is kept on the way, in a third of a second.

The model, adapters, optimizer, sampling and files are the real ones, on a tiny Llama; only the task is a toy, since the
embedded one is large, and what the environment says of itself is asked once instead of for every run.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import peft
import tiny
import torch

from prefopt.comparison import provenance, runner
from prefopt.config.load import load
from prefopt.config.schema import Config
from prefopt.model import adapters
from prefopt.prepare import task as task_of_comparison
from prefopt.runtime.progress import Silent
from prefopt.storage import durable
from prefopt.tasks.base import TaskPrompts

VARIANTS = ("dpo", "bco")  # bco carries a moving average from step to step
WORDS = ("cat", "dog", "hat", "mat", "rat", "hen", "cow", "owl")
COSTS = ("train_s", "evaluate_s", "sample_s", "pairs_per_s", "tokens_per_s", "peak_memory_gib", "minutes")


class ToyTask:
    """Animals, and a reward for vowels."""

    name, has_reward, fingerprint = "imdb", True, "toy"

    def prompts(self, tokenizer: Any, *, train: int, heldout: int, evaluation: int, seed: int) -> TaskPrompts:
        texts = [f"the {WORDS[i % 8]} {i}" for i in range(train + heldout + evaluation)]
        return TaskPrompts(tuple(texts[:train]), tuple(texts[train:][:heldout]), tuple(texts[train + heldout :]))

    def sft_texts(self, count: int, *, seed: int) -> list[str]:
        return [f"the {WORDS[i % 8]} sat on mat {i}" for i in range(count)]

    def reward(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        return np.array([sum(c in "aeiou" for c in text) - 0.1 * len(text) for text in responses], dtype=float)

    def reward_report(self) -> dict[str, float]:
        return {"accuracy_full_reviews": 1.0}


class Rig:
    """A tiny model, a configuration, and a warm cache."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.model = tiny.save(place / "model", "llama")
        self.config, self.names = self.configured(), VARIANTS
        self.same = {name: getattr(provenance, name)() for name in ("packages", "code_files", "code_hash", "commit")}
        self.warm, self.first = place / "warm", place / "first"
        self.warm.mkdir()
        threads, here = torch.get_num_threads(), Path.cwd()
        torch.set_num_threads(1)
        try:
            self.enter(self.first)()  # imports what is imported late, once for all children
        finally:
            os.chdir(here)
            torch.set_num_threads(threads)
        self.want = contents(self.first / "results")

    def enter(self, place: Path, work: Callable[[], Any] | None = None, *, cold: bool = False) -> Callable[[], Any]:
        """``work`` (the comparison) in a folder of its own with ``results`` and ``cache``, a link to the warm one."""

        def inside() -> Any:
            place.mkdir(parents=True, exist_ok=True)
            os.chdir(place)
            cache = Path("cache")
            if not cold and not cache.exists():
                cache.symlink_to(self.warm, target_is_directory=True)
            with self.patched():
                return work() if work is not None else self.compare()

        return inside

    def configured(self, **more: Any) -> Config:
        settings: dict[str, Any] = {
            "name": "mine", "device": "cpu", "model.name": str(self.model), "model.dtype": "float32", "sft.steps": 1,
            "sft.texts_per_step": 2, "pairs.prompts": 4, "pairs.heldout_prompts": 2, "pairs.samples": 2,
            "pairs.max_new_tokens": 3, "lora.rank": 2, "lora.targets": ["q_proj"], "train.steps": 3,
            "train.pairs_per_step": 2, "train.eval_every": 2, "train.log_every": 3, "train.checkpoint_every": 1,
            "train.learning_rate": 0.05, "evaluation.prompts": 2, "evaluation.samples": 2,
            "evaluation.max_new_tokens": 3, "seeds": [0, 1], "variants": [{"loss": name} for name in VARIANTS],
        }  # fmt: skip
        return load(None, {**settings, **more})

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """The toy task, no real sync (nothing here cuts the power), and an environment that is asked once."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, {"PREFOPT_CACHE": "cache"}))
            for owner, name, value in (
                (task_of_comparison, "load_task", ToyTask()),
                (os, "fsync", None),
                (adapters, "as_loaded", ("base", "")),  # else each adapter names the place of its own trial
                (peft.PeftModel, "create_or_update_model_card", None),
                *((provenance, name, value) for name, value in self.same.items()),
            ):
                stack.enter_context(mock.patch.object(owner, name, return_value=value))
            yield

    def compare(self, config: Config | None = None) -> None:
        """The comparison, as a fresh process does it."""
        durable.forget_synced()
        runner.compare(config or self.config, results=Path("results"), command=["prefopt"], progress=Silent())

    def wrong(self, place: Path) -> str | None:
        """What differs in a place from the one that nothing disturbed, or None."""
        return difference(self.want, contents(place / "results"))


def difference(want: dict[str, str], found: dict[str, str]) -> str | None:
    missing, more = sorted(want.keys() - found.keys()), sorted(found.keys() - want.keys())
    other = sorted(name for name in want.keys() & found.keys() if want[name] != found[name])
    parts = {"missing": missing, "not expected": more, "different": other}
    return "; ".join(f"{what}: {', '.join(names[:6])}" for what, names in parts.items() if names) or None


def contents(root: Path) -> dict[str, str]:
    """SHA-256 by path of all that must be the same each time: everything but times, and what was set aside."""
    found = {}
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        aside = any(part.endswith(".tmp") or ".corrupt-" in part for part in parts)
        if path.is_file() and not aside and path.name not in ("cost.json", "checksums.json", ".lock"):
            found["/".join(parts)] = hashlib.sha256(_timeless(path)).hexdigest()
    return found


def _timeless(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name == "manifest.json":
        value = json.loads(data)
        return json.dumps({k: v for k, v in value.items() if k not in ("created", "sha256")}, sort_keys=True).encode()
    if path.suffix == ".csv" and path.parent.name == "tables":
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        return json.dumps([{k: v for k, v in row.items() if k not in COSTS} for row in rows]).encode()
    return data
