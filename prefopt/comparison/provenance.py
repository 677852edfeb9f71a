"""What a result depends on: settings, loss, code, packages, device, and the user's files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import prefopt
from prefopt.comparison.feeds import plan_of
from prefopt.config.schema import Config, Variant
from prefopt.contract.plugin_files import code_of
from prefopt.data import local_files, sha256_of
from prefopt.data.order import pair_order
from prefopt.model.generate import SAMPLER_VERSION
from prefopt.prepare.materials import Materials
from prefopt.runtime.device import device_facts
from prefopt.storage.conditions import Conditions
from prefopt.storage.hashing import digest
from prefopt.storage.records import Manifest
from prefopt.tasks import find_task
from prefopt.tasks.rewards import RewardedTask, identity
from prefopt.train.rounds import prompts_of_round

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy", "scikit-learn", "safetensors", "bitsandbytes")
ROOT = Path(prefopt.__file__).resolve().parent
BY_SITUATION = "by situation"
# Rooms that start a run, check a loss before it, or read files after it: they cannot change what a run computes.
READERS = ("__main__.py", "analysis", "cli", "judges", "launch", "report", "selftest", "stats", "testing", "tuning")
# Of those rooms, what labels the pairs that are trained on.
LABELLERS = tuple(
    f"judges/{name}.py"
    for name in (
        "__init__",
        "address",
        "cache",
        "chat",
        "contract",
        "endpoint",
        "imported",
        "labelling",
        "local",
        "replies",
        "request",
        "reward",
        "rewards",
    )
)


def packages() -> dict[str, str]:
    """Versions of Python and of the packages that a run depends on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


@functools.cache
def code_files() -> dict[str, str]:
    """Hashes of this package's sources that decide what a run computes, by path inside the package; read once."""
    paths = {path.relative_to(ROOT): path for path in sorted(ROOT.rglob("*.py"))}
    return {
        name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for name, path in paths.items()
        if name.parts[0] not in READERS or name.as_posix() in LABELLERS
    }


def code_hash() -> str:
    """Hash of all of ``code_files``."""
    return digest(code_files())


def commit() -> str:
    """The checkout's commit, with ``+changes`` where the work tree differs, or an empty string outside one."""
    root = ROOT.parent
    if not (root / ".git").exists():
        return ""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return done.stdout.strip()

    head = git("rev-parse", "HEAD")
    return head + ("+changes" if head and git("status", "--porcelain", "--", "prefopt") else "")


def conditions(config: Config, materials: Materials, *, seed: int, initial_adapter: str) -> Conditions:
    """What must be equal for every variant of one seed.

    Args:
        config: The comparison.
        materials: What all runs share.
        seed: Decides the order of the pairs.
        initial_adapter: The hash of the adapter before the first step.
    """
    train, base = config.train, materials.model.base
    order = pair_order(len(materials.train.pairs), seed=seed, steps=train.steps, pairs_per_step=train.pairs_per_step)
    sampling = config.evaluation.model_dump(mode="json", exclude={"delta", "best_of"})
    return Conditions(
        data=materials.data_hash,
        pair_order=digest(order.tolist()),
        initial_adapter=initial_adapter,
        reference=digest([base.hash, materials.train.reference.hash, materials.heldout.reference.hash]),
        evaluation=digest([materials.prompts.ids, sampling]),
        code=code_hash(),
        packages=digest(packages()),
        device=digest(device_facts(base.device)),
    )


def conditions_of(shared: Conditions, config: Config, materials: Materials, variant: Variant, seed: int) -> Conditions:
    """The conditions of one variant: where it makes its own data, what stays equal in place of the pairs' order."""
    pool, count = materials.pool, config.rounds_of(variant)
    if pool is None:
        return shared
    own = variant.recipe.builder is not None or count or variant.build().takes_groups
    rounds = None
    if count:
        plan = plan_of(config, variant, materials, seed)
        stream = [prompts_of_round(plan, number, len(pool.prompts)) for number in range(count)]
        rounds = f"{count} {digest([stream, dataclasses.asdict(plan), SAMPLER_VERSION])}"
    return dataclasses.replace(shared, stream=pool.stream, rounds=rounds, pair_order=None if own else shared.pair_order)


# Settings that name files of the user's, by the name under which the manifest has their hashes.
_FILES = {
    "source": "data.source", "heldout": "data.heldout", "eval_prompts": "data.eval_prompts",
    "prompts": "task.prompts", "offpolicy": "pairs.offpolicy", "chat_template": "model.chat_template",
}  # fmt: skip
# What may differ between two invocations: names, what is added, and what changes no run.
_FREE: dict[str, Any] = {
    "name": True, "seeds": True, "variants": True, "device": True, "track": True,
    "tune": True, "train": {"checkpoint_every"}, "evaluation": {"delta"},
}  # fmt: skip


