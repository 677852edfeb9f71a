"""Conversations as people and judges read them: turns with who speaks, no marks of any template."""

from __future__ import annotations

from prefopt.data.types import Message, Text


def conversation_text(text: Text) -> str:
    """A prompt or response as plain text.

    Text is as it is, and so is a single message of a user or an assistant. Of several, each begins with its role.
    """
    if isinstance(text, str):
        return text
    if len(text) == 1 and text[0].role in ("user", "assistant"):
        return _said(text[0])
    return "\n\n".join(f"{message.role}: {_said(message)}" for message in text)


def _said(message: Message) -> str:
    """What a message says, and below it the calls of tools that it makes."""
    calls = getattr(message, "tool_calls", "")
    return "\n".join(part for part in (message.content or "", f"calls: {calls}" if calls else "") if part)
