"""Conversations as people and judges read them: turns with who speaks, no marks of any template."""

from __future__ import annotations

from collections.abc import Sequence


def conversation_text(text: str | Sequence[tuple[str, ...]]) -> str:
    """A prompt or response as plain text.

    Text is as it is, and so is a single message of a user or an assistant. Of several, each begins with its role.

    Args:
        text: Text, or messages whose first two values are role and content.
    """
    if isinstance(text, str):
        return text
    if len(text) == 1 and text[0][0] in ("user", "assistant"):
        return _said(text[0])
    return "\n\n".join(f"{message[0]}: {_said(message)}" for message in text)


def _said(message: tuple[str, ...]) -> str:
    """What a message says, and below it the calls of tools that it makes."""
    calls = getattr(message, "tool_calls", "")
    return "\n".join(part for part in (message[1], f"calls: {calls}" if calls else "") if part)