def settings(config: Config) -> dict[str, Any]:
    """The sections of a configuration on which every run depends.

    What is chosen by situation stands as that: its value follows from the rest. A file of the user's stands as its
    hash, so that the same data by another path are the same.
    """
    return _comparable(config.model_dump(mode="json", exclude=_FREE), config.open_settings, data_files(config))


def settings_before(manifest: Manifest) -> dict[str, Any]:
    """``settings`` as a folder's manifest has them."""
    return _comparable(manifest.config, manifest.by_situation, manifest.data_files or {})


def _comparable(values: Mapping[str, Any], by_situation: Iterable[str], files: Mapping[str, str]) -> dict[str, Any]:
    comparable = {name: dict(item) if isinstance(item, Mapping) else item for name, item in values.items()}
    replaced = dict.fromkeys(by_situation, BY_SITUATION)
    replaced |= {_FILES[name]: f"SHA-256 {sha256}" for name, sha256 in files.items() if name in _FILES}
    for dotted, value in replaced.items():
        section, _, key = dotted.partition(".")
        comparable.setdefault(section, {})[key] = value
    return comparable


def run_key(config: Config, variant: Variant, device: torch.device) -> dict[str, Any]:
    """The identity of a run, known before anything is loaded; kept in its ``run.json`` and its checkpoints."""
    count = config.rounds_of(variant)
    rewards = [identity(text) for text in (config.task.reward, config.pairs.reward, variant.reward) if text]
    if count and config.rounds.label.startswith("lm:"):
        rewards.append(identity(f"rm:{config.rounds.label[3:]}"))  # a model that judges counts by its weights, too
    return {
        **({"rewards": digest(rewards)} if rewards else {}),
        **({"task_code": task_code(config)} if task_code(config) else {}),
        "settings": digest(settings(config)),
        "loss": variant.build().spec(),
        **({"recipe": [variant.recipe.suffix, count]} if variant.recipe.suffix or count else {}),
        "loss_code": loss_code(variant),
        "learning_rate": _rate(config, variant),
        "code": code_hash(),
        "packages": digest(packages()),
        "device": digest(device_facts(device)),
    }


def _rate(config: Config, variant: Variant) -> float | str:
    """A variant's learning rate, or that it is the one of the situation, before and after that is known."""
    if variant.learning_rate is None and "train.learning_rate" in config.open_settings:
        return f"{variant.build().lr_scale:g} x {BY_SITUATION}"
    return config.learning_rate(variant)


def reference_key(config: Config, device: torch.device) -> dict[str, Any]:
    """``run_key`` of the reference's samples, which have no loss."""
    whole = run_key(config, Variant(loss="noop"), device)
    return {key: value for key, value in whole.items() if key not in ("loss", "loss_code", "learning_rate")}


def loss_code(variant: Variant) -> str:
    """Hash of the files of a plugin's loss; empty for a built-in loss, which ``code`` covers."""
    parts = code_of(type(variant.build()))
    return digest(parts) if parts else ""


def task_code(config: Config) -> str:
    """Hash of the files that a plug-in's task is made of; empty for one of ours."""
    if config.task.name in ("imdb", "data", "prompts"):
        return ""
    cls: type = find_task(config.task.name)
    return digest(code_of(cls))


def data_files(config: Config) -> dict[str, str]:
    """Hashes of the user's files, one by one, so that a change can be named; of a folder, of all that is read of it."""
    hashes = {}
    for name, dotted in _FILES.items():
        section, _, key = dotted.partition(".")
        source = getattr(getattr(config, section), key)
        paths = local_files(source)
        if paths:
            hashes[name] = _hash_now(source, tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in paths))
    return hashes


@functools.lru_cache(maxsize=64)
def _hash_now(source: str, files: tuple[tuple[str, int, int], ...]) -> str:
    """``sha256_of`` of files that are what they were: path, time and size."""
    return sha256_of(source, tuple(Path(path) for path, _, _ in files))


def material_hashes(materials: Materials) -> dict[str, str]:
    """Hashes of the pairs and of their reference log-probabilities."""
    return {
        "data": materials.data_hash,
        "reference_train": materials.train.reference.hash,
        "reference_heldout": materials.heldout.reference.hash,
        **({"task": materials.task.fingerprint} if isinstance(materials.task, RewardedTask) else {}),
    }
