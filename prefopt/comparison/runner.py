"""Variants x seeds: prepare once, train what is missing, evaluate, write; refuse unequal conditions.

Whatever ends the process, the same call goes on where it stopped: finished runs are taken as they are, a run under way
continues from its newest checkpoint, and the outcome is that of a call that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from prefopt.comparison import provenance, record, resume
from prefopt.comparison.manifest import manifest
from prefopt.comparison.resume import missing
from prefopt.comparison.seed_group import SeedGroup, Watch
from prefopt.config.schema import Config
from prefopt.errors import DataError
from prefopt.prepare.materials import Materials, prepare
from prefopt.runtime.device import pick_device
from prefopt.runtime.progress import Progress
from prefopt.storage import locks
from prefopt.storage.formats import write_json
from prefopt.storage.hashing import seal
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import PROMPT_COLUMNS
from prefopt.testing import check_loss
from prefopt.train import determinism
from prefopt.train.autosize import Fit, fit, set_checkpointing
from prefopt.train.state import Run


def compare(
    config: Config,
    *,
    results: Path = Path("results"),
    command: Sequence[str] = (),
    progress: Progress,
    wait: bool = False,
) -> ResultsFolder:
    """Run a comparison, or what of it is missing.

    Args:
        config: What to compare.
        results: The folder of all comparisons.
        command: The command line, for the manifest.
        progress: Told what is going on.
        wait: Wait for another process that uses the folder, rather than raise.

    Returns:
        The results folder, ready for the report.

    Raises:
        PrefoptError: For anything that the user can mend.
    """
    with locks.hold(results / config.name, wait=wait, say=progress.say):
        return work(config, results=results, command=command, progress=progress)


def work(
    config: Config,
    *,
    results: Path,
    command: Sequence[str],
    progress: Progress,
    watch: Watch = lambda seed, variants, step: None,
    skip: Collection[tuple[str, int]] = (),
    alone: Collection[int] = (),
) -> ResultsFolder:
    """``compare`` for a caller that holds the folder's lock.

    Args:
        config: What to compare.
        results: The folder of all comparisons.
        command: The command line, for the manifest.
        progress: Told what is going on.
        watch: Told which seed, variants and step are under way.
        skip: Runs to leave out this time.
        alone: Seeds whose runs are trained one after the other.
    """
    folder = ResultsFolder(results / config.name)
    for variant in config.variants:
        check_loss(variant.build(), documented=False)
    device = pick_device(config.device)
    determinism.settle(device)
    resume.refuse_other(folder, config, device)
    if not missing(folder, config, device, progress):
        record.judge(folder)
        n = len(config.seeds) * len(config.variants)
        progress.say(f"all {n} runs are already in {folder.root}; nothing to train")
        return folder
    materials = prepare(config, device, progress)
    _require_scores(config, materials)
    resume.refuse_other_materials(folder, materials)
    locks.require_room(folder.root, _bytes_needed(config, materials))
    chosen = _step(folder, config, materials, progress)
    before = folder.manifest() if folder.manifest_path.is_file() else {}
    progress.stage("training a few steps twice, to see whether they repeat", 0, 1)
    again = before.get("determinism") or determinism.probe(
        materials.model, materials.train, materials.heldout, chosen.apply(config.train)
    )
    whole = {**manifest(config, materials, chosen, command), **provenance.facts(config), "determinism": again}
    write_json(folder.manifest_path, seal({**whole, "created": before.get("created", whole["created"])}))
    texts = materials.prompts.texts
    frame = pd.DataFrame({"prompt_id": range(len(texts)), "prompt": texts})[list(PROMPT_COLUMNS)]
    folder.write_frame("prompts.parquet", frame)
    group = SeedGroup(config, chosen.apply(config.train), materials, folder, progress, watch)
    for number, seed in enumerate(config.seeds):
        group.run_seed(seed, f"seed {seed} ({number + 1} of {len(config.seeds)})", set(skip), alone=seed in alone)
    record.judge(folder)
    return folder


def _require_scores(config: Config, materials: Materials) -> None:
    """Refuse losses that read a preference strength which the pairs do not have."""
    asking = [variant.name for variant in config.variants if variant.build().needs_scores]
    pairs = (*materials.train.pairs, *materials.heldout.pairs)
    without = sum(pair.chosen_score is None or pair.rejected_score is None for pair in pairs)
    if asking and without:
        raise DataError(
            f"error[DATA033] {config.data.source or 'pairs'}: {', '.join(asking)} reads chosen_score and "
            f"rejected_score, which {without} of {len(pairs)} rows lack. Fix: add the two columns, or drop the "
            "variant. Nothing was written."
        )


def _bytes_needed(config: Config, materials: Materials) -> int:
    """Two checkpoints of each run under way and one being written, an adapter of each run, and the samples."""
    adapter = 4 * int(materials.model.adapters.params.shape[1])
    asked, seeds, variants = config.evaluation, len(config.seeds), len(config.variants)
    samples = len(materials.prompts.ids) * asked.samples * (8 * asked.max_new_tokens + 100)
    return 3 * (3 * adapter) * variants + adapter * variants * seeds + samples * (variants + 1) * seeds


def _step(folder: ResultsFolder, config: Config, materials: Materials, progress: Progress) -> Fit:
    """How a step fits the machine: as it was chosen when the folder was made, else measured now."""
    if folder.manifest_path.is_file() and (before := folder.manifest().get("step")):
        chosen = Fit(**before)
        set_checkpointing(materials.model.base, chosen.checkpointing)
        return chosen
    progress.stage("fitting a step to the machine", 0, 1)
    materials.model.adapters.params.zero_()
    trial = [Run(v.name, v.build(), config.learning_rate(v), slot) for slot, v in enumerate(config.variants)]
    return fit(materials.model, trial, materials.train.pairs, config.train)
