"""Describes what a comparison was made of, for its manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import prefopt
from prefopt.comparison import provenance
from prefopt.comparison.feeds import generations
from prefopt.config.schema import Config, Variant
from prefopt.model.base import Base
from prefopt.prepare.materials import Materials
from prefopt.runtime.device import device_facts
from prefopt.storage.records import Facts, Manifest
from prefopt.storage.redact import portable
from prefopt.storage.schema import SCHEMA
from prefopt.train.autosize import Fit


def describe(
    config: Config, materials: Materials, step: Fit, command: Sequence[str], determinism: dict[str, str]
) -> Manifest:
    """What a comparison that begins now is made of.

    Args:
        config: The comparison.
        materials: What all runs share.
        step: How an optimizer step was fitted to the machine.
        command: The command line.
        determinism: What training a few steps twice has shown.
    """
    base = materials.model.base
    return Manifest(
        schema=SCHEMA,
        name=config.name,
        prefopt_version=prefopt.__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=tuple(portable(word) for word in command),
        commit=provenance.commit(),
        config=config.model_dump(mode="json"),
        by_situation=dict(config.reasons),
        seeds=tuple(config.seeds),
        variants=tuple(_variant_facts(config, variant) for variant in config.variants),
        model={"name": portable(config.model.name), **_model_facts(base)},
        reference={"sft_steps": config.sft_steps, "hash": base.hash},
        task=materials.task_facts,
        data=_data_facts(config, materials),
        step=dataclasses.asdict(step),
        hashes={**provenance.material_hashes(materials), "code": provenance.code_hash()},
        packages=provenance.packages(),
        device=device_facts(base.device),
        code_files=provenance.code_files(),
        data_files=provenance.data_files(config),
        determinism=determinism,
    )


def beside_earlier(now: Manifest, before: Manifest | None, ran: Collection[tuple[str, int]]) -> Manifest:
    """``now`` with the variants and seeds of earlier commands that have left something in the folder.

    Args:
        now: What this command makes.
        before: The folder's manifest so far, if there is one.
        ran: Variants and seeds with a record, the reference's among them. A seed that nothing ran at and that is not
            wanted any more is dropped; a variant that stopped short of the others stays planned at all their seeds.
    """
    if before is None:
        return now
    seeds = {seed for _, seed in ran}
    here = {variant for variant, _ in ran} | set(now.variant_names)  # one whose runs were set aside keeps its place
    kept: dict[str, Facts] = {}
    for entry in before.variants:
        name = str(entry["variant"])
        if name in here:
            kept[name] = {**entry, "seeds": [seed for seed in before.planned_seeds(name) if seed in seeds]}
    for entry in now.variants:
        name = str(entry["variant"])
        kept[name] = {**entry, "seeds": sorted({*entry["seeds"], *kept.get(name, {"seeds": ()})["seeds"]})}
    variants = tuple(kept.values())
    alone = [{**entry, "seeds": sorted(entry["seeds"])} for entry in now.variants] == list(variants)
    earlier = () if alone else (*before.earlier_commands, before.command_line, *now.earlier_commands)
    return replace(
        now,
        variants=variants,
        seeds=tuple(sorted({*now.seeds, *(seed for entry in variants for seed in entry["seeds"])})),
        created=before.created or now.created,
        earlier_commands=tuple(dict.fromkeys(line for line in earlier if line not in ("", now.command_line))),
    )


def _model_facts(base: Base) -> dict[str, Any]:
    return {
        "revision": base.revision,
        "hash": base.hash,
        "dtype": str(base.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in base.model.parameters() if p.device.type != "meta"),
        "ends": " ".join(base.tokenizer.convert_ids_to_tokens(list(base.ends))),
        "packed": base.packed,
        "why_plain": base.why_plain,
    }


def _data_facts(config: Config, materials: Materials) -> dict[str, Any]:
    return {
        "train_pairs": len(materials.train.pairs),
        "heldout_pairs": len(materials.heldout.pairs),
        "evaluation_prompts": len(materials.prompts.ids),
        "samples_per_prompt": config.evaluation.samples,
        **materials.facts,
    }


def _variant_facts(config: Config, variant: Variant) -> dict[str, Any]:
    loss = variant.build()
    return {
        "variant": variant.name,
        "loss": loss.name,
        "family": variant.family or loss.name,
        "spec": loss.spec(),
        "source": loss.source,
        "summary": (type(loss).__doc__ or "").strip().splitlines()[0],
        "needs_reference": loss.needs_reference,
        "length_normalized": loss.length_normalized,
        "batch_coupled": loss.batch_coupled,
        "learning_rate": config.learning_rate(variant),
        "seeds": list(config.seeds),
        **_data_of(config, variant),
    }


def _data_of(config: Config, variant: Variant) -> dict[str, Any]:
    """Where a variant's data come from and what that costs, for one that does not train on all pairs."""
    recipe, count = variant.recipe, config.rounds_of(variant)
    if not (recipe.suffix or count or variant.build().takes_groups) or config.data.source:
        return {}
    return {
        "pairs_from": recipe.builder.name if recipe.builder else "all",
        "rounds": count,
        **({"reward": variant.reward} if variant.reward else {}),
        "generations": generations(config, variant),
        "updates": config.train.steps,
    }
