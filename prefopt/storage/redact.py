"""Takes out what must not be written: secrets, wherever they come from, and the path of the user's home."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_SHORTEST = 8  # shorter values of such variables are words such as "true"
# Tokens of well-known issuers, and what stands before the @ of an address.
_SECRET_SHAPE = re.compile(
    r"\b(?:hf_\w{16,}|(?:sk|pk|rk)-[\w-]{16,}|gh[opsu]_\w{16,}|AKIA[0-9A-Z]{16})|(?<=://)[^/@\s]+(?=@)"
)


def without_secrets(text: str) -> str:
    """``text`` with ``[secret]`` for values of secret environment variables and for what looks like a token."""
    return _without(text, _secret_values())


def redacted(value: Any) -> Any:
    """A value for JSON, without secrets in any of its texts and keys."""
    secrets = _secret_values()

    def clean(item: Any) -> Any:
        if isinstance(item, str):
            return _without(item, secrets)
        if isinstance(item, Mapping):
            return {clean(key): clean(part) for key, part in item.items()}
        if isinstance(item, list | tuple):
            return type(item)([clean(part) for part in item])
        return item

    return clean(value)


def _secret_values() -> list[str]:
    """Values of secret environment variables, the longest first, since one may hold another."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST}
    return sorted(values, key=len, reverse=True)


def _without(text: str, secrets: Sequence[str]) -> str:
    for value in secrets:
        text = text.replace(value, "[secret]")
    return _SECRET_SHAPE.sub("[secret]", text)


def portable(text: str) -> str:
    """``text`` as it may be published: without secrets, and with ``~`` for the home folder."""
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?![^/\s\"'=,])", "~", text)
    return without_secrets(text)
