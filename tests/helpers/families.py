"""Small tokenizers with chat template and control tokens of a family of models, as the package trl ships them."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path
from typing import Any

import tiny
from tokenizers import AddedToken

_TOKEN = re.compile(r"<\|[^|<>\n ]+\|>|<｜[^｜<>\n ]+｜>|</?[a-z_]+>|<\|[a-z_]+>|<[a-z_]+\|>|\[/?[A-Z_]{3,}\]")
_TURN = re.compile(r"<(?:bos|eos|pad|start_of_turn|end_of_turn|end_of_utterance|start_of_image|image|turn|s)>|</s>")
END = {"gemma": "<eos>", "deepseek": "<｜end▁of▁sentence｜>", "phi3": "<|endoftext|>", "glm4moe": "<|endoftext|>"}


def folder() -> Path | None:
    """Where trl keeps its templates, or None where it is not installed."""
    spec = importlib.util.find_spec("trl")
    return (
        Path(spec.submodule_search_locations[0]) / "chat_templates"
        if spec and spec.submodule_search_locations
        else None
    )


def names() -> list[str]:
    """All templates that trl ships."""
    return sorted(path.stem for path in folder().glob("*.jinja")) if folder() else []


def tokenizer(name: str, *, tags_are_special: bool = False) -> Any:
    """A byte-level tokenizer whose control tokens are those of a template.

    Args:
        name: Of the template.
        tags_are_special: Whether ``<think>`` and the like are special tokens; those of Qwen and DeepSeek are not.
    """
    made = copy.deepcopy(tiny.tokenizer())
    made.chat_template = (folder() / f"{name}.jinja").read_text(encoding="utf-8")
    words = sorted(set(_TOKEN.findall(made.chat_template)))
    special = [
        word for word in words if not word.startswith(("</", "<")) or "|" in word or "｜" in word or _TURN.match(word)
    ]
    tags = [word for word in words if word not in special]
    made.add_special_tokens({"additional_special_tokens": special + (tags if tags_are_special else [])})
    made.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    end = next((token for prefix, token in END.items() if name.startswith(prefix)), None)
    if end is not None:
        made.add_special_tokens({"eos_token": end})
    return made
