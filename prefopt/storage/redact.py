"""What must not be written down: secrets, wherever they come from, and the path of the user's home."""

from __future__ import annotations

import os
import re
from pathlib import Path

_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_SHORTEST = 8  # shorter values of such variables are words such as "true"
# Tokens of well-known issuers, and what stands before the @ of an address.
_SECRET_SHAPE = re.compile(
    r"\b(?:hf_\w{16,}|(?:sk|pk|rk)-[\w-]{16,}|gh[opsu]_\w{16,}|AKIA[0-9A-Z]{16})|(?<=://)[^/@\s]+(?=@)"
)


def without_secrets(text: str) -> str:
    """``text`` with ``[secret]`` for values of secret environment variables and for what looks like a token."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "[secret]")
    return _SECRET_SHAPE.sub("[secret]", text)


def portable(text: str) -> str:
    """``text`` as it may be published: without secrets, and with ``~`` for the home folder."""
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?![^/\s\"'=,])", "~", text)
    return without_secrets(text)
