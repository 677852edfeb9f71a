"""Which text would be read as a control token, and where in a text such words are letters.

A template's own control tokens are tokens. What a user, a tool or a system message says is letters whatever it looks
like. What an assistant says is what the model is to say: its thoughts' and calls' tags (``<think>``, ``</think>``, and
added tokens that are not special) are tokens, and the special ones that give a conversation its shape are letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAG = re.compile(r"</?(\w+)>")


@dataclass(frozen=True, slots=True)
class Spelled:
    """A text, and where in it words stand that look like control tokens and are letters.

    Attributes:
        text: All of it.
        spans: (start, end) of each such word, in order.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, text: str, letters: re.Pattern[str]) -> Spelled:
        """A text in which everything that ``letters`` matches is letters."""
        return cls(text, tuple(match.span() for match in letters.finditer(text)))

    def part(self, start: int, end: int | None = None) -> Spelled:
        """``text[start:end]`` with its spans."""
        end = len(self.text) if end is None else end
        inside = tuple((a - start, b - start) for a, b in self.spans if start <= a and b <= end)
        return Spelled(self.text[start:end], inside)

    def __add__(self, other: Spelled) -> Spelled:
        """One text behind the other."""
        moved = tuple((start + len(self.text), end + len(self.text)) for start, end in other.spans)
        return Spelled(self.text + other.text, self.spans + moved)

    def pieces(self) -> list[str]:
        """Text, word, text, word, ..., text."""
        pieces, at = [], 0
        for start, end in self.spans:
            pieces += [self.text[at:start], self.text[start:end]]
            at = end
        return [*pieces, self.text[at:]]


@dataclass(frozen=True, slots=True)
class Control:
    """A tokenizer's control tokens.

    Attributes:
        tokens: Matches every one: special tokens, and added ones that the template writes.
        said: Matches those of them that are letters in what an assistant says.
    """

    tokens: re.Pattern[str]
    said: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Control:
        """Those of a tokenizer and its template."""
        template = template_of(tokenizer)
        added = list(tokenizer.added_tokens_decoder.values())
        names = {token.content for token in added if token.special}
        tags = {name for name in names if _is_tag(name, names)} - _ends(tokenizer)
        written = {token.content for token in added if token.content.strip() and token.content in template}
        return cls(_any_of(names | written), _any_of(names - tags))

    def in_role(self, role: str) -> re.Pattern[str]:
        """What is letters in a message of ``role``."""
        return self.said if role == "assistant" else self.tokens

    def written(self, text: Spelled) -> Iterator[re.Match[str]]:
        """The control tokens of a text that are tokens in it."""
        letters = {start for start, _ in text.spans}
        return (match for match in self.tokens.finditer(text.text) if match.start() not in letters)


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template that chats are rendered with, or an empty text.

    Raises:
        UsageError: If there are several, and none is the one to use.
    """
    try:
        return tokenizer.get_chat_template() if tokenizer.chat_template else ""
    except ValueError:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise UsageError(
            f"the tokenizer has the chat templates {names} and no default: give one with --chat-template FILE"
        ) from None


def _ends(tokenizer: PreTrainedTokenizerBase) -> set[Any]:
    return {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}


def _is_tag(name: str, names: set[str]) -> bool:
    """Whether a token opens or closes something, as ``<think>`` and ``</think>`` do."""
    tag = _TAG.fullmatch(name)
    return tag is not None and {f"<{tag[1]}>", f"</{tag[1]}>"} <= names


def _any_of(names: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)")
