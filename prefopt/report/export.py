"""Policies for use elsewhere: an adapter's folder as it lies, or the model's weights with the adapter added."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefopt.analysis.analyse import analyse
from prefopt.analysis.load import load
from prefopt.errors import IncompleteError, MachineError, UsageError, did_you_mean
from prefopt.report.cards import ADAPTER_CONFIG, CARD, base_of, card
from prefopt.storage.folders import fill_folder
from prefopt.storage.records import RunRecord
from prefopt.storage.results import ResultsFolder
from prefopt.storage.schema import REFERENCE

TOLERANCE = 2e-3  # of the largest log-probability: what rounding to the base's type may change


def export(root: Path, variant: str, seed: int | None, target: Path, *, merge: bool) -> Path:
    """Write one trained policy with its card into a new folder.

    Args:
        root: The results folder.
        variant: The variant, by the name that it has there.
        seed: Its seed; None where there is only one.
        target: The folder to make.
        merge: Write whole weights in safetensors, which need no PEFT, rather than the adapter.

    Returns:
        ``target``.

    Raises:
        PrefoptError: If there is no such run, it did not finish, something of it is missing or damaged, or ``target``
            is taken.
    """
    folder = ResultsFolder(root)
    run = _complete_run(folder, variant, seed)
    adapter = _adapter(folder, run)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already; name a folder that is not, or remove it")
    text = card(analyse(load(root)), run.variant, run.seed, base_of(adapter), merged=merge)
    fill: Callable[[Path], None] = (lambda place: _merge(adapter, place)) if merge else (lambda p: _copy(adapter, p))

    def with_card(place: Path) -> None:
        fill(place)
        (place / CARD).write_text(text, encoding="utf-8")

    fill_folder(target, with_card)
    return target


def _complete_run(folder: ResultsFolder, variant: str, seed: int | None) -> RunRecord:
    """The record of the run that is meant.

    Raises:
        UsageError: If there is none.
        IncompleteError: If it did not finish.
    """
    runs = folder.runs()
    manifest = folder.manifest()
    names = list(dict.fromkeys([*manifest.variant_names, *(name for name, _ in runs if name != REFERENCE)]))
    if variant == REFERENCE:
        raise UsageError(
            f"{folder.root}: the reference is the model before training and has no adapter; name a variant"
        )
    if variant not in names:
        raise UsageError(f"{folder.root}: has no variant {variant!r}{did_you_mean(variant, names)}")
    seeds = sorted({*manifest.seeds, *(number for name, number in runs if name == variant)})
    if seed is None and len(seeds) > 1:
        raise UsageError(f"{folder.root}: has the seeds {', '.join(map(str, seeds))}; name one with --seed")
    wanted = seeds[0] if seed is None else seed
    if wanted not in seeds:
        raise UsageError(f"{folder.root}: has no seed {wanted}; it has {', '.join(map(str, seeds))}")
    run = runs.get((variant, wanted))
    if run is None or not run.is_complete:
        state = "has not run yet" if run is None else f"{run.status}: {run.reason or 'it left no policy'}"
        done = [number for name, number in runs if name == variant and runs[name, number].is_complete]
        others = f"; seeds that finished: {', '.join(map(str, sorted(done)))}" if done else ""
        raise IncompleteError(f"{folder.root}: {variant}, seed {wanted}, {state}{others}")
    return run


def _adapter(folder: ResultsFolder, run: RunRecord) -> Path:
    """The folder of a finished run's adapter, with the bytes that were written.

    Raises:
        UsageError: If it is missing or damaged.
    """
    adapter = folder.run(run.variant, run.seed) / "adapter"
    if not adapter.is_dir():
        raise UsageError(f"{adapter} is missing: the comparison was published without it, or it was removed; run it")
    damage = folder.damage(run.variant, run.seed)
    if damage is not None and "/adapter/" in damage:
        raise UsageError(f"{damage}; run the comparison again, which redoes that run")
    return adapter


def _copy(adapter: Path, place: Path) -> None:
    for file in sorted(adapter.iterdir()):
        if file.name != CARD:
            shutil.copyfile(file, place / file.name)


def _merge(adapter: Path, place: Path) -> None:
    """Write the base's weights with the adapter added, and its tokenizer, and check them against the adapter itself."""
    import torch
    import transformers
    from peft import PeftModel

    base, revision = base_of(adapter)
    options: dict[str, Any] = {"trust_remote_code": False, **({"revision": revision} if revision else {})}
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise MachineError(
            f"{adapter / ADAPTER_CONFIG}: its base model {base} is not there any more; put it back, or run the "
            "comparison's command again, which makes what prefopt keeps in its cache"
        )
    try:
        kind = transformers.AutoConfig.from_pretrained(base, **options).dtype or torch.float32
        tokenizer = transformers.AutoTokenizer.from_pretrained(_tokenizer_folder(adapter, base), **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, use_safetensors=True, **options
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(model, str(adapter))
    except Exception as problem:  # whatever a damaged or absent model makes a dozen libraries raise
        first = str(problem).strip().partition("\n")[0]
        raise MachineError(f"the base model {base} of {adapter} cannot be loaded: {first}") from None
    wanted = _logps(adapted)
    merged = adapted.merge_and_unload(safe_merge=True).to(kind)
    error = float((_logps(merged) - wanted).abs().max() / wanted.abs().max())
    if not error <= (TOLERANCE if kind == torch.float32 else 0.1):
        raise MachineError(
            f"{adapter}: merged weights differ from base and adapter by {error:.2g}; nothing was written"
        )
    merged.save_pretrained(place, max_shard_size="5GB")
    tokenizer.save_pretrained(place)


def _tokenizer_folder(adapter: Path, base: str) -> str:
    return str(adapter) if (adapter / "tokenizer_config.json").is_file() else base


def _logps(model: Any) -> Any:
    """(T, V) log-probabilities after a few tokens, in float32."""
    import torch

    size = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(0, size, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits[0].float().log_softmax(-1)
