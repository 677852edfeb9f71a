"""Model cards: what lies beside an adapter for whoever loads it, who has neither this folder nor this report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.report.tables.computed import BUILDERS
from prefopt.report.tables.table import Table, markdown_safe, to_markdown
from prefopt.storage.formats import write_text
from prefopt.storage.redact import portable
from prefopt.storage.schema import REFERENCE

CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
Row = Mapping[str, Any]


def write_cards(folder: Path, results: Row) -> None:
    """Write a card beside every adapter that is at hand, or leave it where it says the same already.

    A run's own list of files does not name the card, since it tells of other runs, too.
    """
    for run in results["runs"]:
        adapter = folder / "runs" / run["variant"] / f"seed-{run['seed']}" / "adapter"
        if run["status"] != "complete" or not (adapter / ADAPTER_CONFIG).is_file():
            continue
        text = card(results, run["variant"], run["seed"], base_of(adapter))
        path = adapter / CARD
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def base_of(adapter: Path) -> tuple[str, str]:
    """The base model that an adapter's own configuration names, and the revision; empty where it has none."""
    facts = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return str(facts.get("base_model_name_or_path") or ""), str(facts.get("revision") or "")


def card(results: Row, variant: str, seed: int, base: tuple[str, str], *, merged: bool = False) -> str:
    """The card of one policy, in Markdown with the hub's header.

    Args:
        results: From ``analyse``.
        variant: Its loss.
        seed: Its seed.
        base: Name or folder of the model that the adapter is for, and its revision.
        merged: The weights are whole ones, with the adapter added.
    """
    entry = next(entry for entry in results["variants"] if entry["variant"] == variant)
    parts = [
        _header(entry, base, merged),
        f"# {markdown_safe(variant)}, seed {seed}\n",
        _what(results, entry, merged),
        "## Load it\n",
        _loading(merged),
        _origin(results, base, merged),
        "## Data, loss and settings\n",
        _facts(list(_settings(results, entry, seed))),
        "## Results\n",
        *_results(results, variant),
        "## Reproduce\n",
        _reproduce(results),
    ]
    return "\n".join(parts)


def _header(entry: Row, base: tuple[str, str], merged: bool) -> str:
    """Metadata that the hub reads; a base model on this machine's disk is none that it knows."""
    lines = ["---", f"library_name: {'transformers' if merged else 'peft'}", "pipeline_tag: text-generation"]
    if base[0] and not Path(base[0]).is_absolute():
        lines.append(f"base_model: {json.dumps(base[0])}")
    tags = ["prefopt", "preference-optimization", str(entry["loss"]), *([] if merged else ["lora"])]
    return "\n".join([*lines, "tags:", *(f"- {json.dumps(tag)}" for tag in tags), "---", ""])


def _what(results: Row, entry: Row, merged: bool) -> str:
    others = [v["variant"] for v in results["variants"] if v["variant"] != entry["variant"]]
    beside = f", beside {markdown_safe(', '.join(others))}, under the same conditions" if others else ""
    kind = "A language model" if merged else "A LoRA adapter"
    summary = f" {markdown_safe(entry['summary'].rstrip('.'))}." if entry["summary"] else ""
    return (
        f"{kind} trained on preference pairs by prefopt {results['setup']['version']} with the loss "
        f"`{entry['loss']}`{beside}: one run of the comparison {markdown_safe(str(results['name']))}.{summary}\n"
    )


def _loading(merged: bool) -> str:
    name = "transformers import AutoModelForCausalLM" if merged else "peft import AutoPeftModelForCausalLM"
    model = name.rpartition(" ")[2]
    return (
        f"```python\nfrom {name}\nfrom transformers import AutoTokenizer\n\n"
        f'model = {model}.from_pretrained("path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```\n'
    )


