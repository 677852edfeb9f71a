"""What a model must be before anything is trained on it: inert files, all weights there and finite, known attention.

Models of the hub are fetched as data only: configuration, tokenizer and safetensors of one commit, never code or a
pickle. Everything after that reads a local folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from prefopt.errors import MachineError

ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
_SHOWN = 3


def check_folder(name: str, folder: Path) -> None:
    """Refuse what would make loading do something else than read weights.

    Raises:
        MachineError: If it is an adapter, has no safetensors, or names an attention that is native code.
    """
    if (folder / "adapter_config.json").is_file():
        raise MachineError(f"model {name}: is an adapter; merge it into its base model and save that, or give the base")
    if not any(folder.glob("*.safetensors")):
        others = [path.name for suffix in ("bin", "pt", "pth", "ckpt", "h5") for path in folder.glob(f"*.{suffix}")]
        only = f", only {', '.join(sorted(others)[:_SHOWN])}, which could run code when read" if others else ""
        raise MachineError(f"model {name}: has no weights as .safetensors{only}; convert it to safetensors first")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        attention = config.get("attn_implementation") or config.get("_attn_implementation")
    except (OSError, ValueError, AttributeError, RecursionError) as problem:
        raise MachineError(f"model {name}: config.json cannot be read: {first_line(problem)}") from None
    if attention is not None and attention not in ATTENTIONS:
        raise MachineError(
            f"model {name}: config.json asks for attention {str(attention)[:80]!r}, and native code is not fetched; "
            f"known: {', '.join(ATTENTIONS)}"
        )


def check_loaded(name: str, model: Any, tokenizer: Any, info: dict[str, Any]) -> None:
    """Refuse a model that is not what its files say.

    Args:
        name: As the user gave it.
        model: With its weights.
        tokenizer: Of the model.
        info: What ``from_pretrained(output_loading_info=True)`` tells.

    Raises:
        MachineError: For weights that are missing or not finite, no end token, or token ids without an embedding.
    """
    if missing := sorted(info.get("missing_keys", ())):
        raise MachineError(
            f"model {name}: its files lack {len(missing)} weights, such as {', '.join(missing[:_SHOWN])}; "
            "they would have been drawn at random: download or export it again"
        )
    if tokenizer.eos_token_id is None:
        raise MachineError(f"model {name}: its tokenizer has no end-of-sequence token, which ends every response")
    rows, largest = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        raise MachineError(
            f"model {name}: its tokenizer has the id {largest}, and the model {rows} embeddings; "
            "give the tokenizer it was trained with, or resize the embeddings and save it"
        )
    for key, weight in model.named_parameters():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise MachineError(f"model {name}: weight {key} is not finite; download or export the model again")


def first_line(problem: BaseException) -> str:
    """The first line of what an error says, or its type."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:300]
