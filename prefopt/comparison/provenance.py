"""What a result depends on: settings, loss, code, packages, device, and the user's files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import prefopt
from prefopt.comparison.feeds import plan_of
from prefopt.config.schema import Config, Variant
from prefopt.contract.plugin_files import code_of
from prefopt.data.order import pair_order
from prefopt.model.generate import SAMPLER_VERSION
from prefopt.prepare.materials import Materials
from prefopt.runtime.device import device_facts
from prefopt.storage.conditions import Conditions
from prefopt.storage.hashing import digest, sha256_file
from prefopt.tasks import find_task
from prefopt.tasks.rewards import RewardedTask, identity
from prefopt.train.rounds import prompts_of_round

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy", "scikit-learn", "safetensors", "bitsandbytes")
ROOT = Path(prefopt.__file__).resolve().parent
# Rooms that start a run, check a loss before it, or read files after it: they cannot change what a run computes.
READERS = ("__main__.py", "analysis", "cli", "judges", "launch", "report", "selftest", "stats", "testing", "tuning")
# Of those rooms, what labels the pairs that are trained on.
LABELLERS = tuple(
    f"judges/{name}.py" for name in ("chat", "contract", "endpoint", "labelling", "local", "reward", "rewards")
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


# What may differ between two invocations: names, what is added, and what changes no run.
_FREE: dict[str, Any] = {
    "name": True, "seeds": True, "variants": True, "device": True,
    "tune": True, "train": {"checkpoint_every"}, "evaluation": {"delta"},
}  # fmt: skip


def settings(config: Config) -> dict[str, Any]:
    """The sections of a configuration on which every run depends."""
    return config.model_dump(mode="json", exclude=_FREE)


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
        "learning_rate": config.learning_rate(variant),
        "code": code_hash(),
        "packages": digest(packages()),
        "device": digest(device_facts(device)),
    }


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
    """Hashes of the user's files, one by one, so that a change can be named."""
    files = {"source": config.data.source, "heldout": config.data.heldout, "prompts": config.task.prompts}
    files["offpolicy"] = config.pairs.offpolicy
    return {field: sha256_file(Path(path)) for field, path in files.items() if path and Path(path).is_file()}


def material_hashes(materials: Materials) -> dict[str, str]:
    """Hashes of the pairs and of their reference log-probabilities."""
    return {
        "data": materials.data_hash,
        "reference_train": materials.train.reference.hash,
        "reference_heldout": materials.heldout.reference.hash,
        **({"task": materials.task.fingerprint} if isinstance(materials.task, RewardedTask) else {}),
    }