def _origin(results: Row, base: tuple[str, str], merged: bool) -> str:
    """Which weights it belongs to, and whether they can be lost."""
    name, revision = base
    setup = results["setup"]
    shown = f"`{portable(name)}`" + (f" at revision `{revision}`" if revision else "")
    steps = setup["reference"].get("sft_steps") or 0
    tuned = f", which is {setup['model'].get('name', 'the model')} after {steps} steps of fine-tuning" if steps else ""
    said = f"{'Made from' if merged else 'Its base model is'} {shown}{tuned}."
    if not merged and Path(name).is_absolute():
        said += " That folder is of the machine where it was trained: `prefopt export --merge` writes whole weights."
    return said + "\n"


def _settings(results: Row, entry: Row, seed: int) -> Iterator[tuple[str, Any]]:
    setup = results["setup"]
    config, data = setup["config"], setup["data"]
    train, lora = config.get("train", {}), config.get("lora", {})
    yield "data", config.get("data", {}).get("source") or f"task {setup['task'].get('name', '?')}"
    yield "training pairs", data.get("train_pairs")
    yield "held-out pairs", data.get("heldout_pairs")
    yield "hash of the pairs", setup["hashes"].get("data") or setup["hashes"].get("pairs")
    yield "loss", entry["loss"]
    yield "hyperparameters", entry["hyperparameters"] or None
    yield "source of the loss", entry["source"] or None
    yield "learning rate", entry["learning_rate"]
    yield "seed", seed
    yield from ((name.replace("_", " "), train.get(name)) for name in ("steps", "pairs_per_step", "warmup_steps"))
    yield from ((name.replace("_", " "), train.get(name)) for name in ("schedule", "weight_decay", "max_grad_norm"))
    yield from ((f"LoRA {name}", lora.get(name)) for name in ("rank", "alpha", "targets", "dropout"))
    model = setup["model"]
    yield "model", model.get("name")
    yield "type of the weights", model.get("dtype")
    quantization = config.get("model", {}).get("quantization", "none")
    yield "quantization while training", quantization if quantization != "none" else None


def _facts(pairs: Sequence[tuple[str, Any]]) -> str:
    rows = [f"| {name} | {markdown_safe(_plain(value))} |" for name, value in pairs if value not in (None, "")]
    return "\n".join(["| | |", "| :-- | :-- |", *rows, ""])


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _results(results: Row, variant: str) -> Iterator[str]:
    """The leaderboard's row of the loss over all its seeds, and each seed's own; cost is no property of a model."""
    board = BUILDERS["leaderboard"](results)
    shown = ("variant", "verdict", "win_rate", "reward", "kl", "accuracy", "length", "seeds")
    rows = [row for row in board.rows if row["variant"] == variant]
    columns = tuple(column for column in board.columns if column.key in shown)
    yield to_markdown(Table(board.name, board.title, columns, rows))
    judge, setup = results["setup"]["judge"], results["setup"]
    by = f"Judged by {markdown_safe(str(judge))} against" if judge else "Nobody has judged it; KL and length are to"
    yield (
        f"{by} the {REFERENCE}, the model before training, on {setup['evaluation_prompts']} prompts with "
        f"{setup['samples_per_prompt']} samples each, over all seeds; in brackets 95 % intervals over seeds and "
        "prompts. The numbers are of this task: nothing was tested beyond it, safety least of all.\n"
    )
    seeds = BUILDERS["seeds"](results)
    own = tuple(column for column in seeds.columns if not column.key.endswith("_s"))
    yield to_markdown(Table(seeds.name, seeds.title, own, [row for row in seeds.rows if row["variant"] == variant]))


def _reproduce(results: Row) -> str:
    setup = results["setup"]
    commit = f" at commit {setup['commit']}" if setup["commit"] else ""
    return (
        f"```console\n$ {setup['command'].replace('`', '')}\n```\n\nprefopt {setup['version']}{commit}; the manifest's "
        f"hash is {setup['manifest_hash']}.\n"
    )
