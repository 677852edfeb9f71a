"""What a judge's reply says: thoughts left out, dressing taken off, and then exactly one verdict or none.

Models dress a letter in what they have learnt: a fence of code, bold, a box, quotes, the words "final verdict", marks
of a template. Such dressing is taken off, since it leaves no doubt. Prose that mentions letters is not guessed at, and
neither are two verdicts.
"""

from __future__ import annotations

import json
import re

_POINTS = {"A": 1.0, "B": 0.0, "C": 0.5}
# <think>, [THINK], <seed:think>, <|begin_of_thought|>, <|START_THINKING|> and their like, and what ends them.
_THOUGHT = re.compile(
    r"<\|(?P<mark>begin|start|end)_(?:of_)?(?:thought|thinking|reasoning)\|>"
    r"|[<\[◁]\|?(?P<end>/?)(?:\w+[:_])?(?:think(?:ing)?|thoughts?|reasoning|reflection|analysis)\|?[>\]▷]",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")  # of the harmony format: analysis, then final
_CONTROL = re.compile(r"<\|[\w-]+\|>|</?s>|<eos>|<(?:end|start)_of_turn>", re.IGNORECASE)
_DRESSING = [
    re.compile(pattern, re.DOTALL | re.IGNORECASE)
    for pattern in (
        r"```[\w-]*[ \t]*\n?(.*?)\n?```",
        r"\*{1,3}(.+?)\*{1,3}", r"_{1,3}(.+?)_{1,3}", r"`{1,2}(.+?)`{1,2}",
        r"\$?\\boxed\{(.+?)\}\$?", r"\\text(?:bf)?\{(.+?)\}", r"\$(.+?)\$",
        r"<(answer|verdict|output|result)>(.+?)</\1>",
        r"\[\[(.+?)\]\]", r"\[(.+?)\]", r"\((.+?)\)", r"\"(.+?)\"", r"'(.+?)'", r"“(.+?)”",
        r"(?:(?:the|my|final)\s+)*(?:verdict|answer|decision|choice|judge?ment|preference)\s*(?:is\b)?\s*[:=]?\s*(.+)",
        r"(?:response|answer|option)\s+([abc])(?:\s+is\s+(?:the\s+)?better(?:\s+(?:response|one))?)?",
        r"(.+?)[.:!]",
    )
]  # fmt: skip


def without_thoughts(reply: str) -> tuple[str, bool]:
    """What follows the last thought, and whether a thought was begun and not ended."""
    channels = list(_CHANNEL.finditer(reply))
    if channels:
        last = channels[-1]
        return reply[last.end() :], last[1].lower() != "final"
    ends_at, open_since = 0, None
    for mark in _THOUGHT.finditer(reply):
        if mark["end"] or (mark["mark"] or "").lower() == "end":
            ends_at, open_since = mark.end(), None
        elif open_since is None:
            open_since = mark.start()
    return reply[ends_at:], open_since is not None


def parse_reply(reply: str) -> float | None:
    """How far the first response wins by a reply, or None where the reply is not one plain verdict.

    A letter by itself, however it is dressed, or the field ``verdict`` of a JSON object. Words may follow it, or lead
    to it, in lines of their own that hold no other verdict.
    """
    text, is_open = without_thoughts(reply)
    if is_open:
        return None
    text = _CONTROL.sub("", text).strip()
    alone = _plain(text)
    if alone is not None or "\n" not in text:
        return alone
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    verdicts = [(place, value) for place, line in enumerate(lines) if (value := _plain(line)) is not None]
    if len(verdicts) != 1:
        return None
    place, value = verdicts[0]
    # A letter in the middle of an explanation may be a heading; at its start or end it is the verdict.
    return value if place in (0, len(lines) - 1) else None


def _plain(text: str) -> float | None:
    """The verdict that a text is, without its dressing; None where anything else is left."""
    for _ in range(8):  # fences around bold around quotes
        text = text.strip()
        if len(text) == 1:
            return _POINTS.get(text.upper())
        if text.startswith("{") and text.endswith("}") and (value := _field(text)) is not None:
            text = value
            continue
        inside = next((match[match.lastindex or 0] for one in _DRESSING if (match := one.fullmatch(text))), None)
        if inside is None or inside == text:
            return None
        text = inside
    return None


def _field(text: str) -> str | None:
    """The one ``verdict`` of a JSON object, which may say why beside it."""
    try:
        fields = json.loads(text, object_pairs_hook=list)  # pairs, since an object may name one field twice
    except (ValueError, RecursionError):
        return None
    values = [value for name, value in fields if str(name).lower() == "verdict"]
    return values[0] if len(values) == 1 and isinstance(values[0], str) and values[0] != text else None
