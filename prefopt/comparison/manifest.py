"""What a comparison was made of, as its manifest says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import prefopt
from prefopt.comparison import provenance
from prefopt.config.schema import Config, Variant
from prefopt.prepare.materials import Materials
from prefopt.runtime.device import device_facts
from prefopt.storage.redact import portable
from prefopt.storage.schema import SCHEMA
from prefopt.train.autosize import Fit


def manifest(config: Config, materials: Materials, chosen: Fit, command: Sequence[str]) -> dict[str, Any]:
    """What the comparison was made of."""
    base, evaluation = materials.model.base, config.evaluation
    model = base.model
    device = device_facts(base.device)
    return {
        "schema": SCHEMA,
        "name": config.name,
        "prefopt_version": prefopt.__version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": [portable(word) for word in command],
        "commit": provenance.commit(),
        "config": config.model_dump(mode="json"),
        "seeds": list(config.seeds),
        "variants": [_variant_facts(config, variant) for variant in config.variants],
        "model": {
            "name": portable(config.model.name),
            "revision": base.revision,
            "hash": base.hash,
            "dtype": str(base.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in model.parameters() if p.device.type != "meta"),
            "packed": base.packed,
            "why_plain": base.why_plain,
        },
        "reference": {"sft_steps": config.sft_steps, "hash": base.hash},
        "task": materials.task_facts,
        "data": {
            "train_pairs": len(materials.train.pairs),
            "heldout_pairs": len(materials.heldout.pairs),
            "evaluation_prompts": len(materials.prompts.ids),
            "samples_per_prompt": evaluation.samples,
            **materials.facts,
        },
        "step": dataclasses.asdict(chosen),
        "hashes": {
            "data": materials.data_hash,
            "reference_train": materials.train.reference.hash,
            "reference_heldout": materials.heldout.reference.hash,
            "code": provenance.code_hash(),
        },
        "packages": provenance.packages(),
        "device": device,
    }


def _variant_facts(config: Config, variant: Variant) -> dict[str, Any]:
    loss = variant.build()
    return {
        "variant": variant.name,
        "loss": loss.name,
        "spec": loss.spec(),
        "source": loss.source,
        "summary": (type(loss).__doc__ or "").strip().splitlines()[0],
        "needs_reference": loss.needs_reference,
        "length_normalized": loss.length_normalized,
        "batch_coupled": loss.batch_coupled,
        "learning_rate": config.learning_rate(variant),
    }
